//! vCPUs: each has a thread, which runs the guest and handles its exits.
#![allow(unsafe_code)] // the signal handler accesses the vCPU's `kvm_run` page

use std::cell::Cell;
use std::fmt;
use std::io;
use std::ops::ControlFlow;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use crate::arch::{self, Platform};
use crate::bus::Bus;
use crate::stop::StopFlag;

/// Why a machine has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The host stopped it ([`RunningMachine::stop`](crate::machine::RunningMachine::stop)).
    Stopped,
    /// `KVM_EXIT_SHUTDOWN`: on x86-64 a triple fault, by which a kernel may reset the machine, and
    /// in which a crash that it can't handle ends too.
    Shutdown,
    /// The guest reset itself: on x86-64 by the keyboard controller.
    Reset,
    /// The guest requested a shutdown or reset from the hypervisor, of this type
    /// (`KVM_SYSTEM_EVENT_…`).
    SystemEvent(u32),
    /// A vCPU halted and nothing can wake it.
    Halted,
    /// `KVM_EXIT_INTERNAL_ERROR`: KVM can't emulate an instruction of the guest.
    Emulation {
        /// The instruction's address, if known.
        address: Option<u64>,
        /// KVM's reason (`KVM_INTERNAL_ERROR_…` of linux/kvm.h).
        suberror: u32,
    },
    /// `KVM_EXIT_FAIL_ENTRY`: the processor refused to enter the guest in its state.
    EntryFailed {
        /// The processor's reason.
        reason: u64,
    },
    /// An exit that hull doesn't expect from any guest.
    UnknownExit(String),
    /// `KVM_RUN` failed.
    Failed {
        /// Its error.
        errno: i32,
    },
}

impl StopReason {
    /// Whether the machine ended regularly: it was stopped, shut down, or reset itself.
    pub fn is_orderly(&self) -> bool {
        matches!(
            self,
            Self::Stopped | Self::Shutdown | Self::Reset | Self::SystemEvent(_)
        )
    }
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped => write!(f, "the machine was stopped"),
            Self::Shutdown => write!(f, "the guest shut down"),
            Self::Reset => write!(f, "the guest reset itself"),
            Self::SystemEvent(kind) => write!(f, "the guest asked to be ended (event {kind})"),
            Self::Halted => write!(f, "the guest halted for good"),
            Self::Emulation { address, suberror } => {
                write!(
                    f,
                    "this /dev/kvm cannot run an unmodified kernel (emulation failed"
                )?;
                if let Some(address) = address {
                    write!(f, " at {address:#x}")?;
                }
                write!(
                    f,
                    ", reason {suberror}): use a host with {}, or nested virtualisation",
                    arch::VIRTUALISATION
                )
            }
            Self::EntryFailed { reason } => write!(
                f,
                "the processor refused to enter the guest (reason {reason:#x}): see the host's kernel log"
            ),
            Self::UnknownExit(exit) => write!(f, "KVM stopped the guest with {exit}"),
            Self::Failed { errno } => {
                let error = io::Error::from_raw_os_error(*errno);
                write!(f, "KVM failed to run the guest: {error}")
            }
        }
    }
}

/// The signal that makes a vCPU thread leave the guest. No vCPU thread may block it.
pub fn kick_signal() -> libc::c_int {
    SIGRTMIN()
}

/// Installs the handler of [`kick_signal`] in this process. Calling it again does no harm.
pub(crate) fn install_kick_handler() -> io::Result<()> {
    register_signal_handler(kick_signal(), on_kick)
        .map_err(|error| io::Error::from_raw_os_error(error.errno()))
}

thread_local! {
    /// `immediate_exit` of the vCPU that this thread runs, for the signal handler. A plain cell without
    /// a destructor: reading it from a handler allocates and runs nothing.
    static IMMEDIATE_EXIT: Cell<*const AtomicU8> = const { Cell::new(ptr::null()) };
}

/// Makes the next `KVM_RUN` of this thread return at once: a signal that comes just before it would
/// otherwise be lost.
extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: not null means that `Vcpu::run` of this very thread is on the stack, which owns the
        // page that the flag lies in and resets the pointer before it returns.
        unsafe { (*flag).store(1, Ordering::Relaxed) };
    }
}

/// Makes this thread's signal handler set `immediate_exit` of a vCPU, until it is dropped.
struct KickTarget;

impl KickTarget {
    fn new(fd: &mut VcpuFd) -> Self {
        let flag = ptr::from_mut(&mut fd.get_kvm_run().immediate_exit);
        IMMEDIATE_EXIT.set(flag.cast::<AtomicU8>());
        Self
    }
}

impl Drop for KickTarget {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null());
    }
}

/// A vCPU, to be moved into its thread.
pub(crate) struct Vcpu {
    pub(crate) fd: VcpuFd,
    pub(crate) platform: Arc<Platform>,
    pub(crate) bus: Arc<Bus>,
    /// Set when the machine is to stop, before the thread is kicked.
    pub(crate) stop: StopFlag,
}

impl Vcpu {
    /// Runs the guest until it ends or the machine is to stop, and tells the devices.
    pub(crate) fn run(mut self) -> StopReason {
        let reason = self.run_until_end();
        for device in self.bus.devices() {
            device.machine_ended();
        }
        reason
    }

    fn run_until_end(&mut self) -> StopReason {
        let _target = KickTarget::new(&mut self.fd);
        while !self.stop.is_set() {
            if let ControlFlow::Break(reason) = self.run_once() {
                return reason;
            }
        }
        StopReason::Stopped
    }

    /// Runs the guest up to its next exit, and serves that.
    fn run_once(&mut self) -> ControlFlow<StopReason> {
        let reason = match self.fd.run() {
            Ok(VcpuExit::MmioRead(address, data)) => {
                if !self.platform.read(address, data) {
                    self.bus.read(address, data);
                }
                return ControlFlow::Continue(());
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                if !self.platform.write(address, data) {
                    self.bus.write(address, data);
                }
                return ControlFlow::Continue(());
            }
            Ok(VcpuExit::Intr) => return ControlFlow::Continue(()),
            Ok(VcpuExit::Shutdown) => StopReason::Shutdown,
            Ok(VcpuExit::SystemEvent(kind, _)) => StopReason::SystemEvent(kind),
            Ok(VcpuExit::Hlt) => StopReason::Halted,
            Ok(VcpuExit::FailEntry(reason, _)) => StopReason::EntryFailed { reason },
            Ok(VcpuExit::InternalError) => self.internal_error(),
            Ok(exit) => return self.platform.serve(exit),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                // Before `stop` is checked again: whoever kicks after this point has set `stop`
                // already.
                self.fd.set_kvm_immediate_exit(0);
                return ControlFlow::Continue(());
            }
            Err(error) => StopReason::Failed {
                errno: error.errno(),
            },
        };
        ControlFlow::Break(reason)
    }

    fn internal_error(&mut self) -> StopReason {
        let address = arch::instruction_address(&self.fd);
        // SAFETY: after KVM_EXIT_INTERNAL_ERROR, `internal` is the union's valid member; it is made of
        // plain integers.
        let suberror = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal.suberror };
        StopReason::Emulation { address, suberror }
    }
}
