//! Panics turned into errors.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is inside [`guarded`], whose panics become ordinary errors. A panic hook that restores the
/// terminal or writes a report should do nothing then.
pub fn in_guarded_call() -> bool {
    GUARDED.get()
}

/// Calls a library that may panic on hostile input; a panic becomes an error with its message.
pub(crate) fn guarded<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    let before = GUARDED.replace(true);
    let result = caught(call);
    GUARDED.set(before);
    result
}

/// Runs `work`; a panic becomes an error with its message. The panic hook has run by then.
pub fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| message(payload.as_ref()))
}

fn message(payload: &(dyn Any + Send)) -> String {
    payload
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error_and_the_mark_goes() {
        assert_eq!(guarded(in_guarded_call), Ok(true));
        let text = String::from("bad merge");
        let result = guarded(|| -> () { std::panic::panic_any(text) });
        assert_eq!(result, Err("bad merge".to_owned()));
        assert!(!in_guarded_call());
    }

    #[test]
    fn a_panic_becomes_its_message() {
        assert_eq!(caught(|| 7), Ok(7));
        let result = caught(|| -> () { panic!("tensor {} is lost", 3) });
        assert_eq!(result, Err("tensor 3 is lost".to_owned()));
        let result = caught(|| -> () { std::panic::panic_any(7) });
        assert_eq!(result, Err("a panic without a message".to_owned()));
    }
}
