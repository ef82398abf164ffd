//! Standard output: what a command prints is made first, and written at once.

use std::io::{self, Write};

use serde::Serialize;

use super::Error;

/// Prints a text as it is.
///
/// # Errors
/// When standard output takes nothing.
pub fn text(text: impl AsRef<[u8]>) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_ref())
        .and_then(|()| out.flush())
        .map_err(Error::Output)
}

/// Prints JSON on one line.
///
/// # Errors
/// As [`text`], and when it is none.
pub fn json_line(value: &impl Serialize) -> Result<(), Error> {
    let mut line = serde_json::to_string(value).map_err(Error::Json)?;
    line.push('\n');
    text(line)
}

/// Prints JSON for people to read.
///
/// # Errors
/// As [`text`], and when it is none.
pub fn json(value: &impl Serialize) -> Result<(), Error> {
    let mut lines = serde_json::to_string_pretty(value).map_err(Error::Json)?;
    lines.push('\n');
    text(lines)
}
