//! A page in headless Chromium, driven by ChromeDriver over WebDriver (<https://www.w3.org/TR/webdriver2/>).

use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use super::client::{self, Answer};
use crate::harness::Running;

/// Names that Chromium has on different systems.
const BROWSERS: [&str; 4] =
    ["chromium", "chromium-browser", "google-chrome-stable", "google-chrome"];
/// Without a window, a sandbox (its pages are ours, and root has none), and calls to its maker.
const ARGUMENTS: [&str; 9] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1000,720",
];

/// Keys as WebDriver writes them.
pub const ENTER: &str = "\u{e007}";
pub const ESCAPE: &str = "\u{e00c}";
pub const TAB: &str = "\u{e004}";
pub const SHIFT: &str = "\u{e008}";
pub const CONTROL: &str = "\u{e009}";

/// Longest wait for an answer of the driver. A browser takes minutes to start where every core is taken.
const PATIENCE: Duration = Duration::from_secs(600);

/// Held by the test that has a browser: each takes several processes.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A browser with one page.
pub struct Browser {
    _alone: MutexGuard<'static, ()>,
    driver: Option<Running>,
    address: String,
    session: String,
}

impl Browser {
    /// Starts a browser; none where Chromium or ChromeDriver is missing, which is said.
    pub fn start() -> Option<Self> {
        let found = |name: &&str| {
            let command = format!("command -v {name}");
            let output = Command::new("bash").args(["-c", &command]).output().unwrap();
            let path = String::from_utf8(output.stdout).unwrap().trim().to_owned();
            output.status.success().then_some(path)
        };
        let (Some(browser), Some(driver)) =
            (BROWSERS.iter().find_map(found), found(&"chromedriver"))
        else {
            eprintln!(
                "skipped: the chat page in a browser (no Chromium with ChromeDriver; scripts/setup browser \
                 installs them)"
            );
            return None;
        };
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let mut command = Command::new("bash");
        command.args(["-c", "exec \"$0\" --port=0 >&2", &driver]);
        let mut driver = Running::start(&mut command);
        let port = RefCell::new(String::new());
        driver.wait_until(|said| {
            let number =
                said.split("successfully on port ").nth(1).and_then(|rest| rest.split('.').next());
            number.map(|number| number.clone_into(&mut port.borrow_mut())).is_some()
        });
        let address = format!("127.0.0.1:{}", port.into_inner());
        let browser = Self { _alone: alone, driver: Some(driver), address, session: String::new() }
            .with_session(&browser);
        browser.color_scheme("light");
        Some(browser)
    }

    fn with_session(mut self, browser: &str) -> Self {
        let options = json!({"binary": browser, "args": ARGUMENTS});
        let wanted = json!({"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}});
        let made = self.ask("POST", "", &wanted);
        self.session = format!("/{}", made["sessionId"].as_str().unwrap());
        self
    }

    /// A command of the session, and the value of its answer.
    #[track_caller]
    fn ask(&self, method: &str, command: &str, body: &Value) -> Value {
        let path = format!("/session{}{command}", self.session);
        let body = if method == "GET" { String::new() } else { body.to_string() };
        let stream = client::open(&self.address, method, &path, "", &body);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Answer::read(stream).ok()["value"].clone()
    }

    #[track_caller]
    pub fn open(&self, url: &str) {
        self.ask("POST", "/url", &json!({"url": url}));
    }

    /// What `script` returns.
    #[track_caller]
    pub fn script(&self, script: &str) -> Value {
        self.ask("POST", "/execute/sync", &json!({"script": script, "args": []}))
    }

    /// The text that `expression` has.
    #[track_caller]
    pub fn text(&self, expression: &str) -> String {
        let value = self.script(&format!("return {expression}"));
        value.as_str().unwrap_or_else(|| panic!("{expression} is {value}")).to_owned()
    }

    /// Waits until `expression` is true.
    #[track_caller]
    pub fn until(&self, expression: &str) {
        for _ in 0..1500 {
            if self.script(&format!("return Boolean({expression})")) == true {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let page = self.text("document.body.innerText");
        panic!("waited for thirty seconds for {expression} of:\n{page}");
    }

    /// Presses and releases keys, one after the other; [`SHIFT`] and [`CONTROL`] are held for the key behind
    /// them.
    #[track_caller]
    pub fn keys(&self, text: &str) {
        let mut actions = Vec::new();
        let mut held = None;
        for key in text.chars() {
            actions.push(json!({"type": "keyDown", "value": key}));
            if [SHIFT, CONTROL].iter().any(|holds| holds.starts_with(key)) {
                held = Some(key);
                continue;
            }
            for key in [Some(key), held.take()].into_iter().flatten() {
                actions.push(json!({"type": "keyUp", "value": key}));
            }
        }
        let keyboard = json!({"type": "key", "id": "keyboard", "actions": actions});
        self.ask("POST", "/actions", &json!({"actions": [keyboard]}));
    }

    #[track_caller]
    fn element(&self, selector: &str) -> String {
        let asked = json!({"using": "css selector", "value": selector});
        let found = self.ask("POST", "/element", &asked);
        let id = found.as_object().unwrap().values().next().unwrap();
        format!("/element/{}", id.as_str().unwrap())
    }

    #[track_caller]
    pub fn click(&self, selector: &str) {
        self.ask("POST", &format!("{}/click", self.element(selector)), &json!({}));
    }

    /// What a screen reader says an element is, and what it calls it.
    #[track_caller]
    pub fn role_and_label(&self, selector: &str) -> (String, String) {
        let element = self.element(selector);
        let computed = |what: &str| {
            let value = self.ask("GET", &format!("{element}/computed{what}"), &Value::Null);
            value.as_str().unwrap().to_owned()
        };
        (computed("role"), computed("label"))
    }

    /// Has the page drawn for users who prefer `light` or `dark`.
    #[track_caller]
    pub fn color_scheme(&self, scheme: &str) {
        let feature = json!({"name": "prefers-color-scheme", "value": scheme});
        let body = json!({"cmd": "Emulation.setEmulatedMedia", "params": {"features": [feature]}});
        self.ask("POST", "/goog/cdp/execute", &body);
    }

    /// Writes a picture of the page, a PNG.
    #[track_caller]
    pub fn save_picture(&self, path: &Path) {
        let picture = self.ask("GET", "/screenshot", &Value::Null);
        let command = "base64 --decode <<< \"$0\" > \"$1\"";
        let mut decode = Command::new("bash");
        decode.args(["-c", command, picture.as_str().unwrap()]).arg(path);
        assert!(decode.status().unwrap().success());
    }
}

impl Drop for Browser {
    /// Ends the browser and its driver, also of a test that failed: without the driver, the browser would stay.
    fn drop(&mut self) {
        let Some(driver) = self.driver.take() else { return };
        if let Ok(mut stream) = TcpStream::connect(&self.address) {
            let host = &self.address;
            let end = format!(
                "DELETE /session{} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
                self.session
            );
            let _ = stream.set_read_timeout(Some(Duration::from_secs(30)));
            let _ = stream.write_all(end.as_bytes());
            let _ = stream.read_to_end(&mut Vec::new());
        }
        driver.signal("TERM");
        driver.finish();
    }
}
