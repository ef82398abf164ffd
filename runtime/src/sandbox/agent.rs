//! The client of the agent in the guest: one ttrpc connection through the VMM's control socket.
//!
//! Commands are plain blocking code, so the small async runtime that ttrpc wants lives in here. Each
//! call has a time limit, for a guest can stop answering whenever it likes.

use std::future::Future;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use hull_protocol::agent::{
    self as messages, CreateContainerRequest, ExecProcessRequest, SignalProcessRequest,
    StartContainerRequest, Stdio, WaitProcessRequest, WaitReadyRequest,
};
use hull_protocol::agent_ttrpc::AgentClient;
use hull_protocol::ports;
use tokio::runtime::{Builder, Runtime};
use ttrpc::Code;
use ttrpc::context::{self, Context};

use super::answers::BoundedAnswers;
use super::control::printable;
use super::socket::{self, CALL_TIMEOUT, CREATE_TIMEOUT};
use super::{HostStream, Offer, Streams};
use crate::spec::GuestSpec;
use crate::store::SandboxDir;
use crate::types::ContainerId;

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
}

/// A connection to a sandbox's agent.
pub struct Agent {
    runtime: Runtime,
    pub(super) client: AgentClient,
}

impl Agent {
    /// Connects to the agent of the sandbox whose folder this is.
    ///
    /// # Errors
    /// When the VMM or the agent don't answer.
    pub fn connect(dir: &SandboxDir) -> Result<Self, AgentError> {
        let stream = dial(&dir.socket_path(), CALL_TIMEOUT)?;
        stream.set_nonblocking(true).map_err(AgentError::Client)?;
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(AgentError::Client)?;
        let client = {
            let _inside = runtime.enter();
            let stream = tokio::net::UnixStream::from_std(stream).map_err(AgentError::Client)?;
            let (answers, requests) = stream.into_split();
            let stream = tokio::io::join(BoundedAnswers::new(answers), requests);
            let socket = ttrpc::r#async::transport::Socket::new(stream);
            AgentClient::new(ttrpc::r#async::Client::new(socket))
        };
        Ok(Self { runtime, client })
    }

    /// Makes the container; its process waits to be started. `bundle` is what its hooks are told; with
    /// `notify` it has a socket to say when it is ready.
    ///
    /// # Errors
    /// When the agent refuses, with its reason.
    pub fn create(
        &self,
        id: &ContainerId,
        spec: GuestSpec,
        bundle: &Path,
        streams: Streams,
        notify: bool,
    ) -> Result<(), AgentError> {
        let request = CreateContainerRequest {
            container_id: id.to_string(),
            spec_json: spec.json,
            root_options: spec.root_options,
            block_devices: spec.block_devices,
            seccomp: spec.seccomp.into(),
            bundle: bundle.to_string_lossy().into_owned(),
            stdio: Some(stdio_message(streams.stdio)).into(),
            exit_status: Some(stream_message(streams.exit_status)).into(),
            notify,
            ..Default::default()
        };
        self.call(
            "create the container",
            CREATE_TIMEOUT,
            |context, client| async move { client.create_container(context, &request).await },
        )
        .map(drop)
    }

    /// Starts the container's process.
    ///
    /// # Errors
    /// When the agent refuses.
    pub fn start(&self, id: &ContainerId) -> Result<(), AgentError> {
        let request = StartContainerRequest {
            container_id: id.to_string(),
            ..Default::default()
        };
        self.call(
            "start the container",
            CALL_TIMEOUT,
            |context, client| async move { client.start_container(context, &request).await },
        )
        .map(drop)
    }

    /// Starts a further process in the container.
    ///
    /// # Errors
    /// When the agent refuses.
    pub fn exec(
        &self,
        id: &ContainerId,
        exec_id: &str,
        process_json: Vec<u8>,
        cgroup: &str,
        stdio: Offer,
    ) -> Result<(), AgentError> {
        let request = ExecProcessRequest {
            container_id: id.to_string(),
            exec_id: exec_id.to_owned(),
            process_json,
            cgroup: cgroup.to_owned(),
            stdio: Some(stdio_message(stdio)).into(),
            ..Default::default()
        };
        self.call(
            "start the process",
            CREATE_TIMEOUT,
            |context, client| async move { client.exec_process(context, &request).await },
        )
        .map(drop)
    }

    /// Sends a signal to the container's process, or to all of its processes.
    ///
    /// # Errors
    /// When there is nothing to signal.
    pub fn signal(&self, id: &ContainerId, signal: i32, all: bool) -> Result<(), AgentError> {
        self.block_on(self.signal_process(id, "", signal, all))
    }

    /// As [`Agent::signal`], to any process, for use inside [`Agent::block_on`].
    ///
    /// # Errors
    /// When there is nothing to signal.
    pub async fn signal_process(
        &self,
        id: &ContainerId,
        exec_id: &str,
        signal: i32,
        all: bool,
    ) -> Result<(), AgentError> {
        let request = SignalProcessRequest {
            container_id: id.to_string(),
            exec_id: exec_id.to_owned(),
            signal: signal.unsigned_abs(),
            all,
            ..Default::default()
        };
        let call = self.client.signal_process(limit(CALL_TIMEOUT), &request);
        within("deliver a signal", CALL_TIMEOUT, call)
            .await
            .map(drop)
    }

    /// Waits for the end of a process, however long that takes, and returns its exit status. If this process
    /// ends before, the other one is killed where `stands_for_it`. For use inside [`Agent::block_on`].
    ///
    /// # Errors
    /// When the sandbox goes away first.
    pub async fn wait(
        &self,
        id: &ContainerId,
        exec_id: &str,
        stands_for_it: bool,
    ) -> Result<u8, AgentError> {
        let request = WaitProcessRequest {
            container_id: id.to_string(),
            exec_id: exec_id.to_owned(),
            kill_if_abandoned: stands_for_it,
            ..Default::default()
        };
        let answer = self.client.wait_process(Context::default(), &request).await;
        let answer = answer.map_err(|e| classify(e, "report the process's end", CALL_TIMEOUT))?;
        // Masked as exit(2) masks it, whatever the guest says.
        Ok((answer.exit_status & 0xff) as u8)
    }

    /// Waits until a container made with `notify` says that it is ready, or has ended, however long that
    /// takes. Returns whether it is ready. For use inside [`Agent::block_on`].
    ///
    /// # Errors
    /// When the sandbox goes away first.
    pub async fn wait_ready(&self, id: &ContainerId) -> Result<bool, AgentError> {
        let request = WaitReadyRequest {
            container_id: id.to_string(),
            ..Default::default()
        };
        let answer = self.client.wait_ready(Context::default(), &request).await;
        let answer = answer.map_err(|e| classify(e, "report that it is ready", CALL_TIMEOUT))?;
        Ok(answer.ready)
    }

    /// Runs `future`, which may call the async methods, to its end.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    pub(super) fn call<T, F>(
        &self,
        what: &'static str,
        timeout: Duration,
        call: impl FnOnce(Context, AgentClient) -> F,
    ) -> Result<T, AgentError>
    where
        F: Future<Output = ttrpc::Result<T>>,
    {
        let call = call(limit(timeout), self.client.clone());
        self.runtime.block_on(within(what, timeout, call))
    }
}

/// The context of a call that [`within`] limits.
pub(super) fn limit(timeout: Duration) -> Context {
    context::with_duration(timeout + GRACE)
}

/// Waits for the answer to a call, but no longer than that.
pub(super) async fn within<T>(
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

fn stream_message(stream: HostStream) -> messages::HostStream {
    messages::HostStream {
        port: stream.port,
        token: stream.token.to_vec(),
        ..Default::default()
    }
}

fn stdio_message(offer: Offer) -> Stdio {
    let (terminal, streams) = match offer {
        Offer::Streams(streams) => (false, streams),
        Offer::Terminal { text, sizes } => (true, [text, sizes, None]),
    };
    let [stdin, stdout, stderr] = streams.map(|stream| stream.map(stream_message).into());
    Stdio {
        stdin,
        stdout,
        stderr,
        terminal,
        ..Default::default()
    }
}

pub(super) fn classify(error: ttrpc::Error, what: &'static str, timeout: Duration) -> AgentError {
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
