//! The options of one mount, read as mount(8) does: of contrary ones the last counts.
//!
//! The host has refused what nobody can do, so a word that isn't here is libcontainer's, or the file
//! system's own.

use hull_protocol::paths::BELOW;
use oci_spec::runtime::Mount;

/// What a mount passes on of the mounts below it, and gets, mount_namespaces(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Propagation {
    /// One of `MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE`, `MS_UNBINDABLE`.
    pub flag: u64,
    /// For the mounts below as well.
    pub recursive: bool,
}

impl Propagation {
    /// Reads `shared`, `rshared` and so on.
    pub fn of(word: &str) -> Option<Self> {
        let (name, recursive) = match word.strip_prefix('r') {
            Some(name) => (name, true),
            None => (word, false),
        };
        let flag = match name {
            "shared" => libc::MS_SHARED,
            "slave" => libc::MS_SLAVE,
            "private" => libc::MS_PRIVATE,
            "unbindable" => libc::MS_UNBINDABLE,
            _ => return None,
        };
        Some(Self { flag, recursive })
    }
}

/// The attributes of a mount, set or cleared: `MOUNT_ATTR_*`.
fn attribute(word: &str) -> Option<(u64, bool)> {
    let found = match word {
        "ro" => (libc::MOUNT_ATTR_RDONLY, true),
        "rw" => (libc::MOUNT_ATTR_RDONLY, false),
        "nosuid" => (libc::MOUNT_ATTR_NOSUID, true),
        "suid" => (libc::MOUNT_ATTR_NOSUID, false),
        "nodev" => (libc::MOUNT_ATTR_NODEV, true),
        "dev" => (libc::MOUNT_ATTR_NODEV, false),
        "noexec" => (libc::MOUNT_ATTR_NOEXEC, true),
        "exec" => (libc::MOUNT_ATTR_NOEXEC, false),
        "noatime" => (libc::MOUNT_ATTR_NOATIME, true),
        "atime" => (libc::MOUNT_ATTR_NOATIME, false),
        "strictatime" => (libc::MOUNT_ATTR_STRICTATIME, true),
        "nostrictatime" => (libc::MOUNT_ATTR_STRICTATIME, false),
        "nodiratime" => (libc::MOUNT_ATTR_NODIRATIME, true),
        "diratime" => (libc::MOUNT_ATTR_NODIRATIME, false),
        "nosymfollow" => (libc::MOUNT_ATTR_NOSYMFOLLOW, true),
        "symfollow" => (libc::MOUNT_ATTR_NOSYMFOLLOW, false),
        _ => return None,
    };
    Some(found)
}

/// All attributes that a mount can have.
pub const ATTRIBUTES: u64 = libc::MOUNT_ATTR_RDONLY
    | libc::MOUNT_ATTR_NOSUID
    | libc::MOUNT_ATTR_NODEV
    | libc::MOUNT_ATTR_NOEXEC
    | libc::MOUNT_ATTR_NOSYMFOLLOW
    | TIMES;

/// A mount of the host's below the source of a bind mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Below {
    /// Its path, from the source.
    pub path: String,
    /// Its attributes, `MOUNT_ATTR_*`.
    pub set: u64,
}

impl Below {
    /// Reads the attributes as mountinfo has them, and the path.
    fn of(words: &str) -> Option<Self> {
        let (attributes, path) = words.split_once(':')?;
        let words = || attributes.split(',');
        let set = words().filter_map(attribute).filter(|(_, set)| *set);
        let every = !words().any(|word| matches!(word, "relatime" | "noatime"));
        let times = if every {
            libc::MOUNT_ATTR_STRICTATIME
        } else {
            0
        };
        Some(Self {
            path: path.to_owned(),
            set: set.fold(times, |all, (bit, _)| all | bit),
        })
    }
}

/// How a mount keeps access times: attributes to set, and to clear before.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    pub set: u64,
    pub clear: u64,
}

/// The attributes that are about access times. Their kinds are one field, to which relatime is 0.
const TIMES: u64 = libc::MOUNT_ATTR__ATIME | libc::MOUNT_ATTR_NODIRATIME;

/// The options of a mount.
#[derive(Debug, Default)]
pub struct Options {
    /// The attributes that are set in the end.
    pub set: u64,
    /// In their order.
    pub propagation: Vec<Propagation>,
    /// It changes the mount that is there.
    pub remount: bool,
    /// It is filled with what it covers.
    pub copy_up: bool,
    /// What is mounted below the source of a bind mount, on the host.
    pub below: Vec<Below>,
    /// `MS_SYNCHRONOUS` and `MS_DIRSYNC` of mount(2), by the names that fsconfig(2) has for them.
    synchronous: Vec<&'static str>,
    /// All others, in their order, and the attributes that libcontainer knows.
    others: Vec<String>,
    /// Whether an option is about access times.
    times: bool,
}

impl Options {
    /// Reads a mount's options.
    pub fn read(mount: &Mount) -> Self {
        let mut read = Self::default();
        for word in mount.options().iter().flatten() {
            read.add(word);
        }
        // As in mount(2), wherever they stand.
        if read.set & libc::MOUNT_ATTR_STRICTATIME != 0 {
            read.set &= !libc::MOUNT_ATTR_NOATIME;
        }
        read
    }

    fn add(&mut self, word: &str) {
        if let Some(propagation) = Propagation::of(word) {
            self.propagation.push(propagation);
            return;
        }
        if let Some(below) = word.strip_prefix(BELOW) {
            self.below.extend(Below::of(below));
            return;
        }
        if let Some((bit, set)) = attribute(word) {
            self.set = if set { self.set | bit } else { self.set & !bit };
        }
        self.times |= word.ends_with("atime");
        match word {
            "remount" => self.remount = true,
            "tmpcopyup" => self.copy_up = true,
            "sync" => self.synchronous.push("sync"),
            "async" => self.synchronous.retain(|other| *other != "sync"),
            "dirsync" => self.synchronous.push("dirsync"),
            "nosymfollow" | "symfollow" => {}
            other => self.others.push(other.to_owned()),
        }
    }

    /// The options for libcontainer.
    ///
    /// It takes `sync` and `dirsync` for flags of the mount, and forgets them. With a `=` they pass for
    /// options of the file system, and the kernel looks at the key alone. A bind mount has no such
    /// flags, for the kernel neither.
    pub fn libcontainers(&self, bind: bool) -> Vec<String> {
        let mut words = self.others.clone();
        if self.set & libc::MOUNT_ATTR_RDONLY == 0 {
            words.retain(|word| word != "ro" && word != "rw");
        }
        if self.set & libc::MOUNT_ATTR_NOATIME == 0 {
            words.retain(|word| word != "noatime");
        }
        if !bind {
            words.extend(self.synchronous.iter().map(|word| format!("{word}=")));
        }
        words
    }

    /// What the file system of a remount is told.
    pub fn file_system(&self) -> Vec<String> {
        let read_only = match self.set & libc::MOUNT_ATTR_RDONLY {
            0 => "rw",
            _ => "ro",
        };
        let words = self.others.iter().map(String::as_str);
        let own = words.filter(|word| !is_of_the_mount(word));
        own.chain(self.synchronous.iter().copied())
            .chain([read_only])
            .map(str::to_owned)
            .collect()
    }

    /// The attributes that a remount clears: those that it doesn't set. Without a word about access
    /// times these stay, as in mount(2).
    pub fn others(&self) -> u64 {
        let mut all = libc::MOUNT_ATTR_RDONLY
            | libc::MOUNT_ATTR_NOSUID
            | libc::MOUNT_ATTR_NODEV
            | libc::MOUNT_ATTR_NOEXEC
            | libc::MOUNT_ATTR_NOSYMFOLLOW;
        if self.times {
            all |= TIMES;
        }
        // That field is cleared before it is set.
        all & (!self.set | libc::MOUNT_ATTR__ATIME)
    }

    /// How it keeps access times, if an option is about them.
    pub fn times(&self) -> Option<Times> {
        self.times.then_some(Times {
            set: self.set & TIMES,
            clear: TIMES,
        })
    }

    /// Whether it says which mode the root of a tmpfs has.
    pub fn names_mode(&self) -> bool {
        self.others.iter().any(|word| word.starts_with("mode="))
    }
}

/// Whether a word is about the mount, and not about its file system.
pub fn is_of_the_mount(word: &str) -> bool {
    let plain = word.strip_prefix('r').unwrap_or(word);
    Propagation::of(word).is_some()
        || attribute(word).is_some()
        || attribute(plain).is_some()
        || plain.ends_with("atime")
        || matches!(word, "bind" | "rbind" | "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &[&str]) -> Options {
        let mut mount = Mount::default();
        mount.set_options(Some(words.iter().map(|word| (*word).to_owned()).collect()));
        Options::read(&mount)
    }

    #[test]
    fn the_last_of_contrary_options_counts() {
        let options = read(&["ro", "nosuid", "rw", "sync", "async", "nosymfollow"]);
        let set = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOSYMFOLLOW;
        assert_eq!(options.set, set);
        assert_eq!(options.libcontainers(false), ["nosuid"]);
    }

    #[test]
    fn every_access_prevails_over_none() {
        for words in [["noatime", "strictatime"], ["strictatime", "noatime"]] {
            let options = read(&words);
            assert_eq!(options.set, libc::MOUNT_ATTR_STRICTATIME);
            assert_eq!(options.libcontainers(true), ["strictatime"]);
        }
        let options = read(&["strictatime", "noatime", "nostrictatime"]);
        assert_eq!(options.set, libc::MOUNT_ATTR_NOATIME);
    }

    #[test]
    fn a_mount_below_has_its_attributes() {
        let options = read(&[
            &format!("{BELOW}rw,nosuid,noexec,relatime:a:b"),
            &format!("{BELOW}ro:c"),
        ]);
        let below = |path: &str, set| Below {
            path: path.to_owned(),
            set,
        };
        let first = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC;
        let second = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_STRICTATIME;
        assert_eq!(options.below, [below("a:b", first), below("c", second)]);
    }

    #[test]
    fn propagation_is_read_by_name() {
        let slave = Propagation::of("rslave").expect("a kind");
        assert_eq!((slave.flag, slave.recursive), (libc::MS_SLAVE, true));
        assert_eq!(Propagation::of("ro"), None);
        assert_eq!(Propagation::of("public"), None);
    }

    #[test]
    fn a_remount_clears_what_it_does_not_set() {
        let options = read(&["remount", "ro", "nodev", "size=1m"]);
        assert_eq!(options.set & options.others(), 0);
        assert_ne!(options.others() & libc::MOUNT_ATTR_NOEXEC, 0);
        assert_eq!(options.others() & libc::MOUNT_ATTR__ATIME, 0);
        assert_eq!(options.file_system(), ["size=1m", "ro"]);
        assert_ne!(read(&["noatime"]).others() & libc::MOUNT_ATTR__ATIME, 0);
    }
}
