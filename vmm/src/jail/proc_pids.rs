//! The pids and thread ids of this process's children and threads in /proc. That is the host's
//! /proc, and this process may be in a pid namespace, in which the ids are different.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{Dir, Mode, OFlags, openat};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::gettid;

/// The pid of a child.
///
/// # Errors
/// When there is none, or /proc is not mounted.
pub(super) fn pid_of_child(child: Pid) -> io::Result<u32> {
    pid_of(pidfd_open(child, PidfdFlags::empty())?.as_fd())
}

/// The pid of the process that a pidfd refers to.
///
/// # Errors
/// When it has ended, or /proc is not mounted.
pub(super) fn pid_of(pidfd: BorrowedFd<'_>) -> io::Result<u32> {
    let about = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    let number = about.lines().find_map(|line| line.strip_prefix("Pid:"));
    // -1 for one that has ended.
    number
        .and_then(|number| number.trim().parse().ok())
        .ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// The thread id of the calling thread in `threads`, a `/proc/<pid>/task` of this process.
///
/// # Errors
/// When it isn't there.
pub(super) fn tid_of_this_thread(threads: BorrowedFd<'_>) -> io::Result<u32> {
    let own = gettid().as_raw_nonzero().to_string();
    // `threads` may be an O_PATH descriptor, which can't be read.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    for thread in Dir::new(openat(threads, c".", flags, Mode::empty())?)? {
        let name = thread?.file_name().to_string_lossy().into_owned();
        // Other threads start and end meanwhile.
        let Ok(number) = name.parse() else { continue };
        if own_tid_of(threads, &name).is_ok_and(|number| number == own) {
            return Ok(number);
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

/// A thread's id in its own pid namespace: the last one of `NSpid`, which lists them from the
/// outermost namespace inwards.
fn own_tid_of(threads: BorrowedFd<'_>, name: &str) -> io::Result<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let status = openat(threads, format!("{name}/status"), flags, Mode::empty())?;
    let mut text = String::new();
    File::from(status).read_to_string(&mut text)?;
    // A kernel without these namespaces has no such line.
    let numbers = text.lines().find_map(|line| line.strip_prefix("NSpid:"));
    let own = numbers.and_then(|numbers| numbers.split_ascii_whitespace().last());
    Ok(own.unwrap_or(name).to_owned())
}

#[cfg(test)]
#[allow(unsafe_code)] // unshare
mod tests {
    use super::*;
    use crate::jail::test_child::{self, End};

    #[test]
    fn a_thread_is_found_in_a_process_id_namespace() {
        if !test_child::is_root() {
            return;
        }
        let find = || {
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            let threads = rustix::fs::open("/proc/self/task", flags, Mode::empty()).expect("/proc");
            let told = fs::read_link("/proc/thread-self").expect("/proc");
            let number = tid_of_this_thread(threads.as_fd()).expect("a number");
            assert!(told.ends_with(number.to_string()), "{told:?}: {number}");
        };
        std::thread::spawn(find).join().expect("outside of one");
        let end = test_child::run(|| {
            use rustix::thread::{UnshareFlags, unshare_unsafe};
            // SAFETY: the child has one thread; the namespace is its children's.
            unsafe { unshare_unsafe(UnshareFlags::NEWPID) }.expect("a namespace");
            let inner = test_child::run(|| std::thread::spawn(find).join().expect("in one"));
            assert_eq!(inner, End::Returned);
        });
        assert_eq!(end, End::Returned);
    }
}
