//! The end of a machine: the flag that all its parts look at, and the handle that sets it.
//!
//! Nobody is waited for here. A thread of the machine may hang in the host's file systems, and what the
//! guest can still do must not depend on when it comes back.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use vmm_sys_util::signal::Killable;

use crate::vcpu::kick_signal;

/// Whether the machine has been stopped. From then on no vCPU enters the guest, and no device takes a
/// request of its driver's.
#[derive(Clone, Debug, Default)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// Whether it has been.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Says so, for good.
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Stops a machine, from any thread of its process.
#[derive(Clone, Debug)]
pub struct Stopper {
    flag: StopFlag,
    /// The vCPUs', until they are joined.
    threads: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

impl Stopper {
    /// Of a machine that has no threads yet.
    pub(crate) fn new(flag: StopFlag) -> Self {
        Self {
            flag,
            threads: Arc::default(),
        }
    }

    /// Takes the guest off its vCPUs, and has the devices serve it no more. What a device has in hand at
    /// that moment is carried out.
    pub fn stop(&self) {
        self.flag.set();
        for thread in self.threads().iter() {
            let _ = thread.kill(kick_signal()); // fails only for one that has ended
        }
    }

    /// The vCPUs' threads.
    pub(crate) fn threads(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
