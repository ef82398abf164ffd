//! PID 1's first duty: whatever ends is reaped here, and whoever asked about it is told.
//!
//! Nothing else in the agent may wait for a child. The agent has one thread, so a process that it has
//! started can't be reaped before [`Reaper::watch`] was called, as long as no await lies between. A
//! process that a helper has made is different: its pid arrives in a message, and it may be reaped
//! before. For that, statuses nobody asked for are kept while a [`Birth`] is on its way.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::process::{WaitOptions, WaitStatus, wait};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// How a process ended, as a shell reports it: its exit code, or 128 + the signal's number.
pub type ExitStatus = i32;

/// Tells when one process has ended, and how.
#[derive(Debug, Clone)]
pub struct Exit(watch::Receiver<Option<ExitStatus>>);

impl Exit {
    /// The status, if the process has ended.
    #[must_use]
    pub fn status(&self) -> Option<ExitStatus> {
        *self.0.borrow()
    }

    /// Waits for the end.
    pub async fn ended(&self) -> ExitStatus {
        let mut receiver = self.0.clone();
        match receiver.wait_for(Option::is_some).await {
            Ok(status) => status.unwrap_or(LOST),
            Err(_) => LOST,
        }
    }
}

/// The status of a process that ended unseen. It can't happen while the reaper lives.
const LOST: ExitStatus = 255;

#[derive(Debug, Default)]
struct Table {
    watched: HashMap<i32, watch::Sender<Option<ExitStatus>>>,
    /// Who ended while a birth was on its way, and wasn't asked for yet.
    unclaimed: HashMap<i32, ExitStatus>,
    births: usize,
}

impl Table {
    fn ended(&mut self, pid: i32, status: ExitStatus) {
        match self.watched.remove(&pid) {
            Some(sender) => drop(sender.send(Some(status))),
            None if self.births > 0 => drop(self.unclaimed.insert(pid, status)),
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

/// The table of who ended and how.
#[derive(Debug, Clone, Default)]
pub struct Reaper {
    table: Arc<Mutex<Table>>,
}

impl Reaper {
    /// Starts to reap, on the current runtime and for its whole life.
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

    /// Asks about a child of the agent.
    #[must_use]
    pub fn watch(&self, pid: i32) -> Exit {
        self.lock().watch(pid)
    }

    /// Announces a child whose pid is yet to be learnt.
    #[must_use]
    pub fn expect(&self) -> Birth {
        self.lock().births += 1;
        Birth(self.clone())
    }

    fn reap(&self) {
        // One signal may stand for many children.
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if let Some(status) = exit_status(status) {
                let pid = pid.as_raw_nonzero().get();
                log::debug!("pid {pid} ended with {status}");
                self.lock().ended(pid, status);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// While it lives, nobody's end goes unnoticed.
#[derive(Debug)]
pub struct Birth(Reaper);

impl Drop for Birth {
    fn drop(&mut self) {
        let mut table = self.0.lock();
        table.births -= 1;
        if table.births == 0 {
            table.unclaimed.clear();
        }
    }
}

/// `None` for one that merely stopped or went on.
fn exit_status(status: WaitStatus) -> Option<ExitStatus> {
    status
        .exit_status()
        .or_else(|| status.terminating_signal().map(|signal| 128 + signal))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_watched_is_told() {
        let mut table = Table::default();
        let exit = table.watch(7);
        assert_eq!(exit.status(), None);
        table.ended(7, 3);
        assert_eq!(exit.status(), Some(3));
        assert!(table.watched.is_empty());
    }

    #[test]
    fn an_orphan_leaves_no_trace() {
        let mut table = Table::default();
        table.ended(8, 0);
        assert!(table.unclaimed.is_empty());
    }

    #[test]
    fn an_end_before_the_pid_was_known_is_kept_until_the_birth_is_over() {
        let reaper = Reaper::default();
        let birth = reaper.expect();
        reaper.lock().ended(9, 137);
        assert_eq!(reaper.watch(9).status(), Some(137));
        reaper.lock().ended(10, 1);
        drop(birth);
        assert_eq!(reaper.watch(10).status(), None);
    }

    #[tokio::test]
    async fn many_waiters_and_a_late_one_see_the_same_end() {
        let reaper = Reaper::default();
        let exit = reaper.watch(11);
        let waiter = tokio::spawn({
            let exit = exit.clone();
            async move { exit.ended().await }
        });
        tokio::task::yield_now().await;
        reaper.lock().ended(11, 7);
        assert_eq!(waiter.await.ok(), Some(7));
        assert_eq!(exit.ended().await, 7);
    }
}
