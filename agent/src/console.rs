//! The agent's log, which goes to the kernel's log (/dev/kmsg), and so to the guest's console.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::OnceLock;

use log::{Level, LevelFilter, Log, Metadata, Record};

/// The longest text that fits into one record of the kernel's log (`LOG_LINE_MAX` less the prefix), in bytes.
const MAX_LENGTH: usize = 900;

struct Console;

static KMSG: OnceLock<File> = OnceLock::new();

/// Sends the program's log records to the kernel's log from now on.
///
/// Where there is no kernel log to write to, they are dropped.
pub fn init(level: LevelFilter) {
    if log::set_logger(&Console).is_ok()
        && let Ok(file) = OpenOptions::new().write(true).open("/dev/kmsg")
    {
        let _ = KMSG.set(file);
    }
    log::set_max_level(level);
    std::panic::set_hook(Box::new(|panic| write(Level::Error, &panic.to_string())));
}

/// The level that the kernel's command line asks for with `hull.log=`; warnings if it doesn't.
#[must_use]
pub fn level(command_line: &str) -> LevelFilter {
    command_line
        .split_ascii_whitespace()
        .filter_map(|word| word.strip_prefix("hull.log="))
        .find_map(|level| level.parse().ok())
        .unwrap_or(LevelFilter::Warn)
}

/// Writes one line, whatever the log level is.
pub fn write(level: Level, text: &str) {
    // The numbers of syslog(2).
    let priority = match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    };
    let text = text.replace('\n', " ");
    let end = text.floor_char_boundary(MAX_LENGTH);
    let text = text.get(..end).unwrap_or_default();
    if let Some(mut kmsg) = KMSG.get() {
        let _ = kmsg.write_all(format!("<{priority}>hull-agent: {text}\n").as_bytes());
    }
}

impl Log for Console {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            write(record.level(), &record.args().to_string());
        }
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_sets_the_level() {
        assert_eq!(level("quiet hull.log=debug x"), LevelFilter::Debug);
        assert_eq!(level("hull.log=loud"), LevelFilter::Warn);
        assert_eq!(level(""), LevelFilter::Warn);
    }
}
