//! Panics of decoders of other libraries on hostile data, which are errors here.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    /// Whether this thread runs a decoder whose panic will be caught.
    static CAUGHT: Cell<bool> = const { Cell::new(false) };
}

/// What `decode` gives, or none when it panics. The caller makes an error of that.
pub(crate) fn catch<T>(decode: impl FnOnce() -> T) -> Option<T> {
    let before = CAUGHT.replace(true);
    let decoded = catch_unwind(AssertUnwindSafe(decode)).ok();
    CAUGHT.set(before);
    decoded
}

/// Whether a panic of this thread is about damaged data and becomes an error: a panic hook has
/// nothing to say of it.
pub fn is_caught() -> bool {
    CAUGHT.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_caught_and_known_to_be() {
        assert!(!is_caught());
        assert_eq!(catch(|| 7), Some(7));
        let mut known = false;
        let none: Option<()> = catch(|| {
            known = is_caught();
            // Without the message of a panic hook.
            std::panic::resume_unwind(Box::new(()));
        });
        assert!(none.is_none() && known && !is_caught());
    }
}
