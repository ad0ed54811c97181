//! Decoders of foreign bytes that may panic, although they should not.

use std::cell::Cell;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    /// Whether a panic of this thread is expected, caught and told of as damage.
    static EXPECTED: Cell<bool> = const { Cell::new(false) };
}

/// Runs a decoder over bytes that may be damaged: its panic becomes an error like its errors, and
/// nothing is printed.
pub(super) fn guarded<T, E: Display>(decode: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    static QUIETEN: Once = Once::new();
    QUIETEN.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |panic| {
            if !EXPECTED.try_with(Cell::get).unwrap_or(false) {
                before(panic);
            }
        }));
    });
    let outer = EXPECTED.replace(true);
    let outcome = catch_unwind(AssertUnwindSafe(decode));
    EXPECTED.set(outer);
    match outcome {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(error.to_string()),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            Err(format!("the decoder gave up on it: {}", text.unwrap_or("it does not say why")))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Set for the process that panics on purpose.
    const CHILD: &str = "STILLWIRE_TEST_PANICS";

    #[test]
    fn an_expected_panic_is_an_error_and_prints_nothing_and_others_still_print() {
        if std::env::var_os(CHILD).is_some() {
            let outcome = guarded(|| -> Result<(), String> { panic!("foreseen") });
            assert_eq!(outcome, Err("the decoder gave up on it: foreseen".to_owned()));
            let nested = guarded(|| {
                let inner = guarded(|| -> Result<(), String> { panic!("foreseen") });
                assert!(inner.is_err());
                if true {
                    panic!("foreseen, too");
                }
                Ok::<(), String>(())
            });
            assert!(nested.is_err());
            let other = std::thread::spawn(|| panic!("surprising")).join();
            assert!(other.is_err());
            return;
        }
        let this = std::env::current_exe().unwrap();
        let name = "sessions::guard::tests::\
                    an_expected_panic_is_an_error_and_prints_nothing_and_others_still_print";
        let child = Command::new(this)
            .args(["--exact", name, "--nocapture"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let printed = String::from_utf8_lossy(&child.stderr);
        assert!(child.status.success(), "{printed}");
        assert!(printed.contains("surprising") && !printed.contains("foreseen"), "{printed}");
        assert!(String::from_utf8_lossy(&child.stdout).contains("1 passed"));
    }
}
