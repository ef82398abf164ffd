//! Commands whose every wait is bounded, and whose two outputs are read apart.

use std::fmt::Write as _;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, ExitStatus};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// How long anything may take that isn't known to take longer: `HULL_E2E_LIMIT` seconds, or 60.
pub fn limit() -> Duration {
    let seconds = std::env::var("HULL_E2E_LIMIT").ok();
    Duration::from_secs(seconds.and_then(|s| s.parse().ok()).unwrap_or(60))
}

/// Waits until process `pid` has died; false when the limit has passed before.
pub fn wait_for_death(pid: i32, limit: Duration) -> bool {
    let pid = Pid::from_raw(pid).expect("a pid is positive");
    // an error means that there is no such process (any more)
    pidfd_open(pid, PidfdFlags::empty()).map_or(true, |fd| readable(&fd, limit))
}

/// Waits until a descriptor can be read, or accepted from; false when the limit has passed before.
pub(crate) fn readable(fd: &OwnedFd, limit: Duration) -> bool {
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).expect("a test's limit fits");
        let mut fds = [PollFd::new(fd, PollFlags::IN)];
        match rustix::event::poll(&mut fds, Some(&left)) {
            Ok(ready) => return ready > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("poll of a pidfd: {error}"),
        }
    }
}

/// One output of a process, read as it comes.
#[derive(Debug)]
pub struct Stream {
    chunks: Receiver<Vec<u8>>,
    /// Everything that came so far.
    seen: Vec<u8>,
    /// How much of `seen` was handed out by `line`.
    taken: usize,
}

impl Stream {
    /// Reads `from` to its end in a thread of its own.
    pub fn new(mut from: impl Read + Send + 'static) -> Self {
        let (send, chunks) = channel();
        std::thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            while let Ok(read @ 1..) = from.read(&mut buffer) {
                if send.send(buffer[..read].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self {
            chunks,
            seen: Vec::new(),
            taken: 0,
        }
    }

    /// The next line, without its end; panics when none comes within the usual limit.
    pub fn line(&mut self, what: &str) -> String {
        self.line_before(Instant::now() + limit())
            .unwrap_or_else(|why| {
                panic!("{what}: no further line ({why}); so far: {:?}", self.text())
            })
    }

    /// The next line, without its end, if it comes before `end`.
    fn line_before(&mut self, end: Instant) -> Result<String, RecvTimeoutError> {
        loop {
            let new = &self.seen[self.taken..];
            if let Some(length) = new.iter().position(|&byte| byte == b'\n') {
                let line = String::from_utf8_lossy(&new[..length]).into_owned();
                self.taken += length + 1;
                return Ok(line);
            }
            self.receive(end)?;
        }
    }

    /// What comes next up to and with `text`; panics when that doesn't come within the usual limit.
    #[track_caller]
    pub fn until(&mut self, text: &str) -> String {
        let end = Instant::now() + limit();
        loop {
            let new = &self.seen[self.taken..];
            let found = new.windows(text.len()).position(|w| w == text.as_bytes());
            if let Some(at) = found {
                let length = at + text.len();
                let told = String::from_utf8_lossy(&new[..length]).into_owned();
                self.taken += length;
                return told;
            }
            if let Err(why) = self.receive(end) {
                panic!("no {text:?} ({why}); so far: {:?}", tail(&self.text()));
            }
        }
    }

    /// Everything up to the end of the stream; panics when that doesn't come before `end`.
    pub fn to_end(&mut self, what: &str, end: Instant) -> &[u8] {
        loop {
            match self.receive(end) {
                Ok(()) => {}
                Err(RecvTimeoutError::Disconnected) => return &self.seen,
                Err(RecvTimeoutError::Timeout) => {
                    panic!("{what} is still open; so far: {:?}", self.text())
                }
            }
        }
    }

    /// Everything that came so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.seen).into_owned()
    }

    fn receive(&mut self, end: Instant) -> Result<(), RecvTimeoutError> {
        let left = end.saturating_duration_since(Instant::now());
        self.seen.extend(self.chunks.recv_timeout(left)?);
        Ok(())
    }
}

/// A command that runs. Dropped, it is killed.
#[derive(Debug)]
pub struct Running {
    what: String,
    child: Child,
    end: Instant,
    /// Its standard input, where the command was given a pipe.
    pub stdin: Option<ChildStdin>,
    /// Its standard output, where the command was given a pipe.
    pub stdout: Option<Stream>,
    /// Its standard error, where the command was given a pipe.
    pub stderr: Option<Stream>,
}

impl Running {
    /// Starts a command, which then has [`limit`] to end.
    pub fn spawn(command: &mut Command) -> Self {
        Self::spawn_within(command, limit())
    }

    /// Starts a command with a limit of its own.
    pub fn spawn_within(command: &mut Command, limit: Duration) -> Self {
        let what = describe(command);
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {what}: {error}"));
        Self {
            what,
            end: Instant::now() + limit,
            stdin: child.stdin.take(),
            stdout: child.stdout.take().map(Stream::new),
            stderr: child.stderr.take().map(Stream::new),
            child,
        }
    }

    /// The command's own pid.
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// The next line of its standard output.
    pub fn line(&mut self) -> String {
        self.line_within(limit())
    }

    /// The next line of its standard output, which may take longer than usual.
    pub fn line_within(&mut self, limit: Duration) -> String {
        let stdout = self.stdout.as_mut().expect("standard output is a pipe");
        match stdout.line_before(Instant::now() + limit) {
            Ok(line) => line,
            Err(why) => {
                let outputs = self.outputs_so_far();
                panic!("{}: no further line of output ({why}){outputs}", self.what)
            }
        }
    }

    /// Kills the command itself, and nothing that it started.
    pub fn kill(&mut self) {
        // it may have ended by itself
        let _ = self.child.kill();
    }

    /// Whether the command ends within so much more time.
    pub fn exits_within(&self, limit: Duration) -> bool {
        assert!(
            Instant::now() < self.end,
            "{} did not end in time",
            self.what
        );
        wait_for_death(self.pid(), limit)
    }

    /// Waits for the exit of the command alone: what it started may hold its outputs open.
    pub fn exit(&mut self) -> ExitStatus {
        let left = self.end.saturating_duration_since(Instant::now());
        if !wait_for_death(self.pid(), left) {
            let outputs = self.outputs_so_far();
            panic!("{} did not end in time{outputs}", self.what);
        }
        self.child.wait().expect("our own child can be waited for")
    }

    /// What a failure's message adds about the outputs.
    fn outputs_so_far(&mut self) -> String {
        let mut text = String::new();
        for (name, stream) in [("stdout", &mut self.stdout), ("stderr", &mut self.stderr)] {
            if let Some(stream) = stream {
                // a moment for a last word that is on its way
                let end = Instant::now() + Duration::from_millis(200);
                while stream.receive(end).is_ok() {}
                let _ = write!(text, "\n{name} so far: {}", tail(&stream.text()));
            }
        }
        text
    }

    /// Closes its standard input, and waits for its exit and the end of its outputs.
    pub fn finish(mut self) -> Finished {
        drop(self.stdin.take());
        let status = self.exit();
        let read = |name: &str, stream: Option<Stream>| {
            let what = format!("{} ended, but its standard {name}", self.what);
            stream.map_or(Vec::new(), |mut s| s.to_end(&what, self.end).to_vec())
        };
        let stdout = read("output", self.stdout.take());
        let stderr = read("error", self.stderr.take());
        Finished {
            what: self.what.clone(),
            status,
            stdout,
            stderr,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
        let _ = self.child.wait();
    }
}

/// A command that has ended.
#[derive(Clone, Debug)]
#[must_use = "whether it succeeded is worth an assertion"]
pub struct Finished {
    what: String,
    /// How it ended.
    pub status: ExitStatus,
    /// All that it wrote to its standard output, where that was a pipe.
    pub stdout: Vec<u8>,
    /// All that it wrote to its standard error, where that was a pipe.
    pub stderr: Vec<u8>,
}

impl Finished {
    /// The exit code; panics when a signal ended the command.
    pub fn code(&self) -> i32 {
        let signal = self.status.signal();
        self.status
            .code()
            .unwrap_or_else(|| panic!("{} was killed by signal {signal:?}", self.what))
    }

    /// Its standard output as text, without white space around it.
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim().to_owned()
    }

    /// Its standard error as text, without white space around it, and without the backslashes that
    /// a log's text format puts before quotes.
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr)
            .trim()
            .replace("\\\"", "\"")
    }

    /// Itself, if it exited with 0.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.exits(0)
    }

    /// Itself, if it exited with `code`.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert!(
            self.status.code() == Some(code),
            "{} ended with {}, not with {code}\nstdout: {}\nstderr: {}",
            self.what,
            self.status,
            tail(&self.out()),
            tail(&self.err()),
        );
        self
    }

    /// Itself, if it exited with another code than 0, and said so in words that have `text` in them,
    /// in capital letters or not: C and Go disagree on "no such file or directory".
    #[track_caller]
    pub fn fails_saying(self, text: &str) -> Self {
        assert!(!self.status.success(), "{} succeeded", self.what);
        assert!(
            self.err().to_lowercase().contains(&text.to_lowercase()),
            "{} doesn't say {text:?} but: {}",
            self.what,
            tail(&self.err()),
        );
        self
    }
}

/// The end of a text that may be long.
fn tail(text: &str) -> &str {
    let from = text.len().saturating_sub(2000);
    text.get(from..).unwrap_or(text)
}

fn describe(command: &Command) -> String {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect();
    format!("`{}`", words.join(" "))
}
