//! Writes a container's limits to the files of a cgroup2, and reads its statistics from them.
//!
//! The agent uses this for containers in the guest, and hull for the VMM process on the host. Nothing here makes a
//! cgroup or moves a process: each side does that itself.
//!
//! libcgroups has code for this too, but can't set only some of the limits: it would replace the device filter by
//! its default. Nor can it undo what it has written when a later limit is refused. Values are converted as runc
//! does.

mod block_io;
pub mod limits;
pub mod stats;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Removes a cgroup and those below it, none of which may have a process.
///
/// # Errors
/// `EBUSY` when one has, or another error of rmdir(2).
pub fn remove_tree(directory: &Path) -> io::Result<()> {
    for child in children(directory)? {
        remove_tree(&child)?;
    }
    fs::remove_dir(directory)
}

/// The pids of every process in a cgroup and below it, in this process's pid namespace: 0 for each process outside
/// of that.
///
/// # Errors
/// When it can't be read.
pub fn processes(directory: &Path) -> io::Result<Vec<i32>> {
    let mut pids = Vec::new();
    collect(directory, &mut pids)?;
    Ok(pids)
}

fn collect(directory: &Path, pids: &mut Vec<i32>) -> io::Result<()> {
    let list = fs::read_to_string(directory.join("cgroup.procs"))?;
    pids.extend(list.lines().filter_map(|line| line.parse::<i32>().ok()));
    for child in children(directory)? {
        collect(&child, pids)?;
    }
    Ok(())
}

/// The directories of a cgroup's direct children.
///
/// # Errors
/// When it can't be read.
pub fn children(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut children = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            children.push(entry.path());
        }
    }
    Ok(children)
}
