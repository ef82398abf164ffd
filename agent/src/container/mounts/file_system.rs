//! Creates a file system of the guest's kernel (fsopen(2), fsconfig(2)), with errors that name what the kernel
//! refuses, and writes one back.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, open, syncfs};
use rustix::io::Errno;
use rustix::mount::{FsOpenFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsopen};

use crate::error::Strerror;

/// Why the kernel refuses to create or mount a file system.
#[derive(Debug)]
pub enum MountError {
    /// The type.
    Type(Errno),
    /// This option.
    Option(String, Errno),
    /// Something else.
    Other(Errno),
}

impl From<Errno> for MountError {
    fn from(error: Errno) -> Self {
        Self::Other(error)
    }
}

/// Creates a file system of this type, from a source and with its own options. It isn't mounted yet.
///
/// # Errors
/// Says what the kernel refuses.
pub fn create(
    kind: &str,
    source: Option<&Path>,
    options: Vec<String>,
) -> Result<OwnedFd, MountError> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).map_err(MountError::Type)?;
    if let Some(source) = source {
        fsconfig_set_string(&context, "source", source).map_err(MountError::Other)?;
    }
    for option in options {
        let set = match option.split_once('=') {
            Some((key, value)) => fsconfig_set_string(&context, key, value),
            None => fsconfig_set_flag(&context, option.as_str()),
        };
        set.map_err(|e| MountError::Option(option, e))?;
    }
    fsconfig_create(&context).map_err(MountError::Other)?;
    Ok(context)
}

/// Has the kernel write back the file system that is mounted here, syncfs(2).
///
/// # Errors
/// When there is none, or writing fails.
pub fn write_back(place: &Path) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    syncfs(open(place, flags, Mode::empty())?)
}

impl fmt::Display for MountError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, error) = match self {
            Self::Type(Errno::NODEV) => {
                return f.write_str("the guest's kernel has no such file system");
            }
            Self::Option(option, error) => (format!("option {option:?}: "), error),
            Self::Type(error) | Self::Other(error) => (String::new(), error),
        };
        write!(f, "{what}{}", Strerror(&(*error).into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_mount_point_cannot_be_written_back() {
        let directory = tempfile::tempdir().expect("a directory");
        assert_eq!(write_back(directory.path()), Ok(()));
        let gone = directory.path().join("gone");
        assert_eq!(write_back(&gone), Err(Errno::NOENT));
    }
}
