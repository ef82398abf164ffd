//! Naming a process so that a recycled pid is not taken for it.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use super::wait_readable;

/// The name that a VMM process takes once its container has ended: it has only the output to write out
/// then, and goes. By the name, commands know without asking the guest.
pub const ENDED: &CStr = c"hull-ended";

/// A process: its pid, and when it started, which together no other process ever has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// In the host's pid namespace.
    pub pid: i32,
    /// Clock ticks after boot (proc(5), `/proc/<pid>/stat` field 22).
    pub start_time: u64,
}

impl ProcessId {
    /// Names the living process `pid`.
    ///
    /// # Errors
    /// When there is none.
    pub fn of(pid: i32) -> io::Result<Self> {
        let start_time = stat(pid)?.start_time;
        Ok(Self { pid, start_time })
    }

    /// Whether it still runs. A zombie, which only waits for its parent, does not.
    pub fn is_alive(&self) -> bool {
        self.stat().is_some()
    }

    /// Whether it is a VMM process that still runs, and whose container does.
    pub fn runs_container(&self) -> bool {
        self.stat()
            .is_some_and(|stat| stat.name.as_bytes() != ENDED.to_bytes())
    }

    fn stat(&self) -> Option<Stat> {
        let stat = stat(self.pid).ok()?;
        (stat.start_time == self.start_time && !stat.has_ended()).then_some(stat)
    }

    /// A file descriptor for the process, readable once it has ended; `None` if it has.
    pub fn open(&self) -> Option<OwnedFd> {
        let pidfd = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        // The pid may have been recycled until the fd pinned it.
        self.is_alive().then_some(pidfd)
    }

    /// Sends it SIGKILL, and doesn't wait. Returns a descriptor that is readable once it is gone; `None` if it is.
    ///
    /// # Errors
    /// When it may not be signalled.
    pub fn begin_to_kill(&self) -> io::Result<Option<OwnedFd>> {
        let Some(pidfd) = self.open() else {
            return Ok(None);
        };
        match pidfd_send_signal(&pidfd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(Some(pidfd)),
            Err(e) => Err(e.into()),
        }
    }

    /// Kills it with SIGKILL, and waits until it is gone or `timeout` is over.
    ///
    /// # Errors
    /// When it may not be signalled, or is still there after the timeout.
    pub fn kill(&self, timeout: Duration) -> io::Result<()> {
        match self.begin_to_kill()? {
            Some(pidfd) => wait_for_exit(&pidfd, timeout),
            None => Ok(()),
        }
    }

    /// Waits until it is gone or `timeout` is over.
    ///
    /// # Errors
    /// When it is still there after the timeout.
    pub fn wait(&self, timeout: Duration) -> io::Result<()> {
        match self.open() {
            Some(pidfd) => wait_for_exit(&pidfd, timeout),
            None => Ok(()),
        }
    }
}

fn wait_for_exit(pidfd: &OwnedFd, timeout: Duration) -> io::Result<()> {
    match wait_readable(pidfd, Instant::now() + timeout)? {
        true => Ok(()),
        false => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// What proc(5) says of a process in `/proc/<pid>/stat`.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    name: String,
    /// A letter, for its first thread.
    state: char,
    threads: u64,
    start_time: u64,
}

impl Stat {
    /// A process whose first thread is a zombie may have others, which are ending and still have everything open.
    fn has_ended(&self) -> bool {
        "ZX".contains(self.state) && self.threads <= 1
    }
}

fn stat(pid: i32) -> io::Result<Stat> {
    let text = fs::read(format!("/proc/{pid}/stat"))?;
    // A process's name is its own choice, and need not be text.
    parse_stat(&String::from_utf8_lossy(&text))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/PID/stat"))
}

/// The command's name, in parentheses, may itself contain both blanks and parentheses.
fn parse_stat(text: &str) -> Option<Stat> {
    let (before, rest) = text.rsplit_once(')')?;
    let (_, name) = before.split_once('(')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    // `rest` opens with field 3; the number of threads is field 20, and the start time field 22.
    let threads = fields.nth(16)?.parse().ok()?;
    let start_time = fields.nth(1)?.parse().ok()?;
    Some(Stat {
        name: name.to_owned(),
        state,
        threads,
        start_time,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_alive_and_another_start_time_is_not() {
        let me = ProcessId::of(std::process::id().cast_signed()).expect("own stat");
        assert!(me.is_alive());
        assert!(
            !ProcessId {
                start_time: me.start_time + 1,
                ..me
            }
            .is_alive()
        );
    }

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let text = "7 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20";
        let stat = Stat {
            name: "a) b (c)".to_owned(),
            state: 'S',
            threads: 17,
            start_time: 4242,
        };
        assert_eq!(parse_stat(text), Some(stat));
    }

    #[test]
    fn a_process_has_ended_with_its_last_thread() {
        let ended = |state, threads| {
            let (name, start_time) = (String::new(), 0);
            let stat = Stat {
                name,
                state,
                threads,
                start_time,
            };
            stat.has_ended()
        };
        assert!(ended('Z', 1) && !ended('Z', 2) && !ended('S', 1));
    }

    #[test]
    fn a_killed_child_is_gone() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .expect("sleep");
        let id = ProcessId::of(child.id().cast_signed()).expect("stat");
        id.wait(Duration::from_millis(1)).expect_err("it sleeps");
        id.kill(Duration::from_secs(5)).expect("kill");
        assert!(!id.is_alive());
        id.wait(Duration::ZERO).expect("it is gone");
        child.wait().expect("wait");
    }

    #[test]
    fn a_process_says_by_its_name_that_the_container_has_ended() {
        let name = ENDED.to_str().expect("text");
        let script = format!("printf {name} >/proc/self/comm; echo; exec 1>&-; read -r wait");
        let mut command = std::process::Command::new("sh");
        let command = command.args(["-c", &script]);
        let (stdin, stdout) = (std::process::Stdio::piped(), std::process::Stdio::piped());
        let mut child = command.stdin(stdin).stdout(stdout).spawn().expect("sh");
        let id = ProcessId::of(child.id().cast_signed()).expect("stat");
        let told = child.stdout.take().map(std::io::read_to_string);
        assert_eq!(told.expect("a pipe").expect("read"), "\n");
        assert!(id.is_alive() && !id.runs_container());
        drop(child.stdin.take());
        child.wait().expect("wait");
        assert!(!id.is_alive() && !id.runs_container());
    }
}
