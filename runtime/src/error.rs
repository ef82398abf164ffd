//! What can go wrong with a command, as its user is told it.

use std::error::Error as StdError;
use std::fmt::Write as _;

/// A command's failure. The text of the whole chain, causes included, is one line for the user.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// hull's own configuration.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    /// An annotation that would change it.
    #[error(transparent)]
    Annotation(#[from] crate::config::AnnotationError),
    /// The VM's cgroup on the host.
    #[error(transparent)]
    Cgroup(#[from] crate::cgroup::CgroupError),
    /// The bundle or its config.json was refused.
    #[error(transparent)]
    Spec(#[from] crate::spec::SpecError),
    /// The container's state on disk.
    #[error(transparent)]
    Container(#[from] crate::container::ContainerError),
    /// A hook of config.json.
    #[error(transparent)]
    Hook(#[from] crate::container::HookError),
    /// The VM, or the agent inside it.
    #[error(transparent)]
    Sandbox(#[from] crate::sandbox::SandboxError),
    /// The agent could not make the container's process; the words are runc's, which engines know.
    #[error("unable to start container process")]
    ContainerProcess(#[source] crate::sandbox::AgentError),
    /// The agent could not start a further process; likewise.
    #[error("exec failed: unable to start container process")]
    ExecProcess(#[source] crate::sandbox::AgentError),
    /// A process's terminal.
    #[error(transparent)]
    Terminal(#[from] crate::commands::terminal::TerminalError),
    /// A file that the user named on the command line.
    #[error("{path}")]
    File {
        /// As the user named it.
        path: std::path::PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The user's own words make no sense together.
    #[error("{0}")]
    Usage(String),
    /// What was to be printed could not be.
    #[error("cannot write to standard output")]
    Output(#[from] std::io::Error),
}

impl Error {
    /// The agent's refusal of a container.
    pub fn container_process(source: crate::sandbox::AgentError) -> Self {
        Self::ContainerProcess(source)
    }

    /// The agent's refusal of an exec.
    pub fn exec_process(source: crate::sandbox::AgentError) -> Self {
        Self::ExecProcess(source)
    }
}

/// An error and its causes in one line: `what: why: why`.
///
/// A source whose text its wrapper has already repeated is not said twice.
pub fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.ends_with(&said) {
            let _ = write!(text, ": {said}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_follows_what_it_caused() {
        let error = Error::File {
            path: "/x".into(),
            source: std::io::Error::other("gone"),
        };
        assert_eq!(chain(&error), "/x: gone");
    }

    #[test]
    fn a_transparent_wrapper_says_nothing_twice() {
        let error = Error::Output(std::io::Error::other("full"));
        assert_eq!(chain(&error), "cannot write to standard output: full");
    }
}
