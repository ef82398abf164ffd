//! The errors of the host's requests, and the ttrpc status codes for them.

use std::io;

use hull_cgroup::limits::LimitError;
use hull_protocol::answers;
use serde::{Deserialize, Serialize};
use ttrpc::{Code, get_status};

use crate::network;

/// Why a request was not carried out. The guest is then as it was before.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// config.json, or the `process` object of a further process, is invalid or asks for what the guest can't do.
    #[error("config.json: {field}: {problem}")]
    Config {
        /// The field.
        field: &'static str,
        /// What is wrong with it, and what is expected.
        problem: String,
    },
    /// A field of the request is invalid.
    #[error("{field}: {problem}")]
    InvalidRequest {
        /// The field of the request.
        field: &'static str,
        /// What is wrong with it, and what is expected.
        problem: String,
    },
    /// A JSON document of the request doesn't parse.
    #[error("{document}: {source}")]
    Json {
        /// Which one.
        document: &'static str,
        /// Where, and why.
        source: serde_json::Error,
    },
    /// A container, process or cgroup of this name exists.
    #[error("{0} already exists")]
    AlreadyExists(String),
    /// There is no container, process or disk of this name.
    #[error("{0} does not exist")]
    NotFound(String),
    /// The process that a signal was for has ended.
    #[error("{0} has ended")]
    ProcessEnded(String),
    /// The container isn't in the state that the request needs.
    #[error("{what} is {state}, not {wanted}")]
    WrongState {
        /// The container or process.
        what: String,
        /// The state it is in.
        state: &'static str,
        /// The state that the request needs.
        wanted: &'static str,
    },
    /// A further process in a container that has ended, in runc's words.
    #[error("cannot exec in a stopped container")]
    ExecInStopped,
    /// A container has as many processes as are allowed.
    #[error("{0}: that is the most there can be")]
    TooMany(String),
    /// A limit is invalid, or the kernel refuses it.
    #[error("config.json: {}: {}", .0.field(), limit_reason(.0))]
    Limit(#[from] LimitError),
    /// A process couldn't be made, for a reason that the helper found.
    #[error(transparent)]
    Helper(#[from] Failure),
    /// The container's network can't be set up as the request says. What was changed before the error stays changed.
    #[error("network: {0}")]
    Network(#[from] network::Error),
    /// The kernel's OOM killer killed the container's first process before it was made, in runc's words.
    #[error("container init was OOM-killed (memory limit too low?)")]
    OutOfMemory,
    /// Something took too long.
    #[error("{what} took longer than {seconds} s")]
    Timeout {
        /// What was awaited.
        what: String,
        /// The limit.
        seconds: u64,
    },
    /// The guest's own kernel refused something.
    #[error("{what}: {source}")]
    Io {
        /// What was attempted.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
}

impl Error {
    /// An I/O error, with what was attempted.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// The status code, by which the host can tell errors apart without reading their text.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Config { .. }
            | Self::InvalidRequest { .. }
            | Self::Json { .. }
            | Self::Limit(LimitError::Invalid { .. }) => Code::INVALID_ARGUMENT,
            Self::AlreadyExists(_) => Code::ALREADY_EXISTS,
            Self::NotFound(_) | Self::ProcessEnded(_) => Code::NOT_FOUND,
            Self::WrongState { .. } | Self::ExecInStopped => Code::FAILED_PRECONDITION,
            Self::TooMany(_) | Self::OutOfMemory => Code::RESOURCE_EXHAUSTED,
            Self::Helper(failure) => failure.kind.code(),
            Self::Network(error) => error.code(),
            // Not DEADLINE_EXCEEDED: that is the host's own limit, and the host says how long it was.
            Self::Timeout { .. } => Code::ABORTED,
            Self::Io { .. } | Self::Limit(LimitError::Write { .. }) => Code::INTERNAL,
        }
    }
}

/// The text of a limit's error, without its field.
fn limit_reason(error: &LimitError) -> String {
    match error {
        LimitError::Write { source, .. } => format!("{error}: {}", Strerror(source)),
        LimitError::Invalid { .. } => error.to_string(),
    }
}

impl From<Error> for ttrpc::Error {
    fn from(error: Error) -> Self {
        let mut reason = error.to_string();
        reason.truncate(reason.floor_char_boundary(answers::MAX_REASON_LENGTH));
        Self::RpcStatus(get_status(error.code(), reason))
    }
}

/// Why a helper could not make a process. The helper sends this to the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Which kind of failure.
    pub kind: FailureKind,
    /// For the user, in runc's words where runc has a message for it.
    pub message: String,
}

/// The kinds of failure that the host distinguishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// The program doesn't exist.
    ProgramNotFound,
    /// The program is a directory, or may not be executed.
    ProgramNotExecutable,
    /// config.json asks for something that is invalid or that the guest can't do.
    Config,
    /// Anything else.
    Other,
}

impl FailureKind {
    fn code(self) -> Code {
        match self {
            Self::ProgramNotFound => Code::NOT_FOUND,
            Self::ProgramNotExecutable => Code::PERMISSION_DENIED,
            Self::Config => Code::INVALID_ARGUMENT,
            Self::Other => Code::ABORTED,
        }
    }
}

impl Failure {
    /// A failure of no particular kind.
    pub fn other(message: impl Into<String>) -> Self {
        Self {
            kind: FailureKind::Other,
            message: message.into(),
        }
    }

    /// A field of config.json is invalid or asks for what the guest can't do. The message begins with the field.
    pub fn config(message: impl std::fmt::Display) -> Self {
        Self {
            kind: FailureKind::Config,
            message: format!("config.json: {message}"),
        }
    }

    /// The kernel refuses what a field of config.json asks for: the field, and the error.
    pub fn field<E: Into<io::Error>>(field: impl Into<String>) -> impl FnOnce(E) -> Self {
        let field = field.into();
        move |source| Self::config(format!("{field}: {}", Strerror(&source.into())))
    }

    /// A system call of the helper failed: what was attempted, and the error.
    pub fn io<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |source| Self::other(format!("{what}: {}", Strerror(&source.into())))
    }
}

/// An I/O error's text as strerror(3) and Go have it, without Rust's "(os error 2)", and in lower case.
pub struct Strerror<'a>(pub &'a io::Error);

impl std::fmt::Display for Strerror<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = self.0.to_string();
        let text = text.split(" (os error").next().unwrap_or(&text);
        let mut letters = text.chars();
        match letters.next() {
            Some(first) => write!(f, "{}{}", first.to_lowercase(), letters.as_str()),
            None => Ok(()),
        }
    }
}

/// An error after which the agent can't serve the host.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub struct Fatal {
    /// What was attempted.
    pub what: String,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

impl Fatal {
    /// An I/O error, with what was attempted.
    pub fn io<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |source| Self {
            what,
            source: source.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_io_error_reads_as_runc_would_print_it() {
        let error = io::Error::from_raw_os_error(libc::ENOENT);
        assert_eq!(Strerror(&error).to_string(), "no such file or directory");
    }

    #[test]
    fn a_missing_program_has_a_status_code_of_its_own() {
        let error = Error::from(Failure {
            kind: FailureKind::ProgramNotFound,
            message: "exec: \"x\": executable file not found in $PATH".into(),
        });
        assert_eq!(error.code(), Code::NOT_FOUND);
    }
}
