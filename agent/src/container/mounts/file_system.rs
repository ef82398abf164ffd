//! A file system of the guest's kernel: made, with what that refuses of one (fsopen(2), fsconfig(2)), and
//! written back.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, open, syncfs};
use rustix::io::Errno;
use rustix::mount::{FsOpenFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsopen};

use crate::error::Message;

/// What the kernel refuses of a file system.
#[derive(Debug)]
pub enum Refused {
    Type(Errno),
    Option(String, Errno),
    Whole(Errno),
}

impl From<Errno> for Refused {
    fn from(error: Errno) -> Self {
        Self::Whole(error)
    }
}

/// Makes one of this type, of a source and with options of its own. It is mounted nowhere yet.
///
/// # Errors
/// Says what the kernel refuses.
pub fn make(kind: &str, source: Option<&Path>, options: Vec<String>) -> Result<OwnedFd, Refused> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).map_err(Refused::Type)?;
    if let Some(source) = source {
        fsconfig_set_string(&context, "source", source).map_err(Refused::Whole)?;
    }
    for option in options {
        let set = match option.split_once('=') {
            Some((key, value)) => fsconfig_set_string(&context, key, value),
            None => fsconfig_set_flag(&context, option.as_str()),
        };
        set.map_err(|e| Refused::Option(option, e))?;
    }
    fsconfig_create(&context).map_err(Refused::Whole)?;
    Ok(context)
}

/// Has the kernel write what it still holds of the one that is mounted here.
///
/// # Errors
/// When there is none, or the kernel can't.
pub fn write_back(place: &Path) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    syncfs(open(place, flags, Mode::empty())?)
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, error) = match self {
            Self::Type(Errno::NODEV) => {
                return f.write_str("the guest's kernel has no such file system");
            }
            Self::Option(option, error) => (format!("option {option:?}: "), error),
            Self::Type(error) | Self::Whole(error) => (String::new(), error),
        };
        write!(f, "{what}{}", Message(&(*error).into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_cannot_be_written_back() {
        let folder = tempfile::tempdir().expect("a directory");
        assert_eq!(write_back(folder.path()), Ok(()));
        let gone = folder.path().join("gone");
        assert_eq!(write_back(&gone), Err(Errno::NOENT));
    }
}
