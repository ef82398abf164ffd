//! Signals that somebody on the host sends to the VM process. Its pid is the container's for whoever asks
//! `state`, so they are for the container: an init of a container that ends cleanly at SIGTERM does so, and one
//! that ignores it goes on, when systemd stops the scope, say.
//!
//! They wait until the container is created. SIGKILL and SIGSTOP need nobody's help: they hit the VM. Left out is
//! what a process gets by its own doing, SIGSEGV or SIGCHLD say, and the signal that takes a vCPU's thread out of
//! the guest. All others wait: an ordinary user's VM process is no init, and would end by those that have no
//! handler.
//!
//! Where an engine has the container's terminal, it is also this process's controlling one, whose kernel says by
//! SIGWINCH that its size has changed. What else comes from the kernel, as when the terminal's other side goes,
//! the container's processes get from their own terminal.
#![allow(unsafe_code)] // _exit in a signal handler; sets with real-time signals, which nix has no name for

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use hull_protocol::notices::Notice;
use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use vmm_sys_util::signal::register_signal_handler;

use super::Sizes;
use super::notices::Notices;

/// What isn't passed on. SIGPIPE is ignored.
const OWN: [libc::c_int; 7] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGSYS,
    libc::SIGPIPE,
    libc::SIGCHLD,
];

/// The signals that are.
fn passed_on() -> SigSet {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigfillset(3) initialises the set, with all but what the C library keeps for itself, and
    // sigdelset(3) changes it; both fail only for signals that there aren't.
    let set = unsafe {
        libc::sigfillset(set.as_mut_ptr());
        for signal in OWN.into_iter().chain([hull_vmm::kick_signal()]) {
            libc::sigdelset(set.as_mut_ptr(), signal);
        }
        set.assume_init()
    };
    // SAFETY: it is initialised.
    unsafe { SigSet::from_sigset_t_unchecked(set) }
}

/// The signals that wait for being passed on.
pub struct Signals {
    waiting: SignalFd,
    guest: Arc<Notices>,
    /// Of the terminal that an engine has the other side of.
    terminal: Option<Sizes>,
}

/// Has them wait, and SIGABRT end this process when it aborts, which as the init of a process id namespace would
/// not notice it: abort(3) lets it through. Before there is another thread: each inherits what is blocked.
///
/// # Errors
/// When the kernel refuses.
pub fn hold() -> io::Result<()> {
    passed_on().thread_block()?;
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
        let waiting = SignalFd::with_flags(&passed_on(), flags)?;
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

    /// What it needs open beside its own descriptor.
    pub fn terminal(&self) -> impl Iterator<Item = RawFd> {
        self.terminal.iter().flat_map(Sizes::descriptors)
    }
}

impl AsRawFd for Signals {
    /// Readable while some wait.
    fn as_raw_fd(&self) -> RawFd {
        self.waiting.as_raw_fd()
    }
}
