//! The process that stays on the host for a VM whose container runs, to pass on what neither its engine nor its guest
//! tells hull:
//!
//! - the VM's network follows what changes in its network namespace on the host ([`network`]): engines connect and
//!   disconnect networks then without calling hull;
//! - the host is told when a process in the guest was killed for want of memory ([`oom`], [`reporter`]): engines look
//!   for that in the VM's cgroup;
//! - a service manager is told when the container says that it is ready ([`ready`]), if `create` was given it, and
//!   `start` wasn't.
//!
//! `start` launches it where there is one or the other to do, with all that it needs of the container's folder open
//! already. It is in that network namespace, in the VM's cgroup, in other namespaces of its own, and jailed ([`jail`]):
//! with a network to follow, its root has a few files of the host's kernel, and of rights it has CAP_NET_ADMIN; without,
//! it has neither. It ends with the VM's process. If it is killed before, nothing is passed on any more, and that is
//! all: what it has connected is in a list that `delete` reads.

mod jail;
mod log;
mod network;
mod oom;
mod ready;
mod reporter;

use std::fs::File;
use std::io;
use std::num::NonZeroU8;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::getpriority_process;
use serde::{Deserialize, Serialize};
use tokio::runtime::Builder;

use super::agent::open_connection;
use super::lifeline::{self, Lifeline};
use super::process::Start;
use super::search::{ProcessIdentity, Purpose};
use super::{AgentError, ChildProcess, SandboxError, handover, namespaces};
use crate::cgroup::OomKill;
use crate::host::{Privilege, ProcessId, async_readable};
use crate::network::Namespace;
use crate::store::{Nic, SandboxDir, SandboxNetwork};
use crate::types::ContainerId;
use network::NetworkWatch;
use oom::OomWatch;
use ready::ReadyWatch;
use reporter::Reporter;

/// What it is told; its descriptors are numbers where it is told them.
#[derive(Debug, Serialize, Deserialize)]
struct Config<Fd> {
    /// The container: the sandbox's first.
    container: ContainerId,
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
    /// What of the network is there already, if it is to be followed.
    connected: Option<Connected<Fd>>,
    /// Where out-of-memory kills are to count, if they are to be told.
    oom_kill: Option<OomKill<Fd>>,
    /// The service manager that is to be told, as a connected socket.
    service_manager: Option<Fd>,
}

/// What the VM has of its network.
#[derive(Debug, Serialize, Deserialize)]
struct Connected<Fd> {
    /// Its network interfaces so far.
    nics: Vec<Nic>,
    /// Whether the host's kernel moves the packets, where it can.
    vhost: bool,
    /// The pairs of queues of each.
    pairs: NonZeroU8,
    /// Whether the container reaches a resolver that is in the namespace.
    resolver: bool,
    /// The list of connected interfaces.
    interfaces: Fd,
}

impl<Fd> Config<Fd> {
    /// The same, with each descriptor in another form.
    fn with<To, E>(self, mut change: impl FnMut(Fd) -> Result<To, E>) -> Result<Config<To>, E> {
        let connected = match self.connected {
            Some(connected) => Some(Connected {
                nics: connected.nics,
                vhost: connected.vhost,
                pairs: connected.pairs,
                resolver: connected.resolver,
                interfaces: change(connected.interfaces)?,
            }),
            None => None,
        };
        let oom_kill = match self.oom_kill {
            Some(kill) => Some(OomKill {
                parent: change(kill.parent)?,
                name: kill.name,
            }),
            None => None,
        };
        Ok(Config {
            container: self.container,
            niceness: self.niceness,
            lifeline: change(self.lifeline)?,
            vmm: change(self.vmm)?,
            network: change(self.network)?,
            socket: change(self.socket)?,
            console: change(self.console)?,
            connected,
            oom_kill,
            service_manager: self.service_manager.map(change).transpose()?,
        })
    }
}

/// A follower to be started.
#[derive(Debug)]
pub struct Follower<'a> {
    /// The sandbox, whose first container it is about.
    pub sandbox: &'a SandboxDir,
    /// Its VM process.
    pub vmm: ProcessId,
    /// What is connected already of the network, if that is to be followed.
    pub network: Option<&'a SandboxNetwork>,
    /// The directory of the VM's cgroup; without one, this process's.
    pub cgroup: Option<File>,
    /// How kills in the guest come to count in that cgroup, if they are to be told.
    pub oom_kill: Option<OomKill>,
    /// The service manager that is to hear when the container is ready, as a connected socket.
    pub service_manager: Option<OwnedFd>,
}

impl Follower<'_> {
    /// Starts it. It does nothing before [`Lifeline::begin`], and ends if that doesn't come.
    ///
    /// # Errors
    /// When the VM's process is gone, or there can't be another one.
    pub fn spawn(mut self) -> Result<Lifeline, SandboxError> {
        let failed = || SandboxError::host("start the process that follows what happens");
        let (ours, theirs) = UnixStream::pair().map_err(failed())?;
        let config = self.config(theirs.into()).map_err(failed())?;
        let process = self.start(config).map_err(failed())?;
        Ok(Lifeline::new(process, ours))
    }

    fn config(&mut self, lifeline: OwnedFd) -> io::Result<Config<OwnedFd>> {
        let gone = || io::Error::from(io::ErrorKind::NotFound);
        let sandbox = self.sandbox;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let connected = self.network.map(|network| {
            let list = sandbox.create_connected_interfaces();
            Ok::<_, io::Error>(Connected {
                nics: network.nics.clone(),
                vhost: network.vhost,
                pairs: network.pairs,
                resolver: network.resolver,
                interfaces: list.map_err(io::Error::other)?.into(),
            })
        });
        Ok(Config {
            container: sandbox.id().clone(),
            niceness: getpriority_process(None).unwrap_or_default(),
            lifeline,
            network: namespaces::network_of(self.vmm)?,
            vmm: self.vmm.open().ok_or_else(gone)?,
            socket: openat(CWD, sandbox.socket_path(), flags, Mode::empty())?,
            console: sandbox
                .create_console_log()
                .map_err(io::Error::other)?
                .into(),
            connected: connected.transpose()?,
            oom_kill: self.oom_kill.take(),
            service_manager: self.service_manager.take(),
        })
    }

    fn start(&self, config: Config<OwnedFd>) -> io::Result<ChildProcess> {
        let store = self.sandbox.store_key()?;
        let identity = ProcessIdentity::new(&Purpose::Follower, store, &config.container);
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
        niceness,
        lifeline,
        vmm,
        network,
        socket,
        console,
        connected,
        oom_kill,
        service_manager,
    } = config;
    if lifeline::wait_to_begin(&UnixStream::from(lifeline)).is_err() {
        return ExitCode::FAILURE;
    }
    let console = log::hear(console.into());
    // Whoever is jailed could neither make the reporter nor, without a network, connect to the agent.
    let oom = oom_kill.and_then(|kill| {
        watch_oom(kill, container.clone(), &socket, console, niceness)
            .inspect_err(|e| ::log::warn!("out-of-memory kills aren't told to the host: {e}"))
            .ok()
    });
    let ready = service_manager.map(|manager| ReadyWatch {
        container: container.clone(),
        connection: connect(&socket),
        manager,
    });
    let mut keep = vec![vmm.as_fd(), console.as_fd(), config_file.as_fd()];
    keep.extend(
        connected
            .iter()
            .flat_map(|own| [network.as_fd(), own.interfaces.as_fd()]),
    );
    keep.extend(oom.iter().flat_map(OomWatch::descriptors));
    keep.extend(ready.iter().flat_map(ReadyWatch::descriptors));
    // The jail doesn't show it.
    let local_access = Privilege::own().has_forwarders_in_namespaces();
    let jailed = match &connected {
        Some(_) => jail::enter_with_network(&network, socket, &keep, niceness),
        None => jail::enter(&network, &keep, niceness),
    };
    if let Err(e) = jailed {
        ::log::error!("{}", crate::chain::chain(&e));
        return ExitCode::FAILURE;
    }
    let network = connected.map(|own| {
        let namespace = Namespace::own(network);
        let list = own.interfaces.into();
        NetworkWatch::new(
            container,
            namespace,
            own.nics,
            network::Queues {
                vhost: own.vhost,
                pairs: own.pairs,
            },
            list,
            own.resolver,
            local_access,
        )
    });
    match follow(vmm, network, oom, ready) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            ::log::error!("nothing is followed: {e}");
            ExitCode::FAILURE
        }
    }
}

fn watch_oom(
    kill: OomKill,
    container: ContainerId,
    socket: &OwnedFd,
    console: &File,
    niceness: i32,
) -> io::Result<OomWatch> {
    let reporter = Reporter::make(kill, console, niceness)?;
    Ok(OomWatch {
        container,
        connection: connect(socket),
        reporter,
    })
}

/// Connects to the agent by the VM's control socket.
fn connect(socket: &OwnedFd) -> Result<UnixStream, AgentError> {
    open_connection(Path::new(&format!("/proc/self/fd/{}", socket.as_raw_fd())))
}

/// Does what there is to do until the VM's process has ended.
fn follow(
    vmm: OwnedFd,
    network: Option<NetworkWatch>,
    oom: Option<OomWatch>,
    ready: Option<ReadyWatch>,
) -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let ended = async_readable(vmm)?;
        let network = async {
            if let Some(network) = network {
                network.follow(ended.get_ref()).await;
            }
        };
        let oom = async {
            if let Some(oom) = oom {
                oom.watch().await;
            }
        };
        let ready = async {
            if let Some(ready) = ready {
                ready.watch().await;
            }
        };
        tokio::select! {
            ended = ended.readable() => ended.map(drop),
            _ = async { tokio::join!(network, oom, ready) } => Ok(()),
        }
    })
}
