//! The end-to-end suite's tools: bundles, a runc-compatible runtime under test, bounded waits, and
//! the search for what a container left behind.
//!
//! What is being tested lies in `e2e/`; nothing here knows hull's insides, but for `bin/liar`, which speaks as
//! its agent does. `HULL_RUNTIME` names the
//! runtime (default: the release build of this repository).

pub mod bundle;
pub mod calls;
pub mod captive;
pub mod device_filter;
pub mod disk;
pub mod guest;
pub mod leaks;
pub mod mount;
pub mod namespace;
pub mod pattern;
pub mod process;
pub mod random;
pub mod runtime;
pub mod terminal;
pub mod threads;

pub use bundle::Bundle;
pub use process::{Finished, Running};
pub use runtime::Container;
pub use terminal::Terminal;

/// Ends the test as skipped, with the reason, which `tests/run` counts and shows.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)*) => {{
        fn here() {}
        let test = std::any::type_name_of_val(&here);
        $crate::report_skip(test.trim_end_matches("::here"), &format!($($reason)*));
        return;
    }};
}

/// Ends the test as skipped unless hull is the runtime under test.
#[macro_export]
macro_rules! only_hull {
    ($($reason:tt)*) => {
        if !$crate::runtime::is_hull() {
            $crate::skip!($($reason)*);
        }
    };
}

/// Says past libtest's capture that a test was skipped.
///
/// libtest itself knows skipping only as something written in the source (`#[ignore]`), not as
/// something that depends on the machine.
pub fn report_skip(test: &str, reason: &str) {
    use std::io::Write;
    let test = test.split_once("::").map_or(test, |(_, path)| path);
    let line = format!("skipped {test}: {reason}\n");
    std::io::stderr()
        .write_all(line.as_bytes())
        .expect("standard error takes a line");
}
