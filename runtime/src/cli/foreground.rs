//! Waiting in the foreground: signals that this process gets go to the container's process.

use std::io;
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

use super::Error;
use super::notify;
use hull_runtime::host::ProcessId;
use hull_runtime::sandbox::{
    Agent, BlockingAgent, ChildProcess, SandboxError, Sizes, forward_signals,
};
use hull_runtime::types::ContainerId;

/// Waits for the end of the process that stands for a container, and exits as it did. Meanwhile the
/// guest is told the sizes of the user's terminal, where that is the container's, and a service manager
/// that the container is ready. When the container has ended, so is its `follower`, which takes the host's kernel as
/// long as parts of the VM's end: it does both at once.
///
/// # Errors
/// When the process can't be waited for.
pub fn wait_for(
    agent: &BlockingAgent,
    id: &ContainerId,
    process: &mut ChildProcess,
    sizes: Option<&Sizes>,
    follower: Option<ProcessId>,
) -> Result<ExitCode, Error> {
    let ended = async {
        // From here on no death is missed, so one that came before is seen by the first `try_wait`.
        let mut deaths = signal(SignalKind::child())?;
        loop {
            if let Some(status) = process.try_wait()? {
                return Ok::<_, io::Error>(status);
            }
            deaths.recv().await;
        }
    };
    let status = agent.ask(|agent| {
        let meanwhile = async move {
            let ready = notify::relay(agent, id, std::process::id());
            tokio::join!(ready, end_with_container(agent, id, follower));
        };
        let until = async move {
            tokio::pin!(ended);
            tokio::select! {
                status = &mut ended => return status,
                () = meanwhile => {}
            }
            ended.await
        };
        forward_signals(agent, id, "", sizes, until)
    });
    let status = status.map_err(SandboxError::host("wait for the container's process"))?;
    Ok(exit_code(status))
}

/// Waits for the container's end, and has that process end. `delete` waits for it, and says what fails.
async fn end_with_container(agent: &Agent, id: &ContainerId, process: Option<ProcessId>) {
    let Some(process) = process else {
        return;
    };
    let _ = agent.wait(id, "", false).await;
    let _ = process.begin_to_kill();
}

/// A process's end as a shell would report it.
fn exit_code(status: std::process::ExitStatus) -> ExitCode {
    use std::os::unix::process::ExitStatusExt;
    let code = status
        .code()
        .or_else(|| status.signal().map(|s| 128 + s))
        .unwrap_or(255);
    ExitCode::from(u8::try_from(code).unwrap_or(255))
}
