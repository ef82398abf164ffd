//! Virtio devices, version 1.3 of the specification, on the MMIO transport.
//!
//! Each device has a file or a folder; [`device`] is the interface between a device and the
//! transport.

pub mod block;
pub mod device;
pub mod fs;
mod lifecycle;
mod live_config;
pub mod mem;
mod memory;
pub mod net;
mod queue;
mod registers;
pub mod rng;
pub mod slot;
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
