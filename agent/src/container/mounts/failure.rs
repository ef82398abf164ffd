//! Which mount it is that libcontainer can't make, and why.
//!
//! Its errors say neither. Its log has the mount, as `Debug` prints it, but of a system call only that it
//! failed. So the mount is known by that print; and what the kernel may not like about a new file system,
//! its type and its options, the kernel is asked once more, by the process that was refused.

use std::fmt;
use std::path::Path;

use oci_spec::runtime::Mount;
use rustix::io::Errno;
use rustix::mount::{FsOpenFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsopen};

use super::is_bind;
use super::options::Options;
use crate::container::devices::DEV;
use crate::error::{Failure, Message};

/// A mount that is left to libcontainer.
#[derive(Debug)]
pub struct Theirs {
    /// Its place in config.json's `mounts`.
    index: usize,
    /// As libcontainer gets it.
    mount: Mount,
}

/// What the kernel refuses of a file system.
#[derive(Debug)]
enum Refused {
    Type(Errno),
    Option(String, Errno),
    Whole(Errno),
}

impl Theirs {
    /// The mount at this place in `mounts`.
    pub fn new(index: usize, mount: &Mount) -> Self {
        let mount = mount.clone();
        Self { index, mount }
    }

    /// What the user is to be told if `logged` is of this mount's failure.
    pub fn failure(&self, logged: &str) -> Option<Failure> {
        let (_, cause) = logged.split_once(&self.printed())?;
        let why = match self.refused() {
            Some(refused) => refused.to_string(),
            None => cause.trim_start_matches(": ").to_owned(),
        };
        let destination = self.mount.destination().display();
        let what = match self.mount.typ().as_deref() {
            Some(kind) if !is_bind(&self.mount) => format!("cannot mount {kind}"),
            _ => "cannot bind it there".to_owned(),
        };
        let index = self.index;
        Some(Failure::config(format!(
            "mounts[{index}]: {destination}: {what}: {why}"
        )))
    }

    /// As libcontainer's log has it.
    fn printed(&self) -> String {
        match self.mount.destination() {
            dev if dev == Path::new(DEV) => format!("mount {}", dev.display()),
            _ => format!("{:?}", self.mount),
        }
    }

    fn refused(&self) -> Option<Refused> {
        if is_bind(&self.mount) {
            return None;
        }
        self.try_again().err()
    }

    /// Makes the file system without mounting it.
    fn try_again(&self) -> Result<(), Refused> {
        let kind = self.mount.typ().as_deref().unwrap_or_default();
        let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).map_err(Refused::Type)?;
        if let Some(source) = self.mount.source() {
            fsconfig_set_string(&context, "source", source).map_err(Refused::Whole)?;
        }
        for option in Options::read(&self.mount).file_system() {
            let set = match option.split_once('=') {
                Some((key, value)) => fsconfig_set_string(&context, key, value),
                None => fsconfig_set_flag(&context, option.as_str()),
            };
            set.map_err(|e| Refused::Option(option, e))?;
        }
        fsconfig_create(&context).map_err(Refused::Whole)
    }
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
    use serde_json::json;

    fn told(mount: serde_json::Value, logged: impl Fn(&Mount) -> String) -> Option<String> {
        let mount: Mount = serde_json::from_value(mount).expect("a mount");
        let failure = Theirs::new(3, &mount).failure(&logged(&mount));
        failure.map(|failure| failure.message)
    }

    #[test]
    fn a_mount_is_known_by_the_librarys_print_of_it() {
        let bind =
            json!({"destination": "/a", "type": "bind", "source": "/x", "options": ["bind"]});
        let logged = |mount: &Mount| format!("failed to mount {mount:?}: not a directory");
        let expected = "config.json: mounts[3]: /a: cannot bind it there: not a directory";
        assert_eq!(told(bind.clone(), logged).as_deref(), Some(expected));
        let others =
            |_: &Mount| "failed to mount Mount { destination: \"/b\" }: syscall".to_owned();
        assert_eq!(told(bind, others), None);
    }

    #[test]
    fn a_file_system_that_there_is_not_is_told() {
        let mount = json!({"destination": "/dev", "type": "nonsense", "source": "x"});
        let logged = |_: &Mount| "failed to mount /dev: syscall".to_owned();
        let said = told(mount, logged).expect("it is that mount");
        // Only root may ask.
        if rustix::process::geteuid().is_root() {
            let expected = "config.json: mounts[3]: /dev: cannot mount nonsense: the guest's kernel has no such file system";
            assert_eq!(said, expected);
        }
    }
}
