//! What the follower has to say: warnings and errors, as lines of the console log, among the VM process's.

use std::fs::File;
use std::io::Write;
use std::sync::atomic::{AtomicU32, Ordering};

use log::{Level, LevelFilter, Log, Metadata, Record};

/// How many lines it writes in its life. Engines and guests can cause some.
const MOST_LINES: u32 = 128;

/// The longest line, in bytes.
const LONGEST: usize = 512;

struct ConsoleLog {
    /// Open for appending.
    file: &'static File,
    left: AtomicU32,
}

/// From now on, what is logged goes there. Returns the file, which stays open.
pub fn hear(console: File) -> &'static File {
    let console: &File = Box::leak(Box::new(console));
    let log = ConsoleLog {
        file: console,
        left: AtomicU32::new(MOST_LINES),
    };
    if log::set_boxed_logger(Box::new(log)).is_ok() {
        log::set_max_level(LevelFilter::Warn);
    }
    console
}

impl Log for ConsoleLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        let one_less = |left: u32| left.checked_sub(1);
        let is_there_room =
            (self.left).fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less);
        if self.enabled(record.metadata()) && is_there_room.is_ok() {
            // In one write, so that nobody else's comes between. There is nobody to tell of a failure.
            let mut file = self.file;
            let _ = file.write(line(&record.args().to_string()).as_bytes());
        }
    }

    fn flush(&self) {}
}

fn line(message: &str) -> String {
    let mut line = format!("hull: {message}");
    line.truncate(line.floor_char_boundary(LONGEST));
    let shown = |c: char| if c.is_control() { '?' } else { c };
    let mut line: String = line.chars().map(shown).collect();
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_that_can_be_shown() {
        assert_eq!(line("a\nb\x1b"), "hull: a?b?\n");
        assert_eq!(line(&"é".repeat(LONGEST)).chars().last(), Some('\n'));
        assert!(line(&"é".repeat(LONGEST)).len() <= LONGEST + 1);
    }
}
