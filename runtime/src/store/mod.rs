//! Containers and their sandboxes on disk: what commands leave for one another.
//!
//! There is no daemon: each command opens the container's folder under `--root`, takes its lock if it
//! is going to change something, and reads what the last command left. Nothing here talks to the guest.

mod container;
mod folder;
mod interfaces;
mod lock;
mod record;
mod sandbox;
#[allow(clippy::module_inception)] // the folder of all containers is what the layer is named after
mod store;

pub use container::ContainerDir;
pub use interfaces::ConnectedInterfaces;
pub use record::{ContainerRecord, Joined, Phase, State, Status};
pub use sandbox::{NamedNamespace, Nic, SandboxDir, SandboxNetwork, SandboxRecord};
pub use store::{Store, StoreKey};

use std::io;
use std::path::PathBuf;

use crate::types::ContainerId;

/// What is wrong with a container's folder, or a file in it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// `create` with an id that is taken.
    #[error("container with given ID already exists: {0}")]
    Exists(ContainerId),
    /// No such container.
    #[error("container does not exist: {0}")]
    Missing(ContainerId),
    /// Another command holds the lock for too long.
    #[error("waited {seconds} s for another hull command to let go of container {id}")]
    Locked {
        /// The container.
        id: ContainerId,
        /// How long.
        seconds: u64,
    },
    /// The state file isn't one, or is gone from a folder that is there.
    #[error("state of container {id} is damaged ({path}); delete it with --force")]
    Damaged {
        /// The container.
        id: ContainerId,
        /// The file.
        path: PathBuf,
        /// What the system or the parser says.
        #[source]
        source: io::Error,
    },
    /// The stored config.json isn't one.
    #[error("the stored config.json of container {id} is damaged")]
    DamagedConfig {
        /// The container.
        id: ContainerId,
        /// What the system or the parser says.
        #[source]
        source: io::Error,
    },
    /// `--root` can't be made.
    #[error("cannot create {path} for the containers' state (--root names another place)")]
    Root {
        /// As the user named it, or the default.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file operation under `--root` failed.
    #[error("cannot {what} {path}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}
