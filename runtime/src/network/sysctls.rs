//! Sysctls of one interface (`net.ipv4.conf.IF` and the like) that somebody has changed: those that aren't as the
//! namespace's `default`, which is what an interface starts with. For neighbours only the host's own namespace has a
//! `default`, and all others' interfaces start with that; so has `lo`, which tells it there.
//!
//! What `default` itself says isn't carried along. It is the host's own choice, as of most distributions for
//! `rp_filter`, and no engine's for this container; an engine's `--sysctl` is in config.json.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, openat, statat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::Error;

/// A sysctl of an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sysctl {
    /// Which of the four tables it is in.
    pub table: SysctlTable,
    /// Its name there: `rp_filter`, `disable_ipv6`.
    pub name: String,
    /// What is to be written to its file.
    pub value: String,
}

impl Sysctl {
    /// Its file below `/proc/sys`, for an interface of this name.
    pub fn path(&self, interface: &str) -> PathBuf {
        Path::new(self.table.folder())
            .join(interface)
            .join(&self.name)
    }

    /// Whether it is this one, with this value.
    pub(super) fn is(&self, table: SysctlTable, name: &str, value: &str) -> bool {
        (self.table, self.name.as_str(), self.value.as_str()) == (table, name, value)
    }
}

/// Where an interface has sysctls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SysctlTable {
    /// `net.ipv4.conf`
    Ipv4,
    /// `net.ipv6.conf`
    Ipv6,
    /// `net.ipv4.neigh`
    Ipv4Neighbours,
    /// `net.ipv6.neigh`
    Ipv6Neighbours,
}

impl SysctlTable {
    const ALL: [Self; 4] = [
        Self::Ipv4,
        Self::Ipv6,
        Self::Ipv4Neighbours,
        Self::Ipv6Neighbours,
    ];

    /// The folder below `/proc/sys` that has one for each interface.
    pub fn folder(self) -> &'static str {
        match self {
            Self::Ipv4 => "net/ipv4/conf",
            Self::Ipv6 => "net/ipv6/conf",
            Self::Ipv4Neighbours => "net/ipv4/neigh",
            Self::Ipv6Neighbours => "net/ipv6/neigh",
        }
    }
}

/// The most bytes that a value has. Longer ones aren't an interface's.
const LONGEST: usize = 4096;

/// The sysctls of an interface that aren't as `default`. To be called by a thread in the namespace.
///
/// # Errors
/// When a file can't be read.
pub(super) fn changed(interface: &str, mtu: u32) -> Result<Vec<Sysctl>, Error> {
    let mut all = Vec::new();
    for table in SysctlTable::ALL {
        let Some(own) = Folder::open(table, interface)? else {
            continue;
        };
        let default = match Folder::open(table, "default")? {
            None => Folder::open(table, "lo")?,
            default => default,
        };
        for name in own.names()? {
            let Some(value) = own.read(&name)? else {
                continue;
            };
            let default = default.as_ref().map(|folder| folder.read(&name));
            let is_default = default.transpose()?.flatten().as_ref() == Some(&value);
            // An interface's IPv6 MTU follows its own, `default` has the least that IPv6 can do with.
            let follows = name == "mtu" && value.parse() == Ok(mtu);
            if !is_default && !follows && own.is_writable(&name)? {
                all.push(Sysctl { table, name, value });
            }
        }
    }
    Ok(all)
}

/// The sysctls of an interface, or of `default`. There are hundreds, so they are opened from here.
struct Folder {
    path: PathBuf,
    fd: OwnedFd,
}

impl Folder {
    /// `None` where there is no such folder, as without IPv6.
    fn open(table: SysctlTable, name: &str) -> Result<Option<Self>, Error> {
        let path = Path::new("/proc/sys").join(table.folder()).join(name);
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        match openat(CWD, &path, flags, Mode::empty()) {
            Ok(fd) => Ok(Some(Self { path, fd })),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(Error::Sysctl {
                path,
                source: e.into(),
            }),
        }
    }

    /// What is in it, sorted. A time that is there twice, in milliseconds too, is taken once. `addr_gen_mode` comes
    /// last, as `stable_secret` changes it.
    fn names(&self) -> Result<Vec<String>, Error> {
        let list = || -> rustix::io::Result<Vec<String>> {
            let mut names = Vec::new();
            for entry in Dir::read_from(&self.fd)? {
                let name = entry?.file_name().to_string_lossy().into_owned();
                if !matches!(name.as_str(), "." | "..") {
                    names.push(name);
                }
            }
            Ok(names)
        };
        let mut names = list().map_err(|e| self.failed(None, e))?;
        names.sort();
        let in_milliseconds = |name: &String| names.binary_search(&format!("{name}_ms")).is_ok();
        let mut once: Vec<_> = (names.iter())
            .filter(|name| !in_milliseconds(name))
            .cloned()
            .collect();
        once.sort_by_key(|name| name == "addr_gen_mode");
        Ok(once)
    }

    /// A value; `None` for one that isn't set, and one that is gone with its interface.
    fn read(&self, name: &str) -> Result<Option<String>, Error> {
        let mut value = [0; LONGEST];
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let mut read = || -> rustix::io::Result<usize> {
            let file = openat(&self.fd, name, flags, Mode::empty())?;
            rustix::io::read(file, &mut value)
        };
        match read() {
            Ok(length) => {
                let value = String::from_utf8_lossy(&value[..length]);
                Ok(Some(value.trim_end().to_owned()))
            }
            // EIO: a `stable_secret` that nobody has set. EACCES: one that can only be written.
            Err(Errno::NOENT | Errno::IO | Errno::ACCESS) => Ok(None),
            Err(e) => Err(self.failed(Some(name), e)),
        }
    }

    fn is_writable(&self, name: &str) -> Result<bool, Error> {
        let about = statat(&self.fd, name, AtFlags::empty());
        let about = about.map_err(|e| self.failed(Some(name), e))?;
        Ok(Mode::from_raw_mode(about.st_mode).contains(Mode::WUSR))
    }

    fn failed(&self, name: Option<&str>, error: Errno) -> Error {
        Error::Sysctl {
            path: name.map_or_else(|| self.path.clone(), |name| self.path.join(name)),
            source: error.into(),
        }
    }
}
