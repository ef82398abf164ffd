//! Saving and restoring a vCPU and the VM's clock. Not implemented: the state will be the registers
//! that `KVM_GET_REG_LIST` lists, read by `KVM_GET_ONE_REG` and written by `KVM_SET_ONE_REG`; the
//! virtual counter is one of them.

use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};

use crate::arch::{NotSupported, VcpuStateError};

/// Saves and restores the states of vCPUs. No value of it can exist yet.
#[derive(Debug)]
pub enum VcpuSaver {}

/// A vCPU's state. No value of it can exist yet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum VcpuState {}

impl VcpuSaver {
    /// Asks KVM which registers a vCPU has.
    ///
    /// # Errors
    /// Always, as long as no guest runs on this processor.
    pub fn new(_: &Kvm) -> Result<Self, VcpuStateError> {
        let what = "save a vCPU";
        Err(NotSupported { what }.into())
    }

    /// Saves the state of a vCPU.
    ///
    /// # Errors
    /// Never: no state can exist yet.
    pub fn save(&self, _: &VcpuFd) -> Result<VcpuState, VcpuStateError> {
        match *self {}
    }

    /// Restores a state into a newly created vCPU.
    ///
    /// # Errors
    /// Never: no state can exist yet.
    pub fn restore(&self, _: &VcpuFd, state: &VcpuState) -> Result<(), VcpuStateError> {
        match *state {}
    }
}

/// The VM's clock. No value of it can exist yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClockState {}

impl ClockState {
    /// Reads the clock.
    ///
    /// # Errors
    /// Always, as long as no guest runs on this processor.
    pub fn save(_: &VmFd) -> Result<Self, VcpuStateError> {
        let what = "save a VM's clock";
        Err(NotSupported { what }.into())
    }

    /// Sets the clock of a VM.
    ///
    /// # Errors
    /// Never: no state can exist yet.
    pub fn restore(self, _: &VmFd) -> Result<(), VcpuStateError> {
        match self {}
    }
}
