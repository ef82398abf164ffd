//! Waiting in the foreground: signals that this process gets go to the container's process.

use std::io;
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

use super::Error;
use super::notify;
use hull_runtime::sandbox::{BlockingAgent, ChildProcess, SandboxError, Sizes, forward_signals};
use hull_runtime::types::ContainerId;

/// Waits for the end of the process that stands for a container, and exits as it did. Meanwhile the
/// guest is told the sizes of the user's terminal, where that is the container's, and a service manager
/// that the container is ready.
///
/// # Errors
/// When the process can't be waited for.
pub fn wait_for(
    agent: &BlockingAgent,
    id: &ContainerId,
    process: &mut ChildProcess,
    sizes: Option<&Sizes>,
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
        let until = async move {
            tokio::pin!(ended);
            tokio::select! {
                status = &mut ended => return status,
                () = notify::relay(agent, id, std::process::id()) => {}
            }
            ended.await
        };
        forward_signals(agent, id, "", sizes, until)
    });
    let status = status.map_err(SandboxError::host("wait for the container's process"))?;
    Ok(exit_code(status))
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
