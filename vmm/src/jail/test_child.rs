//! For tests: runs code in a forked child, which can confine itself.
#![allow(unsafe_code)] // fork

use std::io::Read;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitOptions, waitpid};

/// How a child ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// The closure returned.
    Returned,
    /// The closure panicked, with this message.
    Panicked(String),
    /// A signal killed it.
    Signal(i32),
}

/// In a child, the pipe to which it writes its panic message; -1 in the parent.
static MESSAGE: AtomicI32 = AtomicI32::new(-1);

/// Installs a panic hook, once, that writes the message to [`MESSAGE`] in a child. A child can't
/// install one itself: the lock of the hook may have been held by another thread of the parent at
/// the fork, and then stays locked in the child.
fn install_panic_hook() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            match MESSAGE.load(Ordering::Relaxed) {
                -1 => others(info),
                // SAFETY: the child has the pipe open until it ends.
                fd => drop(rustix::io::write(
                    unsafe { BorrowedFd::borrow_raw(fd) },
                    info.to_string().as_bytes(),
                )),
            }
        }));
    });
}

/// Runs `body` in a child that has one thread, and waits for it.
pub fn run(body: impl FnOnce()) -> End {
    install_panic_hook();
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).expect("a pipe");
    // SAFETY: the child runs `body` and exits without returning. The C library makes its allocator
    // usable after a fork; of other locks, the tests' closures take none.
    match unsafe { libc::fork() } {
        -1 => panic!("fork: {}", std::io::Error::last_os_error()),
        0 => in_child(body, writer),
        child => {
            drop(writer);
            let mut message = String::new();
            std::fs::File::from(reader)
                .read_to_string(&mut message)
                .expect("the child's message");
            end(child, message)
        }
    }
}

fn in_child(body: impl FnOnce(), writer: OwnedFd) -> ! {
    MESSAGE.store(writer.as_raw_fd(), Ordering::Relaxed);
    let status = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(()) => 0,
        Err(_) => 1,
    };
    // SAFETY: ends the process without running what the parent registered.
    unsafe { libc::_exit(status) }
}

fn end(child: i32, message: String) -> End {
    let pid = Pid::from_raw(child).expect("a pid");
    let (_, status) = waitpid(Some(pid), WaitOptions::empty())
        .expect("waitpid")
        .expect("a status");
    match (status.exit_status(), status.terminating_signal()) {
        (Some(0), _) => End::Returned,
        (_, Some(signal)) => End::Signal(signal),
        _ => End::Panicked(message),
    }
}

/// All descriptors that this process has open.
pub fn open_fds() -> Vec<RawFd> {
    let names = std::fs::read_dir("/proc/self/fd").expect("/proc");
    let numbers = names
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.collect()
}

/// Whether this process may make mount namespaces; says on standard error why a test is skipped.
pub fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}
