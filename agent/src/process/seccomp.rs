//! `linux.seccomp`: the host has compiled it, and each process of the container loads it.

use std::io;

use hull_protocol::agent::SeccompFilter;
use serde::{Deserialize, Serialize};

use crate::sys;

/// A compiled filter. The helper gets it as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    instructions: Vec<u64>,
    flags: u64,
}

impl From<&SeccompFilter> for Program {
    fn from(filter: &SeccompFilter) -> Self {
        Self {
            instructions: filter.instructions.clone(),
            flags: filter.flags,
        }
    }
}

impl Program {
    /// Loads it into the calling process.
    ///
    /// # Errors
    /// `EACCES` without no_new_privs and CAP_SYS_ADMIN.
    pub fn load(&self) -> io::Result<()> {
        sys::load_seccomp(&self.instructions, self.flags)
    }
}
