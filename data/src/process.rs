//! Which process wrote something, and whether it still runs.

use std::fs;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

/// A process of a machine, told apart from later ones of the same number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Name of the machine.
    pub host: String,
    /// Number of the process on it.
    pub pid: u32,
    /// Which start of the machine it belongs to; empty where the system does not say.
    #[serde(default)]
    pub boot: String,
    /// When it started, in ticks since the machine did; 0 where the system does not say.
    #[serde(default)]
    pub started: u64,
}

impl ProcessId {
    /// This process.
    pub fn current() -> Self {
        static CURRENT: OnceLock<ProcessId> = OnceLock::new();
        CURRENT.get_or_init(|| Self::of(std::process::id())).clone()
    }

    /// Process `pid` of this machine as it is now.
    pub fn of(pid: u32) -> Self {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let started = stat(pid).map_or(0, |stat| stat.started);
        Self { host: host_name(), pid, boot: boot.trim().to_owned(), started }
    }

    /// Whether the process is known to have ended. One of another machine is not known of.
    pub fn is_gone(&self) -> bool {
        let here = Self::of(self.pid);
        if self.host != here.host {
            return false;
        }
        let known = |a: &str, b: &str| !a.is_empty() && !b.is_empty();
        if known(&self.boot, &here.boot) && self.boot != here.boot {
            return true;
        }
        match stat(self.pid) {
            Some(stat) => stat.ended || (self.started != 0 && self.started != stat.started),
            // Without /proc, or where it hides the processes of others.
            None => !exists(self.pid),
        }
    }

    /// A short name of the machine that fits into a file name.
    pub fn host_tag(&self) -> String {
        blake3::hash(self.host.as_bytes()).to_hex()[..8].to_owned()
    }
}

/// What Linux tells of a process.
struct Stat {
    /// It ended, and its parent has not asked for its status yet.
    ended: bool,
    started: u64,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name of the program stands in parentheses and may hold any character.
    let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
    let ended = matches!(fields.next()?, "Z" | "X");
    let started = fields.nth(18)?.parse().ok()?;
    Some(Stat { ended, started })
}

fn exists(pid: u32) -> bool {
    let Ok(pid) = libc::pid_t::try_from(pid) else { return false };
    // SAFETY: signal 0 is sent to nobody; the call only asks whether the process is there.
    let answer = unsafe { libc::kill(pid, 0) };
    answer == 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH)
}

fn host_name() -> String {
    let mut name = [0u8; 256];
    // SAFETY: the call writes at most the length it is given into the buffer.
    let failed = unsafe { libc::gethostname(name.as_mut_ptr().cast(), name.len()) } != 0;
    let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
    if failed { String::new() } else { String::from_utf8_lossy(&name[..end]).into_owned() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_is_gone_when_it_has_ended_or_its_number_is_anothers() {
        let here = ProcessId::current();
        assert!(!here.is_gone());
        assert!(!here.host.is_empty());
        let earlier = ProcessId { started: here.started + 1, ..here.clone() };
        assert!(earlier.is_gone(), "another process has its number now");
        let rebooted = ProcessId { boot: "before".into(), ..here.clone() };
        assert!(rebooted.is_gone());
        let elsewhere = ProcessId { host: "elsewhere".into(), started: 1, ..here };
        assert!(!elsewhere.is_gone(), "nothing is known of other machines");

        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = ProcessId::of(child.id());
        assert!(!process.is_gone());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(process.is_gone());
    }
}
