//! Core scheduling: the threads of this process share a processor's core with none of another's, so that no
//! other VM runs on its sibling thread and reads what a core leaks from one to the other.
//!
//! It costs processor time wherever a core's other half then stays empty, and is for the operator to choose
//! (kernel's Documentation/admin-guide/hw-vuln/core-scheduling.rst).

use std::{fs, io};

use rustix::process::getpid;
use rustix::thread::{CoreSchedulingScope, create_core_scheduling_cookie};

/// The host's kernel can't keep cores apart, though they have several threads.
#[derive(Debug, thiserror::Error)]
#[error(
    "core_scheduling in hull's configuration needs Linux 5.14 with CONFIG_SCHED_CORE; set it to false, or \
     switch the siblings off (/sys/devices/system/cpu/smt/control)"
)]
pub struct Unsupported(#[source] io::Error);

/// Gives this process a cookie of its own, which all threads that it makes from now on have too. Nothing
/// happens on a host whose cores have one thread each.
///
/// # Errors
/// See [`Unsupported`].
pub fn begin() -> Result<(), Unsupported> {
    match create_core_scheduling_cookie(getpid(), CoreSchedulingScope::ThreadGroup) {
        Err(e) if cores_have_siblings() => Err(Unsupported(e.into())),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Whether a core runs several threads at once (Documentation/ABI/testing/sysfs-devices-system-cpu). Where
/// the kernel doesn't say, it may.
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
                begin().expect("a kernel that schedules cores");
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
                test_child::run(|| begin().expect("no siblings")),
                End::Returned
            );
        }
    }
}
