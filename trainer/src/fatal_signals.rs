//! Signals that would end the process without a word.
//!
//! - `SIGXFSZ` comes when a file reaches the size limit of the process (`ulimit -f`). With a handler
//!   the write fails instead, and the error names the file.
//! - `SIGBUS` comes when a file that is mapped into memory became shorter, or its disk fails: a load
//!   from memory has no error to return. The handler names the file and ends the process.

#[cfg(target_os = "linux")]
use bus_error::install_handler;

/// Installs the handlers. Where the system refuses one, the signal ends the process as before.
pub fn install() {
    let noticed = std::sync::Arc::default();
    let _ = signal_hook::flag::register(libc::SIGXFSZ, noticed);
    #[cfg(target_os = "linux")]
    install_handler();
}

#[cfg(target_os = "linux")]
mod bus_error {
    use std::ffi::{c_int, c_void};
    use std::mem::MaybeUninit;
    use std::ptr::null_mut;
    use std::sync::atomic::{AtomicBool, Ordering};

    use altiplano_data::terminal;
    use libc::{O_CLOEXEC, O_RDONLY, STDERR_FILENO, siginfo_t};

    /// The address is not backed by the file: `si_code` of a mapping that became too long.
    const BUS_ADRERR: c_int = 2;
    /// Longest line of `/proc/self/maps`: numbers, then a path.
    const LONGEST_LINE: usize = 128 + libc::PATH_MAX as usize;

    const BEFORE: &[u8] = b"error: ";
    const AFTER: &[u8] = b": a part of this file is gone while it is in use: it was made shorter, \
        or its disk cannot be read; put the whole file back and start again\n";
    const ERASE_LINE: &[u8] = b"\r\x1b[J";

    /// Whether a thread is in the handler.
    static ENDING: AtomicBool = AtomicBool::new(false);

    pub(super) fn install_handler() {
        // SAFETY: all zeros are a valid `sigaction`, the handler has the signature that
        // `SA_SIGINFO` asks for, and it calls nothing but functions that are safe in a handler.
        unsafe {
            let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
            action.sa_sigaction = on_bus_error as extern "C" fn(_, _, _) as usize;
            action.sa_flags = libc::SA_SIGINFO;
            libc::sigaction(libc::SIGBUS, &action, null_mut());
        }
    }

    /// Runs on the thread that read the memory: everything in here is safe in a signal handler,
    /// so it allocates nothing, takes no lock and cannot panic.
    extern "C" fn on_bus_error(signal: c_int, info: *mut siginfo_t, _context: *mut c_void) {
        // SAFETY: the kernel gives a valid `info` to a handler with `SA_SIGINFO`.
        let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
        if code == BUS_ADRERR {
            if ENDING.swap(true, Ordering::Relaxed) {
                loop {
                    // SAFETY: waits; another thread ends the process.
                    unsafe { libc::pause() };
                }
            }
            let mut line = [0; LONGEST_LINE];
            if let Some(path) = mapped_file(address, &mut line) {
                if terminal::is_drawn() {
                    write(ERASE_LINE);
                }
                for text in [BEFORE, path, AFTER] {
                    write(text);
                }
                // SAFETY: ends the process without running anything else of it.
                unsafe { libc::_exit(1) };
            }
        }
        // Not ours. The instruction runs again after the return and ends the process.
        // SAFETY: resets the signal to its default.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }

    fn write(text: &[u8]) {
        // SAFETY: `text` is valid for its length. Whether it could be written changes nothing.
        unsafe { libc::write(STDERR_FILENO, text.as_ptr().cast(), text.len()) };
    }

    /// Path of the file that is mapped at `address`, read from `/proc/self/maps` through `line`.
    fn mapped_file(address: usize, line: &mut [u8; LONGEST_LINE]) -> Option<&[u8]> {
        let name = c"/proc/self/maps";
        // SAFETY: opens a file by a name that ends in a zero byte.
        let file = unsafe { libc::open(name.as_ptr(), O_RDONLY | O_CLOEXEC) };
        if file < 0 {
            return None;
        }
        let mut chunk = [0u8; 4096];
        let mut length = 0;
        loop {
            // SAFETY: `chunk` is valid for its length.
            let read = unsafe { libc::read(file, chunk.as_mut_ptr().cast(), chunk.len()) };
            let read = usize::try_from(read).ok().filter(|&read| read > 0)?;
            for &byte in chunk.iter().take(read) {
                if byte != b'\n' {
                    if let Some(place) = line.get_mut(length) {
                        *place = byte;
                        length += 1;
                    }
                    continue;
                }
                if let Some((begin, end)) = path_if_at(line.get(..length)?, address) {
                    return line.get(begin..end);
                }
                length = 0;
            }
        }
    }

    /// Where the path lies in a line `begin-end rights offset device inode path`, if `address` is
    /// from `begin` to below `end` and there is a path.
    fn path_if_at(line: &[u8], address: usize) -> Option<(usize, usize)> {
        let (begin, rest) = hexadecimal(line)?;
        let (end, _) = hexadecimal(rest.strip_prefix(b"-")?)?;
        let path = line.iter().position(|&byte| byte == b'/')?;
        (begin <= address && address < end).then_some((path, line.len()))
    }

    /// The hexadecimal number at the beginning, and what follows it.
    fn hexadecimal(text: &[u8]) -> Option<(usize, &[u8])> {
        let mut value = 0usize;
        let mut digits = 0;
        for &byte in text {
            let Some(digit) = char::from(byte).to_digit(16) else { break };
            value = value.wrapping_mul(16).wrapping_add(digit as usize);
            digits += 1;
        }
        (digits > 0).then(|| (value, text.get(digits..).unwrap_or_default()))
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn lines_of_maps_are_understood() {
            let line = b"7f5e00-7f6000 r--s 00000000 fd:00 131 /data/books/train 1.arrow";
            let at = |address| path_if_at(line, address).map(|(begin, end)| &line[begin..end]);
            assert_eq!(at(0x7f5e00), Some(&b"/data/books/train 1.arrow"[..]));
            assert_eq!(at(0x7f5fff), Some(&b"/data/books/train 1.arrow"[..]));
            assert_eq!(at(0x7f6000), None);
            assert_eq!(at(0x7f5dff), None);
            assert_eq!(path_if_at(b"7f5e00-7f6000 rw-p 0 00:00 0 [heap]", 0x7f5e00), None);
            assert_eq!(path_if_at(b"", 0), None);
        }

        #[test]
        fn a_mapped_file_is_found_by_its_address() {
            // The program itself is mapped, and this constant lies in it.
            let address = BEFORE.as_ptr() as usize;
            let mut line = [0; LONGEST_LINE];
            let path = mapped_file(address, &mut line).map(String::from_utf8_lossy);
            let program = std::env::current_exe().unwrap_or_default();
            assert_eq!(path.as_deref(), program.to_str());
        }
    }
}
