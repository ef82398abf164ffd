//! The guest's console: a log of what the guest's kernel prints, which is all there is to see while
//! no agent answers. The VMM's own messages can be written to the same log.
//!
//! The guest controls its contents, so the log is bounded in size and rate, and contains nothing
//! but printable lines: no escape sequence reaches a terminal that shows it.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// How much may be written to the console's log, and how fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConsoleLimits {
    /// Bytes written to the log in all.
    pub total: u64,
    /// Bytes that may be written at once.
    pub burst: u32,
    /// Bytes per second after that.
    pub rate: u32,
}

impl Default for ConsoleLimits {
    /// Enough for all messages of a boot, and the kernel's panic message later.
    fn default() -> Self {
        Self {
            total: 256 << 10,
            burst: 64 << 10,
            rate: 4 << 10,
        }
    }
}

impl ConsoleLimits {
    /// No limits: for a caller that reads the log as it is written, and has limits of its own.
    pub const NONE: Self = Self {
        total: u64::MAX,
        burst: u32::MAX,
        rate: u32::MAX,
    };
}

/// A line that reaches this length is written without waiting for its end.
const LINE: usize = 512;

const DROPPED: &[u8] = b"[hull: the guest writes too fast; some of it is lost]\n";
const FULL: &[u8] = b"[hull: the console log is full; nothing more is kept]\n";

/// The console, shared by all vCPUs.
#[derive(Debug)]
pub struct Console {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    sink: Arc<Mutex<Sink>>,
    line: Vec<u8>,
}

impl Console {
    /// A console whose lines are appended to `log`, within `limits`.
    ///
    /// Errors of writing to it are ignored: a full disk must not stop a guest.
    pub fn new(log: OwnedFd, limits: ConsoleLimits) -> Self {
        let sink = Sink {
            log: File::from(log),
            limits,
            left: limits.total,
            credit: i64::from(limits.burst),
            refilled: Instant::now(),
            dropping: false,
        };
        Self::with_sink(Arc::new(Mutex::new(sink)))
    }

    fn with_sink(sink: Arc<Mutex<Sink>>) -> Self {
        Self {
            state: Mutex::new(State {
                sink,
                line: Vec::with_capacity(LINE + 4),
            }),
        }
    }

    /// Another writer to the same log, within the same limits. Lines of different writers don't
    /// mix.
    pub fn new_writer(&self) -> Self {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Self::with_sink(Arc::clone(&state.sink))
    }

    /// Takes bytes from the guest or another writer. A line is written to the log when it ends.
    pub fn write(&self, bytes: &[u8]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for byte in bytes {
            state.put(*byte);
        }
    }

    /// The current unfinished line: less than 512 bytes.
    pub fn partial_line(&self) -> Vec<u8> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.line.clone()
    }

    /// Replaces the unfinished line by one that [`Self::partial_line`] has returned. Does nothing
    /// and returns `false` if a console can't hold such a line.
    pub fn restore_partial_line(&self, line: &[u8]) -> bool {
        let possible = line.len() < LINE && line.iter().all(is_plain);
        if possible {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.line.clear();
            state.line.extend_from_slice(line);
        }
        possible
    }

    /// Writes the unfinished line to the log, once the guest has ended.
    pub(crate) fn flush(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.line.is_empty() {
            state.end_line();
        }
    }
}

impl AsRawFd for Console {
    /// The log's descriptor.
    fn as_raw_fd(&self) -> RawFd {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.sink().log.as_raw_fd()
    }
}

/// Whether a byte is written to the log unescaped.
fn is_plain(byte: &u8) -> bool {
    matches!(byte, b'\t' | b' '..=b'~')
}

impl State {
    fn sink(&self) -> MutexGuard<'_, Sink> {
        self.sink.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&mut self, byte: u8) {
        match byte {
            b'\n' => return self.end_line(),
            b'\r' => return,
            byte if is_plain(&byte) => self.line.push(byte),
            _ => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                let digit = |nibble: u8| HEX[usize::from(nibble & 0xf)];
                self.line
                    .extend_from_slice(&[b'\\', b'x', digit(byte >> 4), digit(byte)]);
            }
        }
        if self.line.len() >= LINE {
            self.sink().write(&self.line);
            self.line.clear();
        }
    }

    fn end_line(&mut self) {
        self.line.push(b'\n');
        self.sink().write(&self.line);
        self.line.clear();
    }
}

/// The log with its limits.
#[derive(Debug)]
struct Sink {
    log: File,
    limits: ConsoleLimits,
    /// Bytes until the log is full.
    left: u64,
    /// Bytes that may be written now. The notice about lost bytes can make it negative: it counts
    /// against the rate too, or a guest could exceed the rate by causing one notice after the
    /// other.
    credit: i64,
    refilled: Instant,
    /// The last write was dropped, and the notice about it has been written.
    dropping: bool,
}

impl Sink {
    fn write(&mut self, bytes: &[u8]) {
        if self.left == 0 {
            return;
        }
        let size = bytes.len() as u64;
        if size > self.left {
            self.left = 0;
            let _ = self.log.write_all(FULL);
        } else if self.has_credit(size) {
            self.dropping = false;
            self.left -= size;
            let _ = self.log.write_all(bytes);
        } else if !self.dropping {
            self.dropping = true;
            self.left = self.left.saturating_sub(DROPPED.len() as u64);
            self.credit -= DROPPED.len() as i64;
            let _ = self.log.write_all(DROPPED);
        }
    }

    /// Takes `size` bytes from the token bucket if there are as many. The clock is read only if
    /// there aren't.
    fn has_credit(&mut self, size: u64) -> bool {
        let size = i64::try_from(size).unwrap_or(i64::MAX);
        if self.credit < size {
            let now = Instant::now();
            let passed = now.duration_since(self.refilled).as_millis();
            let earned = passed.saturating_mul(self.limits.rate.into()) / 1000;
            if earned > 0 {
                self.refilled = now;
                let earned = i64::try_from(earned).unwrap_or(i64::MAX);
                let credit = self.credit.saturating_add(earned);
                self.credit = credit.min(self.limits.burst.into());
            }
        }
        let enough = self.credit >= size;
        if enough {
            self.credit -= size;
        }
        enough
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A console's log that a test can read.
    pub(crate) struct Captured(tempfile::NamedTempFile);

    impl Captured {
        pub(crate) fn new() -> Self {
            Self(tempfile::NamedTempFile::new().expect("a temporary file"))
        }

        pub(crate) fn console(&self) -> Console {
            self.limited(ConsoleLimits::default())
        }

        pub(crate) fn limited(&self, limits: ConsoleLimits) -> Console {
            let file = self.0.as_file().try_clone().expect("another descriptor");
            Console::new(file.into(), limits)
        }

        pub(crate) fn text(&self) -> String {
            let bytes = std::fs::read(self.0.path()).expect("the log");
            String::from_utf8(bytes).expect("only ASCII")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::Captured;
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    #[test]
    fn lines_come_through_and_control_bytes_are_escaped() {
        let log = Captured::new();
        log.console().write(b"one\r\n\x1b]0;title\x07\ttwo\xff\n");
        assert_eq!(log.text(), "one\n\\x1b]0;title\\x07\ttwo\\xff\n");
    }

    #[test]
    fn an_unfinished_line_is_kept_for_flush() {
        let log = Captured::new();
        let console = log.console();
        console.write(b"panic");
        assert_eq!(log.text(), "");
        console.flush();
        console.flush();
        assert_eq!(log.text(), "panic\n");
    }

    #[test]
    fn writers_do_not_mix_their_lines() {
        let log = Captured::new();
        let console = log.console();
        let other = console.new_writer();
        console.write(b"the guest's ");
        other.write(b"another's\n");
        console.write(b"line\n");
        assert_eq!(log.text(), "another's\nthe guest's line\n");
    }

    #[test]
    fn a_full_log_says_so_once() {
        let log = Captured::new();
        let console = log.limited(ConsoleLimits {
            total: 100,
            ..ConsoleLimits::NONE
        });
        for _ in 0..1000 {
            console.write(b"0123456789\n");
        }
        let text = log.text();
        assert_eq!(text.matches("0123456789").count(), 9);
        assert_eq!(text.matches("console log is full").count(), 1);
        assert!(text.ends_with("kept]\n"));
    }

    #[test]
    fn a_flood_is_cut_and_the_loss_is_told() {
        let log = Captured::new();
        let console = log.limited(ConsoleLimits {
            total: u64::MAX,
            burst: 110,
            rate: 0,
        });
        for _ in 0..1000 {
            console.write(b"0123456789\n");
        }
        let text = log.text();
        assert_eq!(text.matches("0123456789").count(), 10);
        assert_eq!(text.matches("too fast").count(), 1);
    }

    #[test]
    fn what_tells_of_a_loss_is_no_way_around_the_rate() {
        let log = Captured::new();
        let limits = ConsoleLimits {
            total: u64::MAX,
            burst: 64,
            rate: 1000,
        };
        let console = log.limited(limits);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(300) {
            console.write(b"\n");
        }
        let most = 64 + DROPPED.len() + begun.elapsed().as_millis() as usize;
        assert!(log.text().len() <= most, "{} of {most}", log.text().len());
    }

    proptest! {
        #[test]
        fn the_log_is_printable_and_bounded(
            writes in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..700), 0..20)
        ) {
            let log = Captured::new();
            let limits = ConsoleLimits { total: 1000, burst: 600, rate: 100 };
            let console = log.limited(limits);
            for bytes in &writes {
                console.write(bytes);
            }
            console.flush();
            let text = log.text();
            prop_assert!(text.bytes().all(|b| matches!(b, b'\n' | b'\t' | b' '..=b'~')));
            prop_assert!(text.len() <= 1000 + FULL.len() + DROPPED.len());
        }

        #[test]
        fn an_unfinished_line_goes_on_at_another_console(
            begun in proptest::collection::vec(any::<u8>(), 0..700),
            rest in proptest::collection::vec(any::<u8>(), 0..700),
        ) {
            let (log, other, whole) = (Captured::new(), Captured::new(), Captured::new());
            let (console, resumed) = (log.console(), other.console());
            console.write(&begun);
            prop_assert!(resumed.restore_partial_line(&console.partial_line()));
            prop_assert_eq!(resumed.partial_line(), console.partial_line());
            resumed.write(&rest);
            resumed.write(b"\n");
            whole.console().write(&[&begun[..], &rest, b"\n"].concat());
            prop_assert_eq!(log.text() + &other.text(), whole.text());
        }

        #[test]
        fn no_line_that_is_resumed_breaks_the_log(
            line in proptest::collection::vec(prop_oneof![b' '..=b'~', any::<u8>()], 0..700)
        ) {
            let log = Captured::new();
            let console = log.console();
            let taken = console.restore_partial_line(&line);
            prop_assert_eq!(taken, line.len() < LINE && line.iter().all(is_plain));
            console.write(b"\n");
            prop_assert_eq!(log.text().len(), if taken { line.len() + 1 } else { 1 });
        }
    }
}
