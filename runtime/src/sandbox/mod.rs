//! One sandbox: a microVM, the process that runs it, and the agent inside it.
//!
//! `create` launches the VM process ([`Launch`]), which is [`run_vmm`] here; every command that wants something of
//! a container talks to the [`Agent`] over the VMM's control socket. A further container gets its shares from outside
//! ([`add_shares`]), and a [`StandIn`] on the host. A [`Follower`] passes on what changes while it runs. What of it all
//! is on disk is `store`'s.

mod agent;
mod assets;
mod clock;
mod config;
mod devices;
mod follower;
mod forward;
mod guest_network;
mod handover;
mod launch;
mod lifeline;
mod memory;
mod messages;
mod namespaces;
mod nics;
mod notices;
mod panics;
mod process;
mod resolver;
mod search;
mod shares;
mod signals;
mod slots;
mod socket;
mod stand_in;
mod stdio;
mod supervisor;
mod terminal;
mod vmm;

pub use agent::{
    Agent, AgentError, BlockingAgent, ContainerEnds, Limited, Pressure, PressureLine, ProcessInfo,
    Stats, open_connection,
};
pub use assets::BootFiles;
pub use config::{VmConfig, VmmConfig, VmmDisk};
pub use devices::room_beside;
pub use follower::{Follower, run as run_follower};
pub use forward::forward_signals;
pub use guest_network::GuestNetwork;
pub use launch::{Launch, Sandbox};
pub use lifeline::{Lifeline, Streams};
pub use memory::{Plugged, plug_memory, plugged_memory};
pub use namespaces::network_of;
pub use nics::{ConnectedNic, NicError};
pub use process::ChildProcess;
pub use resolver::{SOCKETS as RESOLVER_SOCKETS, WaitingRelay};
pub use search::{Purpose, RunningProcess, running as running_processes};
pub use shares::{add_shares, remove_shares};
pub use slots::{hand_disk, hand_nic, remove_nic};
pub use stand_in::{StandIn, run as run_stand_in};
pub use stdio::{AttachedStdio, HostStream, Offer, Stdio};
pub use terminal::{HostTerminal, Sizes, TerminalStreams};
pub use vmm::run as run_vmm;

use std::io;
use std::path::PathBuf;

/// What can go wrong with a sandbox.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// This binary carries no guest, and none was named.
    #[error(
        "this hull was built without a guest {what}; give one with --{what} FILE, or build with `make`"
    )]
    NoAsset {
        /// `kernel` or `initramfs`.
        what: &'static str,
    },
    /// A kernel or an initramfs that the user named.
    #[error("cannot read {path}")]
    Asset {
        /// As the user named it.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A system call on the way to the VMM process failed.
    #[error("cannot {what}")]
    Host {
        /// What was being done.
        what: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The host's KVM can't be opened.
    #[error(transparent)]
    Kvm(#[from] hull_vmm::kvm::KvmError),
    /// An ordinary user can't have config.json's mappings.
    #[error("config.json: linux.uidMappings and linux.gidMappings")]
    UserNamespace(#[source] hull_vmm::jail::userns::Error),
    /// The host's policy doesn't know the label.
    #[error("config.json: process.selinuxLabel: the host's SELinux policy refuses it")]
    SelinuxLabel(#[source] io::Error),
    /// execve(2) of this program itself.
    #[error(
        "the host refused to execute hull's own binary for the VM process; where config.json has a \
         process.selinuxLabel, its type must be one that may run VMs (engines: label=type:container_kvm_t)"
    )]
    NotExecuted,
    /// The VMM process said why it could not go on.
    #[error("{0}")]
    Vmm(String),
    /// The VMM process died before the guest was up.
    #[error("the VMM process ended while the guest was booting ({status}){}", console(.tail))]
    VmmDied {
        /// How it ended.
        status: String,
        /// What the guest's console said last.
        tail: Vec<String>,
    },
    /// The shares of a further container, or what it has left of them.
    #[error(transparent)]
    Shares(hull_vmm::jail::tree::Error),
    /// The process that is to stand for a further container.
    #[error("the container's stand-in on the host: {0}")]
    StandIn(String),
    /// The host can't make the container's root read-only.
    #[error("config.json: root.readonly")]
    ReadOnlyRoot(#[source] hull_vmm::jail::tree::Error),
    /// The VMM process took too long until the guest's first instruction.
    #[error(
        "waited {seconds} s for the VM process to set up the machine, in vain; a busy host may need a longer \
         --boot-timeout"
    )]
    SetupTimeout {
        /// How long.
        seconds: u64,
    },
    /// The guest took too long.
    #[error("waited {seconds} s for the guest's agent to come up, in vain{}", console(.tail))]
    BootTimeout {
        /// How long.
        seconds: u64,
        /// What the guest's console said last.
        tail: Vec<String>,
    },
    /// The guest greeted with something else.
    #[error(transparent)]
    Hello(#[from] hull_protocol::hello::HelloError),
    /// The agent, or the way to it.
    #[error(transparent)]
    Agent(#[from] AgentError),
}

fn console(tail: &[String]) -> String {
    if tail.is_empty() {
        return "; its console is empty".to_owned();
    }
    format!("; its console ends:\n  {}", tail.join("\n  "))
}

impl SandboxError {
    /// For `map_err`: what a command was doing when the system said no.
    pub fn host(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { what, source }
    }
}
