//! Why a verb fails.

use std::io;
use std::path::PathBuf;

use super::{ConsoleSocketError, HookError, WrongState};
use crate::cgroup::CgroupError;
use crate::config::ConfigError;
use crate::sandbox::{AgentError, SandboxError};
use crate::spec::SpecError;
use crate::store::StoreError;
use crate::types::{ContainerId, IdError};

/// A verb's failure. With [`chain`](crate::chain::chain), causes included, it is one line for the user.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The container's id.
    #[error(transparent)]
    Id(#[from] IdError),
    /// hull's own configuration, or an annotation that would change it.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The bundle or its config.json was refused.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The VM's cgroup on the host.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The container's folder.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The verb doesn't fit the container's state.
    #[error("{0}")]
    WrongState(WrongState),
    /// A container that is to be joined is in the sandbox of another one itself.
    #[error("container {id} is in the sandbox of {sandbox}: name that one")]
    NotASandbox {
        /// What was named.
        id: ContainerId,
        /// What to name.
        sandbox: ContainerId,
    },
    /// A further container asks for what the VM of its sandbox has for all of them, or doesn't have.
    #[error(
        "config.json: {field}: in the sandbox of container {sandbox} it is as that container has it, for all; \
         remove it, or create this one with a sandbox of its own"
    )]
    OfTheSandbox {
        /// Which field.
        field: &'static str,
        /// The sandbox.
        sandbox: ContainerId,
    },
    /// Somebody who isn't root of the host would add a container to a sandbox.
    #[error(
        "without root of the host a VM takes no further container; create it with a sandbox of its own (engines: outside \
         of a pod, with a network of its own)"
    )]
    JoinNeedsRoot,
    /// The guest doesn't take the memory that its VM is to grow by.
    #[error(
        "linux.resources.memory.limit: waited for the guest to take {wanted} MiB more memory, in vain: it has taken \
         {taken} MiB, and was asked to give them back; the limits are as they were"
    )]
    NotGrown {
        /// How much more it was to take, in MiB.
        wanted: u32,
        /// How much of it was plugged.
        taken: u32,
    },
    /// `exec` in a paused container, in runc's words.
    #[error("cannot exec in a paused container (use --ignore-paused to override)")]
    Paused,
    /// A further process with another SELinux label than the container's VM.
    #[error("process.selinuxLabel: {asked_for:?} is not the label of the container's VM, {own:?}")]
    OtherLabel {
        /// The process's.
        asked_for: String,
        /// The VM's.
        own: String,
    },
    /// The network namespace of a sandbox.
    #[error("the container's network namespace on the host")]
    NetworkNamespace(#[source] io::Error),
    /// What an engine has put into it.
    #[error(transparent)]
    Network(#[from] crate::network::Error),
    /// A namespace of a container in a VM, for one that has another network and so another VM.
    #[error(
        "config.json: {field}: {}: it is that of container {container}, in a VM: give the container that one's network, \
         too (engines: --network container:NAME), and it is made in that VM",
        path.display()
    )]
    NamespaceOfSandbox {
        /// Which field.
        field: String,
        /// The namespace's path.
        path: PathBuf,
        /// Whose it is.
        container: ContainerId,
    },
    /// A namespace that no container in the VM has.
    #[error(
        "config.json: {field}: {}: it is that of no container in the VM, and a namespace of the host cannot be joined \
         from inside one; remove the path (for one of the container's own) or the namespace (for the guest's)",
        path.display()
    )]
    ForeignNamespace {
        /// Which field.
        field: String,
        /// The namespace's path.
        path: PathBuf,
    },
    /// One that a container of another runtime is in, which is to be joined.
    #[error(
        "config.json: {field}: {}: it is the network namespace of another container, whose process is {process}: a VM \
         would take its interfaces from it; give the container a network of its own (engines: one that both are on)",
        path.display()
    )]
    NetworkOfContainer {
        /// Which field.
        field: String,
        /// The namespace's path.
        path: PathBuf,
        /// The process that it names.
        process: i32,
    },
    /// An interface of the host's that is to be the container's.
    #[error("config.json: linux.netDevices[{name:?}]")]
    NetDevice {
        /// Its name on the host.
        name: String,
        /// Why it isn't.
        #[source]
        source: crate::network::Error,
    },
    /// An interface that the VM can't have.
    #[error(transparent)]
    Nic(#[from] crate::sandbox::NicError),
    /// A hook of config.json.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// The container's state as JSON, for a hook.
    #[error("cannot describe the container's state to a hook")]
    Describe(#[source] serde_json::Error),
    /// The engine's socket for the terminal.
    #[error(transparent)]
    ConsoleSocket(#[from] ConsoleSocketError),
    /// The file that is to get the pid.
    #[error("cannot write the pid file {}", path.display())]
    PidFile {
        /// As the user named it.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The VM, or the agent inside it.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The agent could not make the container's process; the words are runc's, which engines know.
    #[error("unable to start container process")]
    ContainerProcess(#[source] AgentError),
    /// The agent could not start a further process; likewise.
    #[error("exec failed: unable to start container process")]
    ExecProcess(#[source] AgentError),
}

/// The kinds of failure, for who is asked by others and tells them no more than that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// There is no such container, or process of it.
    NotFound,
    /// There is a container of this id already.
    Exists,
    /// The container is in another state.
    WrongState,
    /// What was asked for can't be.
    Refused,
    /// Nobody answered in time.
    Timeout,
    /// The sandbox isn't there any more, or doesn't serve.
    Unavailable,
    /// The host.
    Host,
}

impl Error {
    /// Of which kind it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Store(StoreError::Missing(_)) => ErrorKind::NotFound,
            Self::Store(StoreError::Exists(_)) => ErrorKind::Exists,
            Self::Store(StoreError::Locked { .. }) => ErrorKind::Timeout,
            Self::WrongState(_) | Self::Paused => ErrorKind::WrongState,
            Self::Sandbox(SandboxError::Agent(e)) => kind_of_agents(e),
            Self::ContainerProcess(e) | Self::ExecProcess(e) => kind_of_agents(e),
            Self::Sandbox(SandboxError::SetupTimeout { .. } | SandboxError::BootTimeout { .. }) => {
                ErrorKind::Timeout
            }
            Self::Id(_)
            | Self::Config(_)
            | Self::Spec(_)
            | Self::NotASandbox { .. }
            | Self::OfTheSandbox { .. }
            | Self::JoinNeedsRoot
            | Self::NotGrown { .. }
            | Self::OtherLabel { .. }
            | Self::NamespaceOfSandbox { .. }
            | Self::ForeignNamespace { .. }
            | Self::NetworkOfContainer { .. } => ErrorKind::Refused,
            _ => ErrorKind::Host,
        }
    }

    /// Whether the agent says that there is no such process or container.
    pub fn is_not_found(&self) -> bool {
        matches!(
            self,
            Self::Sandbox(SandboxError::Agent(AgentError::NotFound(_)))
        )
    }
}

fn kind_of_agents(error: &AgentError) -> ErrorKind {
    match error {
        AgentError::NotFound(_) => ErrorKind::NotFound,
        AgentError::Refused(_) => ErrorKind::Refused,
        e if e.is_timeout() => ErrorKind::Timeout,
        _ => ErrorKind::Unavailable,
    }
}

impl From<AgentError> for Error {
    fn from(error: AgentError) -> Self {
        Self::Sandbox(error.into())
    }
}
