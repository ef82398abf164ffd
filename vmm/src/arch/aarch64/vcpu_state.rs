//! A vCPU's state and the VM's clock as values: to be the registers that `KVM_GET_REG_LIST` names, by
//! `KVM_GET_ONE_REG` and `KVM_SET_ONE_REG`, and the virtual counter, which is one of them.

use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};

use crate::arch::{NotSupported, VcpuStateError};

/// Takes and puts back the states of vCPUs. There is none yet.
#[derive(Debug)]
pub enum VcpuSaver {}

/// A vCPU's state. There is none yet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum VcpuState {}

impl VcpuSaver {
    /// Asks KVM what it keeps of a vCPU.
    ///
    /// # Errors
    /// Always, as long as no guest runs on this processor.
    pub fn new(_: &Kvm) -> Result<Self, VcpuStateError> {
        let what = "save a vCPU";
        Err(NotSupported { what }.into())
    }

    /// Takes the state of a vCPU.
    ///
    /// # Errors
    /// None, as long as there is no state.
    pub fn save(&self, _: &VcpuFd) -> Result<VcpuState, VcpuStateError> {
        match *self {}
    }

    /// Puts a state into a fresh vCPU.
    ///
    /// # Errors
    /// None, as long as there is no state.
    pub fn restore(&self, _: &VcpuFd, state: &VcpuState) -> Result<(), VcpuStateError> {
        match *state {}
    }
}

/// The VM's clock. There is none yet.
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
    /// None, as long as there is no state.
    pub fn restore(self, _: &VmFd) -> Result<(), VcpuStateError> {
        match self {}
    }
}
