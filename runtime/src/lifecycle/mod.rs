//! The verbs of a container's life: for the command line, a shim, and tests alike.
//!
//! Each takes plain values and returns what there is to know; none parses options or prints. Warnings go to the
//! log.

mod console_socket;
mod create;
mod damaged;
mod delete;
mod error;
mod exec;
mod follower;
mod foreign_network;
mod hooks;
mod join;
mod kill;
mod list;
mod membership;
mod mount_points;
mod network;
mod observe;
mod pause;
mod pid_file;
mod resizing;
mod resolver;
mod service_manager;
mod start;
mod state;
mod update;
mod vm_memory;
mod wrong_state;

use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;

pub use console_socket::{ConsoleSocketError, send_followed_terminal};
pub use create::{Create, Created, Terminal, create};
pub use delete::{delete, undo};
pub use error::{Error, ErrorKind};
pub use exec::{Execution, Target, exec, find_for_exec, for_guest, own_process};
pub use follower::follower;
pub use hooks::HookError;
pub use kill::kill;
pub use list::list;
pub use observe::{Watched, host_pids, processes, watch};
pub use pause::{pause, resume};
pub use pid_file::write as write_pid_file;
pub use service_manager::of_this_command as service_manager;
pub use start::{Started, start, start_created};
pub use state::{OciState, state};
pub use update::update;
pub use wrong_state::{Verb, WrongState};

use crate::config::Settings;
use crate::sandbox::{AgentError, BlockingAgent};
use crate::store::{ContainerDir, State, Status, Store};
use crate::types::ContainerId;

/// What every verb has to know, whoever calls it.
#[derive(Clone, Debug)]
pub struct Context {
    /// Where the state of containers is kept.
    pub root: PathBuf,
    /// Whether systemd makes the VMs' cgroups.
    pub systemd_cgroup: bool,
    /// Whether guests say in their console what they do.
    pub debug: bool,
    /// Whether whoever made the container looks into its VM's cgroup for kills for want of memory, and asks nobody.
    pub oom_in_cgroup: bool,
    /// Where the configuration comes from.
    pub settings: Settings,
}

impl Context {
    /// All containers.
    ///
    /// # Errors
    /// When the folder can't be made or opened.
    pub fn store(&self) -> Result<Store, Error> {
        Ok(Store::open(&self.root)?)
    }

    /// The folder of an existing container, not locked.
    ///
    /// # Errors
    /// When there is no such container.
    pub fn find(&self, id: &ContainerId) -> Result<ContainerDir, Error> {
        Ok(self.store()?.find(id)?)
    }

    /// The folder of an existing container, locked, with the container's state, if `verb` may be done to one in
    /// that state.
    fn lock(
        &self,
        id: &ContainerId,
        verb: Verb,
        allowed: &[Status],
    ) -> Result<(ContainerDir, State), Error> {
        let mut dir = self.find(id)?;
        dir.lock()?;
        let state = dir.load()?;
        allow(verb, &state, allowed)?;
        Ok((dir, state))
    }
}

/// A connection to the agent of a container's sandbox.
fn connect(dir: &ContainerDir, state: &State) -> Result<BlockingAgent, Error> {
    let sandbox = dir.sandbox_of(&state.container)?;
    Ok(BlockingAgent::connect(&sandbox)?)
}

/// Asks the agent of a container's sandbox for something on a thread of its own, for who doesn't depend on the answer: it
/// may take its time to come, or never do.
fn ask_aside(
    dir: &ContainerDir,
    state: &State,
    request: impl FnOnce(BlockingAgent, &ContainerId) -> Result<(), AgentError> + Send + 'static,
) -> mpsc::Receiver<Result<(), Error>> {
    let (report, answer) = mpsc::channel();
    let (id, sandbox) = (dir.id().clone(), dir.sandbox_of(&state.container));
    thread::spawn(move || {
        let ask = || Ok(request(BlockingAgent::connect(&sandbox?)?, &id)?);
        report.send(ask())
    });
    answer
}

/// Whether `verb` may be done to a container in this state.
fn allow(verb: Verb, state: &State, allowed: &[Status]) -> Result<(), Error> {
    let status = state.status();
    if allowed.contains(&status) {
        return Ok(());
    }
    let id = state.container.id.clone();
    Err(Error::WrongState(WrongState { verb, id, status }))
}
