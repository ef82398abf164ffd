//! What a panic of the VM process says: a line of the console log, and the end of the process.
//!
//! A panic ends the process, whichever thread it is of: no VM goes on with a thread less. A thread that panics
//! may hold any lock, and the log is not open for all of them. So it leaves one line, which is put together
//! without allocating, wakes the main thread, and waits. The main thread writes the line past the console's
//! locks and bounds, which the guest may have used up, and exits; where it panics itself, it does so at once. If it
//! doesn't within [`PATIENCE`], the process ends without last words. There is one line at the most, and of
//! bounded length, whatever panics how often.
//!
//! This is about Rust's panics, not about the end by a signal or a system call filter.

use std::fmt::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::panic::{self, PanicHookInfo};
use std::sync::{Arc, OnceLock};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

/// How long a thread that panics waits for the main thread, which never waits for anything that long.
const PATIENCE: Duration = Duration::from_secs(1);

/// What wakes the main thread, on standard error: what a console leaves out.
const WAKE: &[u8] = b"\r";

/// What the process exits with after a panic, as after a guest's crash.
const PANICKED: i32 = 255;

/// Where a process's last words go.
pub struct LastWords {
    log: OwnedFd,
    main: ThreadId,
    /// The first panic's.
    line: OnceLock<Line>,
}

impl LastWords {
    /// Has each panic from now on end the process. The calling thread is the main thread, for which `log` stays
    /// open, and which calls [`Self::heed`] when something comes in by standard error.
    pub fn hear(log: OwnedFd) -> Arc<Self> {
        let words = Arc::new(Self {
            log,
            main: thread::current().id(),
            line: OnceLock::new(),
        });
        let heard = Arc::clone(&words);
        panic::set_hook(Box::new(move |panic| heard.end_with(panic)));
        words
    }

    /// Ends the process if one of its threads has panicked.
    pub fn heed(&self) {
        if let Some(line) = self.line.get() {
            let _ = rustix::io::write(&self.log, line.bytes()); // there is nobody to tell of a failure
            std::process::exit(PANICKED);
        }
    }

    fn end_with(&self, panic: &PanicHookInfo<'_>) -> ! {
        let _ = self.line.set(Line::of(panic));
        if thread::current().id() == self.main {
            self.heed();
        }
        // After the line is there. If it finds no room, the main thread is to wake up anyhow.
        let _ = rustix::io::write(rustix::stdio::stderr(), WAKE);
        wait();
        std::process::abort()
    }
}

impl AsRawFd for LastWords {
    /// The log's descriptor.
    fn as_raw_fd(&self) -> RawFd {
        self.log.as_raw_fd()
    }
}

/// Waits as long as a thread has patience.
fn wait() {
    let end = Instant::now() + PATIENCE;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        thread::park_timeout(left);
    }
}

/// A line of the log, of printable ASCII. What is too long for it is cut off.
#[derive(Debug)]
struct Line {
    text: [u8; Self::SIZE],
    length: usize,
}

impl Line {
    const SIZE: usize = 512;

    fn of(panic: &PanicHookInfo<'_>) -> Self {
        let thread = thread::current();
        let thread = thread.name().unwrap_or("without a name");
        let message = panic.payload_as_str().unwrap_or("no message");
        match panic.location() {
            Some(place) => Self::new(format_args!("thread {thread} at {place}: {message}")),
            None => Self::new(format_args!("thread {thread}: {message}")),
        }
    }

    fn new(what: fmt::Arguments<'_>) -> Self {
        let mut line = Self {
            text: [0; Self::SIZE],
            length: 0,
        };
        let _ = write!(line, "hull: error: panic of {what}"); // fails where it is cut off
        line.text[line.length] = b'\n';
        line.length += 1;
        line
    }

    fn bytes(&self) -> &[u8] {
        &self.text[..self.length]
    }

    /// Adds a byte, and leaves room for the line's end.
    fn put(&mut self, byte: u8) -> fmt::Result {
        if self.length + 1 == Self::SIZE {
            return Err(fmt::Error);
        }
        self.text[self.length] = byte;
        self.length += 1;
        Ok(())
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().try_for_each(|byte| match byte {
            b' '..=b'~' => self.put(byte),
            _ => byte.escape_ascii().try_for_each(|byte| self.put(byte)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, ExitStatus};
    use std::sync::Mutex;

    use hull_vmm::{Console, ConsoleLimits, EventLoop};

    use crate::sandbox::messages::Messages;

    fn line(text: &str) -> String {
        let line = Line::new(format_args!("{text}"));
        String::from_utf8(line.bytes().to_vec()).expect("ASCII")
    }

    #[test]
    fn a_line_is_printable_and_bounded() {
        assert_eq!(
            line("thread x: \"a\"\n\x1b[2J\u{e9}"),
            "hull: error: panic of thread x: \"a\"\\n\\x1b[2J\\xc3\\xa9\n"
        );
        let long = line(&"x".repeat(10_000));
        assert_eq!(long.len(), Line::SIZE);
        assert_eq!(long.find('\n'), Some(Line::SIZE - 1));
    }

    /// Which of [`in_a_process`]'s endings a process of its own has, and where its log is.
    const ENDING: &str = "HULL_TEST_PANIC";
    const LOG: &str = "HULL_TEST_PANIC_LOG";

    /// Does nothing, unless it is run by [`run`].
    #[test]
    fn in_a_process() {
        let (Ok(ending), Ok(log)) = (std::env::var(ENDING), std::env::var(LOG)) else {
            return;
        };
        let file = File::options().append(true).open(log).expect("the log");
        // A guest has filled it up.
        let limits = ConsoleLimits {
            total: 0,
            ..ConsoleLimits::default()
        };
        let console = Console::new(file.try_clone().expect("dup").into(), limits);
        let messages = Messages::hear(&console, file.into()).expect("a pipe");
        match &ending[..] {
            "main" => panic!("in main"),
            "thread" => panic_in_threads(3),
            "full" => {
                while rustix::io::write(rustix::stdio::stderr(), &[b'x'; 4096]).is_ok() {}
                panic_in_threads(1);
            }
            _ => {
                panic_in_threads(1);
                thread::sleep(20 * PATIENCE); // it hangs
            }
        }
        let mut events = EventLoop::new().expect("epoll");
        events.add(Arc::new(Mutex::new(messages)));
        events.run().expect("it is never stopped");
    }

    fn panic_in_threads(count: usize) {
        for number in 0..count {
            let thread = thread::Builder::new().name(format!("vcpu{number}"));
            let panic = || -> () { panic!("in a thread\n") };
            thread.spawn(panic).expect("a thread");
        }
    }

    /// How a process with this ending ends, and what its log holds.
    fn run(ending: &str) -> (ExitStatus, String) {
        let log = tempfile::NamedTempFile::new().expect("a file");
        let status = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "sandbox::panics::tests::in_a_process"])
            .args(["--nocapture", "--test-threads=1"])
            .envs([(ENDING, ending.as_ref()), (LOG, log.path().as_os_str())])
            .output()
            .expect("a process")
            .status;
        (status, std::fs::read_to_string(log.path()).expect("ASCII"))
    }

    #[test]
    fn a_panic_of_any_thread_is_the_last_line_of_the_log() {
        for (ending, said) in [
            ("main", "in main\n"),
            ("thread", "in a thread\\n\n"),
            ("full", "in a thread\\n\n"),
        ] {
            let (status, log) = run(ending);
            assert_eq!(status.code(), Some(PANICKED), "{ending}: {log}");
            assert_eq!(log.matches("panic of thread").count(), 1, "{ending}: {log}");
            assert!(log.ends_with(said), "{ending}: {log}");
        }
    }

    #[test]
    fn a_process_whose_main_thread_hangs_ends_too() {
        let (status, log) = run("hang");
        assert_eq!(status.signal(), Some(libc::SIGABRT), "{log}");
        assert_eq!(log, "");
    }
}
