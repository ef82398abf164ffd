//! The states of a machine's parts as serialisable values, of which snapshots will be made. Each
//! part implements `save` and `restore` in its own module; this one exports them.
//!
//! No command takes snapshots yet, and nothing here writes a file or stops a vCPU. The seccomp
//! filter of vCPU threads doesn't allow the ioctls that saving takes ([`VcpuSaver`]), and isn't to
//! be widened before some command needs it.
//!
//! A machine is restored in this order, into a VM that was created as for a boot:
//! 1. guest memory, since devices read their queues in it;
//! 2. the vCPUs, since interrupts that are raised before are lost;
//! 3. the [`Platform`], so that the devices' interrupts have routes;
//! 4. the devices ([`MmioTransport::restore`](crate::virtio::transport::MmioTransport::restore)),
//!    which raise pending interrupts again;
//! 5. the VM's clock, which continues from there.

pub use crate::arch::{
    ClockState, Platform, PlatformState, PlatformStateError, VcpuSaver, VcpuState, VcpuStateError,
};
