//! A container as the host knows it: its id, its state machine, its state on disk, and its hooks.
//!
//! There is no daemon: each command opens the container's folder under `--root`, takes its lock if it
//! is going to change something, and reads what the last command left. Nothing here talks to the guest.

mod hooks;
mod id;
mod lock;
mod process;
mod state;
mod store;

pub use hooks::{Call, HookError, Hooks, Stage};
pub use id::ContainerId;
pub use process::{ENDED, ProcessId};
pub use state::{Phase, State, Status};
pub use store::{ContainerDir, Store, StoreKey};

use std::io;
use std::path::PathBuf;

use hull_protocol::paths::LONGEST_ID;

/// What is wrong with a container's id, state or folder.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// The id can't name a folder.
    #[error(
        "invalid container ID format: {0:?} (letters, digits and \"_+,-.\" only, at most {LONGEST_ID})"
    )]
    InvalidId(String),
    /// The id would be the name of a folder of hull's own.
    #[error(
        "invalid container ID format: {id:?} (names that begin with {name:?} are hull's own; take another)"
    )]
    ReservedId {
        /// What was asked for.
        id: String,
        /// How hull's names begin.
        name: &'static str,
    },
    /// `create` with an id that is taken.
    #[error("container with given ID already exists: {0}")]
    Exists(ContainerId),
    /// No such container.
    #[error("container does not exist: {0}")]
    Missing(ContainerId),
    /// The verb doesn't fit the state.
    #[error("cannot {verb} container {id} that is {status}")]
    WrongState {
        /// What was asked for.
        verb: &'static str,
        /// Of which container.
        id: ContainerId,
        /// In what state it is.
        status: Status,
    },
    /// `exec` in a paused container, in runc's words.
    #[error("cannot exec in a paused container (use --ignore-paused to override)")]
    Paused,
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
