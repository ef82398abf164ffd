//! Sending a signal to a container's process.
//!
//! The guest delivers it, but SIGKILL doesn't depend on the guest: where that doesn't end the container,
//! the VM is ended; of a container in another's sandbox, the process that stands for it.

use std::time::Duration;

use super::delete::kill_container;
use super::{Context, Error, Verb, WrongState, ask_aside, connect};
use crate::chain::chain;
use crate::host::ProcessId;
use crate::store::{ContainerDir, State, Status};
use crate::types::ContainerId;

/// How long the guest may take to end a container that is killed. A kill and the end of a VM that is ended
/// for want of it are to take less than ten seconds, on a busy host too.
const GUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// Sends a signal to a container's process, or to all of its processes; 0 only asks whether it runs.
///
/// # Errors
/// When the container doesn't run. With `all` a stopped one is no error, as in runc. After SIGKILL, when
/// the process that stands for it can't be ended either.
pub fn kill(context: &Context, id: &ContainerId, signal: i32, all: bool) -> Result<(), Error> {
    let dir = context.find(id)?;
    let state = dir.load()?;
    let runs = state.status() != Status::Stopped;
    match (signal, state.process()) {
        // Also where the guest says that it has ended.
        (libc::SIGKILL, Some(process)) => end(&dir, &state, process, all)?,
        (0, _) => {}
        _ if runs => {
            let sent = connect(&dir, &state)
                .and_then(|agent| Ok(agent.ask(|agent| agent.signal(id, "", signal, all))?));
            // It may have ended while we were asking.
            if sent.is_err() && dir.load()?.status() == Status::Stopped {
                return not_running(id, all);
            }
            match sent {
                Err(e) if e.is_not_found() => return not_running(id, all),
                sent => sent?,
            }
        }
        _ => {}
    }
    if runs { Ok(()) } else { not_running(id, all) }
}

fn not_running(id: &ContainerId, all: bool) -> Result<(), Error> {
    if all {
        return Ok(());
    }
    Err(Error::WrongState(WrongState {
        verb: Verb::Signal,
        id: id.clone(),
        status: Status::Stopped,
    }))
}

/// Kills the container, and sees it end: by its guest if that does it in time. What the agent answers
/// counts for nothing, and so it is asked on a thread of its own: it may not answer, or lie.
fn end(dir: &ContainerDir, state: &State, process: ProcessId, all: bool) -> Result<(), Error> {
    if let Some(cgroup) = state.own_cgroup() {
        cgroup.lift_cpu_limits();
    }
    let answer = ask_aside(dir, state, move |agent, id| {
        agent.ask(|agent| agent.signal(id, "", libc::SIGKILL, all))
    });
    if process.wait(GUEST_TIMEOUT).is_ok() {
        return Ok(());
    }
    let seconds = GUEST_TIMEOUT.as_secs();
    let said = match answer.try_recv() {
        Ok(Err(e)) => format!(" ({})", chain(&e)),
        _ => String::new(),
    };
    let what = match state.own_sandbox() {
        Some(_) => "the VM",
        None => "the process that stands for it",
    };
    log::warn!("the guest did not end its container within {seconds} s{said}: {what} is ended");
    kill_container(state)
}
