//! What is said of a verb that doesn't fit a container's state.
//!
//! Engines tell such a failure from others by runc's words. containerd's shim, for one, takes a `kill` that says
//! "container not running" for a container that has just ended, and any other for an error of the user's
//! `docker stop`. So these words are in the sentences here, with the container and its state beside them.

use std::fmt;

use crate::store::Status;
use crate::types::ContainerId;

/// What is done to a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// `create --sandbox`.
    Join,
    /// `delete`.
    Delete,
    /// `exec`.
    Exec,
    /// `pause`.
    Pause,
    /// `resume`.
    Resume,
    /// `kill`.
    Signal,
    /// `start`.
    Start,
    /// `update`.
    Update,
    /// `events`.
    Watch,
}

/// A verb, and a container in a state that it doesn't fit.
#[derive(Debug)]
pub struct WrongState {
    /// What was asked for.
    pub verb: Verb,
    /// Of which container.
    pub id: ContainerId,
    /// In what state it is.
    pub status: Status,
}

impl fmt::Display for WrongState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { verb, id, status } = self;
        match (verb, status) {
            (Verb::Join, _) => {
                write!(
                    f,
                    "cannot add a container to the sandbox of container {id} that is {status}"
                )
            }
            (Verb::Delete, _) => {
                write!(
                    f,
                    "cannot delete container {id} that is not stopped: {status}"
                )
            }
            (Verb::Exec, Status::Stopped) => write!(f, "cannot exec in a stopped container: {id}"),
            (Verb::Exec, _) => write!(f, "cannot exec in container {id} that is {status}"),
            (Verb::Start, Status::Running) => {
                write!(f, "cannot start an already running container: {id}")
            }
            (Verb::Start, Status::Stopped) => {
                write!(f, "cannot start a container that has stopped: {id}")
            }
            (Verb::Start, _) => write!(f, "cannot start a container in the {status} state: {id}"),
            (Verb::Resume, _) => {
                write!(
                    f,
                    "cannot resume container {id} that is {status}: container not paused"
                )
            }
            (Verb::Watch, _) => write!(f, "container with id {id} is not running: {status}"),
            (Verb::Pause | Verb::Signal | Verb::Update, _) => {
                let verb = match verb {
                    Verb::Pause => "pause",
                    Verb::Signal => "signal",
                    _ => "update",
                };
                write!(
                    f,
                    "cannot {verb} container {id} that is {status}: container not running"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Status::{Created, Paused, Running, Stopped};

    /// runc's words: of its commands, and of libcontainer/error.go.
    const RUNC: &[(Verb, Status, &str)] = &[
        (
            Verb::Delete,
            Running,
            "cannot delete container web that is not stopped: running",
        ),
        (
            Verb::Delete,
            Paused,
            "cannot delete container web that is not stopped: paused",
        ),
        (Verb::Exec, Stopped, "cannot exec in a stopped container"),
        (Verb::Pause, Paused, "container not running"),
        (Verb::Pause, Stopped, "container not running"),
        (Verb::Resume, Created, "container not paused"),
        (Verb::Resume, Running, "container not paused"),
        (Verb::Resume, Stopped, "container not paused"),
        (Verb::Signal, Stopped, "container not running"),
        (
            Verb::Start,
            Running,
            "cannot start an already running container",
        ),
        (
            Verb::Start,
            Stopped,
            "cannot start a container that has stopped",
        ),
        (
            Verb::Start,
            Paused,
            "cannot start a container in the paused state",
        ),
        (Verb::Update, Stopped, "container not running"),
        (Verb::Watch, Stopped, "container with id web is not running"),
    ];

    #[test]
    fn engines_find_runcs_words() {
        for (verb, status, words) in RUNC {
            let (verb, status) = (*verb, *status);
            let id = "web".parse().expect("an id");
            let said = WrongState { verb, id, status }.to_string();
            assert!(said.contains(words), "{said:?} doesn't say {words:?}");
            assert!(said.contains("web"), "{said:?} names no container");
        }
    }
}
