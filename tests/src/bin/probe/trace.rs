//! What one process can do to another that it must not be able to: every way into it that the kernel has.
#![allow(unsafe_code)] // ptrace(2) and its kin, which no crate here has

use std::fs::{self, File};
use std::io::{self, Error};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Tries to get into process 1 by every way there is. Each that succeeds is a line; ends with how many
/// were tried.
pub fn into_init() -> io::Result<()> {
    let pidfd = pidfd_open(Pid::INIT, PidfdFlags::empty())?;
    let pidfd = pidfd.as_raw_fd();
    let mut byte = [0_u8];
    let local = libc::iovec {
        iov_base: byte.as_mut_ptr().cast(),
        iov_len: 1,
    };
    let nowhere = libc::iovec {
        iov_base: std::ptr::null_mut(),
        iov_len: 1,
    };
    // A process that is open to this one has no byte at 0, which is another error.
    let in_reach = |result: isize| result >= 0 || errno() == libc::EFAULT;
    // SAFETY: the vectors describe memory of this process, which outlives the calls, and none of the other's.
    let (read, written) = unsafe {
        (
            in_reach(libc::process_vm_readv(1, &local, 1, &nowhere, 1, 0)),
            in_reach(libc::process_vm_writev(1, &local, 1, &nowhere, 1, 0)),
        )
    };
    // SAFETY: neither call takes a pointer that it follows; what is taken is left open.
    let (taken, seized) = unsafe {
        (
            (0..64).any(|fd| libc::syscall(libc::SYS_pidfd_getfd, pidfd, fd, 0) >= 0),
            libc::ptrace(libc::PTRACE_SEIZE, 1, 0, 0) >= 0,
        )
    };
    let open = |write: bool, name: &str| {
        let path = format!("/proc/1/{name}");
        File::options().read(true).write(write).open(path).is_ok()
    };
    let attempts = [
        ("its memory by process_vm_readv", read),
        ("its memory by process_vm_writev", written),
        ("a descriptor by pidfd_getfd", taken),
        ("ptrace", seized),
        ("/proc/1/mem", open(true, "mem")),
        // Its owner may list the numbers, and that is all.
        (
            "/proc/1/fd",
            (0..64).any(|fd| open(false, &format!("fd/{fd}"))),
        ),
        ("/proc/1/exe", open(false, "exe")),
        ("/proc/1/root", fs::read_dir("/proc/1/root").is_ok()),
        ("/proc/1/environ", fs::read("/proc/1/environ").is_ok()),
        ("/proc/1/ns/mnt", open(false, "ns/mnt")),
        // Last, as it changes this process.
        ("its namespaces by setns", {
            // SAFETY: setns takes no pointers.
            unsafe { libc::setns(pidfd, libc::CLONE_NEWNET) >= 0 }
        }),
    ];
    for (what, _) in attempts.iter().filter(|(_, reached)| *reached) {
        println!("{what}");
    }
    println!("tried {}", attempts.len());
    Ok(())
}

/// Holds a thread where it is for so long.
pub fn hold(thread: i32, time: Duration) -> io::Result<()> {
    // SAFETY: these requests take no pointers.
    let held = unsafe {
        libc::ptrace(libc::PTRACE_SEIZE, thread, 0, 0) >= 0
            && libc::ptrace(libc::PTRACE_INTERRUPT, thread, 0, 0) >= 0
    };
    if !held {
        return Err(Error::last_os_error());
    }
    // It goes on when this process ends.
    thread::sleep(time);
    Ok(())
}

fn errno() -> i32 {
    Error::last_os_error().raw_os_error().unwrap_or(0)
}
