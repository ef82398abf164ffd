//! Core scheduling: the kernel runs no thread of another process on the SMT siblings of a core that
//! runs a thread of this one, so that no other VM can exploit what a core leaks between its
//! hardware threads.
//!
//! It costs processor time whenever a sibling stays idle because of it, so the operator chooses
//! (kernel's Documentation/admin-guide/hw-vuln/core-scheduling.rst).

use std::{fs, io};

use rustix::process::getpid;
use rustix::thread::{CoreSchedulingScope, create_core_scheduling_cookie};

/// The host's kernel has no core scheduling, though its cores have several hardware threads.
#[derive(Debug, thiserror::Error)]
#[error(
    "core_scheduling in hull's configuration needs Linux 5.14 with CONFIG_SCHED_CORE; set it to false, or \
     switch the siblings off (/sys/devices/system/cpu/smt/control)"
)]
pub struct Unsupported(#[source] io::Error);

/// Gives this process a core scheduling cookie of its own, which threads that it creates later
/// inherit. On a host whose cores have a single hardware thread, an error is ignored.
///
/// # Errors
/// See [`Unsupported`].
pub fn enable() -> Result<(), Unsupported> {
    match create_core_scheduling_cookie(getpid(), CoreSchedulingScope::ThreadGroup) {
        Err(e) if cores_have_siblings() => Err(Unsupported(e.into())),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Whether SMT is active (Documentation/ABI/testing/sysfs-devices-system-cpu). If the kernel
/// doesn't say, it is assumed to be.
fn cores_have_siblings() -> bool {
    fs::read_to_string("/sys/devices/system/cpu/smt/active").map_or(true, |is| is.trim() != "0")
}

#[cfg(test)]
mod tests {
    use rustix::thread::core_scheduling_cookie;

    use super::*;
    use crate::jail::test_child::{self, End};

    #[test]
    fn a_process_and_its_later_threads_have_a_cookie_of_their_own() {
        if cores_have_siblings() {
            let end = test_child::run(|| {
                let cookie = |scope| core_scheduling_cookie(getpid(), scope);
                enable().expect("a kernel that schedules cores");
                let own = cookie(CoreSchedulingScope::Thread);
                let later = std::thread::spawn(move || {
                    core_scheduling_cookie(rustix::thread::gettid(), CoreSchedulingScope::Thread)
                });
                assert_ne!(own, Ok(0));
                assert_eq!(later.join().expect("the thread"), own);
            });
            assert_eq!(end, End::Returned);
        } else {
            // Nothing to keep apart, and so no failure.
            assert_eq!(
                test_child::run(|| enable().expect("no siblings")),
                End::Returned
            );
        }
    }
}
