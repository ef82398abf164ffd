//! Reaps all children, as PID 1 has to, and reports their exit statuses to those who watch them.
//!
//! Nothing else in the agent may wait for a child. The agent has one thread, so a process that it has
//! started can't be reaped before [`Reaper::watch`] is called, as long as there is no await in between. A
//! process that a helper has made may be: its pid arrives in a message, after it was made. So while a
//! [`PendingPid`] exists, the statuses of processes that nobody watches are kept.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::process::{WaitOptions, WaitStatus, wait};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// How a process ended, as a shell reports it: its exit code, or 128 + the signal's number.
pub type ExitStatus = i32;

/// Waits for the end of one process, and has its exit status.
#[derive(Debug, Clone)]
pub struct Exit(watch::Receiver<Option<ExitStatus>>);

impl Exit {
    /// The status, if the process has ended.
    #[must_use]
    pub fn status(&self) -> Option<ExitStatus> {
        *self.0.borrow()
    }

    /// Waits for the process to end.
    pub async fn wait(&self) -> ExitStatus {
        let mut receiver = self.0.clone();
        match receiver.wait_for(Option::is_some).await {
            Ok(status) => status.unwrap_or(UNKNOWN_STATUS),
            Err(_) => UNKNOWN_STATUS,
        }
    }
}

/// The status of a process that the reaper didn't see end. That can't happen while the reaper runs.
const UNKNOWN_STATUS: ExitStatus = 255;

#[derive(Debug, Default)]
struct Table {
    watched: HashMap<i32, watch::Sender<Option<ExitStatus>>>,
    /// Processes that ended while a pid was pending, and that nobody has watched yet.
    unclaimed: HashMap<i32, ExitStatus>,
    pending_pids: usize,
}

impl Table {
    fn record_exit(&mut self, pid: i32, status: ExitStatus) {
        match self.watched.remove(&pid) {
            Some(sender) => drop(sender.send(Some(status))),
            None if self.pending_pids > 0 => drop(self.unclaimed.insert(pid, status)),
            None => {}
        }
    }

    fn watch(&mut self, pid: i32) -> Exit {
        if let Some(status) = self.unclaimed.remove(&pid) {
            return Exit(watch::channel(Some(status)).1);
        }
        let (sender, receiver) = watch::channel(None);
        self.watched.insert(pid, sender);
        Exit(receiver)
    }
}

/// Reaps children and records their exit statuses.
#[derive(Debug, Clone, Default)]
pub struct Reaper {
    table: Arc<Mutex<Table>>,
}

impl Reaper {
    /// Starts to reap, on the current runtime, for as long as that runs.
    ///
    /// # Errors
    /// When SIGCHLD can't be listened to.
    pub fn start() -> io::Result<Self> {
        let reaper = Self::default();
        let mut children = signal(SignalKind::child())?;
        let table = reaper.clone();
        tokio::spawn(async move {
            loop {
                table.reap();
                if children.recv().await.is_none() {
                    return;
                }
            }
        });
        Ok(reaper)
    }

    /// Watches a child of the agent.
    #[must_use]
    pub fn watch(&self, pid: i32) -> Exit {
        self.lock().watch(pid)
    }

    /// Announces a child whose pid isn't known yet.
    #[must_use]
    pub fn expect_child(&self) -> PendingPid {
        self.lock().pending_pids += 1;
        PendingPid(self.clone())
    }

    fn reap(&self) {
        // One SIGCHLD may stand for several children.
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if let Some(status) = exit_status(status) {
                let pid = pid.as_raw_nonzero().get();
                log::debug!("pid {pid} ended with {status}");
                self.lock().record_exit(pid, status);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// While this exists, the status of every child that ends is kept.
#[derive(Debug)]
pub struct PendingPid(Reaper);

impl Drop for PendingPid {
    fn drop(&mut self) {
        let mut table = self.0.lock();
        table.pending_pids -= 1;
        if table.pending_pids == 0 {
            table.unclaimed.clear();
        }
    }
}

/// `None` for a process that was stopped or continued.
fn exit_status(status: WaitStatus) -> Option<ExitStatus> {
    status
        .exit_status()
        .or_else(|| status.terminating_signal().map(|signal| 128 + signal))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_of_a_watched_process_is_reported() {
        let mut table = Table::default();
        let exit = table.watch(7);
        assert_eq!(exit.status(), None);
        table.record_exit(7, 3);
        assert_eq!(exit.status(), Some(3));
        assert!(table.watched.is_empty());
    }

    #[test]
    fn the_status_of_an_orphan_is_not_kept() {
        let mut table = Table::default();
        table.record_exit(8, 0);
        assert!(table.unclaimed.is_empty());
    }

    #[test]
    fn a_status_is_kept_while_a_pid_is_pending() {
        let reaper = Reaper::default();
        let pending = reaper.expect_child();
        reaper.lock().record_exit(9, 137);
        assert_eq!(reaper.watch(9).status(), Some(137));
        reaper.lock().record_exit(10, 1);
        drop(pending);
        assert_eq!(reaper.watch(10).status(), None);
    }

    #[tokio::test]
    async fn all_waiters_get_the_same_status() {
        let reaper = Reaper::default();
        let exit = reaper.watch(11);
        let waiter = tokio::spawn({
            let exit = exit.clone();
            async move { exit.wait().await }
        });
        tokio::task::yield_now().await;
        reaper.lock().record_exit(11, 7);
        assert_eq!(waiter.await.ok(), Some(7));
        assert_eq!(exit.wait().await, 7);
    }
}
