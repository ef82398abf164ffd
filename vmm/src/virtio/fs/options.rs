//! The options of a share, and the configuration of the file system, with the reason for each
//! choice.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use crate::virtio::vsock::Giver;
use virtiofsd::passthrough::{CachePolicy, Config, InodeFileHandlesMode, NegotiationMode};

/// How long the guest may trust a name or attributes that it has looked up.
///
/// One second is FUSE's usual default. The guest sees a change made on the host at most this much
/// later; until then, walking the same paths again, as programs do when they start, costs no round
/// trip.
pub const CACHE_TIMEOUT: Duration = Duration::from_secs(1);

/// Open files that are reserved for the device itself and the rest of the process.
pub const RESERVED_FDS: u64 = 1024;

/// The most inodes and open files together that a guest of `memory` bytes can hold on the host.
///
/// Each is a file descriptor and a pinned inode of the host, so their number must be bounded. The
/// guest itself needs more than 1 KiB of its memory for each inode that it caches, so a bound of
/// one per KiB of guest memory doesn't restrict it. `nofile` is the process's `RLIMIT_NOFILE`; if
/// that can't be raised to what hull needs, half of it is for the guest.
pub fn fd_limit(memory: u64, nofile: u64) -> u64 {
    let reserved = RESERVED_FDS.min(nofile / 2);
    (memory >> 10).max(1 << 16).min(nofile - reserved)
}

/// The options of a virtio-fs device.
#[derive(Debug)]
pub struct Options {
    /// The name that the guest mounts: 1 to 36 bytes of UTF-8 without a NUL (virtio 1.3, 5.11.4).
    pub tag: String,
    /// The directory shared, as the device's thread sees it when the guest mounts: `/` in the jail.
    pub root: PathBuf,
    /// How many inodes and open files the guest may hold; see [`fd_limit`].
    pub fd_limit: u64,
    /// See [`CACHE_TIMEOUT`].
    pub cache_timeout: Duration,
    /// Where connections to UNIX sockets in the tree are given to, for the guest; none are made without.
    pub connections: Option<Giver>,
}

impl Options {
    /// The part of [`Options::fd_limit`] that is for unnamed files and their handles, which the
    /// library doesn't manage: an eighth, since programs have far fewer of these open than other
    /// files.
    pub(super) fn unnamed_limit(&self) -> u64 {
        self.fd_limit / 8
    }
}

/// The library's configuration for `options`. It opens inodes through `proc_self_fd`.
pub(super) fn config(options: Options, proc_self_fd: File) -> Config {
    Config {
        root_dir: options.root.to_string_lossy().into_owned(),
        proc_sfd_rawfd: Some(proc_self_fd),
        guest_fd_limit: options.fd_limit - options.unnamed_limit(),
        entry_timeout: options.cache_timeout,
        attr_timeout: options.cache_timeout,
        // "Always" keeps file data and directories in the guest's page cache from one open to the
        // next. They are not trusted blindly: the guest drops them when size or mtime of the file
        // have changed, which it asks for once the attributes have timed out (FUSE_AUTO_INVAL_DATA).
        // With "Auto" every exec would read its libraries again.
        cache_policy: CachePolicy::Always,
        // A write is on the host before write(2) returns: the host sees it, and killing the VM loses
        // nothing. Writing back would also take over mtime from the host.
        writeback: false,
        // READDIR that also looks up, where the guest finds that it would look up anyway (`ls -l`).
        readdirplus: true,
        // Extended attributes are the host's file system's, but for `trusted.*`: see `xattr.rs`. Those of
        // `security.*` other than file capabilities want CAP_SYS_ADMIN, which the device's thread lacks.
        xattr: true,
        // The guest's kernel checks permissions, by the ACLs that the host's file system keeps. New files
        // get the default ACL of their folder from there too, which is why the umask comes along with a
        // request to create: where there is such an ACL it doesn't count.
        posix_acl: NegotiationMode::Always,
        // The host clears set-id bits and file capabilities on write, truncate and chown, and the guest's
        // kernel before the requests that can't tell whose they are (fallocate, copy_file_range). Without
        // it the guest asks for `security.capability` before every single write.
        killpriv_v2: true,
        // Each share is a mount of its own in the guest, with its own st_dev: inode numbers of two
        // file systems may collide.
        announce_submounts: true,
        // Inodes are held by O_PATH descriptors. File handles would need CAP_DAC_READ_SEARCH and
        // open_by_handle_at(2), which together reach every inode of a file system, shared or not.
        inode_file_handles: InodeFileHandlesMode::Never,
        // The guest's O_DIRECT bypasses the guest's cache, not the host's: else it would fail where
        // the host's file system has no direct I/O.
        allow_direct_io: false,
        // Concerns O_DIRECT-style opens only, which the cache policy never makes.
        allow_mmap: false,
        // The guest runs no security module that labels files.
        security_label: NegotiationMode::Never,
        // The device's thread owns or overrules ownership of every file, so O_NOATIME is granted.
        clean_noatime: false,
        ..Config::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fd_limit_follows_memory_and_stays_below_nofile() {
        assert_eq!(fd_limit(128 << 20, 1 << 20), 128 << 10);
        assert_eq!(fd_limit(16 << 20, 1 << 20), 1 << 16);
        assert_eq!(fd_limit(64 << 30, 1 << 20), (1 << 20) - RESERVED_FDS);
        assert_eq!(fd_limit(64 << 30, 1024), 512);
    }
}
