//! The process of the host that stands for a container in another's sandbox: its pid is what engines watch and
//! signal, it ends when the container's process does, and as that did.
//!
//! `create` starts it with what it needs: a connection to the agent, on which it waits for the container's process,
//! and one to the VMM, on which it learns that all output is written. If it is killed, the agent kills the process.
//! It opens nothing itself, and is in no namespace of the host that an engine could change by its pid.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use hull_vmm::jail::{self, Identity, Role, tree};
use rustix::fs::{CWD, Mode, OFlags, openat};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;

use super::agent::open_connection;
use super::lifeline::{self, COMMIT, Lifeline, Report};
use super::process::Start;
use super::search::{ProcessIdentity, Purpose};
use super::socket::CALL_TIMEOUT;
use super::{
    AgentError, AttachedStdio, BlockingAgent, ChildProcess, SandboxError, Sizes, forward_signals,
    handover, namespaces, stdio,
};
use crate::chain::chain;
use crate::host::{ENDED, ProcessId};
use crate::store::{SandboxDir, StoreKey};
use crate::types::ContainerId;

/// What the process is called on the host, until its container has ended ([`ENDED`]).
const NAME: &CStr = c"hull-stand-in";

/// What it exits with where nobody knows how the container's process has ended.
const UNKNOWN: u8 = 255;

/// What it is told; its descriptors are numbers where it is told them.
#[derive(Debug, Serialize, Deserialize)]
struct Config<Fd> {
    container: ContainerId,
    /// The connection to `create`; see `lifeline`.
    lifeline: Fd,
    /// A connection to the agent.
    agent: Fd,
    /// The connection that the container's standard streams are held by.
    streams: Fd,
    /// The network namespace of the VM process.
    network: Fd,
    /// For its standard streams.
    null: Fd,
    /// An engine's terminal, and where its sizes go.
    sizes: Option<[Fd; 2]>,
}

impl<Fd> Config<Fd> {
    /// The same, with each descriptor in another form.
    fn with<To, E>(self, mut change: impl FnMut(Fd) -> Result<To, E>) -> Result<Config<To>, E> {
        let sizes = match self.sizes {
            Some([terminal, guest]) => Some([change(terminal)?, change(guest)?]),
            None => None,
        };
        Ok(Config {
            container: self.container,
            lifeline: change(self.lifeline)?,
            agent: change(self.agent)?,
            streams: change(self.streams)?,
            network: change(self.network)?,
            null: change(self.null)?,
            sizes,
        })
    }
}

/// A stand-in to be started.
#[derive(Debug)]
pub struct StandIn<'a> {
    /// The container.
    pub container: &'a ContainerId,
    /// The store that it is in.
    pub store: StoreKey,
    /// Its sandbox.
    pub sandbox: &'a SandboxDir,
    /// The sandbox's VM process.
    pub vmm: ProcessId,
    /// The folder of the container's shares in its tree.
    pub folder: &'a str,
    /// The directory of the host's cgroup that it is to be born in, made for it; without one it is in the caller's.
    pub cgroup: Option<File>,
    /// The container's standard streams.
    pub streams: AttachedStdio,
    /// The sizes of an engine's terminal.
    pub sizes: Option<Sizes>,
}

impl StandIn<'_> {
    /// Starts it, and waits until it has set itself up. When it ends, the container's process does.
    ///
    /// # Errors
    /// When it can't be started, or says why it can't go on.
    pub fn spawn(self) -> Result<Lifeline, SandboxError> {
        let (connection, theirs) =
            UnixStream::pair().map_err(SandboxError::host("make a socket pair"))?;
        let network = namespaces::network_of(self.vmm)
            .map_err(SandboxError::host("open the sandbox's network namespace"))?;
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let null = openat(CWD, c"/dev/null", flags, Mode::empty());
        let config = Config {
            container: self.container.clone(),
            lifeline: OwnedFd::from(theirs),
            agent: open_connection(&self.sandbox.socket_path())?.into(),
            streams: self.streams.into_connection().into(),
            network,
            null: null.map_err(|e| SandboxError::host("open /dev/null")(e.into()))?,
            sizes: self.sizes.map(Sizes::into_parts),
        };
        let purpose = Purpose::StandIn {
            sandbox: self.sandbox.id().clone(),
            folder: self.folder.to_owned(),
            own_cgroup: self.cgroup.is_some(),
        };
        let cgroup = self.cgroup.as_ref().map(AsFd::as_fd);
        let process = start(&purpose, self.store, cgroup, config);
        let process = process.map_err(SandboxError::host("start the container's stand-in"))?;
        let lifeline = Lifeline::new(process, connection);
        let said = match lifeline.report(CALL_TIMEOUT) {
            Ok(Some(Report::Up(()))) => return Ok(lifeline),
            Ok(Some(Report::Failed(why))) => why,
            Ok(None) => "it ended before it was set up".to_owned(),
            Err(e) => chain(&e),
        };
        lifeline.abort();
        Err(SandboxError::StandIn(said))
    }
}

fn start(
    purpose: &Purpose,
    store: StoreKey,
    cgroup: Option<BorrowedFd<'_>>,
    config: Config<OwnedFd>,
) -> io::Result<ChildProcess> {
    let identity = ProcessIdentity::new(purpose, store, &config.container);
    let own = namespaces::of_stand_in_at_birth();
    handover::execute(
        |number_of| config.with(number_of),
        &identity,
        cgroup,
        own,
        Start::Usual,
    )
}

/// Why a stand-in can't stand for its container.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("give up the standard streams")]
    Streams(#[source] io::Error),
    #[error(transparent)]
    Namespaces(#[from] namespaces::Error),
    #[error(transparent)]
    Jail(#[from] jail::Error),
    #[error(transparent)]
    Tree(#[from] tree::Error),
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error("handle signals")]
    Signals(#[source] io::Error),
}

/// What a stand-in keeps.
struct Held {
    /// Says whose process this is.
    config_file: OwnedFd,
    container: ContainerId,
    agent: OwnedFd,
    streams: OwnedFd,
    sizes: Option<[OwnedFd; 2]>,
}

/// Runs a stand-in, which is told in the memory file `config_fd` what for.
pub fn run(config_fd: RawFd) -> ExitCode {
    // Its program's is `exe`.
    let _ = rustix::thread::set_name(NAME);
    let read = || {
        let (config, file): (Config<RawFd>, _) = handover::read(config_fd)?;
        Ok::<_, io::Error>((config.with(handover::take)?, file))
    };
    let Ok((config, config_file)) = read() else {
        return ExitCode::FAILURE;
    };
    let Config {
        container,
        lifeline,
        agent,
        streams,
        network,
        null,
        sizes,
    } = config;
    let lifeline = UnixStream::from(lifeline);
    let held = Held {
        config_file,
        container,
        agent,
        streams,
        sizes,
    };
    let confine = |user| held.confine(user, &lifeline);
    let report = match settle(network, null).and_then(confine) {
        Ok(()) => Report::Up(()),
        Err(e) => Report::Failed(chain(&e)),
    };
    let is_up = matches!(report, Report::Up(()));
    // From here on nobody hears why.
    if lifeline::send(&lifeline, &report).is_err()
        || !is_up
        || lifeline::wait_to_begin(&lifeline).is_err()
    {
        return ExitCode::FAILURE;
    }
    held.stand(lifeline).unwrap_or(ExitCode::from(UNKNOWN))
}

/// Makes this process one of its own, with nothing of the host's files. Returns the user that it is to be.
fn settle(network: OwnedFd, null: OwnedFd) -> Result<Identity, Error> {
    namespaces::complete_stand_in(&network)?;
    let _ = rustix::process::setsid();
    rustix::stdio::dup2_stdin(&null)
        .and_then(|()| rustix::stdio::dup2_stdout(&null))
        .and_then(|()| rustix::stdio::dup2_stderr(&null))
        .map_err(|e| Error::Streams(e.into()))?;
    let user = Identity::unique_user()?;
    tree::enter(Vec::new())?;
    Ok(user)
}

impl Held {
    /// Gives up all rights on the host, and what it has been left by accident: a pipe of the container's, say, which
    /// others wait to see closed.
    fn confine(&self, user: Identity, lifeline: &UnixStream) -> Result<(), Error> {
        let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
        let mut keep = vec![stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
        keep.extend([lifeline.as_fd(), self.config_file.as_fd()]);
        keep.extend([self.agent.as_fd(), self.streams.as_fd()]);
        keep.extend(self.sizes.iter().flatten().map(AsFd::as_fd));
        jail::close_other_fds(&keep)?;
        let keep: Vec<_> = keep.iter().map(AsRawFd::as_raw_fd).collect();
        jail::confine(Role::StandIn, user, &keep)?;
        Ok(())
    }

    /// Waits for the container's end, and ends as it did.
    fn stand(self, lifeline: UnixStream) -> Result<ExitCode, Error> {
        let sizes = self.sizes.map(Sizes::from_parts);
        if let Some(sizes) = &sizes {
            // A terminal whose size is not followed is better than none.
            let _ = sizes.take_control();
        }
        let id = self.container;
        let agent = BlockingAgent::over(self.agent.into())?;
        let status = agent.ask(|agent| {
            let until = async {
                tokio::select! {
                    status = agent.wait(&id, "", true) => Ok(Some(status.unwrap_or(UNKNOWN))),
                    () = abandoned(lifeline) => Ok(None),
                }
            };
            forward_signals(agent, &id, "", sizes.as_ref(), until)
        });
        let Some(status) = status.map_err(Error::Signals)? else {
            return Ok(ExitCode::from(UNKNOWN));
        };
        let _ = rustix::thread::set_name(ENDED);
        stdio::wait_flushed(self.streams.into());
        Ok(ExitCode::from(status))
    }
}

/// Waits for the death of `create` before the container was created; for ever, if it was.
async fn abandoned(lifeline: UnixStream) {
    let said = async {
        lifeline.set_nonblocking(true)?;
        let mut lifeline = tokio::net::UnixStream::from_std(lifeline)?;
        let mut byte = [0];
        lifeline.read_exact(&mut byte).await?;
        Ok::<_, io::Error>(byte[0])
    };
    if said.await.is_ok_and(|byte| byte == COMMIT) {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn it_outlives_create_only_once_the_container_is_created() {
        let (create, stand_in) = UnixStream::pair().expect("a pair");
        drop(create);
        abandoned(stand_in).await;

        let (create, stand_in) = UnixStream::pair().expect("a pair");
        std::io::Write::write_all(&mut &create, &[COMMIT]).expect("said");
        drop(create);
        let waited = tokio::time::timeout(Duration::from_millis(20), abandoned(stand_in));
        waited.await.expect_err("it goes on");
    }
}
