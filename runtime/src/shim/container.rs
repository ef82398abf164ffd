//! A container of the server's: made, started, and watched until it has ended.
//!
//! The library's verbs block, so each runs on a thread of the runtime's for such ([`blocking`]). What is waited for without
//! an end (a process's end, an event in the guest) is asked for on the one connection to the guest's agent that the
//! container has.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use containerd_shim_protos::api::Mount;
use containerd_shim_protos::events::task::{TaskExecStarted, TaskExit, TaskOOM};
use hull_runtime::chain::chain;
use hull_runtime::host::{ProcessId, async_readable};
use hull_runtime::lifecycle::{self, Context, Create, Terminal};
use hull_runtime::sandbox::{Agent, AttachedStdio, ChildProcess, Stdio};
use hull_runtime::spec;
use hull_runtime::store::Status;
use hull_runtime::types::ContainerId;
use oci_spec::runtime;
use rustix::process::{Pid, WaitOptions, waitpid};
use tokio::io::AsyncReadExt;
use tokio::time::{sleep, timeout};

use super::error::Error;
use super::events::Events;
use super::process::{Exit, KILLED, Process, lock};
use super::streams::{self, Kept, Names, Streams};
use super::{rootfs, task};

/// How long the further processes of a container that has ended may take to be seen to end.
const EXECS_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a container that runs out of memory again and again has nobody told of it.
const OOM_INTERVAL: Duration = Duration::from_secs(1);

/// What is to be made.
#[derive(Debug)]
pub struct Request {
    /// The container's id.
    pub id: ContainerId,
    /// Its bundle.
    pub bundle: PathBuf,
    /// Its root file system, if that isn't in the bundle already.
    pub rootfs: Vec<Mount>,
    /// Its streams.
    pub names: Names,
}

/// A container.
pub struct Container {
    /// Its id.
    pub id: ContainerId,
    /// Its bundle.
    pub bundle: PathBuf,
    /// The pid of the host's process that stands for it.
    pub pid: u32,
    /// Its own process.
    pub init: Arc<Process>,
    context: Context,
    agent: Agent,
    status: Mutex<Status>,
    execs: Mutex<HashMap<String, Arc<Exec>>>,
    /// How many further processes it has had.
    started: AtomicU64,
    /// Held while it is started: that it was, is told before that it has ended.
    starting: tokio::sync::Mutex<()>,
    events: Events,
}

/// A further process of a container.
pub struct Exec {
    /// The process.
    pub process: Arc<Process>,
    /// What it is to be, and its id in the guest once it was started.
    spec: runtime::Process,
    guest_id: Mutex<Option<String>>,
}

/// What making one gives.
struct Made {
    process: ChildProcess,
    connection: UnixStream,
    kept: Kept,
}

/// Runs what blocks.
///
/// # Errors
/// Its own; or that it has panicked.
pub async fn blocking<T: Send + 'static>(
    verb: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(verb).await;
    done.unwrap_or_else(|e| Err(Error::host("run a thread")(e.into())))
}

impl Container {
    /// Makes a container, which is watched from then on.
    ///
    /// # Errors
    /// When it can't be made; then nothing of it is left.
    pub async fn create(
        context: Context,
        request: Request,
        events: Events,
    ) -> Result<Arc<Self>, Error> {
        let Request {
            id,
            bundle,
            rootfs,
            names,
        } = request;
        let (in_bundle, of_id, streams, with) =
            (bundle.clone(), id.clone(), names.clone(), context.clone());
        let made = blocking(move || make(&with, of_id, &in_bundle, &rootfs, &streams)).await?;
        let Made {
            process,
            connection,
            kept,
        } = made;
        let agent = match Agent::over(connection) {
            Ok(agent) => agent,
            Err(e) => {
                blocking(move || Ok(lifecycle::delete(&context, &id, true)?)).await?;
                return Err(Error::host("connect to the guest's agent")(e));
            }
        };
        let init = Arc::new(Process::new(names));
        *init.kept() = kept;
        let container = Arc::new(Self {
            pid: process.id().unsigned_abs(),
            id,
            bundle,
            init,
            context,
            agent,
            status: Mutex::new(Status::Created),
            execs: Mutex::default(),
            started: AtomicU64::new(0),
            starting: tokio::sync::Mutex::default(),
            events,
        });
        tokio::spawn(Arc::clone(&container).watch(process));
        tokio::spawn(Arc::clone(&container).watch_memory());
        Ok(container)
    }

    /// Starts it. The event is `started`'s.
    ///
    /// # Errors
    /// When it can't be started.
    pub async fn start(&self, started: impl FnOnce(&Events)) -> Result<(), Error> {
        let _first = self.starting.lock().await;
        let follower = self.verb(|context, id| {
            let started = lifecycle::start(context, id)?;
            Ok(lifecycle::follower(&started.state))
        });
        if let Some(follower) = follower.await? {
            tokio::spawn(reap(follower));
        }
        self.set_status(Status::Running);
        started(&self.events);
        Ok(())
    }

    /// In which state its own process is.
    pub fn status(&self) -> Status {
        match self.init.exit() {
            Some(_) => Status::Stopped,
            None => *lock(&self.status),
        }
    }

    fn set_status(&self, status: Status) {
        *lock(&self.status) = status;
    }

    /// Does a verb of the library's to it.
    ///
    /// # Errors
    /// The verb's.
    pub async fn verb<T: Send + 'static>(
        &self,
        verb: impl FnOnce(&Context, &ContainerId) -> Result<T, lifecycle::Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (context, id) = (self.context.clone(), self.id.clone());
        blocking(move || Ok(verb(&context, &id)?)).await
    }

    /// Suspends it.
    ///
    /// # Errors
    /// When it doesn't run.
    pub async fn pause(&self) -> Result<(), Error> {
        self.verb(lifecycle::pause).await?;
        self.set_status(Status::Paused);
        Ok(())
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// When it isn't suspended.
    pub async fn resume(&self) -> Result<(), Error> {
        self.verb(lifecycle::resume).await?;
        self.set_status(Status::Running);
        Ok(())
    }

    /// Sends a signal to its process, or to all.
    ///
    /// # Errors
    /// When it has ended already.
    pub async fn kill(&self, signal: i32, all: bool) -> Result<(), Error> {
        if self.init.exit().is_some() && !all {
            return Err(Error::NotFound(
                "process already finished: the container".to_owned(),
            ));
        }
        self.verb(move |context, id| lifecycle::kill(context, id, signal, all))
            .await
    }

    /// The guest's agent.
    pub fn agent(&self) -> &Agent {
        &self.agent
    }

    /// Removes it, once it has ended.
    ///
    /// # Errors
    /// When it runs, or something of it can't be removed.
    pub async fn delete(&self) -> Result<(), Error> {
        if self.init.exit().is_none() {
            return Err(Error::state(
                "cannot delete a running container: kill it first",
            ));
        }
        self.verb(|context, id| lifecycle::delete(context, id, true))
            .await?;
        *self.init.kept() = Kept::default();
        let rootfs = rootfs::of(&self.bundle);
        blocking(move || rootfs::unmount(&rootfs)).await
    }

    /// Waits for the end of the host's process that stands for it, and tells of it.
    async fn watch(self: Arc<Self>, mut process: ChildProcess) {
        let status = match wait_child(&mut process).await {
            Ok(status) => shell_status(status),
            Err(e) => {
                log::error!("container {}: its process: {}", self.id, chain(&e));
                KILLED
            }
        };
        // Its end is the last that is told of.
        let execs: Vec<_> = lock(&self.execs).values().cloned().collect();
        let ended = async {
            for exec in execs.iter().filter(|exec| exec.is_started()) {
                exec.process.wait().await;
            }
        };
        if timeout(EXECS_TIMEOUT, ended).await.is_err() {
            log::warn!(
                "container {}: the end of its further processes isn't known",
                self.id
            );
        }
        let _after_start = self.starting.lock().await;
        let exit = self.init.end(status);
        self.tell_end(self.id.to_string(), exit);
    }

    /// Tells how a process of it has ended: its own, by its id, or a further one.
    fn tell_end(&self, id: String, exit: Exit) {
        self.events.send(&TaskExit {
            container_id: self.id.to_string(),
            id,
            pid: self.pid,
            exit_status: exit.status,
            exited_at: Some(task::timestamp(exit.at)).into(),
            ..Default::default()
        });
    }

    /// Tells of processes that are killed for want of memory.
    async fn watch_memory(self: Arc<Self>) {
        let mut known = 0;
        // Until the container goes away.
        while let Ok(kills) = self.agent.wait_oom(&self.id, known).await {
            known = kills;
            self.events.send(&TaskOOM {
                container_id: self.id.to_string(),
                ..Default::default()
            });
            // What a guest says is told no more often than that.
            sleep(OOM_INTERVAL).await;
        }
    }

    /// Adds a further process, which isn't started yet.
    ///
    /// # Errors
    /// When there is one of this id.
    pub fn add_exec(&self, id: &str, spec: runtime::Process, names: Names) -> Result<(), Error> {
        match lock(&self.execs).entry(id.to_owned()) {
            Entry::Occupied(_) => Err(Error::Exists(format!("process {id}"))),
            Entry::Vacant(place) => {
                place.insert(Arc::new(Exec {
                    process: Arc::new(Process::new(names)),
                    spec,
                    guest_id: Mutex::default(),
                }));
                Ok(())
            }
        }
    }

    /// A further process.
    ///
    /// # Errors
    /// When there is none of this id.
    pub fn exec(&self, id: &str) -> Result<Arc<Exec>, Error> {
        let exec = lock(&self.execs).get(id).cloned();
        exec.ok_or_else(|| Error::NotFound(format!("process {id} of container {}", self.id)))
    }

    /// Its own process, for an empty id, or a further one.
    ///
    /// # Errors
    /// When there is none of this id.
    pub fn process(&self, id: &str) -> Result<Arc<Process>, Error> {
        match id {
            "" => Ok(Arc::clone(&self.init)),
            id => Ok(Arc::clone(&self.exec(id)?.process)),
        }
    }

    /// Starts it. It is watched from then on.
    ///
    /// # Errors
    /// When it has been, or can't be.
    pub async fn start_exec(self: &Arc<Self>, id: &str) -> Result<(), Error> {
        let exec = self.exec(id)?;
        if exec.is_started() || exec.process.exit().is_some() {
            return Err(Error::state(format!("process {id} was started already")));
        }
        let (context, of_id) = (self.context.clone(), self.id.clone());
        let (spec, names) = (exec.spec.clone(), exec.process.names.clone());
        let prepared = blocking(move || prepare(&context, &of_id, spec, &names)).await?;
        let (json, stdio, kept) = prepared;
        *exec.process.kept() = kept;
        let count = self.started.fetch_add(1, Ordering::Relaxed);
        let guest_id = format!("shim-{}-{count}", std::process::id());
        let started = self
            .agent
            .exec(&self.id, &guest_id, json, "", stdio.offer())
            .await;
        started.map_err(lifecycle::Error::ExecProcess)?;
        *lock(&exec.guest_id) = Some(guest_id.clone());
        self.events.send(&TaskExecStarted {
            container_id: self.id.to_string(),
            exec_id: id.to_owned(),
            pid: self.pid,
            ..Default::default()
        });
        tokio::spawn(hold(stdio));
        tokio::spawn(Arc::clone(self).watch_exec(id.to_owned(), exec, guest_id));
        Ok(())
    }

    async fn watch_exec(self: Arc<Self>, id: String, exec: Arc<Exec>, guest_id: String) {
        // If the shim is killed, so is the process.
        let status = self.agent.wait(&self.id, &guest_id, true).await;
        let status = status.unwrap_or_else(|e| {
            log::warn!("process {id} of container {}: {}", self.id, chain(&e));
            KILLED as u8
        });
        let exit = exec.process.end(status.into());
        self.tell_end(id, exit);
    }

    /// Sends a signal to it.
    ///
    /// # Errors
    /// When it isn't there, or not any more.
    pub async fn kill_exec(&self, id: &str, signal: i32) -> Result<(), Error> {
        let exec = self.exec(id)?;
        let guest_id = lock(&exec.guest_id).clone();
        let Some(guest_id) = guest_id else {
            return Err(Error::state(format!("process {id} was not started")));
        };
        if exec.process.exit().is_some() {
            return Err(Error::NotFound(format!("process already finished: {id}")));
        }
        Ok(self
            .agent
            .signal(&self.id, &guest_id, signal, false)
            .await?)
    }

    /// Forgets it, once it has ended or if it was never started.
    ///
    /// # Errors
    /// When it runs.
    pub fn delete_exec(&self, id: &str) -> Result<Arc<Exec>, Error> {
        let exec = self.exec(id)?;
        if exec.is_started() && exec.process.exit().is_none() {
            return Err(Error::state(format!(
                "cannot delete a running process: {id}"
            )));
        }
        lock(&self.execs).remove(id);
        Ok(exec)
    }
}

impl Exec {
    /// Whether it was started.
    pub fn is_started(&self) -> bool {
        lock(&self.guest_id).is_some()
    }
}

/// Makes the container, and what of it there is before.
fn make(
    context: &Context,
    id: ContainerId,
    bundle: &Path,
    mounts: &[Mount],
    names: &Names,
) -> Result<Made, Error> {
    let root = rootfs::of(bundle);
    let made = rootfs::mount_all(&root, mounts).and_then(|()| {
        let (streams, kept) = streams::open(names)?;
        let terminal = match streams {
            Streams::Plain(streams) => Terminal::Streams(streams),
            Streams::Terminal(streams) => Terminal::Relayed(streams),
        };
        let bundle = spec::load(bundle).map_err(lifecycle::Error::from)?;
        let mut context = context.clone();
        context.systemd_cgroup |= names_systemd_cgroup(bundle.spec());
        let request = Create {
            id,
            bundle,
            terminal,
            pid_file: None,
            service_manager: None,
            sandbox: None,
        };
        let created = lifecycle::create(&context, request)?;
        let connection = created.connect();
        let mut process = created.process;
        match connection {
            Ok(connection) => Ok(Made {
                process,
                connection,
                kept,
            }),
            Err(e) => {
                let _ = process.kill().and_then(|()| process.wait());
                lifecycle::undo(&context, created.dir, &created.state);
                Err(e.into())
            }
        }
    });
    made.inspect_err(|_| {
        if mounts.is_empty() {
            return;
        }
        if let Err(e) = rootfs::unmount(&root) {
            log::warn!("{}", chain(&e));
        }
    })
}

/// Whether `cgroupsPath` is `slice:prefix:name`: what containerd is configured with, it tells only runc's shim.
fn names_systemd_cgroup(spec: &runtime::Spec) -> bool {
    let linux = spec.linux().as_ref();
    let path = linux.and_then(|linux| linux.cgroups_path().as_ref());
    let path = path.and_then(|path| path.to_str()).unwrap_or_default();
    !path.starts_with('/') && path.split(':').count() == 3
}

/// What a further process is started with.
fn prepare(
    context: &Context,
    id: &ContainerId,
    spec: runtime::Process,
    names: &Names,
) -> Result<(Vec<u8>, AttachedStdio, Kept), Error> {
    let target = lifecycle::find_for_exec(context, id, false)?;
    let process = lifecycle::for_guest(context, spec, &target)?;
    let json = serde_json::to_vec(&process).map_err(|source| Error::Json {
        what: "the process",
        source,
    })?;
    let (streams, kept) = streams::open(names)?;
    let stdio = match streams {
        Streams::Plain(streams) => {
            target.attach(Stdio::Streams(streams.each_ref().map(OwnedFd::as_fd)))?
        }
        Streams::Terminal(streams) => target.attach(Stdio::Terminal(streams))?,
    };
    Ok((json, stdio, kept))
}

/// Holds a process's streams at the VM process until they have come to their end.
async fn hold(stdio: AttachedStdio) {
    let connection = stdio.into_connection();
    let held = async {
        connection.set_nonblocking(true)?;
        let mut connection = tokio::net::UnixStream::from_std(connection)?;
        connection.read_u8().await
    };
    let _ = held.await; // or its end
}

/// Waits for a child's end.
async fn wait_child(process: &mut ChildProcess) -> Result<ExitStatus, Error> {
    let failed = Error::host("wait for the process that stands for a container");
    let ended = async {
        let ended = async_readable(process.open()?)?;
        drop(ended.readable().await?);
        process.wait()
    };
    ended.await.map_err(failed)
}

/// Waits for the end of another child, which nobody else does.
async fn reap(process: ProcessId) {
    if let Some(pidfd) = process.open()
        && let Ok(ended) = async_readable(pidfd)
    {
        let _ = ended.readable().await;
    }
    let _ = waitpid(Pid::from_raw(process.pid), WaitOptions::NOHANG);
}

/// As a shell reports it.
fn shell_status(status: ExitStatus) -> u32 {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    code.map_or(KILLED, i32::unsigned_abs)
}
