//! The guest's initramfs: the agent as /init, the directories that it mounts on, and the two devices
//! that the kernel and the C library open before it has mounted /dev.
//!
//! It is a cpio archive in the format `newc` (the kernel's
//! Documentation/driver-api/early-userspace/buffer-format.rst), not compressed, and the agent begins on a
//! page boundary: the guest's kernel then takes its pages as they are (initramfs-pages.patch).

use std::io::{self, Write};

use cpio::newc::{self, Builder};

const PAGE: usize = 4096;

/// The length of an entry's header, which is followed by its name. The contents begin at a multiple of 4.
const HEADER: usize = 110;

/// The agent's path.
const INIT: &str = "init";

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// The directories, each before the entries in it.
const DIRECTORIES: [&str; 5] = ["dev", "proc", "run", "sys", "tmp"];

/// The devices: path, permissions, major and minor number (the kernel's admin-guide/devices.txt).
const DEVICES: [(&str, u32, u32, u32); 2] =
    [("dev/console", 0o600, 5, 1), ("dev/null", 0o666, 1, 3)];

/// Writes the archive with this agent.
///
/// All entries are owned by root, have the epoch as their time, and inode numbers in a fixed order: the same agent
/// gives the same bytes.
///
/// # Errors
/// When `output` can't be written to, or the agent is 4 GiB or longer.
pub fn write(agent: &[u8], output: impl Write) -> io::Result<()> {
    let mut output = CountingWriter { output, count: 0 };
    let size = u32::try_from(agent.len())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "the agent is 4 GiB or longer"))?;
    let mut inodes = 1..;
    let mut entry = |path: &str, mode: u32| {
        let number = inodes.next().unwrap_or_default();
        let links = if mode == DIRECTORY { 2 } else { 1 };
        Builder::new(path)
            .ino(number)
            .mode(mode)
            .nlink(links)
            .uid(0)
            .gid(0)
            .mtime(0)
    };
    for path in DIRECTORIES {
        entry(path, DIRECTORY).write(&mut output, 0).finish()?;
    }
    for (path, permissions, major, minor) in DEVICES {
        entry(path, CHARACTER_DEVICE | permissions)
            .rdev_major(major)
            .rdev_minor(minor)
            .write(&mut output, 0)
            .finish()?;
    }
    let mut init = entry(&padded_name(INIT, output.count), PROGRAM).write(&mut output, size);
    init.write_all(agent)?;
    init.finish()?;
    newc::trailer(&mut output)?;
    output.flush()
}

/// `name`, padded with NULs so that the contents of its entry begin on a page boundary if the entry begins at
/// `offset`. To programs that unpack the archive the name ends at the first NUL.
fn padded_name(name: &str, offset: usize) -> String {
    let contents = (offset + HEADER + name.len() + 1).next_multiple_of(PAGE);
    // The NUL that the archive adds is the last one.
    format!("{name:\0<width$}", width = contents - HEADER - offset - 1)
}

/// A writer that counts the bytes written.
struct CountingWriter<W> {
    output: W,
    count: usize,
}

impl<W: Write> Write for CountingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.output.write(bytes)?;
        self.count += written;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn archive(agent: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        write(agent, &mut bytes).expect("write to a vector");
        bytes
    }

    #[test]
    fn the_same_agent_gives_the_same_bytes() {
        assert_eq!(archive(b"agent"), archive(b"agent"));
        assert_ne!(archive(b"agent"), archive(b"other"));
    }

    #[test]
    fn the_agent_begins_on_a_page_boundary() {
        let bytes = archive(b"the agent's first bytes");
        let found = bytes.windows(11).position(|bytes| bytes == b"the agent's");
        assert_eq!(found, Some(PAGE));
    }

    #[test]
    fn cpio_lists_what_went_in() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("initramfs");
        std::fs::write(&path, archive(b"an agent")).expect("write");
        let list = Command::new("cpio")
            .args([
                "--list",
                "--verbose",
                "--numeric-uid-gid",
                "--quiet",
                "--file",
            ])
            .arg(&path)
            .env("TZ", "UTC")
            .output()
            .expect("Debian's cpio");
        let text = String::from_utf8(list.stdout).expect("text");
        let words = |line: &str| {
            line.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let lines: Vec<Vec<String>> = text.lines().map(words).collect();
        let names: Vec<&str> = lines
            .iter()
            .filter_map(|l| Some(l.last()?.as_str()))
            .collect();
        let expected = [
            "dev",
            "proc",
            "run",
            "sys",
            "tmp",
            "dev/console",
            "dev/null",
            "init",
        ];
        assert_eq!(names, expected);
        let init = lines.last().expect("eight lines");
        assert_eq!(init[..5], words("-rwxr-xr-x 1 0 0 8"));
        assert!(text.contains("5,   1"), "{text}");
    }
}
