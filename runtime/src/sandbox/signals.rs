//! Signals that somebody on the host sends to the VM process. Its pid is the container's for whoever asks
//! `state`, so they are for the container: an init of a container that ends cleanly at SIGTERM does so, and one
//! that ignores it goes on, when systemd stops the scope, say.
//!
//! They wait until the container is created. SIGKILL and SIGSTOP need nobody's help: they hit the VM. Left out are
//! what a process gets by its own doing (SIGSEGV, SIGPIPE, SIGCHLD …) and the real-time signals.
//!
//! Where an engine has the container's terminal, it is also this process's controlling one, whose kernel says by
//! SIGWINCH that its size has changed. What else comes from the kernel, as when the terminal's other side goes,
//! the container's processes get from their own terminal.
#![allow(unsafe_code)] // _exit in a signal handler

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;

use hull_protocol::notices::Notice;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use vmm_sys_util::signal::register_signal_handler;

use super::Sizes;
use super::notices::Notices;

const PASSED_ON: [Signal; 10] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGTERM,
    Signal::SIGCONT,
    Signal::SIGWINCH,
    Signal::SIGPWR,
];

/// The signals that wait for being passed on.
pub struct Signals {
    waiting: SignalFd,
    guest: Arc<Notices>,
    /// Of the terminal that an engine has the other side of.
    terminal: Option<Sizes>,
}

/// Has them wait, and SIGABRT end this process, which as the init of a process id namespace would not notice
/// it. Before there is another thread: each inherits what is blocked.
///
/// # Errors
/// When the kernel refuses.
pub fn hold() -> io::Result<()> {
    SigSet::from_iter(PASSED_ON).thread_block()?;
    register_signal_handler(libc::SIGABRT, end).map_err(Into::into)
}

/// Exits as a shell would report the signal.
extern "C" fn end(signal: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: it may be called in a signal handler, and runs nothing more of this process's.
    unsafe { libc::_exit(128 + signal) }
}

impl Signals {
    /// Of this process, which has called [`hold`], with the terminal that it is to follow the size of.
    ///
    /// # Errors
    /// When there are too many open files.
    pub fn new(guest: Arc<Notices>, terminal: Option<Sizes>) -> io::Result<Self> {
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let waiting = SignalFd::with_flags(&SigSet::from_iter(PASSED_ON), flags)?;
        if let Some(sizes) = &terminal {
            if let Err(e) = sizes.take_control() {
                log::debug!("the terminal's size is not followed: {e}");
            }
            sizes.tell();
        }
        Ok(Self {
            waiting,
            guest,
            terminal,
        })
    }

    /// Passes on those that have come.
    pub fn pass_on(&self) {
        while let Ok(Some(signal)) = self.waiting.read_signal() {
            let number = i32::try_from(signal.ssi_signo).unwrap_or(i32::MAX);
            match &self.terminal {
                _ if signal.ssi_code != libc::SI_KERNEL => {
                    self.guest.tell(Notice::Signal(number));
                }
                Some(sizes) if number == libc::SIGWINCH => sizes.tell(),
                _ => {}
            }
        }
    }

    /// What it needs open.
    pub fn descriptors(&self) -> Vec<RawFd> {
        let terminal = self.terminal.iter().flat_map(Sizes::descriptors);
        [self.waiting.as_raw_fd()]
            .into_iter()
            .chain(terminal)
            .collect()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.waiting.as_fd()
    }
}
