//! /dev: its nodes and links, and which of its devices can be opened.

use std::fs::{self, File, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{OFlags, major, minor};
use serde_json::{Map, Value, json};

use super::{why, works};

/// Folders below /dev are entered so far.
const DEPTH: u32 = 2;

/// By path.
pub fn report() -> Value {
    let mut devices = Map::new();
    walk(Path::new("/dev"), DEPTH, &mut devices);
    devices.into()
}

fn walk(folder: &Path, depth: u32, devices: &mut Map<String, Value>) {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => {
            devices.insert(format!("{}/", folder.display()), why(error));
            return;
        }
    };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let Ok(found) = fs::symlink_metadata(&path) else {
            continue;
        };
        devices.insert(path.display().to_string(), describe(&path, &found));
        if found.is_dir() && depth > 1 {
            walk(&path, depth - 1, devices);
        }
    }
}

fn describe(path: &Path, found: &Metadata) -> Value {
    let kind = found.file_type();
    if kind.is_symlink() {
        let target = fs::read_link(path).unwrap_or_default();
        return json!({ "link": target.to_string_lossy() });
    }
    let letter = match kind {
        _ if kind.is_char_device() => "c",
        _ if kind.is_block_device() => "b",
        _ if kind.is_fifo() => "p",
        _ if kind.is_dir() => "d",
        _ => "-",
    };
    let mut device = json!({
        "kind": letter,
        "mode": format!("{:04o}", found.mode() & 0o7777),
        "owner": format!("{}:{}", found.uid(), found.gid()),
    });
    if matches!(letter, "c" | "b") {
        device["number"] = format!("{}:{}", major(found.rdev()), minor(found.rdev())).into();
        device["reading"] = open(path, true, false);
        device["writing"] = open(path, false, true);
    }
    device
}

fn open(path: &Path, read: bool, write: bool) -> Value {
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let opened = File::options()
        .read(read)
        .write(write)
        .custom_flags(flags.bits().cast_signed())
        .open(path);
    works(opened)
}
