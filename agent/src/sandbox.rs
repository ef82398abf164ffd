//! The sandbox: its containers, and what can be done with them. One guest is one sandbox.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use hull_cgroup::stats;
use hull_protocol::agent::{
    ContainerStatsResponse, CreateContainerRequest, ExecProcessRequest, HostStream, ProcessInfo,
    RelayResolverRequest, SignalProcessRequest, UpdateContainerRequest, UpdateNetworkRequest,
    WaitProcessRequest,
};
use hull_protocol::answers;
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use crate::cgroup::Cgroup;
use crate::container::devices::{self, Disks};
use crate::container::joined::JoinedNamespaces;
use crate::container::notify::NotifySocket;
use crate::container::{self, Container, ContainerDirectory, Process, init, spec};
use crate::containers::{Containers, Reservation};
use crate::error::{Error, Failure, Fatal};
use crate::exec;
use crate::helper::{self, NewProcess, ReportReceiver, Task};
use crate::limits;
use crate::network::NamespaceState;
use crate::process::{Launch, seccomp};
use crate::procfs;
use crate::reaper::{ExitStatus, Reaper};
use crate::shared_memory::SharedMemory;
use crate::stdio::{self, AgentEnds, ProcessEnds};
use crate::transport::{self, Dial};
use crate::volume_sockets::VolumeSockets;

/// How long a container or process may take to be made. Long, because its mounts may be slow; the host
/// has limits of its own.
const MAKE_TIMEOUT: Duration = Duration::from_secs(60);

/// How long the host may take to answer on the ports of a process's stdio. Long, as it may be busy; it waits even
/// longer for the agent, and refuses the connections at once if its caller has gone.
const DIAL_TIMEOUT: Duration = Duration::from_secs(45);

/// How long, at the sandbox's end, the output of all other processes may take to be sent.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a killed container may take to end.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// Prepares the guest for containers. Called once, before the first of them is made.
pub type Prepare = Box<dyn Fn() -> Result<(), Fatal> + Send + Sync>;

/// The sandbox.
pub struct Sandbox {
    /// The agent's own program, for its helpers.
    program: PathBuf,
    host: Arc<dyn Dial>,
    reaper: Reaper,
    prepare: Mutex<Option<Prepare>>,
    containers: Containers,
    /// The guest's own network namespace, which containers without one share.
    guest_network: NamespaceState,
    /// The container that the sandbox ends with.
    owner: OnceLock<Weak<Container>>,
    /// Whether connections to sockets of the host are passed on.
    volume_sockets: VolumeSockets,
    /// What containers have in common in the guest's memory.
    shared_memory: SharedMemory,
}

/// Kills a process once the caller that waits for it has gone.
struct KillOnDrop<'a>(&'a Process);

impl Drop for KillOnDrop<'_> {
    fn drop(&mut self) {
        let name = format!("process {}", self.0.pid);
        if let Err(e) = self.0.signal(&name, libc::SIGKILL) {
            log::debug!("{e}");
        }
    }
}

impl Sandbox {
    /// A sandbox without containers. `prepare` is called before the first one is made.
    #[must_use]
    pub fn new(
        program: PathBuf,
        host: Box<dyn Dial>,
        reaper: Reaper,
        prepare: Prepare,
    ) -> Arc<Self> {
        Arc::new(Self {
            program,
            host: Arc::from(host),
            reaper,
            prepare: Mutex::new(Some(prepare)),
            containers: Containers::default(),
            guest_network: NamespaceState::default(),
            owner: OnceLock::new(),
            volume_sockets: VolumeSockets::default(),
            shared_memory: SharedMemory::default(),
        })
    }

    /// Makes a container up to the point where its process waits to be started. Returns its pid.
    ///
    /// If the client disconnects meanwhile, the container is still made, and has to be deleted.
    ///
    /// # Errors
    /// When it can't be made; nothing of it is left then.
    pub async fn create(self: &Arc<Self>, request: CreateContainerRequest) -> Result<i32, Error> {
        container::check_id("container_id", &request.container_id)?;
        self.prepare()?;
        let reservation = self.containers.reserve(&request.container_id)?;
        if request.volume_sockets {
            self.volume_sockets.open(&self.host)?;
        }
        let made = tokio::spawn(Arc::clone(self).create_reserved(request, reservation));
        made.await.map_err(|e| Failure::other(e.to_string()))?
    }

    async fn create_reserved(
        self: Arc<Self>,
        request: CreateContainerRequest,
        reservation: Reservation,
    ) -> Result<i32, Error> {
        let cgroup = Cgroup::create(&request.container_id)?;
        let result = self.create_in_cgroup(&request, &cgroup).await;
        let container = match result {
            Ok(container) => Arc::new(container),
            Err(error) => {
                // The helper can't tell an OOM kill from another death of the process.
                let killed = cgroup.oom_kills() > 0;
                // The processes of a half-made container are killed with its cgroup.
                if let Err(e) = cgroup.remove().await {
                    log::error!("{e}");
                }
                return Err(if killed { Error::OutOfMemory } else { error });
            }
        };
        let pid = container.init.pid;
        reservation.fill(Arc::clone(&container));
        match request.exit_status.into_option() {
            Some(host) => {
                let _ = self.owner.set(Arc::downgrade(&container)); // if the host makes two, the first stays the owner
                tokio::spawn(Arc::clone(&self).end_when_owner_exits(container, host));
            }
            None => {
                let init = container.init.clone();
                tokio::spawn(self.end_with_init(Arc::downgrade(&container), init));
            }
        }
        Ok(pid)
    }

    async fn create_in_cgroup(
        &self,
        request: &CreateContainerRequest,
        cgroup: &Cgroup,
    ) -> Result<Container, Error> {
        let id = &request.container_id;
        let mut config = spec::split(&request.spec_json, id, &request.bundle)?;
        config.launch.seccomp = request.seccomp.as_ref().map(seccomp::Program::from);
        let disks = Disks::find(&request.block_devices);
        let disks = with_timeout(MAKE_TIMEOUT, "finding the disks", disks).await??;
        if let Some(linux) = config.spec.linux_mut() {
            devices::prepare(linux, &disks)?;
            if let Some(resources) = linux.resources() {
                limits::set(cgroup.directory(), resources)?;
            }
        }
        let find = |id: &str| self.containers.find(id);
        let joined = JoinedNamespaces::find(request.shared_namespaces.get_or_default(), find)?;
        config.launch.new_network &= !joined.has_network();
        let memory = self.shared_memory.mount(&request.shared_memory)?;
        let directory = ContainerDirectory::create(id)?;
        let notify = request.notify.then(|| NotifySocket::make(directory.path()));
        let notify = notify.transpose()?;
        if let Some(socket) = &notify {
            socket.add_to(&mut config);
        }
        let (process_ends, mut agent_ends) =
            self.open_stdio(request.stdio.get_or_default()).await?;
        if request.exit_status.is_some() {
            agent_ends = agent_ends.held_until_sandbox_ends();
        }
        let task = Task::Create(init::Task {
            directory: directory.path().to_owned(),
            cgroup: cgroup.directory().to_owned(),
            spec: Box::new(config.spec.clone()),
            root_options: request.root_options.clone(),
            shared: joined.for_helper(),
            launch: config.launch.clone(),
        });
        let size = config.launch.process.console_size();
        let (init, start_socket) = self
            .make_process(&task, process_ends, agent_ends, size, &joined.inherited())
            .await?;
        let own_network = config.namespaces & libc::CLONE_NEWNET.cast_unsigned() != 0;
        let network = joined.network_of(init.pid, own_network, &self.guest_network)?;
        if let Some(request) = request.network.as_ref() {
            network.set_up(id, request).await?;
        }
        let parts = container::Parts {
            directory,
            cgroup: cgroup.clone(),
            init,
            start_socket,
            notify,
            network,
            memory,
        };
        Ok(Container::new(id.clone(), parts, &config))
    }

    /// Has a helper make a process, and connects its stdio to the host. A container's first process waits at
    /// the returned socket to be started.
    async fn make_process(
        &self,
        task: &Task,
        process_ends: ProcessEnds,
        agent_ends: AgentEnds,
        size: Option<oci_spec::runtime::Box>,
        inherit: &[std::os::fd::BorrowedFd<'_>],
    ) -> Result<(Process, ReportReceiver), Error> {
        let _pending = self.reaper.expect_child();
        let helper = helper::start(&self.program, task, process_ends, inherit)?;
        let until_exec = matches!(task, Task::Exec(_));
        let helper_exit = self.reaper.watch(helper.pid);
        let mut made = None;
        let outcome = helper.reports.wait_for_process(until_exec, &mut made);
        let Ok(outcome) = timeout(MAKE_TIMEOUT, outcome).await else {
            if helper_exit.status().is_none() {
                let _ = crate::sys::kill(helper.pid, libc::SIGKILL);
            }
            // In a paused container the process has not executed its program yet, and must not do so later.
            if let Some(pid) = made.filter(|pid| self.reaper.watch(*pid).status().is_none()) {
                let _ = crate::sys::kill(pid, libc::SIGKILL);
            }
            return Err(Error::Timeout {
                what: "making the process".to_owned(),
                seconds: MAKE_TIMEOUT.as_secs(),
            });
        };
        let NewProcess { pid, terminal } = outcome?;
        let exit = self.reaper.watch(pid);
        let connect = || {
            if let Some((terminal, size)) = terminal.as_ref().zip(size) {
                let side = |length: u64| u16::try_from(length).unwrap_or(u16::MAX);
                stdio::resize(terminal.as_fd(), side(size.height()), side(size.width()))
                    .map_err(Error::io("config.json: process.consoleSize"))?;
            }
            agent_ends.start(pid, exit.clone(), terminal)
        };
        let completion = connect().inspect_err(|_| {
            // Nobody would know of it.
            if exit.status().is_none() {
                let _ = crate::sys::kill(pid, libc::SIGKILL);
            }
        })?;
        Ok((Process { pid, completion }, helper.reports))
    }

    /// Starts a created container: its first process executes its program.
    ///
    /// # Errors
    /// When the container isn't in the state `created`.
    pub fn start(&self, id: &str) -> Result<(), Error> {
        self.containers.find(id)?.start()
    }

    /// Starts a further process in a running container. Returns its pid.
    ///
    /// # Errors
    /// When it can't be started; nothing of it is left then.
    pub async fn exec(&self, request: ExecProcessRequest) -> Result<i32, Error> {
        container::check_id("exec_id", &request.exec_id)?;
        let container = self.containers.find(&request.container_id)?;
        let reservation = container.reserve(&request.exec_id)?;
        let process = exec::process_spec(&request.process_json, &container.defaults)?;
        let size = process.console_size();
        let (process_ends, agent_ends) = self.open_stdio(request.stdio.get_or_default()).await?;
        // The container may have ended while the host was dialled.
        container.check_not_stopped()?;

        let pidfd = container.open_init()?;
        let task = Task::Exec(exec::Task {
            init: std::os::fd::AsRawFd::as_raw_fd(&pidfd),
            init_pid: container.init.pid,
            namespaces: container.namespaces,
            cgroup: container.cgroup.subgroup(&request.cgroup)?,
            cgroup_required: !request.cgroup.is_empty(),
            launch: Launch {
                process,
                keyring: spec::keyring(&container.id),
                new_network: false,
                personality: container.personality.clone(),
                seccomp: container.seccomp.clone(),
                hooks: None,
            },
        });
        let (process, _) = self
            .make_process(&task, process_ends, agent_ends, size, &[pidfd.as_fd()])
            .await?;
        let pid = process.pid;
        reservation.fill(process);
        Ok(pid)
    }

    /// Sends a signal to one process, or to all of a container.
    ///
    /// # Errors
    /// When there is no such process any more.
    pub fn signal(&self, request: &SignalProcessRequest) -> Result<(), Error> {
        let signal = i32::try_from(request.signal).unwrap_or(i32::MAX);
        if !(0..=64).contains(&signal) {
            return Err(Error::InvalidRequest {
                field: "signal",
                problem: format!("{} isn't one of 0 to 64", request.signal),
            });
        }
        let container = self.containers.find(&request.container_id)?;
        if request.all {
            return container.cgroup.signal(signal);
        }
        if request.exec_id.is_empty() {
            return container.signal(signal);
        }
        let name = format!("process {} of container {}", request.exec_id, container.id);
        container.process(&request.exec_id)?.signal(&name, signal)
    }

    /// Passes on a signal that was sent to the VM process: on the host its pid stands for the first process of the
    /// sandbox's owner.
    pub fn signal_owner(&self, signal: i32) {
        let owner = self.owner.get().and_then(Weak::upgrade);
        if let Some(Err(e)) = owner.map(|owner| owner.signal(signal)) {
            log::info!("signal {signal} from the host: {e}");
        }
    }

    /// Waits until a process has ended and its output was sent.
    ///
    /// # Errors
    /// When there is no such process.
    pub async fn wait(&self, request: &WaitProcessRequest) -> Result<ExitStatus, Error> {
        let container = self.containers.find(&request.container_id)?;
        let process = if request.exec_id.is_empty() {
            container.init.clone()
        } else {
            container.process(&request.exec_id)?
        };
        // The container may be deleted meanwhile.
        drop(container);
        // ttrpc drops this future when the connection has ended.
        let abandoned = request.kill_if_abandoned.then(|| KillOnDrop(&process));
        let status = process.completion.wait().await;
        std::mem::forget(abandoned);
        Ok(status)
    }

    /// Removes what is left of a container, once it is created if that is under way. If the client disconnects
    /// meanwhile, the container is still removed.
    ///
    /// # Errors
    /// When it is running and `force` isn't given. It stays as it was.
    pub async fn delete(&self, id: &str, force: bool) -> Result<(), Error> {
        self.containers.wait_until_settled(id).await;
        let container = self.containers.find(id)?;
        if !force && container.state() == "running" {
            return Err(Error::WrongState {
                what: format!("container {id}"),
                state: "running",
                wanted: "stopped",
            });
        }
        let containers = self.containers.clone();
        let deletion = containers.begin_deletion(id);
        let removed = tokio::spawn(async move {
            let removed = remove(&container).await;
            match &removed {
                Ok(()) => containers.remove(&container.id),
                Err(_) => containers.restore(container),
            }
            drop(deletion);
            removed
        });
        removed.await.map_err(|e| Failure::other(e.to_string()))?
    }

    /// Pauses or resumes all processes of a container, by the cgroup freezer.
    ///
    /// # Errors
    /// When the container has ended, or a process can't be frozen.
    pub async fn set_paused(&self, id: &str, paused: bool) -> Result<(), Error> {
        let container = self.containers.find(id)?;
        container.check_not_stopped()?;
        if paused {
            container.cgroup.freeze().await
        } else {
            container.cgroup.thaw()
        }
    }

    /// Changes a container's limits.
    ///
    /// # Errors
    /// When a limit is invalid, or the kernel refuses it; all limits are then as they were.
    pub fn update(&self, request: &UpdateContainerRequest) -> Result<(), Error> {
        let container = self.containers.find(&request.container_id)?;
        limits::update(container.cgroup.directory(), &request.resources_json)
    }

    /// Changes a container's network to what the request describes.
    ///
    /// # Errors
    /// Names the first thing that can't be done. The same request can be made again.
    pub async fn update_network(&self, request: &UpdateNetworkRequest) -> Result<(), Error> {
        let container = self.containers.find(&request.container_id)?;
        let network = request.network.get_or_default();
        Ok(container.network.update(network).await?)
    }

    /// Has a container reach the resolver that the host has for it.
    ///
    /// # Errors
    /// When the host doesn't answer at the stream's port, or the guest's kernel refuses.
    pub async fn relay_resolver(&self, request: &RelayResolverRequest) -> Result<(), Error> {
        let container = self.containers.find(&request.container_id)?;
        let what = "dialling the host's port for its resolver";
        let host = transport::open(&*self.host, request.stream.get_or_default(), &[]);
        let host = with_timeout(DIAL_TIMEOUT, what, host).await?;
        let host = host.map_err(Error::io("dial the host's port for its resolver"))?;
        Ok(container.network.relay_resolver(host).await?)
    }

    /// Lists the container's next processes after a pid, as many as fit into an answer.
    ///
    /// # Errors
    /// When there is no such container.
    pub fn processes(&self, id: &str, after: i32) -> Result<Vec<ProcessInfo>, Error> {
        let mut pids = self.containers.find(id)?.cgroup.processes()?;
        pids.retain(|pid| *pid > after);
        pids.sort_unstable();
        // Processes that have just ended aren't counted: an answer that isn't full is the last one.
        let processes = pids.into_iter().filter_map(procfs::describe);
        Ok(processes.take(answers::MAX_PROCESSES).collect())
    }

    /// Reads a container's statistics.
    ///
    /// # Errors
    /// When there is no such container.
    pub fn stats(&self, id: &str) -> Result<ContainerStatsResponse, Error> {
        Ok(stats::read(self.containers.find(id)?.cgroup.directory()))
    }

    /// Waits until the kernel's OOM killer has killed more than `known` processes of a container, and
    /// returns how many.
    ///
    /// # Errors
    /// When the container goes away first.
    pub async fn wait_oom(&self, id: &str, known: u64) -> Result<u64, Error> {
        let cgroup = self.containers.find(id)?.cgroup.clone();
        let kills = || stats::oom_kills(cgroup.directory());
        cgroup
            .wait_until("memory.events", |_| kills() > known)
            .await?;
        Ok(kills())
    }

    /// Waits until a container reports by sd_notify(3) that it is ready, or has ended. Returns whether it is ready.
    ///
    /// # Errors
    /// When it was made without a notify socket.
    pub async fn wait_ready(&self, id: &str) -> Result<bool, Error> {
        let container = self.containers.find(id)?;
        let Some(socket) = &container.notify else {
            return Err(Error::NotFound(format!(
                "a notify socket of container {id}"
            )));
        };
        tokio::select! {
            ready = socket.ready() => ready.map(|()| true),
            _ = container.init.completion.exit.wait() => Ok(false),
        }
    }

    /// Waits for the end of another container's first process, and kills its remaining processes: without a pid namespace
    /// the kernel doesn't, and they may hold its output open.
    async fn end_with_init(self: Arc<Self>, container: Weak<Container>, init: Process) {
        init.completion.exit.wait().await;
        // A container that is being deleted is killed by that, and its cgroup's name may be another's by now.
        let Some(container) = container.upgrade() else {
            return;
        };
        let found = self.containers.find(&container.id);
        if found.is_ok_and(|found| Arc::ptr_eq(&found, &container))
            && let Err(e) = container.cgroup.kill()
        {
            log::warn!("kill the remaining processes of {}: {e}", container.id);
        }
    }

    /// Waits for the owner's end, ends all other containers, writes all file systems back and reports the exit
    /// status to the host.
    async fn end_when_owner_exits(self: Arc<Self>, owner: Arc<Container>, host: HostStream) {
        owner.init.completion.exit.wait().await;
        // Kills the owner's remaining processes (without a pid namespace the kernel doesn't), and every other
        // container. Calls that wait for these processes are answered below.
        let containers = self.containers.all();
        for container in &containers {
            if let Err(e) = container.cgroup.kill() {
                log::warn!("kill the remaining processes of {}: {e}", container.id);
            }
        }
        let status = owner.init.completion.wait().await;
        let inits = containers.iter().map(|container| container.init.clone());
        let mut others: Vec<_> = containers
            .iter()
            .flat_map(|container| container.processes())
            .collect();
        others.extend(inits.filter(|init| init.pid != owner.init.pid));
        let drained = async {
            for process in &others {
                process.completion.wait().await;
            }
        };
        if timeout(DRAIN_TIMEOUT, drained).await.is_err() {
            log::warn!(
                "at the end of {}, a process holds its output open",
                owner.id
            );
        }
        container::mounts::write_back();
        // While this task dials the host, the runtime's other tasks send their answers.
        if let Err(e) = self.report_exit_status(status, &host).await {
            log::error!("tell the host the exit status {status}: {e}");
            crate::boot::power_off();
        }
    }

    async fn report_exit_status(&self, status: ExitStatus, to: &HostStream) -> std::io::Result<()> {
        let byte = u8::try_from(status).unwrap_or(u8::MAX);
        // Without a time limit: nothing else is left to do, and a lost status can't be recovered.
        let mut stream = transport::open(&*self.host, to, &[byte]).await?;
        // The host ends the VM. Until then the connection stays open.
        let _ = stream.read(&mut [0]).await;
        Ok(())
    }

    async fn open_stdio(
        &self,
        streams: &hull_protocol::agent::Stdio,
    ) -> Result<(ProcessEnds, AgentEnds), Error> {
        let what = "dialling the host's ports for stdio";
        with_timeout(DIAL_TIMEOUT, what, stdio::open(&*self.host, streams)).await?
    }

    fn prepare(&self) -> Result<(), Error> {
        let mut prepare = self.prepare.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(work) = prepare.as_ref() {
            work().map_err(|fatal| Failure::other(fatal.to_string()))?;
            *prepare = None;
        }
        Ok(())
    }
}

/// Ends a container and removes its cgroup; its files go with it.
async fn remove(container: &Container) -> Result<(), Error> {
    container.cgroup.remove().await?;
    let what = format!("the end of container {}", container.id);
    with_timeout(KILL_TIMEOUT, what, container.init.completion.exit.wait()).await?;
    container.network.release(&container.id).await;
    if let Some(shares) = container.shares() {
        shares.unmount();
        tokio::spawn(shares.clone().forget());
    }
    // Not left to drop: somebody may still hold the container when its id is used again.
    container.release_memory();
    container.directory.remove();
    Ok(())
}

/// Awaits a future for no longer than `limit`.
async fn with_timeout<T>(
    limit: Duration,
    what: impl Into<String>,
    awaited: impl Future<Output = T>,
) -> Result<T, Error> {
    timeout(limit, awaited).await.map_err(|_| Error::Timeout {
        what: what.into(),
        seconds: limit.as_secs(),
    })
}
