//! The process that has a VM's network follow what changes in its network namespace on the host while the container
//! runs: engines connect and disconnect networks then without calling hull.
//!
//! `start` launches it where there may be changes, with all that it needs of the container's folder open already. It is
//! in that network namespace, in the VM's cgroup, in other namespaces of its own, and jailed ([`jail`]): its root has a few
//! files of the host's kernel, and of rights it has CAP_NET_ADMIN. It ends with the VM's process. If it is killed
//! before, changes aren't followed any more, and that is all: what it has connected is in a list that `delete`
//! reads.

mod jail;
mod log;
mod network;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::getpriority_process;
use serde::{Deserialize, Serialize};

use super::lifeline::{self, Lifeline};
use super::process::Start;
use super::search::{ProcessIdentity, Purpose};
use super::{ChildProcess, SandboxError, handover, namespaces};
use crate::host::{Privilege, ProcessId};
use crate::network::Namespace;
use crate::store::{Nic, SandboxDir, SandboxNetwork};
use crate::types::ContainerId;

/// What it is told; its descriptors are numbers where it is told them.
#[derive(Debug, Serialize, Deserialize)]
struct Config<Fd> {
    /// The container whose network it is.
    container: ContainerId,
    /// The VM's network interfaces so far.
    nics: Vec<Nic>,
    /// Whether the host's kernel moves the packets, where it can.
    vhost: bool,
    /// Whether the container reaches a resolver that is in the namespace.
    resolver: bool,
    /// The niceness that it is to have once it is ready.
    niceness: i32,
    /// The connection to `start`; see `lifeline`.
    lifeline: Fd,
    /// The VM's process (pidfd_open(2)).
    vmm: Fd,
    /// Its network namespace.
    network: Fd,
    /// Its control socket, without a connection.
    socket: Fd,
    /// The console log, for what it has to say.
    console: Fd,
    /// The list of connected interfaces.
    interfaces: Fd,
}

impl<Fd> Config<Fd> {
    /// The same, with each descriptor in another form.
    fn with<To, E>(self, mut change: impl FnMut(Fd) -> Result<To, E>) -> Result<Config<To>, E> {
        Ok(Config {
            container: self.container,
            nics: self.nics,
            vhost: self.vhost,
            resolver: self.resolver,
            niceness: self.niceness,
            lifeline: change(self.lifeline)?,
            vmm: change(self.vmm)?,
            network: change(self.network)?,
            socket: change(self.socket)?,
            console: change(self.console)?,
            interfaces: change(self.interfaces)?,
        })
    }
}

/// A follower to be started.
#[derive(Debug)]
pub struct Follower<'a> {
    /// The sandbox, whose first container's network it is.
    pub sandbox: &'a SandboxDir,
    /// Its VM process.
    pub vmm: ProcessId,
    /// What is connected already.
    pub network: &'a SandboxNetwork,
    /// The directory of the VM's cgroup; without one, this process's.
    pub cgroup: Option<File>,
}

impl Follower<'_> {
    /// Starts it. It does nothing before [`Lifeline::begin`], and ends if that doesn't come.
    ///
    /// # Errors
    /// When the VM's process is gone, or there can't be another one.
    pub fn spawn(self) -> Result<Lifeline, SandboxError> {
        let failed = || SandboxError::host("start the process that follows the network's changes");
        let (ours, theirs) = UnixStream::pair().map_err(failed())?;
        let config = self.config(theirs.into()).map_err(failed())?;
        let process = self.start(config).map_err(failed())?;
        Ok(Lifeline::new(process, ours))
    }

    fn config(&self, lifeline: OwnedFd) -> io::Result<Config<OwnedFd>> {
        let gone = || io::Error::from(io::ErrorKind::NotFound);
        let sandbox = self.sandbox;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Config {
            container: sandbox.id().clone(),
            nics: self.network.nics.clone(),
            vhost: self.network.vhost,
            resolver: self.network.resolver,
            niceness: getpriority_process(None).unwrap_or_default(),
            lifeline,
            network: namespaces::network_of(self.vmm)?,
            vmm: self.vmm.open().ok_or_else(gone)?,
            socket: openat(CWD, sandbox.socket_path(), flags, Mode::empty())?,
            console: sandbox
                .create_console_log()
                .map_err(io::Error::other)?
                .into(),
            interfaces: sandbox
                .create_connected_interfaces()
                .map_err(io::Error::other)?
                .into(),
        })
    }

    fn start(&self, config: Config<OwnedFd>) -> io::Result<ChildProcess> {
        let store = self.sandbox.store_key()?;
        let identity = ProcessIdentity::new(&Purpose::NetworkFollower, store, &config.container);
        let cgroup = self.cgroup.as_ref().map(AsFd::as_fd);
        let own = namespaces::of_follower_at_birth();
        // Who starts a container waits for nothing of this: it gets itself ready when there is time. Root of a user
        // namespace couldn't take the priority back.
        let start = match Privilege::own().is_host_root() {
            true => Start::Unhurried,
            false => Start::Usual,
        };
        handover::execute(
            |number_of| config.with(number_of),
            &identity,
            cgroup,
            own,
            start,
        )
    }
}

/// Runs a follower, which is told in the memory file `config_fd` what for.
pub fn run(config_fd: RawFd) -> ExitCode {
    let read = || {
        // Its caller's are none of its business, and somebody may wait for their end.
        hull_vmm::jail::descriptors::replace_standard_streams()?;
        let (config, file): (Config<RawFd>, _) = handover::read(config_fd)?;
        Ok::<_, io::Error>((config.with(handover::take)?, file))
    };
    let Ok((config, config_file)) = read() else {
        return ExitCode::FAILURE;
    };
    let Config {
        container,
        nics,
        vhost,
        resolver,
        niceness,
        lifeline,
        vmm,
        network,
        socket,
        console,
        interfaces,
    } = config;
    if lifeline::wait_to_begin(&UnixStream::from(lifeline)).is_err() {
        return ExitCode::FAILURE;
    }
    let keep = [&vmm, &network, &console, &interfaces, &config_file];
    let keep = keep.map(AsFd::as_fd);
    let jailed = jail::enter(&network, socket, &keep, niceness);
    log::hear(console.into());
    if let Err(e) = jailed {
        ::log::error!("{}", crate::chain::chain(&e));
        return ExitCode::FAILURE;
    }
    let namespace = Namespace::own(network);
    let follower = network::Follower::new(
        container,
        namespace,
        nics,
        vhost,
        interfaces.into(),
        resolver,
    );
    follower.follow(&vmm);
    ExitCode::SUCCESS
}
