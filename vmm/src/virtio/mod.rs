//! Virtio devices, version 1.3 of the specification, on the MMIO transport.
//!
//! One file or folder a device; [`device`] is the contract between a device and the transport.

pub mod block;
pub mod device;
pub mod fs;
mod life;
mod memory;
mod queue;
mod registers;
pub mod rng;
#[cfg(test)]
mod slot_tests;
#[cfg(test)]
pub(crate) mod testing;
pub mod transport;
pub mod vsock;

pub use device::{
    ActivateError, Activation, ActiveQueue, DeviceState, Interrupt, RestoreError, SaveError,
    VirtioDevice,
};
