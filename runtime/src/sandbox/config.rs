//! What `create` tells the VMM process it launches: one JSON document in an inherited memory file, with
//! the numbers of the other file descriptors that it inherits.

use std::num::NonZeroU8;
use std::os::fd::RawFd;

use serde::{Deserialize, Serialize};

use crate::spec::MemoryPolicy;

/// Everything a VMM process needs to know. The descriptors are named by their number in that process.
#[derive(Debug, Serialize, Deserialize)]
pub struct VmmConfig {
    /// The sandbox's id, for log lines.
    pub id: String,
    /// How many vCPUs the guest has.
    pub vcpus: NonZeroU8,
    /// The guest's memory, in MiB.
    pub memory_mib: u32,
    /// Words for the end of the kernel's command line.
    pub cmdline: String,
    /// What the guest sees of the host's file systems.
    pub shares: Vec<VmmShare>,
    /// The network namespace to join.
    pub network: Option<RawFd>,
    /// The policy by which the host allocates the VM's memory.
    pub memory_policy: Option<MemoryPolicy>,
    /// The guest kernel, where it is not the built-in one.
    pub kernel: Option<RawFd>,
    /// The guest's initramfs, where it is not the built-in one.
    pub initramfs: Option<RawFd>,
    /// The listening control socket.
    pub listener: RawFd,
    /// The connection to `create`; see `lifeline`.
    pub lifeline: RawFd,
    /// A pipe on which the agent's hello is passed on to `create`.
    pub ready: RawFd,
    /// The file that takes the guest's console.
    pub console: RawFd,
}

/// One file or folder of the host in the shared tree.
#[derive(Debug, Serialize, Deserialize)]
pub struct VmmShare {
    /// The file or folder, opened with O_PATH.
    pub source: RawFd,
    /// Where it appears, relative to the tree's root.
    pub target: String,
    /// Whether writes are refused, on the host's side.
    pub read_only: bool,
    /// Whether the mounts below a folder come with it.
    pub recursive: bool,
}
