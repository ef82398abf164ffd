//! Why the shim fails, and what kind of failure containerd is told that it is.
//!
//! containerd and its clients act by the kind (a ttrpc status code): what isn't found needn't be deleted, what exists
//! already isn't made again, what is unavailable is tried once more.

use std::io;
use std::path::PathBuf;

use containerd_shim_protos::ttrpc::{self, Code};
use hull_runtime::chain::chain;
use hull_runtime::lifecycle;
use hull_runtime::sandbox::AgentError;
use hull_runtime::types::IdError;

/// A failure of the shim's.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The arguments.
    #[error("{0}")]
    Usage(String),
    /// A verb of the library's.
    #[error(transparent)]
    Verb(#[from] lifecycle::Error),
    /// An id that is none.
    #[error(transparent)]
    Id(#[from] IdError),
    /// No such container, or process of it.
    #[error("{0} not found")]
    NotFound(String),
    /// One that there is already.
    #[error("{0} already exists")]
    Exists(String),
    /// The request doesn't fit the state that the container or its process is in.
    #[error("{0}")]
    State(String),
    /// The request asks for what can't be.
    #[error("{0}")]
    Invalid(String),
    /// The request asks for what hull doesn't have.
    #[error("{0}")]
    Unsupported(&'static str),
    /// A message that can't be read or written.
    #[error("{what}")]
    Message {
        /// Which one.
        what: &'static str,
        /// What is wrong with it.
        #[source]
        source: containerd_shim_protos::protobuf::Error,
    },
    /// JSON that is none.
    #[error("{what}")]
    Json {
        /// Which.
        what: &'static str,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A file, a socket or a stream that containerd has named.
    #[error("cannot {what} {}", path.display())]
    File {
        /// What was to be done.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A system call failed.
    #[error("cannot {what}")]
    Host {
        /// What was being done.
        what: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The server itself.
    #[error("cannot serve containerd")]
    Server(#[source] ttrpc::Error),
}

impl Error {
    /// For `map_err`: what was being done when the system said no.
    pub fn host(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { what, source }
    }

    /// For `map_err`: what was to be done with a file.
    pub fn file(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { what, path, source }
    }

    /// A process that has no status to tell, or runs, where it should be otherwise.
    pub fn state(what: impl Into<String>) -> Self {
        Self::State(what.into())
    }

    fn code(&self) -> Code {
        match self {
            Self::Verb(e) => code_of_verb(e),
            Self::NotFound(_) => Code::NOT_FOUND,
            Self::Exists(_) => Code::ALREADY_EXISTS,
            Self::State(_) => Code::FAILED_PRECONDITION,
            Self::Usage(_)
            | Self::Invalid(_)
            | Self::Id(_)
            | Self::Message { .. }
            | Self::Json { .. } => Code::INVALID_ARGUMENT,
            Self::Unsupported(_) => Code::UNIMPLEMENTED,
            Self::File { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Code::NOT_FOUND
            }
            Self::File { .. } | Self::Host { .. } | Self::Server(_) => Code::INTERNAL,
        }
    }
}

fn code_of_verb(error: &lifecycle::Error) -> Code {
    use lifecycle::ErrorKind;
    match error.kind() {
        ErrorKind::NotFound => Code::NOT_FOUND,
        ErrorKind::Exists => Code::ALREADY_EXISTS,
        ErrorKind::WrongState => Code::FAILED_PRECONDITION,
        ErrorKind::Refused => Code::INVALID_ARGUMENT,
        ErrorKind::Timeout => Code::DEADLINE_EXCEEDED,
        ErrorKind::Unavailable => Code::UNAVAILABLE,
        ErrorKind::Host => Code::INTERNAL,
    }
}

impl From<AgentError> for Error {
    fn from(error: AgentError) -> Self {
        Self::Verb(error.into())
    }
}

impl From<Error> for ttrpc::Error {
    fn from(error: Error) -> Self {
        Self::RpcStatus(ttrpc::get_status(error.code(), chain(&error)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_keeps_its_kind_and_its_causes() {
        let missing = io::Error::from_raw_os_error(libc::ENOENT);
        let error = Error::file("open", "/run/fifo")(missing);
        let ttrpc::Error::RpcStatus(status) = error.into() else {
            panic!("a status");
        };
        assert_eq!(status.code(), Code::NOT_FOUND);
        assert!(
            status
                .message
                .starts_with("cannot open /run/fifo: No such file")
        );
    }
}
