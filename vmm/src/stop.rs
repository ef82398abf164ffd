//! Stopping a machine: the flag that all its threads check, and the handle that sets it.
//!
//! Stopping doesn't wait for any thread. One may be blocked in the host's file system, and the
//! guest must not be able to do anything more until it returns.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use vmm_sys_util::signal::Killable;

use crate::vcpu::kick_signal;

/// Whether the machine has been stopped. Once it is set, no vCPU enters the guest, and no device
/// takes a request from its driver.
#[derive(Clone, Debug, Default)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// Whether the machine has been stopped.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Sets the flag, which is never cleared.
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Stops a machine, from any thread of its process.
#[derive(Clone, Debug)]
pub struct Stopper {
    flag: StopFlag,
    /// The vCPU threads, until they are joined.
    threads: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

impl Stopper {
    /// The handle of a machine that has no threads yet.
    pub(crate) fn new(flag: StopFlag) -> Self {
        Self {
            flag,
            threads: Arc::default(),
        }
    }

    /// Makes all vCPUs leave the guest, and the devices stop taking requests. A request that a
    /// device is already serving is completed.
    pub fn stop(&self) {
        self.flag.set();
        for thread in self.threads().iter() {
            let _ = thread.kill(kick_signal()); // fails only for a thread that has ended
        }
    }

    /// The vCPUs' threads.
    pub(crate) fn threads(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
