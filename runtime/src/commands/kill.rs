//! `hull kill`: send a signal to a container's process.
//!
//! The guest delivers it, but SIGKILL doesn't depend on the guest: where that doesn't end the container,
//! the VM is ended.

use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::{delete, signal};
use crate::cli::Global;
use crate::container::{
    ContainerDir, ContainerError, ContainerId, ProcessId, State, Status, Store,
};
use crate::error::{Error, chain};
use crate::sandbox::{Agent, AgentError, SandboxError};

/// How long the guest may take to end a container that is killed. A kill and the end of a VM that is ended
/// for want of it are to take less than ten seconds, on a busy host too.
const GUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// `hull kill`.
#[derive(Debug, clap::Args)]
pub struct Kill {
    /// To every process of the container
    #[arg(short, long)]
    all: bool,
    /// The container's id
    #[arg(value_name = "CONTAINER-ID")]
    id: String,
    /// A name or a number
    #[arg(value_name = "SIGNAL", default_value = "SIGTERM")]
    signal: String,
}

/// Sends the signal.
///
/// # Errors
/// When the container doesn't run. With `--all` a stopped one is no error, as in runc. After SIGKILL, when
/// the VM can't be ended either.
pub fn run(global: &Global, args: &Kill) -> Result<ExitCode, Error> {
    let signal = signal::parse(&args.signal)?;
    let dir = Store::open(&global.root)?.find(&args.id.parse()?)?;
    let state = dir.load()?;
    let runs = state.status() != Status::Stopped;
    match (signal, state.vmm) {
        // Also where the guest says that it has ended.
        (libc::SIGKILL, Some(vmm)) => end(dir, &state, vmm, args.all)?,
        (0, _) => {}
        _ if runs => {
            let sent = ask(&dir, signal, args.all);
            // It may have ended while we were asking.
            if sent.is_err() && dir.load()?.status() == Status::Stopped {
                return not_running(state.id, args.all);
            }
            match sent {
                Err(AgentError::NotFound(_)) => return not_running(state.id, args.all),
                sent => sent.map_err(SandboxError::from)?,
            }
        }
        _ => {}
    }
    if runs {
        Ok(ExitCode::SUCCESS)
    } else {
        not_running(state.id, args.all)
    }
}

fn not_running(id: ContainerId, all: bool) -> Result<ExitCode, Error> {
    if all {
        return Ok(ExitCode::SUCCESS);
    }
    let status = Status::Stopped;
    Err(ContainerError::WrongState {
        verb: "signal",
        id,
        status,
    }
    .into())
}

/// Has the guest's agent deliver a signal.
fn ask(dir: &ContainerDir, signal: i32, all: bool) -> Result<(), AgentError> {
    Agent::connect(dir).and_then(|agent| agent.signal(dir.id(), signal, all))
}

/// Kills the container, and sees it end: by its guest if that does it in time. What the agent answers
/// counts for nothing, and so it is asked on a thread of its own: it may not answer, or lie.
fn end(dir: ContainerDir, state: &State, vmm: ProcessId, all: bool) -> Result<(), Error> {
    let (report, answer) = mpsc::channel();
    thread::spawn(move || report.send(ask(&dir, libc::SIGKILL, all)));
    if vmm.wait(GUEST_TIMEOUT).is_ok() {
        return Ok(());
    }
    let seconds = GUEST_TIMEOUT.as_secs();
    let said = match answer.try_recv() {
        Ok(Err(e)) => format!(" ({})", chain(&e)),
        _ => String::new(),
    };
    log::warn!("the guest did not end its container within {seconds} s{said}: the VM is ended");
    delete::kill(state)
}
