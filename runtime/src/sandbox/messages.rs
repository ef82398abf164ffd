//! What the VM process has to say: its warnings and errors go to the console log, among the guest's lines.
//!
//! That file is open for the vCPUs' threads and the main thread alone. So each thread writes to its standard
//! error, a pipe that the main thread empties. Nobody waits for that: what doesn't fit into the pipe is lost,
//! as is what is beyond the log's bounds. A guest can cause warnings, and so can whoever has taken a thread
//! over: the log holds them as it holds the guest's lines. What a panic says comes in another way
//! ([`LastWords`]).

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use event_manager::{EventOps, Events, MutEventSubscriber};
use hull_vmm::Console;
use hull_vmm::event_loop::Subscriber;
use log::{Level, LevelFilter, Log, Metadata, Record};
use rustix::pipe::{PipeFlags, pipe_with};
use vmm_sys_util::epoll::EventSet;

use super::panics::LastWords;

/// Bytes taken in one turn of the loop; each message is shorter.
const MOST_BYTES: usize = 4096;

/// Standard error, as the main thread has it.
pub struct Messages {
    pipe: OwnedFd,
    console: Console,
    /// From [`Self::hear`] on.
    last_words: Option<Arc<LastWords>>,
}

impl Messages {
    /// Makes this process's standard error, log and panics heard. `log` is the file that `console` writes to.
    /// The calling thread is the one that passes on.
    ///
    /// # Errors
    /// When there are too many open files.
    pub fn hear(console: &Console, log: OwnedFd) -> io::Result<Self> {
        let (mut messages, end) = Self::new(console)?;
        rustix::stdio::dup2_stderr(&end)?;
        messages.last_words = Some(LastWords::hear(log));
        if log::set_logger(&StandardError).is_ok() {
            log::set_max_level(LevelFilter::Warn);
        }
        Ok(messages)
    }

    /// With the end of the pipe to write to.
    fn new(console: &Console) -> io::Result<(Self, OwnedFd)> {
        let (pipe, end) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let messages = Self {
            pipe,
            console: console.new_writer(),
            last_words: None,
        };
        Ok((messages, end))
    }

    /// Passes on some of what has been said. After a panic of another thread it doesn't return.
    pub fn pass_on(&self) {
        let mut bytes = [0; MOST_BYTES];
        if let Ok(count) = rustix::io::read(&self.pipe, &mut bytes) {
            self.console.write(bytes.get(..count).unwrap_or_default());
        }
        if let Some(last_words) = &self.last_words {
            last_words.heed();
        }
    }
}

impl Subscriber for Messages {
    fn descriptors(&self) -> Vec<RawFd> {
        let mut descriptors = vec![self.pipe.as_raw_fd(), self.console.as_raw_fd()];
        descriptors.extend(self.last_words.iter().map(|words| words.as_raw_fd()));
        descriptors
    }
}

impl MutEventSubscriber for Messages {
    fn init(&mut self, ops: &mut EventOps) {
        // Without it, they are passed on at the end.
        let _ = ops.add(Events::new(&self.pipe.as_fd(), EventSet::IN));
    }

    fn process(&mut self, _: Events, _: &mut EventOps) {
        self.pass_on();
    }
}

/// A line for each message.
struct StandardError;

impl Log for StandardError {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            // In one write, so that no other thread's comes between. There is nobody to tell of a failure.
            let _ = rustix::io::write(rustix::stdio::stderr(), line(record).as_bytes());
        }
    }

    fn flush(&self) {}
}

fn line(record: &Record<'_>) -> String {
    let level = match record.level() {
        Level::Error => "error",
        _ => "warning",
    };
    format!("hull: {level}: {}\n", record.args())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek};

    use hull_vmm::ConsoleLimits;

    fn said(level: Level, message: &str) -> String {
        let mut record = Record::builder();
        line(&record.level(level).args(format_args!("{message}")).build())
    }

    #[test]
    fn messages_are_lines_of_the_console_log() {
        let mut log = tempfile::tempfile().expect("a file");
        let file = log.try_clone().expect("a descriptor more");
        let console = Console::new(file.into(), ConsoleLimits::default());
        let (messages, end) = Messages::new(&console).expect("a pipe");

        messages.pass_on();
        for text in [
            said(Level::Error, "no \x1b"),
            said(Level::Warn, "two\nlines"),
        ] {
            rustix::io::write(&end, text.as_bytes()).expect("room");
        }
        messages.pass_on();

        let mut text = String::new();
        log.rewind().expect("the log's beginning");
        log.read_to_string(&mut text).expect("the log");
        assert_eq!(text, "hull: error: no \\x1b\nhull: warning: two\nlines\n");
    }

    #[test]
    fn who_says_too_much_does_not_wait() {
        let console = Console::new(
            tempfile::tempfile().expect("a file").into(),
            ConsoleLimits::default(),
        );
        let (_messages, end) = Messages::new(&console).expect("a pipe");
        while rustix::io::write(&end, &[b'x'; MOST_BYTES]).is_ok() {}
    }
}
