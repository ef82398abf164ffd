//! What depends on the processor: the layout of guest memory, how a kernel is entered, and the state a
//! vCPU starts in. Nothing outside this module knows which architecture it is.

#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::*;
#[cfg(target_arch = "x86_64")]
pub use x86_64::{BootError, Probe, ProbeError, probe};

#[cfg(not(target_arch = "x86_64"))]
compile_error!("hull runs on x86_64 only, for now");
