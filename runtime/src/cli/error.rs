//! What can go wrong with a command, as its user is told it.

use std::io;
use std::path::PathBuf;

use hull_runtime::config::ConfigError;
use hull_runtime::lifecycle::{self, ConsoleSocketError};
use hull_runtime::sandbox::{AgentError, SandboxError};
use hull_runtime::spec::SpecError;
use hull_runtime::types::IdError;

use super::terminal::TerminalError;

/// A command's failure. The text of the whole chain, causes included, is one line for the user.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What the command is about.
    #[error(transparent)]
    Lifecycle(#[from] lifecycle::Error),
    /// A process's terminal.
    #[error(transparent)]
    Terminal(#[from] TerminalError),
    /// A file that the user named on the command line.
    #[error("{}", path.display())]
    File {
        /// As the user named it.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The user's own words make no sense together.
    #[error("{0}")]
    Usage(String),
    /// What the process that stands for a detached exec has to say.
    #[error("{}", if .0.is_empty() { "the exec's stand-in died before it could start" } else { .0 })]
    StandIn(String),
    /// What was to be printed could not be.
    #[error("cannot write to standard output")]
    Output(#[source] io::Error),
    /// What was to be printed is no JSON: a path that is no text.
    #[error("cannot print this as JSON")]
    Json(#[source] serde_json::Error),
}

impl Error {
    /// `--preserve-fds`.
    pub fn preserve_fds() -> Self {
        let why = "--preserve-fds: a host's file descriptor has no meaning inside a VM";
        Self::Usage(why.to_owned())
    }
}

/// These come to a command also by themselves.
macro_rules! from_the_library {
    ($($error:ty),*) => {
        $(impl From<$error> for Error {
            fn from(error: $error) -> Self {
                Self::Lifecycle(error.into())
            }
        })*
    };
}

from_the_library!(
    AgentError,
    ConfigError,
    ConsoleSocketError,
    IdError,
    SandboxError,
    SpecError
);
