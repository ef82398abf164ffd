//! How large a VM is. How large a container's becomes is decided in [`spec`](crate::spec).

use std::num::NonZeroU8;

use serde::{Deserialize, Serialize};

/// A VM's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizing {
    /// How many vCPUs.
    pub vcpus: NonZeroU8,
    /// The memory that it is booted with, in MiB: 128 or more.
    pub memory_mib: u32,
    /// How much more memory it can be given while it runs, in MiB; 0 for a VM that can't grow.
    #[serde(default)]
    pub growth_mib: u32,
}

impl Sizing {
    /// No VM is smaller.
    pub const SMALLEST: Self = Self {
        vcpus: NonZeroU8::MIN,
        memory_mib: 128,
        growth_mib: 0,
    };

    /// The same, of a VM that can't grow.
    pub const fn fixed(self) -> Self {
        Self {
            growth_mib: 0,
            ..self
        }
    }
}
