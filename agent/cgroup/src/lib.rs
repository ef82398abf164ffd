//! The files of a cgroup2: a container's limits written to them, its statistics read off them.
//!
//! The agent does that for containers in the guest, hull for the VM's process on the host, and both the
//! same way. Nothing here makes a cgroup or moves a process: each side does that for itself.
//!
//! libcgroups has code for this too, but not for a part of the limits only: it would replace the device
//! filter by its default, and it can't take back what it has written when a later limit is refused. The
//! values are computed as runc does.

mod block_io;
pub mod limits;
pub mod stats;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Removes a cgroup with those below it, none of which may have a process.
///
/// # Errors
/// `EBUSY` when one has, and what else the system says.
pub fn remove_tree(directory: &Path) -> io::Result<()> {
    for child in children(directory)? {
        remove_tree(&child)?;
    }
    fs::remove_dir(directory)
}

/// The pids of all in a cgroup and below it, as this process's pid namespace has them: 0 for each that is
/// outside of that.
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

/// The directories of the cgroups right below one.
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
