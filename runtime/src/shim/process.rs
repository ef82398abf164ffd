//! A process of a container, its own or a further one, as containerd asks for it: its streams, and how it has ended, which
//! is kept until it is deleted.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::watch;

use super::streams::{Kept, Names};

/// The exit status of a process that SIGKILL has ended.
pub const KILLED: u32 = 128 + 9;

/// How a process has ended.
#[derive(Clone, Copy, Debug)]
pub struct Exit {
    /// As a shell reports it: its exit code, or 128 and the signal's number.
    pub status: u32,
    /// When that was seen.
    pub at: SystemTime,
}

/// Locks, also what somebody has left in a panic: what is locked in the shim is whole at any time.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A process.
#[derive(Debug)]
pub struct Process {
    /// The names of its streams.
    pub names: Names,
    kept: Mutex<Kept>,
    exit: watch::Sender<Option<Exit>>,
}

impl Process {
    /// One that hasn't ended.
    pub fn new(names: Names) -> Self {
        Self {
            names,
            kept: Mutex::default(),
            exit: watch::Sender::new(None),
        }
    }

    /// The shim's part of its streams.
    pub fn kept(&self) -> MutexGuard<'_, Kept> {
        lock(&self.kept)
    }

    /// How it has ended, if it has.
    pub fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Waits for its end, however long that takes.
    pub async fn wait(&self) -> Exit {
        let mut exit = self.exit.subscribe();
        let ended = exit.wait_for(Option::is_some).await;
        // The sender is there as long as this is.
        ended.ok().and_then(|exit| *exit).unwrap_or(Exit {
            status: KILLED,
            at: SystemTime::now(),
        })
    }

    /// It has ended. What is known of its end already stays.
    pub fn end(&self, status: u32) -> Exit {
        let at = SystemTime::now();
        self.exit.send_if_modified(|exit| {
            let is_news = exit.is_none();
            exit.get_or_insert(Exit { status, at });
            is_news
        });
        self.exit().unwrap_or(Exit { status, at })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_exit_status_is_kept() {
        let process = Process::new(Names::default());
        assert!(process.exit().is_none());
        let waiting = async { process.wait().await.status };
        let ending = async { process.end(3).status };
        assert_eq!(tokio::join!(waiting, ending), (3, 3));
        assert_eq!(process.end(KILLED).status, 3, "the first counts");
        assert_eq!(process.wait().await.status, 3);
    }
}
