//! Waiting in the foreground: signals that this process gets go to the container's process.

use std::future::Future;
use std::io;
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::Error;
use super::notify;
use hull_runtime::sandbox::{Agent, BlockingAgent, SandboxError, Sizes, VmmProcess};
use hull_runtime::types::ContainerId;

/// What is passed on: every signal that ends or informs a process, but for those that are about this
/// process's own children, pipes and terminal.
const FORWARDED: [i32; 7] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGTERM,
];

/// Waits for the end of the VMM process, which is the container's, and exits as it did. Meanwhile the
/// guest is told the sizes of the user's terminal, where that is the container's, and a service manager
/// that the container is ready.
///
/// # Errors
/// When the process can't be waited for.
pub fn wait_for_vmm(
    agent: &BlockingAgent,
    id: &ContainerId,
    vmm: &mut VmmProcess,
    sizes: Option<&Sizes>,
) -> Result<ExitCode, Error> {
    let ended = async {
        // From here on no death is missed, so one that came before is seen by the first `try_wait`.
        let mut deaths = signal(SignalKind::child())?;
        loop {
            if let Some(status) = vmm.try_wait()? {
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
    let status = status.map_err(SandboxError::host("wait for the VM process"))?;
    Ok(exit_code(status))
}

/// Runs `until` to its end, and meanwhile passes signals on to a process of the container, and the sizes
/// of its terminal.
///
/// # Errors
/// Those of `until`, and of setting up the handlers.
pub async fn forward_signals<T, E: From<io::Error>>(
    agent: &Agent,
    id: &ContainerId,
    exec_id: &str,
    sizes: Option<&Sizes>,
    until: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let mut signals = listen()?;
    let mut resized = signal(SignalKind::window_change())?;
    if let Some(sizes) = sizes {
        sizes.tell();
    }
    tokio::pin!(until);
    loop {
        tokio::select! {
            result = &mut until => return result,
            Some(()) = resized.recv(), if sizes.is_some() => {
                if let Some(sizes) = sizes {
                    sizes.tell();
                }
            }
            Some(number) = signals.recv() => {
                if let Err(e) = agent.signal(id, exec_id, number, false).await {
                    log::debug!("signal {number} not passed on: {}", hull_runtime::chain::chain(&e));
                }
            }
        }
    }
}

fn listen() -> io::Result<mpsc::Receiver<i32>> {
    let (sender, receiver) = mpsc::channel(16);
    for number in FORWARDED {
        let mut stream = signal(SignalKind::from_raw(number))?;
        let sender = sender.clone();
        tokio::spawn(async move {
            while stream.recv().await.is_some() {
                if sender.send(number).await.is_err() {
                    return;
                }
            }
        });
    }
    Ok(receiver)
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
