//! What a process that stands for one in the guest passes on to it: its signals, and the sizes of its terminal.

use std::future::Future;
use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::{Agent, Sizes};
use crate::chain::chain;
use crate::types::ContainerId;

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
                    log::debug!("signal {number} not passed on: {}", chain(&e));
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
