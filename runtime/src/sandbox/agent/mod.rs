//! The client of the agent in the guest: one ttrpc connection through the VMM's control socket.
//!
//! [`Agent`] is async, and [`BlockingAgent`] its plain face. Each call has a time limit, for a guest can stop
//! answering whenever it likes; but waiting for the end of a process, or for what may never come, has none. What
//! is told of the answers is bounded and can be printed, for they are a guest's.

mod answers;
mod calls;
mod stats;

pub use calls::ContainerEnds;
pub use stats::{Limited, Pressure, PressureLine, ProcessInfo, Stats};

use std::future::Future;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use hull_protocol::agent_ttrpc::AgentClient;
use hull_protocol::ports;
use tokio::runtime::{Builder, Runtime};
use ttrpc::Code;
use ttrpc::context::{self, Context};

use super::socket::{self, CALL_TIMEOUT};
use crate::store::SandboxDir;
use answers::BoundedAnswers;
pub(super) use stats::printable;

/// How much longer ttrpc may wait than this side does. For the end of its own waiting it has no error
/// but a text.
const GRACE: Duration = Duration::from_secs(5);

/// The longest reason for a refusal that is shown, in characters.
const LONGEST_REASON: usize = 4096;

/// What can go wrong between a command and the agent.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The control socket.
    #[error("the sandbox's VMM does not {what}")]
    Connect {
        /// What it was to do.
        what: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// This process's own part of a connection.
    #[error("cannot set up a client of the sandbox's VMM")]
    Client(#[source] io::Error),
    /// The VMM did nothing on the control socket in time.
    #[error("waited {seconds} s for the sandbox's VMM to {what}, in vain")]
    VmmTimeout {
        /// What it was to do.
        what: &'static str,
        /// How long.
        seconds: u64,
    },
    /// The guest didn't answer on the agent's port in time.
    #[error("waited {seconds} s for the guest's agent to take a connection, in vain")]
    Unconnected {
        /// How long.
        seconds: u64,
    },
    /// The guest turns a connection to the agent's port down.
    #[error("the guest's agent does not answer")]
    NotServing,
    /// The VMM takes no further device, and says why.
    #[error("the sandbox's VMM takes no {what}: {why}")]
    NotTaken {
        /// The device.
        what: &'static str,
        /// Why not.
        why: String,
    },
    /// No answer in time.
    #[error("waited {seconds} s for the guest's agent to {what}, in vain")]
    Timeout {
        /// What was asked of it.
        what: &'static str,
        /// How long.
        seconds: u64,
    },
    /// The agent says what no agent says.
    #[error("the guest's agent tells {0}: the guest has been tampered with")]
    Nonsense(&'static str),
    /// The agent says that there is no such process or container.
    #[error("{0}")]
    NotFound(String),
    /// The agent says no, and why.
    #[error("{0}")]
    Refused(String),
    /// The connection broke.
    #[error("lost the connection to the guest's agent")]
    Lost(#[source] ttrpc::Error),
}

impl AgentError {
    /// Whether the agent may have done what it was asked to do.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Timeout { .. } | Self::Lost(_))
    }

    /// Whether nobody answered in time.
    pub fn is_timeout(&self) -> bool {
        matches!(
            self,
            Self::Timeout { .. } | Self::VmmTimeout { .. } | Self::Unconnected { .. }
        )
    }
}

/// A connection to a sandbox's agent, for async code; clones share it.
#[derive(Clone)]
pub struct Agent {
    client: AgentClient,
}

impl Agent {
    /// Speaks over a stream to the agent's port. To be called inside a runtime, whose the stream then is.
    ///
    /// # Errors
    /// When the runtime can't take the stream.
    pub fn over(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let stream = tokio::net::UnixStream::from_std(stream)?;
        let (answers, requests) = stream.into_split();
        let stream = tokio::io::join(BoundedAnswers::new(answers), requests);
        let socket = ttrpc::r#async::transport::Socket::new(stream);
        let client = AgentClient::new(ttrpc::r#async::Client::new(socket));
        Ok(Self { client })
    }

    /// Asks the agent for something, and waits no longer than that.
    async fn call<T, F>(
        &self,
        what: &'static str,
        timeout: Duration,
        call: impl FnOnce(Context, AgentClient) -> F,
    ) -> Result<T, AgentError>
    where
        F: Future<Output = ttrpc::Result<T>>,
    {
        let context = context::with_duration(timeout + GRACE);
        within(what, timeout, call(context, self.client.clone())).await
    }
}

/// A connection to a sandbox's agent, for code that isn't async: with a small runtime of its own, so not to be
/// used by what runs in another one.
pub struct BlockingAgent {
    runtime: Runtime,
    agent: Agent,
}

impl BlockingAgent {
    /// Connects to the agent of the sandbox whose files these are.
    ///
    /// # Errors
    /// When the VMM or the agent don't answer.
    pub fn connect(dir: &SandboxDir) -> Result<Self, AgentError> {
        Self::over(open_connection(&dir.socket_path())?)
    }

    /// Speaks on a connection to the agent that somebody has opened.
    ///
    /// # Errors
    /// When there are too many open files.
    pub fn over(stream: UnixStream) -> Result<Self, AgentError> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(AgentError::Client)?;
        let agent = {
            let _inside = runtime.enter();
            Agent::over(stream).map_err(AgentError::Client)?
        };
        Ok(Self { runtime, agent })
    }

    /// Asks the agent for something, and waits for the answer.
    pub fn ask<'a, F: Future>(&'a self, request: impl FnOnce(&'a Agent) -> F) -> F::Output {
        self.runtime.block_on(request(&self.agent))
    }
}

/// Opens a connection to the agent of the sandbox whose VMM has this control socket.
///
/// # Errors
/// When the VMM or the agent don't answer.
pub fn open_connection(socket: &Path) -> Result<UnixStream, AgentError> {
    dial(socket, CALL_TIMEOUT)
}

/// Waits for the answer to a call, but no longer than that.
async fn within<T>(
    what: &'static str,
    timeout: Duration,
    call: impl Future<Output = ttrpc::Result<T>>,
) -> Result<T, AgentError> {
    match tokio::time::timeout(timeout, call).await {
        Ok(answer) => answer.map_err(|e| classify(e, what, timeout)),
        Err(_) => Err(AgentError::Timeout {
            what,
            seconds: timeout.as_secs(),
        }),
    }
}

fn classify(error: ttrpc::Error, what: &'static str, timeout: Duration) -> AgentError {
    match error {
        ttrpc::Error::RpcStatus(status) => match status.code() {
            Code::DEADLINE_EXCEEDED => AgentError::Timeout {
                what,
                seconds: timeout.as_secs(),
            },
            Code::NOT_FOUND => AgentError::NotFound(reason(&status.message)),
            _ => AgentError::Refused(reason(&status.message)),
        },
        other => AgentError::Lost(other),
    }
}

/// The guest's words, as they can be shown.
fn reason(message: &str) -> String {
    printable(message, LONGEST_REASON)
}

/// Opens a stream to the agent's port: the VMM's control socket speaks Firecracker's `CONNECT`.
fn dial(path: &Path, timeout: Duration) -> Result<UnixStream, AgentError> {
    let begun = Instant::now();
    let mut stream = socket::dial(path, timeout)?;
    stream
        .write_all(format!("CONNECT {}\n", ports::AGENT).as_bytes())
        .map_err(socket::failed("take the request for the agent", timeout))?;
    let unconnected = || AgentError::Unconnected {
        seconds: timeout.as_secs(),
    };
    // Byte by byte: what follows the line belongs to the stream.
    let mut line = Vec::new();
    let mut byte = [0];
    while line.len() < 64 {
        match stream.read(&mut byte) {
            Ok(0) => return Err(AgentError::NotServing),
            // A VMM that says a byte now and then.
            Ok(_) if begun.elapsed() > timeout => return Err(unconnected()),
            Ok(_) if byte == *b"\n" => break,
            Ok(_) => line.extend(byte),
            // The VMM passes on what the guest says.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Err(unconnected()),
            Err(e) => return Err(socket::failed("connect the agent", timeout)(e)),
        }
    }
    if line.starts_with(b"OK ") {
        Ok(stream)
    } else {
        Err(AgentError::NotServing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn an_agent_that_does_not_answer_is_late_and_not_lost() {
        let runtime = Builder::new_current_thread().enable_all().build();
        let never = std::future::pending::<ttrpc::Result<()>>();
        let late = within("answer", Duration::from_millis(1), never);
        let outcome = runtime.expect("a runtime").block_on(late);
        let late = outcome.expect_err("never an answer");
        assert!(matches!(late, AgentError::Timeout { .. }));
        assert!(late.is_unknown());
    }

    #[test]
    fn a_guest_that_takes_no_connection_is_late() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("socket");
        let _vmm = UnixListener::bind(&path).expect("a socket");
        let late = dial(&path, Duration::from_millis(20)).expect_err("nobody answers");
        assert!(matches!(late, AgentError::Unconnected { .. }));
        assert!(!late.is_unknown(), "it was not asked");
    }
}
