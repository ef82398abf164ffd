//! What the guest's kernel keeps of the host's shares of a container that is deleted while its sandbox lives on.
//!
//! The kernel mounts each share by itself where it is first looked up, for ever; and it remembers names and inodes
//! until it needs the memory. Both keep the share's file system busy on the host. Nothing here changes a file.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hull_protocol::paths::SHARE;
use rustix::mount::{UnmountFlags, unmount};

/// A little longer than the kernel takes a name of the shared tree for granted, which no event ends.
const NAMES_TIMEOUT: Duration = Duration::from_secs(2);

/// The directory of a container's shares.
#[derive(Clone, Debug)]
pub struct Shares(PathBuf);

impl Shares {
    /// That of the container with this root; `None` if its root isn't a share.
    #[must_use]
    pub fn of_root(root: &Path) -> Option<Self> {
        let directory = root.parent()?;
        (directory.parent() == Some(Path::new(SHARE))).then(|| Self(directory.to_owned()))
    }

    /// Unmounts them, whose container's processes have ended: the kernel gives back all that it has of them. The
    /// host still has the directory.
    pub fn unmount(&self) {
        let mounts = fs::read_dir(self.0.join("mounts")).into_iter().flatten();
        let mounts = mounts.flatten().map(|entry| entry.path());
        for share in mounts.chain([self.0.join("rootfs")]) {
            // Nothing is mounted there if nobody has looked into it.
            while unmount(&share, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).is_ok() {}
        }
    }

    /// Has the kernel forget the directory itself, once the host has removed it.
    pub async fn forget(self) {
        tokio::time::sleep(NAMES_TIMEOUT).await;
        // The kernel asks the host, and drops what lies below a name that is gone.
        let _ = fs::symlink_metadata(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_containers_shares_are_beside_its_root() {
        let shares = Shares::of_root(Path::new("/run/hull/share/0123/rootfs"));
        assert_eq!(
            shares.expect("a share").0,
            Path::new("/run/hull/share/0123")
        );
        for other in ["/", "/run/hull/share", "/run/hull/share/rootfs", "/root"] {
            assert!(Shares::of_root(Path::new(other)).is_none(), "{other}");
        }
    }
}
