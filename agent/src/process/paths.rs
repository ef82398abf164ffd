//! `linux.maskedPaths` and `linux.readonlyPaths`, for a container's first process.
//!
//! libcontainer's own way is not used: what it makes read-only loses its devices, set-id bits and
//! programs as well.

use std::path::Path;

use oci_spec::runtime::Linux;
use rustix::fs::{StatVfsMountFlags, statvfs};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_bind, mount_bind_recursive, mount_remount};
use serde::{Deserialize, Serialize};

use crate::error::Failure;

/// What the container sees less of than is there. Paths that aren't there are left out.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Paths {
    masked: Vec<String>,
    readonly: Vec<String>,
}

impl Paths {
    /// Takes them out of config.json.
    pub fn take(linux: &mut Linux) -> Self {
        let paths = Self {
            masked: linux.masked_paths().clone().unwrap_or_default(),
            readonly: linux.readonly_paths().clone().unwrap_or_default(),
        };
        linux.set_masked_paths(None).set_readonly_paths(None);
        paths
    }

    /// Mounts over them, read-only ones first. To be called in the container, with all capabilities;
    /// `cwd` is entered once more, as what it was entered by may lie below a mount now.
    ///
    /// # Errors
    /// Names the field and the path.
    pub fn apply(&self, cwd: &Path) -> Result<(), Failure> {
        if self.masked.is_empty() && self.readonly.is_empty() {
            return Ok(());
        }
        for path in &self.readonly {
            forbid_writing(path).map_err(Failure::io(format!("linux.readonlyPaths: {path}")))?;
        }
        for path in &self.masked {
            mask(path).map_err(Failure::io(format!("linux.maskedPaths: {path}")))?;
        }
        rustix::process::chdir(cwd).map_err(Failure::io(format!(
            "chdir to cwd ({cwd:?}) set in config.json failed"
        )))
    }
}

fn forbid_writing(path: &str) -> Result<(), Errno> {
    match mount_bind_recursive(path, path) {
        Err(Errno::NOENT) => return Ok(()),
        result => result?,
    }
    // A remount sets all flags; what the mount below forbids stays forbidden.
    let now = statvfs(path)?.f_flag;
    let kept = [
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
    ];
    let flags = kept
        .into_iter()
        .filter(|(is, _)| now.contains(*is))
        .fold(MountFlags::BIND | MountFlags::RDONLY, |all, (_, flag)| {
            all | flag
        });
    mount_remount(path, flags, c"")
}

/// A file reads as empty, and a folder is. It is root's, whoever the process's user is.
fn mask(path: &str) -> Result<(), Errno> {
    match mount_bind("/dev/null", path) {
        Err(Errno::NOENT) => Ok(()),
        Err(Errno::NOTDIR) => mount("tmpfs", path, "tmpfs", MountFlags::RDONLY, c"uid=0,gid=0"),
        result => result,
    }
}
