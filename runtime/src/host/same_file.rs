//! Whether two files are one. So are namespaces told apart, which are files of nsfs (ioctl_nsfs(2)).

use rustix::fs::Stat;

/// Whether both are about the same file. It must be held open, or be there for another reason: numbers are used again.
pub fn is_same_file(one: &Stat, other: &Stat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}
