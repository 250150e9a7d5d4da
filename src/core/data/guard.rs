//! Calls into libraries that may panic on hostile input.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is inside a call whose panic becomes an ordinary error. A panic hook that restores the terminal
/// or writes a report should stay silent then.
pub fn in_guarded_call() -> bool {
    GUARDED.get()
}

/// Runs `call`; a panic inside becomes an error with its message.
pub(crate) fn guarded<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    let before = GUARDED.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(call));
    GUARDED.set(before);
    outcome.map_err(|panic| panic_message(panic.as_ref()))
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "unknown internal fault".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error_and_the_mark_goes() {
        let inside = guarded(in_guarded_call);
        assert_eq!(inside, Ok(true));
        let text = String::from("bad merge");
        let outcome = guarded(|| -> () { std::panic::panic_any(text) });
        assert_eq!(outcome, Err("bad merge".to_owned()));
        assert!(!in_guarded_call());
    }
}
