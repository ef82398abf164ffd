//! What `create` tells the VMM process it launches: one JSON document in an inherited memory file, with
//! the numbers of the other file descriptors that it inherits.

use std::num::NonZeroU8;
use std::os::fd::RawFd;

use serde::{Deserialize, Serialize};

use crate::spec::{MemoryPolicy, Network, Share};

/// Everything a VMM process needs to know. The descriptors are named by their number in that process.
#[derive(Debug, Serialize, Deserialize)]
pub struct VmmConfig {
    /// Whether it waits to be let begin; see `lifeline`.
    pub held: bool,
    /// How many vCPUs the guest has.
    pub vcpus: NonZeroU8,
    /// The guest's memory, in MiB.
    pub memory_mib: u32,
    /// Words for the end of the kernel's command line.
    pub cmdline: String,
    /// The most that is kept of the guest's console, in bytes.
    pub console_log_size: u64,
    /// Whether it shares a processor's core with no other process.
    pub core_scheduling: bool,
    /// What the guest sees of the host's file systems.
    pub shares: Vec<Share<RawFd>>,
    /// The user namespace that the process is root in, where it is not the host's root.
    pub user_namespace: Option<RawFd>,
    /// The host's block devices that the guest has.
    pub disks: Vec<VmmDisk>,
    /// The network namespace that the process is in.
    pub network: Network<RawFd>,
    /// The policy by which the host allocates the VM's memory.
    pub memory_policy: Option<MemoryPolicy>,
    /// How readily the host's kernel ends the process for want of memory (proc(5), oom_score_adj).
    pub oom_score_adj: Option<i32>,
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
    /// The container's terminal, in place of the process's standard streams.
    pub terminal: Option<VmmTerminal>,
}

/// See [`HostTerminal`](super::HostTerminal).
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmmTerminal {
    /// The side of a pseudo-terminal that is not the engine's.
    Pty(RawFd),
    /// The ends of a relay.
    Relayed {
        /// What is typed and shown.
        text: RawFd,
        /// The terminal's sizes.
        sizes: RawFd,
    },
}

/// One block device of the host.
#[derive(Debug, Serialize, Deserialize)]
pub struct VmmDisk {
    /// The device, open for reading, and for writing unless `read_only`.
    pub device: RawFd,
    /// The serial number by which the guest finds it.
    pub serial: String,
    /// Whether writes are refused, on the host's side.
    pub read_only: bool,
}
