//! The microVM monitor: guest memory, KVM, vCPUs, a kernel booted directly, and a handful of virtio
//! devices on MMIO, in one process that jails itself before the guest runs.
//!
//! It knows nothing of containers: a caller gives it a kernel, an initramfs, directories to share,
//! and file descriptors to connect to vsock ports, and is notified when the machine has ended.
//!
//! Everything that reads a byte from the guest treats the guest as an attacker: see `docs/security.md`.

mod arch;
mod bus;
pub mod chain;
pub mod console;
pub mod deadlines;
pub mod event_loop;
mod image;
mod initial_state;
pub mod jail;
pub mod kernel;
pub mod kvm;
pub mod machine;
pub mod memory;
mod rate_limit;
pub mod state;
pub mod stop;
pub mod vcpu;
pub mod virtio;
mod vm;

pub use arch::{BootError, NotSupported};
pub use console::{Console, ConsoleLimits};
pub use event_loop::EventLoop;
pub use image::Image;
pub use machine::{
    MAX_DEVICES, Machine, MachineConfig, MachineError, ReadyMachine, RunningMachine,
};
pub use stop::Stopper;
pub use vcpu::{StopReason, kick_signal};
pub use vm::VmError;
