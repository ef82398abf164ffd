//! Which system calls are refused: each of `hull_tests::calls` is made by a child of its own, as a
//! filter may kill whoever makes it.
#![allow(unsafe_code)] // fork, and system calls by their number: what a filter says of each is the question

use std::io::Write;
use std::io::{Error, stdout};

use hull_tests::calls::{self, Call};
use rustix::process::{Pid, WaitOptions, waitpid};
use serde_json::Value;

use super::why;

/// What became of each call, by its name.
pub fn report() -> Value {
    // A child must not have anything to write out a second time.
    let _ = stdout().flush();
    calls::all()
        .into_iter()
        .map(|call| (call.name, outcome(&call)))
        .collect()
}

fn outcome(call: &Call) -> Value {
    // SAFETY: the probe has one thread, so the child may do whatever its parent could.
    match unsafe { libc::fork() } {
        -1 => why(Error::last_os_error()),
        0 => {
            // SAFETY: the table's arguments are numbers or point to static data, and what a call
            // makes of the child is of no matter, as it ends here. An error number fits a status.
            unsafe {
                let [a, b, c, d, e, f] = call.args;
                let failed = libc::syscall(call.number, a, b, c, d, e, f) == -1;
                let status = if failed { *libc::__errno_location() } else { 0 };
                libc::syscall(libc::SYS_exit_group, status);
                unreachable!("exit_group does not return")
            }
        }
        child => {
            let ended = Pid::from_raw(child).map(|pid| waitpid(Some(pid), WaitOptions::empty()));
            match ended {
                Some(Ok(Some((_, status)))) => {
                    match (status.exit_status(), status.terminating_signal()) {
                        (Some(0), _) => "works".into(),
                        (Some(error), _) => why(Error::from_raw_os_error(error)),
                        (None, signal) => format!("(signal {})", signal.unwrap_or(0)).into(),
                    }
                }
                Some(Err(error)) => why(error),
                _ => why("no child"),
            }
        }
    }
}
