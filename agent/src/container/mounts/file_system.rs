//! A file system that the guest's kernel makes, and what it refuses of one: fsopen(2), fsconfig(2).

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::Path;

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
