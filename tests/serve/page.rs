//! The chat page, in a browser.

use serde_json::json;

use super::browser::{Browser, CONTROL, ENTER, ESCAPE, SHIFT, TAB};
use super::paced_worker::PacedWorker;
use super::server::Server;
use crate::harness::repository;

/// Nothing runs: `Stop` has nothing to stop.
const IDLE: &str = "document.getElementById('stop').disabled";
/// What the last message says, and what is noted under it.
const LAST: &str = "[...document.querySelectorAll('li .said')].at(-1).textContent";
const NOTE: &str = "[...document.querySelectorAll('li .note')].at(-1).textContent";
const MESSAGES: &str = "document.querySelectorAll('li').length";
/// The part that has the keyboard.
const FOCUS: &str = "(document.activeElement.ariaLabel || document.activeElement.textContent || document.activeElement.id)";

/// One file that asks nobody else.
#[test]
fn the_page_stands_alone() {
    let server = Server::start(&[]);
    let page = server.get("/");
    assert!(page.headers.contains("text/html"), "{}", page.headers);
    for outside in ["http://", "https://", "src=", "@import", "url("] {
        assert!(!page.body.contains(outside), "{outside}");
    }
    server.stop();
}

/// The page of a router in front of `worker`, when it knows the model.
fn open_paced(browser: &Browser, worker: &PacedWorker) -> Server {
    let router = Server::route(&["--workers", &worker.url]);
    router.wait_until("the worker", |router| {
        router.get("/metrics").body.contains("altiplano_route_workers_up 1")
    });
    browser.open(&router.url());
    browser.until("document.querySelector('select').value === 'paced'");
    router
}

fn user(text: &str) -> (String, String) {
    ("user".into(), text.into())
}

fn assistant(text: &str) -> (String, String) {
    ("assistant".into(), text.into())
}

/// An answer is shown as it comes, stopped, and asked for again with another message, all by the keyboard.
#[test]
fn a_conversation_by_the_keyboard() {
    let Some(browser) = Browser::start() else { return };
    let worker = PacedWorker::start();
    let router = open_paced(&browser, &worker);

    // The message field has the keyboard at once. Shift and Enter begin a line.
    browser.keys(&format!("Who goes{SHIFT}{ENTER}there?{ENTER}"));
    browser.until(
        "document.querySelector('li[aria-busy]') && document.getElementById('send').disabled",
    );
    worker.say(" One");
    browser.until(&format!("{LAST} === 'One'"));
    worker.say(" two.");
    browser.until(&format!("{LAST} === 'One two.'"));
    worker.end("length");
    browser.until(IDLE);
    let note = browser.text(NOTE);
    let rate = note.strip_prefix("2 tokens · ").and_then(|rest| rest.split_once(" tokens/s · "));
    let (rate, reason) = rate.unwrap_or_else(|| panic!("{note}"));
    assert!(rate.parse::<f64>().unwrap() > 0.0, "{note}");
    assert_eq!(reason, "the most tokens were reached");
    assert_eq!(worker.asked(), [user("Who goes\nthere?")]);
    let heard = browser.text("document.getElementById('status').textContent");
    assert!(heard.contains("One two.") && heard.contains("most tokens"), "{heard}");

    // Escape stops, and the worker is told.
    browser.keys(&format!("Go on.{ENTER}"));
    worker.say("Half an ");
    browser.until(&format!("{LAST} === 'Half an '"));
    browser.keys(ESCAPE);
    browser.until(IDLE);
    worker.wait_until_left(1);
    assert!(browser.text(NOTE).ends_with("you stopped it"), "{}", browser.text(NOTE));
    assert_eq!(browser.text(LAST), "Half an ");
    assert_eq!(worker.asked(), [user("Who goes\nthere?"), assistant(" One two."), user("Go on.")]);

    // Back to the first message: edited and left, then edited and sent again, without what followed.
    browser.keys(&format!("{SHIFT}{TAB}{SHIFT}{TAB}"));
    assert_eq!(browser.text(FOCUS), "Edit message 1 and send it again");
    browser.keys(ENTER);
    assert_eq!(browser.text("document.activeElement.value"), "Who goes\nthere?");
    browser.keys(ESCAPE);
    assert_eq!(browser.script(&format!("return {MESSAGES}")), 4);
    browser.keys(&format!("{SHIFT}{TAB}{SHIFT}{TAB}{ENTER}{CONTROL}aNobody.{TAB}"));
    assert_eq!(browser.text(FOCUS), "Send again");
    browser.keys(ENTER);
    worker.say("Pass.");
    worker.end("stop");
    browser.until(&format!("{IDLE} && {LAST} === 'Pass.'"));
    assert!(browser.text(NOTE).ends_with("the model ended it"), "{}", browser.text(NOTE));
    assert_eq!(worker.asked(), [user("Nobody.")]);
    assert_eq!(browser.script(&format!("return {MESSAGES}")), 2);

    // A refusal is said in the conversation, and what was refused is not said again.
    worker.refuse("the prompt is too long");
    browser.keys(&format!("And?{ENTER}"));
    browser.until(&format!("{IDLE} && {NOTE}.includes('too long')"));
    browser.keys(&format!("More.{ENTER}"));
    worker.say("Yes.");
    worker.end("stop");
    browser.until(&format!("{IDLE} && {LAST} === 'Yes.'"));
    assert_eq!(worker.asked(), [user("Nobody."), assistant("Pass."), user("More.")]);

    // Stop by its button, which a pointer can press too; then a new conversation.
    browser.keys(&format!("Last.{ENTER}"));
    worker.say("a");
    browser.until(&format!("{LAST} === 'a'"));
    browser.click("#stop");
    browser.until(IDLE);
    worker.wait_until_left(2);
    browser.click("#clear");
    assert_eq!(browser.script(&format!("return {MESSAGES}")), 0);
    assert_eq!(browser.script("return document.activeElement.id"), "text");
    router.stop();
}

/// A screen reader knows what every part is, and everything can be read in light and dark.
#[test]
fn every_part_has_a_name_and_can_be_read() {
    let Some(browser) = Browser::start() else { return };
    let server = Server::start(&[]);
    browser.open(&server.url());
    browser.until("document.querySelector('select').value");
    browser.script("document.getElementById('temperature').value = '0'");
    browser.script("document.getElementById('tokens').value = '12'");
    browser.keys(&format!("The people{ENTER}"));
    browser.until(&format!("{IDLE} && {MESSAGES} === 2"));
    // It is what the server says.
    let message = json!({"role": "user", "content": "The people"});
    let body = json!({"messages": [message], "temperature": 0, "max_completion_tokens": 12});
    let said = server.post("/v1/chat/completions", &body).ok();
    let said = said["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    assert_eq!(browser.text(LAST), said.trim_start());

    for (selector, role, label) in [
        ("#text", "textbox", "Message"),
        ("#send", "button", "Send"),
        ("#stop", "button", "Stop"),
        ("#temperature", "spinbutton", "Temperature"),
        ("#tokens", "spinbutton", "Most tokens"),
        ("#compare", "checkbox", "Compare two models"),
        ("#clear", "button", "New conversation"),
        ("#status", "status", ""),
        ("#say", "form", "Message to the model"),
        ("select", "combobox", "Model A"),
        ("section", "region", "Model A"),
        ("ol", "list", "Conversation A"),
        ("li", "listitem", ""),
        ("li button", "button", "Edit message 1 and send it again"),
        ("h1", "heading", "altiplano"),
    ] {
        let found = browser.role_and_label(selector);
        assert_eq!(found, (role.to_owned(), label.to_owned()), "{selector}");
    }
    assert_eq!(browser.role_and_label("#key").1, "Key");
    assert_eq!(browser.text("document.documentElement.lang"), "en");
    // Whatever takes input has a name.
    let nameless = "[...document.querySelectorAll('button, input, select, textarea')].filter(part => \
                    !part.textContent.trim() && !part.ariaLabel && !part.labels?.length).length";
    assert_eq!(browser.script(&format!("return {nameless}")), 0);

    // Contrast of text with what is behind it, by WCAG: at least 4.5.
    let contrast = "
        const numbers = color => color.match(/[\\d.]+/g).map(Number);
        const behind = part => {
          for (; part; part = part.parentElement) {
            const color = numbers(getComputedStyle(part).backgroundColor);
            if (color.length < 4 || color[3] > 0) return color;
          }
        };
        const light = ([r, g, b]) => [r, g, b].map(n => n / 255)
          .map(n => n <= 0.04045 ? n / 12.92 : ((n + 0.055) / 1.055) ** 2.4)
          .reduce((sum, n, i) => sum + n * [0.2126, 0.7152, 0.0722][i], 0);
        return ['h1', 'h2', 'label', 'select', '#text', '#send', '#clear', 'li.user .said', 'li.user .who',
          'li.user button', 'li.assistant .said', 'li.assistant .who', 'li.assistant .note'].map(selector => {
            const part = document.querySelector(selector);
            const two = [light(numbers(getComputedStyle(part).color)), light(behind(part))];
            return [selector, (Math.max(...two) + 0.05) / (Math.min(...two) + 0.05)];
          });";
    let ground = "getComputedStyle(document.body).backgroundColor";
    let mut grounds = Vec::new();
    for scheme in ["light", "dark"] {
        browser.color_scheme(scheme);
        grounds.push(browser.text(ground));
        for row in browser.script(contrast).as_array().unwrap() {
            assert!(row[1].as_f64().unwrap() >= 4.5, "{scheme}: {row}");
        }
    }
    assert_ne!(grounds[0], grounds[1]);
    // Where there is little room, nothing is wider than the page.
    browser.script("document.body.style.width = '22rem'");
    assert_eq!(
        browser.script("return document.body.scrollWidth <= document.body.clientWidth"),
        true
    );
    server.stop();
}

/// Two models behind a router get the same message and answer side by side.
#[test]
fn two_models_are_compared() {
    let Some(browser) = Browser::start() else { return };
    let router = Server::route(&[]);
    let start =
        |name: &str| Server::start(&["--router", &router.url(), "--served-model-name", name]);
    let [left, right] = [start("left"), start("right")];
    router.wait_until("both workers", |router| {
        router.get("/metrics").body.contains("altiplano_route_workers_up 2")
    });
    browser.open(&router.url());
    browser.until("document.querySelector('select').value");
    browser.script("document.getElementById('temperature').value = '0'");
    browser.script("document.getElementById('tokens').value = '8'");
    browser.keys(&format!("The people{ENTER}"));
    browser.until(&format!("{IDLE} && {MESSAGES} === 2"));
    assert_eq!(
        browser.script("return document.querySelectorAll('section')[1].checkVisibility()"),
        false
    );

    // What was said so far is the beginning for both.
    browser.click("#compare");
    assert_eq!(
        browser.script("return document.querySelectorAll('section')[1].checkVisibility()"),
        true
    );
    let models =
        browser.script("return [...document.querySelectorAll('select')].map(list => list.value)");
    assert_ne!(models[0], models[1]);
    browser.click("#text");
    browser.keys(&format!("of the{ENTER}"));
    browser.until(&format!("{IDLE} && {MESSAGES} === 8"));
    let of = |what: &str| {
        let lists = "[...document.querySelectorAll('ol')]";
        browser.script(&format!(
            "return {lists}.map(list => [...list.querySelectorAll('{what}')].at(-1).textContent)"
        ))
    };
    let said = of(".said");
    assert!(said[0] == said[1] && said[0] != "", "{said}");
    let who = browser.script(
        "return [...document.querySelectorAll('ol')].map(list => [...list.querySelectorAll('li.assistant .who')].at(-1).textContent)",
    );
    assert_eq!(who, models);
    let notes = of(".note");
    for side in 0..2 {
        let note = notes[side].as_str().unwrap();
        assert!(note.contains(" tokens/s · "), "{note}");
    }
    // A message of one side that is sent again goes to both.
    browser.script("document.querySelectorAll('ol')[1].querySelector('button').click()");
    browser.keys(&format!("{CONTROL}aCall me{TAB}{ENTER}"));
    browser.until(&format!("{IDLE} && {MESSAGES} === 4"));
    let first =
        "[...document.querySelectorAll('ol')].map(list => list.querySelector('.said').textContent)";
    assert_eq!(browser.script(&format!("return {first}")), json!(["Call me", "Call me"]));
    for worker in [left, right] {
        worker.stop();
    }
    router.stop();
}

/// The picture of README and docs/serving.md, of the model that scripts/quickstart has taught.
#[test]
#[ignore = "writes docs/chat_page.png; needs runs/quickstart/taught"]
fn picture_of_the_page() {
    let Some(browser) = Browser::start() else { return };
    let server = Server::of(&repository("runs/quickstart/taught"));
    browser.open(&server.url());
    browser.until("document.querySelector('select').value");
    browser.script("document.getElementById('temperature').value = '0'");
    for question in [
        "Which words does this sentence begin with? The sea was calm that day.",
        "And with which word does it end?",
    ] {
        browser.keys(&format!("{question}{ENTER}"));
        browser.until(IDLE);
    }
    browser.save_picture(&repository("docs/chat_page.png"));
    server.stop();
}
