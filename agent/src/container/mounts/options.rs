//! The options of one mount, parsed as mount(8) does: of contrary options the last one counts.
//!
//! The host has refused unsupported options, so one that isn't known here is the file system's own.

use hull_protocol::paths::SUBMOUNT_OPTION;
use oci_spec::runtime::Mount;

/// A propagation type, mount_namespaces(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Propagation {
    /// One of `MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE`, `MS_UNBINDABLE`.
    pub flag: u64,
    /// Whether it applies to the mounts below as well.
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

/// The attribute `MOUNT_ATTR_*` of an option, and whether the option sets or clears it.
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
    | ATIME_ATTRIBUTES;

/// A mount on the host below the source of a bind mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submount {
    /// Its path, relative to the source.
    pub path: String,
    /// Its attributes, `MOUNT_ATTR_*`.
    pub set: u64,
}

impl Submount {
    /// Parses `ATTRIBUTES:PATH`, the attributes as in mountinfo.
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

/// The attributes about access times. `MOUNT_ATTR__ATIME` is a field of several bits, in which relatime is 0.
const ATIME_ATTRIBUTES: u64 = libc::MOUNT_ATTR__ATIME | libc::MOUNT_ATTR_NODIRATIME;

/// Attributes to set, and attributes to clear before that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttributeChange {
    pub set: u64,
    pub clear: u64,
}

impl AttributeChange {
    /// The same with one attribute more to be set or cleared.
    fn with(self, bit: u64, set: bool) -> Self {
        // The access time field is cleared before it is set.
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
    /// The change to the mount and those below it (`rro` and so on).
    pub recursive: AttributeChange,
    /// Propagation types, in their order.
    pub propagation: Vec<Propagation>,
    /// Whether it changes an existing mount.
    pub remount: bool,
    /// Whether the contents of the directory that it is mounted on are copied into it (`tmpcopyup`).
    pub copy_up: bool,
    /// Whether a bind mount includes the mounts below its source (`rbind`).
    pub recursive_bind: bool,
    /// The mounts on the host below the source of a bind mount.
    pub submounts: Vec<Submount>,
    /// `MS_SYNCHRONOUS` and `MS_DIRSYNC` of mount(2), by their names in fsconfig(2).
    synchronous: Vec<&'static str>,
    /// The file system's own, in their order.
    file_system: Vec<String>,
    /// Whether an option is about access times.
    names_atime: bool,
    /// Whether the last of `relatime` and `norelatime` is `relatime`.
    relatime: bool,
}

impl Options {
    /// Parses a mount's options.
    pub fn read(mount: &Mount) -> Self {
        let mut read = Self::default();
        for word in mount.options().iter().flatten() {
            read.add(word);
        }
        // As in mount(2), strictatime overrides noatime in any order.
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
        if let Some(submount) = word.strip_prefix(SUBMOUNT_OPTION) {
            self.submounts.extend(Submount::of(submount));
            return;
        }
        self.names_atime |= word.ends_with("atime") && recursive_attribute(word).is_none();
        if let Some((bit, set)) = attribute(word) {
            self.set = if set { self.set | bit } else { self.set & !bit };
            return;
        }
        if let Some((bit, set)) = recursive_attribute(word) {
            self.recursive = self.recursive.with(bit, set);
            return;
        }
        match word {
            "remount" => self.remount = true,
            "tmpcopyup" => self.copy_up = true,
            "rbind" => self.recursive_bind = true,
            "relatime" => self.relatime = true,
            "norelatime" => self.relatime = false,
            "sync" => self.synchronous.push("sync"),
            "async" => self.synchronous.retain(|other| *other != "sync"),
            "dirsync" => self.synchronous.push("dirsync"),
            "bind" | "" => {}
            other => self.file_system.push(other.to_owned()),
        }
    }

    /// The change to a new mount. A bind mount begins with the attributes of its source.
    pub fn new_mount_attributes(&self) -> AttributeChange {
        let named = self.relatime || self.set & libc::MOUNT_ATTR__ATIME != 0;
        AttributeChange {
            set: self.set,
            clear: if named { libc::MOUNT_ATTR__ATIME } else { 0 },
        }
    }

    /// The options of a new file system. `ro` isn't among them but an attribute of the mount, as other mounts may
    /// share the file system.
    pub fn new_file_system_options(&self) -> Vec<String> {
        let own = self.file_system.iter().map(String::as_str);
        let words = own.chain(self.synchronous.iter().copied());
        words.map(str::to_owned).collect()
    }

    /// The options for reconfiguring a file system by a remount, or for a new one that no other mount shares.
    pub fn remount_options(&self) -> Vec<String> {
        let read_only = match self.set & libc::MOUNT_ATTR_RDONLY {
            0 => "rw",
            _ => "ro",
        };
        let mut words = self.new_file_system_options();
        words.push(read_only.to_owned());
        words
    }

    /// The attributes that a remount clears: those that it doesn't set. As in mount(2), those about access times are
    /// kept unless an option names one.
    pub fn cleared_by_remount(&self) -> u64 {
        let mut all = libc::MOUNT_ATTR_RDONLY
            | libc::MOUNT_ATTR_NOSUID
            | libc::MOUNT_ATTR_NODEV
            | libc::MOUNT_ATTR_NOEXEC
            | libc::MOUNT_ATTR_NOSYMFOLLOW;
        if self.names_atime {
            all |= ATIME_ATTRIBUTES;
        }
        // The access time field is cleared before it is set.
        all & (!self.set | libc::MOUNT_ATTR__ATIME)
    }

    /// Removes the attributes about access times, and returns them as a change if an option is about them.
    pub fn take_atime(&mut self) -> Option<AttributeChange> {
        let set = self.set & ATIME_ATTRIBUTES;
        self.set &= !ATIME_ATTRIBUTES;
        self.relatime = false;
        let clear = ATIME_ATTRIBUTES;
        std::mem::take(&mut self.names_atime).then_some(AttributeChange { set, clear })
    }

    /// Whether an option sets the mode of a tmpfs's root.
    pub fn has_mode(&self) -> bool {
        self.file_system
            .iter()
            .any(|word| word.starts_with("mode="))
    }
}

/// The attribute of `rro` and so on.
fn recursive_attribute(word: &str) -> Option<(u64, bool)> {
    match word.strip_prefix('r')? {
        // relatime is 0 in the access time field.
        "relatime" | "norelatime" => Some((libc::MOUNT_ATTR__ATIME, false)),
        plain => attribute(plain),
    }
}

/// Whether an option is about the mount, rather than its file system.
pub fn is_mount_option(word: &str) -> bool {
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
        assert_eq!(
            options.new_mount_attributes(),
            AttributeChange { set, clear: 0 }
        );
        assert!(options.new_file_system_options().is_empty());
        let options = read(&["rro", "rnodev", "rrw"]).recursive;
        let (set, clear) = (libc::MOUNT_ATTR_NODEV, libc::MOUNT_ATTR_RDONLY);
        assert_eq!(options, AttributeChange { set, clear });
    }

    #[test]
    fn strictatime_overrides_noatime() {
        for words in [["noatime", "strictatime"], ["strictatime", "noatime"]] {
            let set = libc::MOUNT_ATTR_STRICTATIME;
            let clear = libc::MOUNT_ATTR__ATIME;
            assert_eq!(
                read(&words).new_mount_attributes(),
                AttributeChange { set, clear }
            );
        }
        let options = read(&["strictatime", "noatime", "nostrictatime"]);
        assert_eq!(options.set, libc::MOUNT_ATTR_NOATIME);
    }

    #[test]
    fn access_time_options_share_one_field() {
        let clear = libc::MOUNT_ATTR__ATIME;
        let of = |words: &[&str]| read(words).recursive;
        let relatime = AttributeChange { set: 0, clear };
        assert_eq!(of(&["rnoatime", "rrelatime"]), relatime);
        assert_eq!(of(&["ratime"]), relatime);
        let set = libc::MOUNT_ATTR_STRICTATIME;
        assert_eq!(
            of(&["rnoatime", "rstrictatime"]),
            AttributeChange { set, clear }
        );
        assert_eq!(read(&["relatime"]).new_mount_attributes(), relatime);
        assert_eq!(read(&["nodiratime"]).new_mount_attributes().clear, 0);
        // Recursive ones are changed afterwards, and say nothing of the mount itself.
        assert_eq!(read(&["rnoatime"]).take_atime(), None);
    }

    #[test]
    fn a_mount_below_has_its_attributes() {
        let options = read(&[
            &format!("{SUBMOUNT_OPTION}rw,nosuid,noexec,relatime:a:b"),
            &format!("{SUBMOUNT_OPTION}ro:c"),
        ]);
        let submount = |path: &str, set| Submount {
            path: path.to_owned(),
            set,
        };
        let first = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC;
        let second = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_STRICTATIME;
        assert_eq!(
            options.submounts,
            [submount("a:b", first), submount("c", second)]
        );
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
        assert_eq!(options.set & options.cleared_by_remount(), 0);
        assert_ne!(options.cleared_by_remount() & libc::MOUNT_ATTR_NOEXEC, 0);
        assert_eq!(options.cleared_by_remount() & libc::MOUNT_ATTR__ATIME, 0);
        assert_eq!(options.remount_options(), ["size=1m", "ro"]);
        assert_ne!(
            read(&["noatime"]).cleared_by_remount() & libc::MOUNT_ATTR__ATIME,
            0
        );
    }
}
