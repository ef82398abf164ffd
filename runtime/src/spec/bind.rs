//! The attributes of a bind mount, by runc's rule, and which of them the host must know as well.
//!
//! A bind mount is its source's mount once more, with all the attributes of that. Options that set a flag
//! of mount(2) change it: all flags but those about access times are then as the options say. One that
//! only clears a flag (`rw`, `exec`) takes nothing away by itself. In a user namespace what the source's
//! mount forbids is locked, mount_namespaces(7): no option lifts it.
//!
//! The guest's kernel enforces every attribute. It is told of the source's, and the host enforces once
//! more what would be the host's harm or what only it can do: that nothing is written, and how access
//! times are kept, for it is the host's file system that keeps them.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use hull_protocol::paths::SUBMOUNT_OPTION;
use oci_spec::runtime::Mount;
use rustix::fs::fstatvfs;

use super::mount_options::flags;
use hull_vmm::jail::tree::{self, AccessTimes, Content, ReadOnly, Share, Times, ViewMount};

/// The flags about access times.
const TIMES: u64 =
    libc::MS_NOATIME | libc::MS_NODIRATIME | libc::MS_RELATIME | libc::MS_STRICTATIME;

/// `ST_RELATIME` and `ST_NOSYMFOLLOW` of statfs(2); its other flags are those of mount(2).
const ST_RELATIME: u64 = 0x1000;
const ST_NOSYMFOLLOW: u64 = 0x2000;

/// What a mount can forbid: its flag in statfs(2), the option that says so, and the one that lifts it from
/// the mount and all below.
const FORBIDDEN: &[(u64, &str, &str)] = &[
    (libc::MS_RDONLY, "ro", "rrw"),
    (libc::MS_NOSUID, "nosuid", "rsuid"),
    (libc::MS_NODEV, "nodev", "rdev"),
    (libc::MS_NOEXEC, "noexec", "rexec"),
    (ST_NOSYMFOLLOW, "nosymfollow", "rsymfollow"),
];

/// The mount of a bind mount's source, as the host has it.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// Its flags, those of statfs(2).
    flags: u64,
    /// Whether what it forbids is locked.
    locked: bool,
}

impl Source {
    /// That of a file; `locked` for a container in a user namespace.
    ///
    /// # Errors
    /// When the file system doesn't answer.
    pub fn of(file: &OwnedFd, locked: bool) -> io::Result<Self> {
        let flags = fstatvfs(file)?.f_flag.bits();
        Ok(Self { flags, locked })
    }

    /// Where the host is to refuse writes. The options for all mounts below come after those for one.
    pub fn read_only(self, options: &[String]) -> ReadOnly {
        let flags = flags(options);
        match read_only_for_all(options) {
            Some(yes) if yes || !self.locked => ReadOnly::All(yes),
            _ if flags & libc::MS_RDONLY != 0 => ReadOnly::Itself(true),
            _ if flags == 0 || self.locked => ReadOnly::Unchanged,
            _ => ReadOnly::Itself(false),
        }
    }

    /// What the guest's options lack to give its mount the attributes of this one, as far as they stay.
    pub fn inherited(self, options: &[String]) -> Vec<String> {
        let given = flags(options);
        let stays = given == 0 || self.locked;
        let forbidden = FORBIDDEN
            .iter()
            .filter(|(flag, ..)| stays && self.has(*flag));
        let mut words: Vec<_> = forbidden.map(|(_, word, _)| *word).collect();
        if given & TIMES == 0 {
            words.extend(self.times());
        }
        words.into_iter().map(str::to_owned).collect()
    }

    /// An option that would lift what is locked.
    pub fn unlocks(self, options: &[String]) -> Option<&'static str> {
        let mut locked = FORBIDDEN
            .iter()
            .filter(|(flag, ..)| self.locked && self.has(*flag));
        locked.find_map(|(_, _, lifts)| options.iter().any(|o| o == lifts).then_some(*lifts))
    }

    fn times(self) -> impl Iterator<Item = &'static str> {
        let every = !self.has(libc::MS_NOATIME) && !self.has(ST_RELATIME);
        [
            (self.has(libc::MS_NOATIME), "noatime"),
            (every, "strictatime"),
            (self.has(libc::MS_NODIRATIME), "nodiratime"),
        ]
        .into_iter()
        .filter_map(|(has, word)| has.then_some(word))
    }

    fn has(self, flag: u64) -> bool {
        self.flags & flag != 0
    }
}

/// Does the host's part of a remount: lets a share be written that it makes writable again, unless that
/// is locked, and changes how access times are kept.
pub fn remount(mount: &Mount, placed: &[ViewMount], shares: &mut [Share], locked: bool) {
    let options = mount.options().as_deref().unwrap_or_default();
    let mut placed = placed.iter().rev();
    let at = placed.find(|placed| placed.destination == *mount.destination());
    let Some(Content::Share(target)) = at.map(|placed| &placed.content) else {
        return;
    };
    let share = shares.iter_mut().find(|share| share.target == *target);
    let Some(tree::Source::Bind(mounted)) = share.map(|share| &mut share.source) else {
        return;
    };
    if let Some(read_only) = remounted(options).filter(|_| !locked) {
        mounted.read_only = read_only;
    }
    let times = access_times(options);
    mounted.times.itself = times.itself.or(mounted.times.itself);
    mounted.times.all = times.all.or(mounted.times.all);
}

/// What a remount makes of where the host refuses writes: nothing if it forbids them, as mount points may
/// have to be made before; the guest sees to that.
fn remounted(options: &[String]) -> Option<ReadOnly> {
    match read_only_for_all(options) {
        None if flags(options) & libc::MS_RDONLY == 0 => Some(ReadOnly::Itself(false)),
        Some(false) => Some(ReadOnly::All(false)),
        _ => None,
    }
}

fn read_only_for_all(options: &[String]) -> Option<bool> {
    let found = options.iter().rev().find(|o| *o == "rro" || *o == "rrw");
    found.map(|option| option == "rro")
}

/// How the host's mount is to keep access times, where the options say.
pub fn access_times(options: &[String]) -> AccessTimes {
    AccessTimes {
        itself: times_of_one(flags(options)),
        all: times_of_all(options),
    }
}

/// By the rules of mount(2): `strictatime` prevails, and without a kind it is `relatime`.
fn times_of_one(flags: u64) -> Option<Times> {
    let kind = match flags {
        _ if flags & libc::MS_STRICTATIME != 0 => libc::MOUNT_ATTR_STRICTATIME,
        _ if flags & libc::MS_NOATIME != 0 => libc::MOUNT_ATTR_NOATIME,
        _ => libc::MOUNT_ATTR_RELATIME,
    };
    let folders = match flags & libc::MS_NODIRATIME {
        0 => 0,
        _ => libc::MOUNT_ATTR_NODIRATIME,
    };
    (flags & TIMES != 0).then_some(Times {
        set: kind | folders,
        clear: libc::MOUNT_ATTR__ATIME | libc::MOUNT_ATTR_NODIRATIME,
    })
}

/// By runc's rules for mount_setattr(2). The kinds are one field, which is cleared before it is set, and to
/// which `relatime` is 0.
fn times_of_all(options: &[String]) -> Option<Times> {
    let kinds = libc::MOUNT_ATTR__ATIME;
    let mut times = Times { set: 0, clear: 0 };
    for option in options {
        let (set, clear) = match option.as_str() {
            "rnoatime" => (libc::MOUNT_ATTR_NOATIME, kinds),
            "rstrictatime" => (libc::MOUNT_ATTR_STRICTATIME, kinds),
            "rrelatime" | "rnorelatime" | "ratime" | "rnostrictatime" => (0, kinds),
            "rnodiratime" => (libc::MOUNT_ATTR_NODIRATIME, 0),
            "rdiratime" => (0, libc::MOUNT_ATTR_NODIRATIME),
            _ => continue,
        };
        times.set |= set;
        times.clear |= clear;
    }
    (times != Times { set: 0, clear: 0 }).then_some(times)
}

/// The options that name the mounts below the source of a bind mount, and their attributes, for the agent.
///
/// # Errors
/// When /proc can't be read.
pub fn below(source: &OwnedFd) -> io::Result<Vec<String>> {
    let link = format!("/proc/self/fd/{}", source.as_raw_fd());
    let source = std::fs::read_link(link)?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let below = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(4);
        let (point, attributes) = (words.next()?, words.next()?);
        let point = PathBuf::from(unescape(point));
        let below = point.strip_prefix(&source).ok()?.to_str()?;
        (!below.is_empty()).then(|| format!("{SUBMOUNT_OPTION}{attributes}:{below}"))
    });
    Ok(below.collect())
}

/// A path of mountinfo, in which four characters are octal: proc_pid_mountinfo(5).
fn unescape(path: &str) -> String {
    let escapes = [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ];
    let mut path = path.to_owned();
    for (escape, character) in escapes {
        path = path.replace(escape, character);
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    /// A source that is `ro,noexec,relatime`.
    fn source(locked: bool) -> Source {
        let flags = libc::MS_RDONLY | libc::MS_NOEXEC | ST_RELATIME;
        Source { flags, locked }
    }

    #[test]
    fn the_host_refuses_writes_as_the_options_and_the_source_say() {
        let of = |words: &[&str]| source(false).read_only(&options(words));
        assert_eq!(of(&["rbind"]), ReadOnly::Unchanged);
        assert_eq!(of(&["rbind", "rw"]), ReadOnly::Unchanged);
        assert_eq!(of(&["rbind", "nosuid"]), ReadOnly::Itself(false));
        assert_eq!(of(&["rbind", "rw", "nosuid", "suid"]), ReadOnly::Unchanged);
        assert_eq!(of(&["rw", "ro"]), ReadOnly::Itself(true));
        assert_eq!(of(&["rro", "rw"]), ReadOnly::All(true));
        assert_eq!(of(&["ro", "rrw"]), ReadOnly::All(false));
        let locked = |words: &[&str]| source(true).read_only(&options(words));
        assert_eq!(locked(&["rbind", "nosuid"]), ReadOnly::Unchanged);
        assert_eq!(locked(&["nosuid", "ro"]), ReadOnly::Itself(true));
    }

    #[test]
    fn the_guest_is_told_what_stays_of_the_source() {
        let of = |words: &[&str], locked| source(locked).inherited(&options(words)).join(",");
        assert_eq!(of(&["rbind", "rw", "exec"], false), "ro,noexec");
        assert_eq!(of(&["rbind", "nosuid"], false), "");
        assert_eq!(of(&["rbind", "nosuid"], true), "ro,noexec");
        let times = Source {
            flags: libc::MS_NODIRATIME | libc::MS_NOSUID,
            locked: false,
        };
        let kept = times.inherited(&options(&["ro", "atime"]));
        assert_eq!(kept, ["strictatime", "nodiratime"]);
        assert_eq!(times.inherited(&options(&["relatime"])), [""; 0]);
    }

    #[test]
    fn what_is_locked_is_not_lifted() {
        assert_eq!(
            source(true).unlocks(&options(&["ro", "rexec"])),
            Some("rexec")
        );
        assert_eq!(source(true).unlocks(&options(&["rsuid"])), None);
        assert_eq!(source(false).unlocks(&options(&["rexec"])), None);
    }

    #[test]
    fn access_times_are_as_mount_2_has_them() {
        let of = |words: &[&str]| access_times(&options(words));
        assert_eq!(of(&["rbind", "ro", "atime"]), AccessTimes::default());
        let one = |words: &[&str]| of(words).itself.expect("a change").set;
        assert_eq!(one(&["noatime"]), libc::MOUNT_ATTR_NOATIME);
        assert_eq!(
            one(&["noatime", "strictatime"]),
            libc::MOUNT_ATTR_STRICTATIME
        );
        assert_eq!(one(&["nodiratime"]), libc::MOUNT_ATTR_NODIRATIME);
        let all = of(&["rnoatime", "rnodiratime"]).all.expect("a change");
        let set = libc::MOUNT_ATTR_NOATIME | libc::MOUNT_ATTR_NODIRATIME;
        assert_eq!((all.set, all.clear), (set, libc::MOUNT_ATTR__ATIME));
    }

    #[test]
    fn the_mounts_below_a_source_are_named() {
        let root = std::fs::File::open("/").expect("a root").into();
        let below = below(&root).expect("mountinfo");
        let proc =
            |option: &String| option.starts_with(SUBMOUNT_OPTION) && option.ends_with(":proc");
        assert!(below.iter().any(proc), "{below:?}");
        assert_eq!(unescape(r"/a\040b\134040"), r"/a b\040");
    }
}
