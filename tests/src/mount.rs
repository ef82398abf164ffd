//! A file system that the host has mounted.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A tmpfs of the host's. Dropped, it is gone from there, though somebody may still use it.
#[derive(Debug)]
pub struct HostMount(PathBuf);

impl HostMount {
    /// Mounts one with these options.
    #[track_caller]
    pub fn tmpfs(at: &Path, options: &str) -> Self {
        call(&["mount", "-t", "tmpfs", "-o", options, "tmpfs"], at);
        Self(at.to_owned())
    }

    /// A folder once more at its own place, with these attributes of the mount.
    #[track_caller]
    pub fn with(at: &Path, attributes: &str) -> Self {
        let place = at.to_str().expect("a test's paths are text");
        call(&["mount", "--bind", place], at);
        let mount = Self(at.to_owned());
        call(&["mount", "-o", &format!("remount,bind,{attributes}")], at);
        mount
    }

    /// One of its own peer group.
    #[track_caller]
    pub fn shared(at: &Path) -> Self {
        let mount = Self::tmpfs(at, "mode=1777");
        call(&["mount", "--make-shared"], at);
        mount
    }

    /// Unmounts it, which fails the test if somebody still uses it.
    #[track_caller]
    pub fn unmount(self) {
        call(&["umount"], &self.0);
        std::mem::forget(self); // there is nothing left to drop
    }
}

impl Drop for HostMount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[track_caller]
fn call(words: &[&str], at: &Path) {
    let status = Command::new(words[0]).args(&words[1..]).arg(at).status();
    assert!(
        status.expect("util-linux is installed").success(),
        "{words:?} {}",
        at.display()
    );
}
