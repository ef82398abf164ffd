//! What can go wrong with a request of the host, and the ttrpc status that tells it.

use std::io;

use hull_cgroup::limits::LimitError;
use hull_protocol::answers;
use serde::{Deserialize, Serialize};
use ttrpc::{Code, get_status};

/// Why a request was not carried out. The guest is then as it was before.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// config.json, or the `process` of a further process, asks for what makes no sense or can't be had.
    #[error("config.json: {field}: {problem}")]
    Config {
        /// The field.
        field: &'static str,
        /// What is wrong with it, and what is expected.
        problem: String,
    },
    /// The request itself makes no sense.
    #[error("{field}: {problem}")]
    Invalid {
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
    /// There is something of this name already.
    #[error("{0} already exists")]
    Exists(String),
    /// There is nothing of this name.
    #[error("{0} does not exist")]
    Missing(String),
    /// The process that a signal was for has ended.
    #[error("{0} has ended")]
    Ended(String),
    /// Not in this state.
    #[error("{what} is {state}, not {wanted}")]
    State {
        /// The container or process.
        what: String,
        /// The state it is in.
        state: &'static str,
        /// The state that the request needs.
        wanted: &'static str,
    },
    /// A further process in a container that has ended, in runc's words.
    #[error("cannot exec in a stopped container")]
    Stopped,
    /// A table is full.
    #[error("{0}: that is the most there can be")]
    Full(String),
    /// A limit makes no sense, or the kernel refuses it.
    #[error("config.json: {}: {}", .0.field(), why(.0))]
    Limit(#[from] LimitError),
    /// A process couldn't be made, for a reason that the helper found.
    #[error(transparent)]
    Launch(#[from] Failure),
    /// The kernel killed what was to become the container's process for want of memory, in runc's words.
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
            | Self::Invalid { .. }
            | Self::Json { .. }
            | Self::Limit(LimitError::Invalid { .. }) => Code::INVALID_ARGUMENT,
            Self::Exists(_) => Code::ALREADY_EXISTS,
            Self::Missing(_) | Self::Ended(_) => Code::NOT_FOUND,
            Self::State { .. } | Self::Stopped => Code::FAILED_PRECONDITION,
            Self::Full(_) | Self::OutOfMemory => Code::RESOURCE_EXHAUSTED,
            Self::Launch(failure) => failure.kind.code(),
            // Not DEADLINE_EXCEEDED: that is the host's own limit, and the host says how long it was.
            Self::Timeout { .. } => Code::ABORTED,
            Self::Io { .. } | Self::Limit(LimitError::Write { .. }) => Code::INTERNAL,
        }
    }
}

/// A limit's error in the words for a user, without its field.
fn why(error: &LimitError) -> String {
    match error {
        LimitError::Write { source, .. } => format!("{error}: {}", Message(source)),
        LimitError::Invalid { .. } => error.to_string(),
    }
}

impl From<Error> for ttrpc::Error {
    fn from(error: Error) -> Self {
        let mut reason = error.to_string();
        reason.truncate(reason.floor_char_boundary(answers::LONGEST_REASON));
        Self::RpcStatus(get_status(error.code(), reason))
    }
}

/// Why a helper could not make a process: what it sends to the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What sort of failure.
    pub kind: FailureKind,
    /// For the user, in runc's words where runc has words for it.
    pub message: String,
}

/// The sorts of failure that the host may want to tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// The program doesn't exist.
    ProgramMissing,
    /// The program may not be executed.
    ProgramForbidden,
    /// config.json asks for something that is invalid or can't be had here.
    Config,
    /// Anything else.
    Other,
}

impl FailureKind {
    fn code(self) -> Code {
        match self {
            Self::ProgramMissing => Code::NOT_FOUND,
            Self::ProgramForbidden => Code::PERMISSION_DENIED,
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

    /// What config.json asks for can't be had. The message begins with the field.
    pub fn config(message: impl std::fmt::Display) -> Self {
        Self {
            kind: FailureKind::Config,
            message: format!("config.json: {message}"),
        }
    }

    /// The kernel refuses what a field of config.json asks for: the field, and the error.
    pub fn field<E: Into<io::Error>>(field: impl Into<String>) -> impl FnOnce(E) -> Self {
        let field = field.into();
        move |source| Self::config(format!("{field}: {}", Message(&source.into())))
    }

    /// A system call of the helper failed: what was attempted, and the error.
    pub fn io<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |source| Self::other(format!("{what}: {}", Message(&source.into())))
    }
}

/// An I/O error as C and Go programs print it: the plain words, without Rust's "(os error 2)", and in
/// lower case.
pub struct Message<'a>(pub &'a io::Error);

impl std::fmt::Display for Message<'_> {
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

/// Why the agent itself can't go on.
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
    /// What was attempted, for `map_err`.
    pub fn at<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
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
        assert_eq!(Message(&error).to_string(), "no such file or directory");
    }

    #[test]
    fn a_missing_program_is_told_by_its_code() {
        let error = Error::from(Failure {
            kind: FailureKind::ProgramMissing,
            message: "exec: \"x\": executable file not found in $PATH".into(),
        });
        assert_eq!(error.code(), Code::NOT_FOUND);
    }
}
