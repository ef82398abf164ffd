//! A container: what the agent knows of it, and how its first process comes to be.

pub mod devices;
pub mod init;
mod inside;
pub mod mounts;
mod namespaces;
pub mod notify;
mod paths;
mod root;
pub mod spec;
mod sysctl;

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hull_protocol::paths::{LONGEST_ID, is_id};
use oci_spec::runtime::{LinuxPersonality, Process as ProcessSpec};

use crate::cgroup::Cgroup;
use crate::error::Error;
use crate::helper::Reports;
use crate::process::seccomp;
use crate::stdio::Finished;
use crate::sys;

/// Under it, a directory for each container.
pub const BUNDLES: &str = "/run/hull/containers";

/// Of so many further processes of a container the exit status is kept.
const MOST_PROCESSES: usize = 1024;

/// A process of a container.
#[derive(Debug, Clone)]
pub struct Process {
    /// In the agent's pid namespace.
    pub pid: i32,
    /// Its end, and that of its output.
    pub finished: Finished,
}

impl Process {
    /// Signals it.
    ///
    /// The pid is its own as long as it wasn't reaped, and it is reaped on this thread.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&self, name: &str, signal: i32) -> Result<(), Error> {
        if self.finished.exit.status().is_some() {
            return Err(Error::Ended(name.to_owned()));
        }
        sys::kill(self.pid, signal).map_err(|e| match e.raw_os_error() {
            Some(libc::ESRCH) => Error::Ended(name.to_owned()),
            _ => Error::io(format!("signal {name}"))(e),
        })
    }
}

/// A container that was made and not yet deleted.
#[derive(Debug)]
pub struct Container {
    /// Its id.
    pub id: String,
    /// Its files in the guest.
    pub bundle: Bundle,
    /// Where its processes are accounted.
    pub cgroup: Cgroup,
    /// Its first process.
    pub init: Process,
    /// What a further process gets where its own description says nothing.
    pub defaults: ProcessSpec,
    /// The namespaces to enter, `CLONE_NEW*`.
    pub namespaces: u32,
    /// The personality of all its processes.
    pub personality: Option<LinuxPersonality>,
    /// The seccomp filter of all its processes.
    pub seccomp: Option<seccomp::Program>,
    /// Where its processes say that it is ready, if somebody wants to know.
    pub notify: Option<notify::NotifySocket>,
    state: Mutex<State>,
}

/// What a container is made of.
#[derive(Debug)]
pub struct Made {
    /// Its files in the guest.
    pub bundle: Bundle,
    /// Where its processes are accounted.
    pub cgroup: Cgroup,
    /// Its first process.
    pub init: Process,
    /// Where that one waits to be started.
    pub waits_at: Reports,
    /// Where its processes say that it is ready, if somebody wants to know.
    pub notify: Option<notify::NotifySocket>,
}

#[derive(Debug)]
struct State {
    /// Where the first process waits; nothing once it was started.
    waits_at: Option<Reports>,
    /// In the order of their start; without a process while one is being started.
    processes: VecDeque<(String, Option<Process>)>,
}

impl State {
    fn find(&mut self, exec_id: &str) -> Option<&mut Option<Process>> {
        let mut processes = self.processes.iter_mut();
        processes.find_map(|(id, process)| (id == exec_id).then_some(process))
    }

    /// Forgets the process that ended first of those that were started first, if there are too many:
    /// nobody has to say that no one will ask about it any more.
    fn make_room(&mut self) -> bool {
        let ended = |(_, process): &(String, Option<Process>)| {
            let exit = process.as_ref().map(|process| &process.finished.exit);
            exit.is_some_and(|exit| exit.status().is_some())
        };
        if self.processes.len() >= MOST_PROCESSES
            && let Some(oldest) = self.processes.iter().position(ended)
        {
            self.processes.remove(oldest);
        }
        self.processes.len() < MOST_PROCESSES
    }
}

impl Container {
    /// A container whose first process waits to be started.
    #[must_use]
    pub fn created(id: String, made: Made, prepared: &spec::Prepared) -> Self {
        Self {
            id,
            bundle: made.bundle,
            cgroup: made.cgroup,
            init: made.init,
            defaults: prepared.launch.process.clone(),
            namespaces: prepared.namespaces,
            personality: prepared.launch.personality.clone(),
            seccomp: prepared.launch.seccomp.clone(),
            notify: made.notify,
            state: Mutex::new(State {
                waits_at: Some(made.waits_at),
                processes: VecDeque::new(),
            }),
        }
    }

    /// The state by the name that the OCI runtime spec gives it.
    #[must_use]
    pub fn state(&self) -> &'static str {
        match (self.init.finished.exit.status(), &self.lock().waits_at) {
            (Some(_), _) => "stopped",
            (None, None) => "running",
            (None, Some(_)) => "created",
        }
    }

    /// Lets the first process go.
    ///
    /// # Errors
    /// When it isn't waiting.
    pub fn start(&self) -> Result<(), Error> {
        self.must_be("created")?;
        let waits_at = self.lock().waits_at.take();
        let started = waits_at.map_or(Ok(()), |socket| socket.let_go());
        started.map_err(Error::io(format!("start {}", self.id)))
    }

    /// Signals the first process, as runc does.
    ///
    /// Before the container is started there is no program that could handle a signal. Then it does what it
    /// does to runc's own process.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&self, signal: i32) -> Result<(), Error> {
        let name = format!("container {}", self.id);
        if self.state() != "created" {
            return self.init.signal(&name, signal);
        }
        match before_start(signal) {
            BeforeStart::Ends => self.init.signal(&name, libc::SIGKILL),
            BeforeStart::Acts => self.init.signal(&name, signal),
            BeforeStart::Nothing => Ok(()),
        }
    }

    /// Finds a further process.
    ///
    /// # Errors
    /// When there is none of this id.
    pub fn process(&self, exec_id: &str) -> Result<Process, Error> {
        let found = self.lock().find(exec_id).cloned().flatten();
        found.ok_or_else(|| Error::Missing(self.name_of(exec_id)))
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

    /// Sets a further process's id aside. Unless [`Reservation::fill`]ed, it is free again.
    ///
    /// # Errors
    /// When the container has ended, the id is taken, or there are too many processes.
    pub fn reserve(self: &Arc<Self>, exec_id: &str) -> Result<Reservation, Error> {
        self.must_live()?;
        let mut state = self.lock();
        if state.find(exec_id).is_some() {
            return Err(Error::Exists(self.name_of(exec_id)));
        }
        if !state.make_room() {
            let what = format!("{MOST_PROCESSES} processes run in container {}", self.id);
            return Err(Error::Full(what));
        }
        state.processes.push_back((exec_id.to_owned(), None));
        Ok(Reservation {
            container: Arc::clone(self),
            exec_id: exec_id.to_owned(),
            filled: false,
        })
    }

    /// # Errors
    /// When it has ended. A created container takes further processes, as with runc.
    pub fn must_live(&self) -> Result<(), Error> {
        match self.state() {
            "stopped" => Err(Error::Stopped),
            _ => Ok(()),
        }
    }

    fn name_of(&self, exec_id: &str) -> String {
        format!("process {exec_id} of container {}", self.id)
    }

    fn must_be(&self, wanted: &'static str) -> Result<(), Error> {
        match self.state() {
            state if state == wanted => Ok(()),
            state => Err(Error::State {
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
    /// Puts the process there.
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
pub struct Bundle {
    path: PathBuf,
}

impl Bundle {
    /// Makes a container's directory.
    ///
    /// # Errors
    /// When there is one.
    pub fn create(id: &str) -> Result<Self, Error> {
        let path = Path::new(BUNDLES).join(id);
        let failed = || Error::io(format!("make {}", path.display()));
        fs::create_dir_all(BUNDLES).map_err(failed())?;
        fs::create_dir(&path).map_err(failed())?;
        Ok(Self { path })
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the directory, if it is there.
    pub fn remove(&self) {
        match fs::remove_dir_all(&self.path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                log::warn!("remove {}: {e}", self.path.display());
            }
            _ => {}
        }
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        self.remove();
    }
}

/// What a signal does to a process that waits to be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BeforeStart {
    Ends,
    /// What it does to any process.
    Acts,
    Nothing,
}

/// As it is with runc, whose waiting process is a program in Go: see the table `sigtable` of its runtime.
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
        | libc::SIGTERM => BeforeStart::Ends,
        libc::SIGSTOP | libc::SIGCONT => BeforeStart::Acts,
        _ => BeforeStart::Nothing,
    }
}

/// Checks a container's or process's id: it becomes a file's name.
///
/// # Errors
/// When it can't be one.
pub fn check_id(field: &'static str, id: &str) -> Result<(), Error> {
    if is_id(id) {
        return Ok(());
    }
    let problem = format!("{id:?} isn't up to {LONGEST_ID} of the letters A-Z a-z 0-9 _ + , - .");
    Err(Error::Invalid { field, problem })
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
