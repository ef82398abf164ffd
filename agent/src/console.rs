//! The agent's log: the kernel's, which is the guest's console.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::OnceLock;

use log::{Level, LevelFilter, Log, Metadata, Record};

/// The longest record that the kernel takes in one piece, `LOG_LINE_MAX` less its prefix, in bytes.
const LONGEST: usize = 900;

struct Console;

static KMSG: OnceLock<File> = OnceLock::new();

/// Who is told, besides, what libcontainer logs as errors.
type Listener = Box<dyn Fn(&str) + Send + Sync>;

static LISTENER: OnceLock<Listener> = OnceLock::new();

/// The modules of libcontainer whose errors come back without their causes, which are in its log alone.
const TERSE: [&str; 2] = ["libcontainer::rootfs", "libcontainer::process::init"];

/// Has the errors that they log told to `listener`, too.
pub fn listen(listener: impl Fn(&str) + Send + Sync + 'static) {
    let _ = LISTENER.set(Box::new(listener));
}

/// Sends the program's log records to the kernel's log from now on.
///
/// Where there is no kernel log to write to, they are dropped.
pub fn start(level: LevelFilter) {
    if log::set_logger(&Console).is_ok()
        && let Ok(file) = OpenOptions::new().write(true).open("/dev/kmsg")
    {
        let _ = KMSG.set(file);
    }
    log::set_max_level(level);
    std::panic::set_hook(Box::new(|panic| say(Level::Error, &panic.to_string())));
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

/// Writes one line, whatever the level that is logged.
pub fn say(level: Level, text: &str) {
    // The numbers of syslog(2).
    let priority = match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    };
    let text = text.replace('\n', " ");
    let end = text.floor_char_boundary(LONGEST);
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
            let text = record.args().to_string();
            say(record.level(), &text);
            let is_terse = TERSE
                .iter()
                .any(|module| record.target().starts_with(module));
            if let (Some(listener), Level::Error, true) = (LISTENER.get(), record.level(), is_terse)
            {
                listener(&text);
            }
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
