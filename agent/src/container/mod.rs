//! A container: the agent's record of it, and how its first process is made.

pub mod devices;
mod in_root;
pub mod init;
pub mod joined;
pub mod mounts;
mod namespaces;
pub mod notify;
mod restricted_paths;
mod root;
pub mod shares;
pub mod spec;
mod sysctl;

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hull_protocol::paths::{MAX_ID_LENGTH, is_valid_id};
use oci_spec::runtime::{LinuxPersonality, Process as ProcessSpec};

use crate::cgroup::Cgroup;
use crate::error::Error;
use crate::helper::ReportReceiver;
use crate::network::Network;
use crate::process::seccomp;
use crate::shared_memory::MountedMemory;
use crate::stdio::Completion;
use crate::sys;
use shares::Shares;

/// The parent of the containers' directories.
pub const CONTAINERS: &str = "/run/hull/containers";

/// How many further processes of a container are kept, including those that have ended, for their exit status.
const MAX_PROCESSES: usize = 1024;

/// A process of a container.
#[derive(Debug, Clone)]
pub struct Process {
    /// Its pid in the agent's pid namespace.
    pub pid: i32,
    /// Its end, and the end of its output.
    pub completion: Completion,
}

impl Process {
    /// Sends it a signal.
    ///
    /// The pid can't be another process's: it isn't reused before the process is reaped, which this thread does.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&self, name: &str, signal: i32) -> Result<(), Error> {
        if self.completion.exit.status().is_some() {
            return Err(Error::ProcessEnded(name.to_owned()));
        }
        sys::kill(self.pid, signal).map_err(|e| match e.raw_os_error() {
            Some(libc::ESRCH) => Error::ProcessEnded(name.to_owned()),
            _ => Error::io(format!("signal {name}"))(e),
        })
    }
}

/// A container that has been created and not yet deleted.
#[derive(Debug)]
pub struct Container {
    /// Its id.
    pub id: String,
    /// Its directory in the guest.
    pub directory: ContainerDirectory,
    /// Its cgroup.
    pub cgroup: Cgroup,
    /// Its first process.
    pub init: Process,
    /// The `process` object of config.json, whose fields are defaults for further processes.
    pub defaults: ProcessSpec,
    /// The namespaces that a further process enters, `CLONE_NEW*`.
    pub namespaces: u32,
    /// The personality of all its processes.
    pub personality: Option<LinuxPersonality>,
    /// The seccomp filter of all its processes.
    pub seccomp: Option<seccomp::Program>,
    /// The socket on which its processes report that it is ready, if the host has asked for one.
    pub notify: Option<notify::NotifySocket>,
    /// Its network.
    pub network: Network,
    /// Where the host's shares of it are, if its root is one.
    shares: Option<Shares>,
    /// What it has in common with other containers, until it is removed.
    memory: Mutex<Vec<Arc<MountedMemory>>>,
    state: Mutex<State>,
}

/// What a new container consists of.
#[derive(Debug)]
pub struct Parts {
    /// Its directory in the guest.
    pub directory: ContainerDirectory,
    /// Its cgroup.
    pub cgroup: Cgroup,
    /// Its first process.
    pub init: Process,
    /// The socket on which that process waits to be started.
    pub start_socket: ReportReceiver,
    /// The socket on which its processes report that it is ready, if the host has asked for one.
    pub notify: Option<notify::NotifySocket>,
    /// Its network.
    pub network: Network,
    /// The file systems in memory that it has in common with other containers.
    pub memory: Vec<Arc<MountedMemory>>,
}

#[derive(Debug)]
struct State {
    /// The socket on which the first process waits to be started; `None` once it was.
    start_socket: Option<ReportReceiver>,
    /// Further processes by exec id, in the order of their start; `None` while one is being started.
    processes: VecDeque<(String, Option<Process>)>,
}

impl State {
    fn find(&mut self, exec_id: &str) -> Option<&mut Option<Process>> {
        let mut processes = self.processes.iter_mut();
        processes.find_map(|(id, process)| (id == exec_id).then_some(process))
    }

    /// If there are too many processes, removes the oldest that has ended: the host doesn't tell the agent when it
    /// no longer needs one. Returns whether there is room for another.
    fn make_room(&mut self) -> bool {
        let ended = |(_, process): &(String, Option<Process>)| {
            let exit = process.as_ref().map(|process| &process.completion.exit);
            exit.is_some_and(|exit| exit.status().is_some())
        };
        if self.processes.len() >= MAX_PROCESSES
            && let Some(oldest) = self.processes.iter().position(ended)
        {
            self.processes.remove(oldest);
        }
        self.processes.len() < MAX_PROCESSES
    }
}

impl Container {
    /// Where the host's shares of it are, if its root is one.
    #[must_use]
    pub fn shares(&self) -> Option<&Shares> {
        self.shares.as_ref()
    }

    /// Gives up what it has in common with other containers, once it has ended.
    pub fn release_memory(&self) {
        self.memory
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    /// A container whose first process waits to be started.
    #[must_use]
    pub fn new(id: String, parts: Parts, config: &spec::SplitConfig) -> Self {
        let root = config.spec.root().as_ref();
        Self {
            id,
            directory: parts.directory,
            cgroup: parts.cgroup,
            init: parts.init,
            defaults: config.launch.process.clone(),
            namespaces: config.namespaces,
            personality: config.launch.personality.clone(),
            seccomp: config.launch.seccomp.clone(),
            notify: parts.notify,
            network: parts.network,
            shares: root.and_then(|root| Shares::of_root(root.path())),
            memory: Mutex::new(parts.memory),
            state: Mutex::new(State {
                start_socket: Some(parts.start_socket),
                processes: VecDeque::new(),
            }),
        }
    }

    /// The state, by its name in the OCI runtime spec.
    #[must_use]
    pub fn state(&self) -> &'static str {
        match (
            self.init.completion.exit.status(),
            &self.lock().start_socket,
        ) {
            (Some(_), _) => "stopped",
            (None, None) => "running",
            (None, Some(_)) => "created",
        }
    }

    /// Starts the container: the first process executes its program.
    ///
    /// # Errors
    /// When the container isn't in the state `created`.
    pub fn start(&self) -> Result<(), Error> {
        self.check_state("created")?;
        let start_socket = self.lock().start_socket.take();
        let started = start_socket.map_or(Ok(()), |socket| socket.start_process());
        started.map_err(Error::io(format!("start {}", self.id)))
    }

    /// Sends a signal to the first process, as runc does.
    ///
    /// Before the container is started, the signal has the effect that it has on runc's process at that point.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&self, signal: i32) -> Result<(), Error> {
        let name = format!("container {}", self.id);
        if self.state() != "created" {
            return self.init.signal(&name, signal);
        }
        match before_start(signal) {
            BeforeStart::Kill => self.init.signal(&name, libc::SIGKILL),
            BeforeStart::Deliver => self.init.signal(&name, signal),
            BeforeStart::Ignore => Ok(()),
        }
    }

    /// Finds a further process.
    ///
    /// # Errors
    /// When there is none of this id.
    pub fn process(&self, exec_id: &str) -> Result<Process, Error> {
        let found = self.lock().find(exec_id).cloned().flatten();
        found.ok_or_else(|| Error::NotFound(self.name_of(exec_id)))
    }

    /// All further processes that are known.
    #[must_use]
    pub fn processes(&self) -> Vec<Process> {
        let state = self.lock();
        state
            .processes
            .iter()
            .filter_map(|(_, process)| process.clone())
            .collect()
    }

    /// Reserves the id of a further process. It is free again unless the reservation is [filled](Reservation::fill).
    ///
    /// # Errors
    /// When the container has ended, the id is taken, or there are too many processes.
    pub fn reserve(self: &Arc<Self>, exec_id: &str) -> Result<Reservation, Error> {
        self.check_not_stopped()?;
        let mut state = self.lock();
        if state.find(exec_id).is_some() {
            return Err(Error::AlreadyExists(self.name_of(exec_id)));
        }
        if !state.make_room() {
            let what = format!("{MAX_PROCESSES} processes run in container {}", self.id);
            return Err(Error::TooMany(what));
        }
        state.processes.push_back((exec_id.to_owned(), None));
        Ok(Reservation {
            container: Arc::clone(self),
            exec_id: exec_id.to_owned(),
            filled: false,
        })
    }

    /// Checks that the container has not ended. A created one takes further processes, as with runc.
    ///
    /// # Errors
    /// When it has ended.
    pub fn check_not_stopped(&self) -> Result<(), Error> {
        match self.state() {
            "stopped" => Err(Error::ExecInStopped),
            _ => Ok(()),
        }
    }

    fn name_of(&self, exec_id: &str) -> String {
        format!("process {exec_id} of container {}", self.id)
    }

    fn check_state(&self, wanted: &'static str) -> Result<(), Error> {
        match self.state() {
            state if state == wanted => Ok(()),
            state => Err(Error::WrongState {
                what: format!("container {}", self.id),
                state,
                wanted,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The id of a process that is being started.
#[derive(Debug)]
pub struct Reservation {
    container: Arc<Container>,
    exec_id: String,
    filled: bool,
}

impl Reservation {
    /// Puts the process under the reserved id.
    pub fn fill(mut self, process: Process) {
        self.filled = true;
        if let Some(place) = self.container.lock().find(&self.exec_id) {
            *place = Some(process);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.filled {
            let mut state = self.container.lock();
            state.processes.retain(|(id, _)| *id != self.exec_id);
        }
    }
}

/// The directory of a container in the guest's memory; dropping it removes it.
#[derive(Debug)]
pub struct ContainerDirectory {
    path: PathBuf,
}

impl ContainerDirectory {
    /// Makes a container's directory.
    ///
    /// # Errors
    /// When it exists.
    pub fn create(id: &str) -> Result<Self, Error> {
        let path = Path::new(CONTAINERS).join(id);
        let failed = || Error::io(format!("make {}", path.display()));
        fs::create_dir_all(CONTAINERS).map_err(failed())?;
        fs::create_dir(&path).map_err(failed())?;
        Ok(Self { path })
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the directory, if it exists.
    pub fn remove(&self) {
        match fs::remove_dir_all(&self.path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                log::warn!("remove {}: {e}", self.path.display());
            }
            _ => {}
        }
    }
}

impl Drop for ContainerDirectory {
    fn drop(&mut self) {
        self.remove();
    }
}

/// What a signal does to a process that waits to be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BeforeStart {
    /// The process is killed.
    Kill,
    /// The signal is sent to the process.
    Deliver,
    /// The signal has no effect.
    Ignore,
}

/// As with runc, whose waiting process is a Go program: see the table `sigtable` of Go's runtime.
fn before_start(signal: i32) -> BeforeStart {
    match signal {
        libc::SIGHUP
        | libc::SIGINT
        | libc::SIGQUIT
        | libc::SIGILL
        | libc::SIGTRAP
        | libc::SIGABRT
        | libc::SIGBUS
        | libc::SIGFPE
        | libc::SIGKILL
        | libc::SIGSEGV
        | libc::SIGSTKFLT
        | libc::SIGSYS
        | libc::SIGTERM => BeforeStart::Kill,
        libc::SIGSTOP | libc::SIGCONT => BeforeStart::Deliver,
        _ => BeforeStart::Ignore,
    }
}

/// Checks a container's or process's id, which becomes a file name.
///
/// # Errors
/// When it isn't valid.
pub fn check_id(field: &'static str, id: &str) -> Result<(), Error> {
    if is_valid_id(id) {
        return Ok(());
    }
    let problem =
        format!("{id:?} isn't up to {MAX_ID_LENGTH} of the letters A-Z a-z 0-9 _ + , - .");
    Err(Error::InvalidRequest { field, problem })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_must_be_a_plain_name() {
        assert!(check_id("container_id", "a-1_b.c+d").is_ok());
        assert!(check_id("container_id", "a/b").is_err());
    }
}
