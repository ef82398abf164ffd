//! The mount options of the runtime-spec (config.md, "Linux mount options") and of runc, and what becomes
//! of each.
//!
//! An option that isn't listed is a file system's own (`size=64m`) and goes to it unread.

/// What hull does with a mount option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// Makes it a bind mount.
    Bind,
    /// An attribute of the mount, set in the guest. On a bind mount the host refuses writes too, where it
    /// is to be read-only.
    Attribute,
    /// The same for the mount and all below it.
    Recursive,
    /// A flag of the file system as a whole, set by whose kernel mounts it. Bind mounts have none.
    FileSystem,
    /// What mounts below it come and go with it: the guest's in the guest, and the host's where the
    /// host shares it.
    Propagation,
    /// Whose the files are: the host changes that.
    Owners,
    /// A tmpfs is filled, in the guest.
    Fill,
    /// Changes a mount that is there, in the guest.
    Remount,
    /// What a mount is anyway: nothing to do.
    Default,
    /// Refused, for this reason.
    Refused(&'static str),
}

use Treatment::{
    Attribute, Bind, Default, FileSystem, Fill, Owners, Propagation, Recursive, Refused, Remount,
};

/// The options, sorted by name.
pub const OPTIONS: &[(&str, Treatment)] = &[
    // The guest's file systems that know ACLs have them.
    ("acl", Default),
    ("async", FileSystem),
    ("atime", Attribute),
    ("bind", Bind),
    ("defaults", Default),
    ("dev", Attribute),
    ("diratime", Attribute),
    ("dirsync", FileSystem),
    ("exec", Attribute),
    ("idmap", Owners),
    // The guest's file systems that count versions do so; nothing of it shows.
    ("iversion", Default),
    ("lazytime", FileSystem),
    ("loud", Default),
    (
        "mand",
        Refused("Linux has had no mandatory locks since 5.15"),
    ),
    ("noacl", Default),
    ("noatime", Attribute),
    ("nodev", Attribute),
    ("nodiratime", Attribute),
    ("noexec", Attribute),
    ("noiversion", Default),
    ("nolazytime", FileSystem),
    ("nomand", Default),
    ("norelatime", Attribute),
    ("nostrictatime", Attribute),
    ("nosuid", Attribute),
    ("nosymfollow", Attribute),
    ("private", Propagation),
    ("ratime", Recursive),
    ("rbind", Bind),
    ("rdev", Recursive),
    ("rdiratime", Recursive),
    ("relatime", Attribute),
    ("remount", Remount),
    ("rexec", Recursive),
    ("ridmap", Owners),
    ("rnoatime", Recursive),
    ("rnodev", Recursive),
    ("rnodiratime", Recursive),
    ("rnoexec", Recursive),
    ("rnorelatime", Recursive),
    ("rnostrictatime", Recursive),
    ("rnosuid", Recursive),
    ("rnosymfollow", Recursive),
    ("ro", Attribute),
    ("rprivate", Propagation),
    ("rrelatime", Recursive),
    ("rro", Recursive),
    ("rrw", Recursive),
    ("rshared", Propagation),
    ("rslave", Propagation),
    ("rstrictatime", Recursive),
    ("rsuid", Recursive),
    ("rsymfollow", Recursive),
    ("runbindable", Propagation),
    ("rw", Attribute),
    ("shared", Propagation),
    ("silent", Default),
    ("slave", Propagation),
    ("strictatime", Attribute),
    ("suid", Attribute),
    ("symfollow", Attribute),
    ("sync", FileSystem),
    ("tmpcopyup", Fill),
    ("unbindable", Propagation),
];

/// What becomes of an option; `None` for a file system's own.
pub fn treatment(option: &str) -> Option<Treatment> {
    let found = OPTIONS
        .binary_search_by_key(&option, |(name, _)| name)
        .ok()?;
    OPTIONS.get(found).map(|(_, treatment)| *treatment)
}

/// The flags of mount(2) that options leave set: of contrary ones the last counts.
pub fn flags(options: &[String]) -> u64 {
    options.iter().fold(0, |flags, option| match flag(option) {
        Some((bits, true)) => flags | bits,
        Some((bits, false)) => flags & !bits,
        None => flags,
    })
}

/// What mount(2) passes to the file system: what it has no flag for. A file system refuses what it doesn't know.
pub fn for_file_system(options: &[String]) -> String {
    let is_passed = |option: &&String| {
        flag(option).is_none() && !matches!(treatment(option), Some(Bind | Default))
    };
    let passed: Vec<_> = options
        .iter()
        .filter(is_passed)
        .map(String::as_str)
        .collect();
    passed.join(",")
}

/// An option as a flag of mount(2), and whether it sets or clears it.
fn flag(option: &str) -> Option<(u64, bool)> {
    let found = match option {
        "ro" => (libc::MS_RDONLY, true),
        "rw" => (libc::MS_RDONLY, false),
        "nosuid" => (libc::MS_NOSUID, true),
        "suid" => (libc::MS_NOSUID, false),
        "nodev" => (libc::MS_NODEV, true),
        "dev" => (libc::MS_NODEV, false),
        "noexec" => (libc::MS_NOEXEC, true),
        "exec" => (libc::MS_NOEXEC, false),
        "nosymfollow" => (MS_NOSYMFOLLOW, true),
        "symfollow" => (MS_NOSYMFOLLOW, false),
        "sync" => (libc::MS_SYNCHRONOUS, true),
        "async" => (libc::MS_SYNCHRONOUS, false),
        "dirsync" => (libc::MS_DIRSYNC, true),
        "lazytime" => (libc::MS_LAZYTIME, true),
        "nolazytime" => (libc::MS_LAZYTIME, false),
        "iversion" => (libc::MS_I_VERSION, true),
        "noiversion" => (libc::MS_I_VERSION, false),
        "acl" => (libc::MS_POSIXACL, true),
        "noacl" => (libc::MS_POSIXACL, false),
        "silent" => (libc::MS_SILENT, true),
        "loud" => (libc::MS_SILENT, false),
        "noatime" => (libc::MS_NOATIME, true),
        "atime" => (libc::MS_NOATIME, false),
        "nodiratime" => (libc::MS_NODIRATIME, true),
        "diratime" => (libc::MS_NODIRATIME, false),
        "relatime" => (libc::MS_RELATIME, true),
        "norelatime" => (libc::MS_RELATIME, false),
        "strictatime" => (libc::MS_STRICTATIME, true),
        "nostrictatime" => (libc::MS_STRICTATIME, false),
        _ => return None,
    };
    Some(found)
}

/// linux/mount.h; libc has it for other systems only.
const MS_NOSYMFOLLOW: u64 = 1 << 8;

/// The options that are not refused, by name.
pub fn supported() -> impl Iterator<Item = &'static str> {
    OPTIONS
        .iter()
        .filter(|(_, treatment)| !matches!(treatment, Refused(_)))
        .map(|(name, _)| *name)
}

/// The options that are refused wherever they stand, with the reason.
pub fn refused() -> impl Iterator<Item = (&'static str, &'static str)> {
    OPTIONS
        .iter()
        .filter_map(|(name, treatment)| match treatment {
            Refused(reason) => Some((*name, *reason)),
            _ => None,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_so_that_every_option_is_found() {
        assert!(OPTIONS.is_sorted_by_key(|(name, _)| *name));
        assert_eq!(treatment("rro"), Some(Recursive));
        assert_eq!(treatment("size=1m"), None);
    }
}
