//! The guest's cgroup2 tree: `/hull/<container>`, with all controllers enabled.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use hull_cgroup::{remove_tree, stats};
use tokio::io::Interest;

use crate::error::{Error, Fatal};
use crate::sys;

/// Where cgroup2 is mounted.
pub const MOUNT: &str = "/sys/fs/cgroup";

/// The parent cgroup of all containers' cgroups, relative to the mount.
pub const PARENT: &str = "hull";

/// How long killed processes may take to end.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the kernel may take to freeze processes, which it does when they next return to user mode.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(10);

/// Prepares the tree for containers: enables every controller that the kernel has on every level above theirs.
///
/// # Errors
/// When there is no cgroup2 at [`MOUNT`].
pub fn prepare() -> Result<(), Fatal> {
    let root = Path::new(MOUNT);
    let available = fs::read_to_string(root.join("cgroup.controllers"))
        .map_err(Fatal::io("read cgroup.controllers"))?;
    let enable: String = available
        .split_ascii_whitespace()
        .map(|controller| format!("+{controller} "))
        .collect();
    let parent = root.join(PARENT);
    fs::create_dir_all(&parent).map_err(Fatal::io("make the containers' cgroup"))?;
    for level in [root, &parent] {
        let file = level.join("cgroup.subtree_control");
        let what = format!("write {:?} to {}", enable.trim_end(), file.display());
        fs::write(file, enable.trim_end()).map_err(Fatal::io(what))?;
    }
    Ok(())
}

/// A container's cgroup. Dropping this doesn't remove it; [`Cgroup::remove`] does.
#[derive(Debug, Clone)]
pub struct Cgroup {
    directory: PathBuf,
    /// From the mount's root, as `linux.cgroupsPath` has it.
    path: String,
}

impl Cgroup {
    /// Makes one.
    ///
    /// # Errors
    /// When there is one of this name.
    pub fn create(name: &str) -> Result<Self, Error> {
        let path = format!("/{PARENT}/{name}");
        let directory = Path::new(MOUNT).join(PARENT).join(name);
        match fs::create_dir(&directory) {
            Ok(()) => Ok(Self { directory, path }),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                Err(Error::AlreadyExists(format!("cgroup {path}")))
            }
            Err(e) => Err(Error::io(format!("make the cgroup {path}"))(e)),
        }
    }

    /// Its path from the mount's root, as `linux.cgroupsPath` has it.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Its directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// How many of its processes the kernel's OOM killer has killed.
    #[must_use]
    pub fn oom_kills(&self) -> u64 {
        stats::oom_kills(&self.directory)
    }

    /// The directory of a cgroup below it, by its path as the container sees it: its own is `/`.
    ///
    /// # Errors
    /// When the path leads out of it.
    pub fn subgroup(&self, path: &str) -> Result<PathBuf, Error> {
        let mut directory = self.directory.clone();
        for part in Path::new(path).components() {
            match part {
                Component::Normal(name) => directory.push(name),
                Component::RootDir | Component::CurDir => {}
                Component::ParentDir | Component::Prefix(_) => {
                    return Err(Error::InvalidRequest {
                        field: "--cgroup",
                        problem: format!("{path} is not a sub cgroup path"),
                    });
                }
            }
        }
        Ok(directory)
    }

    /// Sends a signal to every process in it and below.
    ///
    /// # Errors
    /// When the cgroup can't be read.
    pub fn signal(&self, signal: i32) -> Result<(), Error> {
        if signal == libc::SIGKILL {
            return self.kill();
        }
        for pid in self.processes()? {
            match sys::kill(pid, signal) {
                Err(e) if e.raw_os_error() != Some(libc::ESRCH) => {
                    return Err(Error::io(format!("signal pid {pid} of {}", self.path))(e));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Sends SIGKILL to every process in it and below, and doesn't wait until they have ended.
    ///
    /// # Errors
    /// When the cgroup doesn't exist any more.
    pub fn kill(&self) -> Result<(), Error> {
        let file = self.directory.join("cgroup.kill");
        fs::write(&file, "1").map_err(Error::io(format!("write {}", file.display())))
    }

    /// Kills every process in it and below, and removes it.
    ///
    /// # Errors
    /// When a process doesn't end in time.
    pub async fn remove(&self) -> Result<(), Error> {
        if !self.directory.exists() {
            return Ok(());
        }
        self.kill()?;
        let emptied = self.wait_until("cgroup.events", |text| text.contains("populated 0"));
        tokio::time::timeout(KILL_TIMEOUT, emptied)
            .await
            .map_err(|_| Error::Timeout {
                what: format!("the end of the processes of cgroup {}", self.path),
                seconds: KILL_TIMEOUT.as_secs(),
            })??;
        remove_tree(&self.directory).map_err(Error::io(format!("remove the cgroup {}", self.path)))
    }

    /// Freezes every process in it and below, and waits until they are frozen.
    ///
    /// # Errors
    /// When one of them isn't frozen in time; all are thawed then.
    pub async fn freeze(&self) -> Result<(), Error> {
        self.set_frozen(true)?;
        let frozen = self.wait_until("cgroup.events", |text| text.contains("frozen 1"));
        let frozen = tokio::time::timeout(FREEZE_TIMEOUT, frozen).await;
        let frozen = frozen.unwrap_or_else(|_| {
            Err(Error::Timeout {
                what: format!("freezing the processes of cgroup {}", self.path),
                seconds: FREEZE_TIMEOUT.as_secs(),
            })
        });
        if frozen.is_err() {
            self.set_frozen(false)?;
        }
        frozen
    }

    /// Thaws every process in it and below.
    ///
    /// # Errors
    /// When the cgroup doesn't exist any more.
    pub fn thaw(&self) -> Result<(), Error> {
        self.set_frozen(false)
    }

    fn set_frozen(&self, frozen: bool) -> Result<(), Error> {
        let file = self.directory.join("cgroup.freeze");
        let value = if frozen { "1" } else { "0" };
        fs::write(&file, value).map_err(Error::io(format!("write {}", file.display())))
    }

    /// Waits until the text of one of its files meets a condition. The file must notify of changes by POLLPRI.
    ///
    /// # Errors
    /// When the cgroup is removed meanwhile.
    pub async fn wait_until(
        &self,
        file: &str,
        condition: impl Fn(&str) -> bool,
    ) -> Result<(), Error> {
        let file = self.directory.join(file);
        let failed = || Error::io(format!("watch {}", file.display()));
        // By POLLPRI such a file notifies of a change.
        let opened = File::open(&file).map_err(failed())?;
        let events = sys::watch(opened, Interest::PRIORITY).map_err(failed())?;
        loop {
            let mut text = String::new();
            let mut events_file = events.get_ref();
            events_file
                .rewind()
                .and_then(|()| events_file.read_to_string(&mut text))
                .map_err(failed())?;
            if condition(&text) {
                return Ok(());
            }
            let mut ready = events.ready(Interest::PRIORITY).await.map_err(failed())?;
            ready.clear_ready();
        }
    }

    /// The pids of every process in it and below.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn processes(&self) -> Result<Vec<i32>, Error> {
        hull_cgroup::processes(&self.directory)
            .map_err(Error::io(format!("list the processes of {}", self.path)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_leads_out_of_a_cgroup() {
        let cgroup = Cgroup {
            directory: PathBuf::from("/mount/hull/c"),
            path: "/hull/c".to_owned(),
        };
        let subgroup = |path| cgroup.subgroup(path).ok();
        assert_eq!(subgroup("/"), Some(PathBuf::from("/mount/hull/c")));
        assert_eq!(subgroup("/a/./b"), Some(PathBuf::from("/mount/hull/c/a/b")));
        assert_eq!(subgroup("a/../../other"), None);
    }
}
