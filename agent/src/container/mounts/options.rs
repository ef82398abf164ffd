//! The options of one mount, read as mount(8) does: of contrary ones the last counts.
//!
//! The host has refused what nobody can do, so a word that isn't here is the file system's own.

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

/// The attributes that are about access times. Their kinds are one field, to which relatime is 0.
const TIMES: u64 = libc::MOUNT_ATTR__ATIME | libc::MOUNT_ATTR_NODIRATIME;

/// Attributes to set, and to clear before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    pub set: u64,
    pub clear: u64,
}

impl Change {
    /// The same with one attribute more to be set or cleared.
    fn and(self, bit: u64, set: bool) -> Self {
        // Their field is cleared before it is set.
        let field = match bit & libc::MOUNT_ATTR__ATIME {
            0 => 0,
            _ => libc::MOUNT_ATTR__ATIME,
        };
        let (clear, others) = match (set, field) {
            (true, 0) => (self.clear & !bit, self.set),
            (false, 0) => (self.clear | bit, self.set & !bit),
            _ => (self.clear | field, self.set & !field),
        };
        Self {
            set: if set { others | bit } else { others },
            clear,
        }
    }
}

/// The options of a mount.
#[derive(Debug, Default)]
pub struct Options {
    /// The attributes that are set in the end.
    pub set: u64,
    /// What is changed of the mounts below, too.
    pub recursive: Change,
    /// In their order.
    pub propagation: Vec<Propagation>,
    /// It changes the mount that is there.
    pub remount: bool,
    /// It is filled with what it covers.
    pub copy_up: bool,
    /// A bind mount takes the mounts below its source with it.
    pub below_too: bool,
    /// What is mounted below the source of a bind mount, on the host.
    pub below: Vec<Below>,
    /// `MS_SYNCHRONOUS` and `MS_DIRSYNC` of mount(2), by the names that fsconfig(2) has for them.
    synchronous: Vec<&'static str>,
    /// The file system's own, in their order.
    own: Vec<String>,
    /// Whether an option is about access times.
    times: bool,
    /// Whether the last option about their kind asks for relatime.
    relatime: bool,
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
        self.times |= word.ends_with("atime");
        if let Some((bit, set)) = attribute(word) {
            self.set = if set { self.set | bit } else { self.set & !bit };
            return;
        }
        if let Some((bit, set)) = recursive_attribute(word) {
            self.recursive = self.recursive.and(bit, set);
            return;
        }
        match word {
            "remount" => self.remount = true,
            "tmpcopyup" => self.copy_up = true,
            "rbind" => self.below_too = true,
            "relatime" => self.relatime = true,
            "norelatime" => self.relatime = false,
            "sync" => self.synchronous.push("sync"),
            "async" => self.synchronous.retain(|other| *other != "sync"),
            "dirsync" => self.synchronous.push("dirsync"),
            "bind" | "" => {}
            other => self.own.push(other.to_owned()),
        }
    }

    /// What is changed of a new mount, or one of a bind mount's: it has the attributes of its source.
    pub fn of_a_new_mount(&self) -> Change {
        let named = self.relatime || self.set & libc::MOUNT_ATTR__ATIME != 0;
        Change {
            set: self.set,
            clear: if named { libc::MOUNT_ATTR__ATIME } else { 0 },
        }
    }

    /// What a new file system is told. Whether it is read-only is an attribute of the mount: others may have
    /// the same file system.
    pub fn of_a_new_file_system(&self) -> Vec<String> {
        let own = self.own.iter().map(String::as_str);
        let words = own.chain(self.synchronous.iter().copied());
        words.map(str::to_owned).collect()
    }

    /// What the file system of a remount is told, or one that nobody else has.
    pub fn file_system(&self) -> Vec<String> {
        let read_only = match self.set & libc::MOUNT_ATTR_RDONLY {
            0 => "rw",
            _ => "ro",
        };
        let mut words = self.of_a_new_file_system();
        words.push(read_only.to_owned());
        words
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

    /// Takes out how it keeps access times, if an option is about them.
    pub fn take_times(&mut self) -> Option<Change> {
        let set = self.set & TIMES;
        self.set &= !TIMES;
        self.relatime = false;
        let clear = TIMES;
        std::mem::take(&mut self.times).then_some(Change { set, clear })
    }

    /// Whether it says which mode the root of a tmpfs has.
    pub fn names_mode(&self) -> bool {
        self.own.iter().any(|word| word.starts_with("mode="))
    }
}

/// The attribute of `rro` and so on.
fn recursive_attribute(word: &str) -> Option<(u64, bool)> {
    match word.strip_prefix('r')? {
        // The kind that is none of the others.
        "relatime" | "norelatime" => Some((libc::MOUNT_ATTR__ATIME, false)),
        plain => attribute(plain),
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
        assert_eq!(options.of_a_new_mount(), Change { set, clear: 0 });
        assert!(options.of_a_new_file_system().is_empty());
        let options = read(&["rro", "rnodev", "rrw"]).recursive;
        let (set, clear) = (libc::MOUNT_ATTR_NODEV, libc::MOUNT_ATTR_RDONLY);
        assert_eq!(options, Change { set, clear });
    }

    #[test]
    fn every_access_prevails_over_none() {
        for words in [["noatime", "strictatime"], ["strictatime", "noatime"]] {
            let set = libc::MOUNT_ATTR_STRICTATIME;
            let clear = libc::MOUNT_ATTR__ATIME;
            assert_eq!(read(&words).of_a_new_mount(), Change { set, clear });
        }
        let options = read(&["strictatime", "noatime", "nostrictatime"]);
        assert_eq!(options.set, libc::MOUNT_ATTR_NOATIME);
    }

    #[test]
    fn the_kinds_of_access_times_are_one_field() {
        let clear = libc::MOUNT_ATTR__ATIME;
        let of = |words: &[&str]| read(words).recursive;
        let relatime = Change { set: 0, clear };
        assert_eq!(of(&["rnoatime", "rrelatime"]), relatime);
        assert_eq!(of(&["ratime"]), relatime);
        let set = libc::MOUNT_ATTR_STRICTATIME;
        assert_eq!(of(&["rnoatime", "rstrictatime"]), Change { set, clear });
        assert_eq!(read(&["relatime"]).of_a_new_mount(), relatime);
        assert_eq!(read(&["nodiratime"]).of_a_new_mount().clear, 0);
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
