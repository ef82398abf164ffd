//! Log lines: in the two forms that runc has, which is what engines read (containerd, and podman for runtimes that it
//! knows, take a failed command's message from the JSON lines of `--log`), and on a terminal in one for people.
//!
//! What a command failed of is on standard error in its own words, also where log lines go there: podman and docker
//! put them into a sentence of theirs.
//!
//! Everything in this program and its libraries logs through the `log` crate; this is its one receiver.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::OnceLock;

use log::{Level, LevelFilter, Log, Metadata, Record};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::colour::{Colour, Palette};
use super::{Global, LogFormat};

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
#[error("--log {}", path.display())]
pub struct LoggingError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

static LOGGER: OnceLock<Logger> = OnceLock::new();

/// Starts logging, as the global options say.
///
/// # Errors
/// When the log file can't be opened.
pub(super) fn init(global: &Global) -> Result<(), LoggingError> {
    let file = match &global.log {
        Some(path) if !path.as_os_str().is_empty() => Some(
            OpenOptions::new()
                .append(true)
                .create(true)
                .open(path)
                .map_err(|source| LoggingError {
                    path: path.clone(),
                    source,
                })?,
        ),
        _ => None,
    };
    let form = match global.log_format {
        LogFormat::Json => Form::Json,
        LogFormat::Text if file.is_none() && io::stderr().is_terminal() => {
            Form::Terminal(Palette::of(&io::stderr()))
        }
        LogFormat::Text => Form::Text,
    };
    let level = if global.debug {
        LevelFilter::Debug
    } else {
        LevelFilter::Info
    };
    start(file, form, level);
    Ok(())
}

/// Starts logging into this file, as text.
pub fn init_in(file: File, level: LevelFilter) {
    start(Some(file), Form::Text, level);
}

fn start(file: Option<File>, form: Form, level: LevelFilter) {
    let logger = LOGGER.get_or_init(|| Logger { file, form, level });
    if log::set_logger(logger).is_ok() {
        log::set_max_level(level);
    }
}

/// Reports what a command failed of: in the log if that is a file, and to the user.
pub fn fatal(message: &str) {
    let Some(logger) = LOGGER.get() else {
        return tell(message);
    };
    // The user sees the log, in a form that is no sentence.
    let framed = logger.file.is_none() && matches!(logger.form, Form::Text);
    if !framed {
        log::error!("{message}");
    }
    if framed || logger.file.is_some() {
        tell(message);
    }
}

/// Says something to the user; where standard error takes nothing, nobody hears it.
pub fn tell(message: &str) {
    let _ = writeln!(io::stderr(), "{message}");
}

/// The forms of a line. Those that aren't for a terminal are those of logrus, which runc uses.
#[derive(Clone, Copy, Debug)]
enum Form {
    /// `time="…" level=… msg="…"`
    Text,
    /// `hull: …`, or `hull: warning: …`
    Terminal(Palette),
    /// `{"level":"…","msg":"…","time":"…"}`
    Json,
}

struct Logger {
    /// The file of `--log`; standard error without one.
    file: Option<File>,
    form: Form,
    level: LevelFilter,
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let ours = metadata.target().starts_with("hull");
        let noted = metadata.level() <= Level::Warn || self.level >= LevelFilter::Debug;
        metadata.level() <= self.level && (ours || noted)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let message = record.args().to_string();
        let now = OffsetDateTime::now_utc();
        let line = format_line(self.form, record.level(), &message, now);
        // One write a line, so that the lines of several processes don't mix. There is nobody to tell
        // of a failure.
        let _ = match &self.file {
            Some(file) => {
                let mut file: &File = file;
                file.write_all(line.as_bytes())
            }
            None => io::stderr().write_all(line.as_bytes()),
        };
    }

    fn flush(&self) {}
}

fn format_line(form: Form, level: Level, message: &str, now: OffsetDateTime) -> String {
    let time = || {
        now.truncate_to_second()
            .format(&Rfc3339)
            .unwrap_or_default()
    };
    let name = match level {
        Level::Error => "error",
        Level::Warn => "warning",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    };
    match form {
        Form::Text => {
            format!(
                "time=\"{}\" level={name} msg={}\n",
                time(),
                quote_if_needed(message)
            )
        }
        Form::Json => {
            let line = JsonLine {
                level: name,
                msg: message,
                time: time(),
            };
            let mut text = serde_json::to_string(&line).unwrap_or_default();
            text.push('\n');
            text
        }
        Form::Terminal(palette) => {
            let (colour, head) = match level {
                Level::Error => (Colour::Red, "hull:".to_owned()),
                Level::Warn => (Colour::Yellow, "hull: warning:".to_owned()),
                _ => (Colour::Cyan, format!("hull: {name}:")),
            };
            format!("{} {}\n", palette.paint(colour, &head), message.trim_end())
        }
    }
}

/// In the order that runc's have: by name.
#[derive(Serialize)]
struct JsonLine<'a> {
    level: &'a str,
    msg: &'a str,
    time: String,
}

/// A value as logrus writes it: bare where it is one word, else quoted as Go quotes.
fn quote_if_needed(text: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || "-._/@^+".contains(c);
    if text.chars().all(bare) {
        return text.to_owned();
    }
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c if c.is_ascii_control() => {
                let _ = write!(quoted, "\\x{:02x}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(form: Form, level: Level, message: &str) -> String {
        let now = OffsetDateTime::from_unix_timestamp(1_700_000_000).expect("a time");
        format_line(form, level, message, now)
    }

    #[test]
    fn json_lines_are_those_that_engines_parse() {
        assert_eq!(
            line(Form::Json, Level::Error, "no \"x\"\n"),
            "{\"level\":\"error\",\"msg\":\"no \\\"x\\\"\\n\",\"time\":\"2023-11-14T22:13:20Z\"}\n"
        );
    }

    #[test]
    fn text_is_quoted_where_it_is_more_than_a_word() {
        assert_eq!(
            line(Form::Text, Level::Warn, "a b\x1b"),
            "time=\"2023-11-14T22:13:20Z\" level=warning msg=\"a b\\x1b\"\n"
        );
        assert_eq!(
            line(Form::Text, Level::Info, "done"),
            "time=\"2023-11-14T22:13:20Z\" level=info msg=done\n"
        );
    }

    #[test]
    fn a_terminal_gets_a_sentence() {
        let palette = |colourful| Form::Terminal(Palette { colourful });
        assert_eq!(
            line(palette(true), Level::Error, "no\n"),
            "\x1b[31mhull:\x1b[0m no\n"
        );
        let plain = palette(false);
        assert_eq!(line(plain, Level::Warn, "mind"), "hull: warning: mind\n");
        assert_eq!(line(plain, Level::Debug, "now"), "hull: debug: now\n");
    }
}
