//! The states of a machine's parts, as values that serde writes and reads: what a snapshot is to be made of.
//! Each part has its `save` and `restore` beside it; here they have a name outside of this crate.
//!
//! No command saves anything yet, and nothing here writes a file or stops a vCPU. A machine that is confined
//! can't be saved as it is: its vCPUs' threads may make none of the ioctls that this takes
//! ([`VcpuSaver`]), and their filters are not to be widened before somebody saves.
//!
//! A machine is put back in this order, into a VM that is made as for a boot:
//! 1. guest memory, as devices look at their queues in it;
//! 2. the vCPUs: what interrupts them before that is lost;
//! 3. the [`Platform`], so that devices' interrupts have routes;
//! 4. the devices ([`MmioTransport::restore`](crate::virtio::transport::MmioTransport::restore)), which
//!    interrupt the guest again where that may have been lost;
//! 5. the VM's clock, which goes on from then.

pub use crate::arch::{
    ClockState, Platform, PlatformState, PlatformStateError, VcpuSaver, VcpuState, VcpuStateError,
};
