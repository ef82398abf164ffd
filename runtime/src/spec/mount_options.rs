//! The mount options of the runtime-spec (config.md, "Linux mount options"), and what becomes of each.
//!
//! An option that isn't listed is a file system's own (`size=64m`) and goes to it unread.

use super::refuse::Refusal;

/// What hull does with a mount option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Treatment {
    /// A flag or attribute of the mount, set in the guest.
    Flag,
    /// What a mount is anyway, in a guest: nothing to do.
    Default,
    /// Refused, for this reason.
    Refused(&'static str),
}

use Treatment::{Default, Flag, Refused};

const PROPAGATES: &str = "a mount made inside the guest cannot appear on the host";
const RECEIVES: &str = "hull does not pass on what the host mounts later yet";
const UNBINDABLE: &str = "hull has no unbindable mounts yet";
const SUPERBLOCK: &str = "hull does not set it yet";
const IDMAP: &str = "hull has no id-mapped mounts yet";

/// The options, sorted by name.
pub const OPTIONS: &[(&str, Treatment)] = &[
    ("async", Default),
    ("atime", Flag),
    ("bind", Flag),
    ("defaults", Default),
    ("dev", Flag),
    ("diratime", Flag),
    ("dirsync", Refused(SUPERBLOCK)),
    ("exec", Flag),
    ("idmap", Refused(IDMAP)),
    ("iversion", Refused(SUPERBLOCK)),
    ("lazytime", Refused(SUPERBLOCK)),
    ("loud", Default),
    (
        "mand",
        Refused("Linux has had no mandatory locks since 5.15"),
    ),
    ("noatime", Flag),
    ("nodev", Flag),
    ("nodiratime", Flag),
    ("noexec", Flag),
    ("noiversion", Default),
    ("nolazytime", Default),
    ("nomand", Default),
    ("norelatime", Flag),
    ("nostrictatime", Flag),
    ("nosuid", Flag),
    ("nosymfollow", Refused(SUPERBLOCK)),
    ("private", Default),
    ("ratime", Flag),
    ("rbind", Flag),
    ("rdev", Flag),
    ("rdiratime", Flag),
    ("relatime", Flag),
    (
        "remount",
        Refused("hull changes no mount that config.json has not made"),
    ),
    ("rexec", Flag),
    ("ridmap", Refused(IDMAP)),
    ("rnoatime", Flag),
    ("rnodev", Flag),
    ("rnodiratime", Flag),
    ("rnoexec", Flag),
    ("rnorelatime", Flag),
    ("rnostrictatime", Flag),
    ("rnosuid", Flag),
    ("rnosymfollow", Flag),
    ("ro", Flag),
    ("rprivate", Default),
    ("rrelatime", Flag),
    ("rro", Flag),
    ("rrw", Flag),
    ("rshared", Refused(PROPAGATES)),
    ("rslave", Refused(RECEIVES)),
    ("rstrictatime", Flag),
    ("rsuid", Flag),
    ("rsymfollow", Flag),
    ("runbindable", Refused(UNBINDABLE)),
    ("rw", Flag),
    ("shared", Refused(PROPAGATES)),
    ("silent", Default),
    ("slave", Refused(RECEIVES)),
    ("strictatime", Flag),
    ("suid", Flag),
    ("symfollow", Default),
    ("sync", Refused(SUPERBLOCK)),
    ("tmpcopyup", Refused("hull does not fill a tmpfs yet")),
    ("unbindable", Refused(UNBINDABLE)),
];

/// What becomes of an option; `None` for a file system's own.
pub fn treatment(option: &str) -> Option<Treatment> {
    let found = OPTIONS
        .binary_search_by_key(&option, |(name, _)| name)
        .ok()?;
    OPTIONS.get(found).map(|(_, treatment)| *treatment)
}

/// The options that are not refused, by name.
pub fn supported() -> impl Iterator<Item = &'static str> {
    OPTIONS
        .iter()
        .filter(|(_, treatment)| !matches!(treatment, Refused(_)))
        .map(|(name, _)| *name)
}

/// Why an option is refused on a mount; `bind` says whether that is a bind mount.
pub fn refusal(option: &str, bind: bool) -> Option<Refusal> {
    match treatment(option) {
        Some(Refused(reason)) => Some(Refusal::new(format!("{option:?}: {reason}"), "remove it")),
        // The kernel would ignore it without a word: runc refuses it too.
        None if bind && !option.is_empty() => Some(Refusal::new(
            format!("{option:?} is not an option of bind mounts"),
            "remove it",
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_so_that_every_option_is_found() {
        assert!(OPTIONS.is_sorted_by_key(|(name, _)| *name));
        assert_eq!(treatment("rro"), Some(Flag));
        assert_eq!(treatment("size=1m"), None);
    }

    #[test]
    fn a_file_systems_own_option_is_refused_on_a_bind_alone() {
        assert!(refusal("size=1m", true).is_some());
        assert_eq!(refusal("size=1m", false), None);
    }
}
