//! Root and mounts, and the paths that are masked or made read-only.

use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Topic, change, one_of, some_of};
use crate::case::Change;

pub fn topics() -> Vec<Topic> {
    vec![
        change("/root/readonly", Just(json!(true))),
        mounts(tmpfs().boxed()),
        mounts(bind().boxed()),
        change("/mounts/-", kernels_own("/mnt/kernel")),
        change("/mounts/-", kernels_own("/new/kernel")),
        ordinary_mounts(),
        change("/linux/maskedPaths", paths()),
        change("/linux/readonlyPaths", paths()),
    ]
}

/// Options that every mount may have.
const FLAGS: &[&str] = &[
    "ro",
    "rw",
    "nosuid",
    "suid",
    "nodev",
    "dev",
    "noexec",
    "exec",
    "noatime",
    "atime",
    "relatime",
    "strictatime",
    "nodiratime",
    "diratime",
    "norelatime",
];

const FOLDERS: &[&str] = &[
    "/mnt",
    "/mnt/one",
    "/mnt/two/deep",
    "/new/place",
    "/home",
    "/tmp",
    "/private",
    "/mnt/../mnt/three",
];

/// Those that no root file system has, so that a tmpfs there takes no mode over.
const NEW_FOLDERS: &[&str] = &[
    "/mnt/one",
    "/mnt/two/deep",
    "/new/place",
    "/mnt/../mnt/three",
];

/// One or two more mounts of a kind.
fn mounts(kind: BoxedStrategy<Value>) -> Topic {
    prop::collection::vec(kind, 1..=2)
        .prop_map(|mounts| {
            let push = |mount| Change("/mounts/-".to_owned(), mount);
            mounts.into_iter().map(push).collect()
        })
        .boxed()
}

fn tmpfs() -> impl Strategy<Value = Value> {
    let own = some_of(
        &[
            "size=1m",
            "size=64k",
            "mode=0711",
            "mode=1777",
            "uid=1000",
            "gid=5",
            "nr_inodes=100",
        ],
        3,
    );
    (one_of(NEW_FOLDERS), some_of(FLAGS, 4), own).prop_map(|(place, flags, own)| {
        let options = [flags, own].concat();
        json!({ "destination": place, "type": "tmpfs", "source": "tmpfs", "options": options })
    })
}

/// Of what every bundle has beside its rootfs; runc takes a relative source from there.
fn bind() -> impl Strategy<Value = Value> {
    let folder = (Just("shared/folder"), one_of(FOLDERS));
    let file = (
        Just("shared/file"),
        one_of(&["/etc/new", "/etc/replaced", "/new/file"]),
    );
    let kind = one_of(&["bind", "rbind"]);
    (prop_oneof![folder, file], kind, some_of(FLAGS, 4)).prop_map(
        |((source, place), kind, flags)| {
            let options = [vec![kind], flags].concat();
            json!({ "destination": place, "type": "bind", "source": source, "options": options })
        },
    )
}

/// A further mount of a file system that is the kernel's; one at a place, as the mount call that runc uses
/// takes no second one of the same.
fn kernels_own(place: &'static str) -> impl Strategy<Value = Value> {
    let kinds = one_of(&["mqueue", "sysfs", "proc", "devpts"]);
    (kinds, some_of(FLAGS, 3)).prop_map(move |(kind, flags)| {
        json!({ "destination": place, "type": kind, "source": kind, "options": flags })
    })
}

/// Takes away the mounts over a read-only tmpfs. runc makes a tmpfs read-only last, by its path: that is the
/// upper mount then, which loses its own options (or there is no such path any more, and runc fails).
pub fn leave_read_only_tmpfs_uncovered(changes: &mut Vec<Change>) {
    let mut read_only = Vec::new();
    changes.retain(|Change(pointer, mount)| {
        let Some(place) = mount["destination"]
            .as_str()
            .filter(|_| pointer == "/mounts/-")
        else {
            return true;
        };
        let covers = |below: &String| Path::new(below).starts_with(place);
        if read_only.iter().any(covers) {
            return false;
        }
        let options = mount["options"].as_array();
        if mount["type"] == "tmpfs" && options.is_some_and(|all| all.contains(&json!("ro"))) {
            read_only.push(place.to_owned());
        }
        true
    });
}

/// Takes a tmpfs over another one the mode that it names: runc 1.1 gives it the lower one's all the same,
/// where later versions, and hull, do as it says.
pub fn leave_the_mode_to_the_lower_tmpfs(changes: &mut [Change]) {
    let mut places = Vec::new();
    for Change(pointer, mount) in changes {
        if pointer != "/mounts/-" || mount["type"] != "tmpfs" {
            continue;
        }
        let place = mount["destination"].clone();
        if places.contains(&place)
            && let Some(options) = mount["options"].as_array_mut()
        {
            options.retain(|option| !option.as_str().is_some_and(|o| o.starts_with("mode=")));
        }
        places.push(place);
    }
}

/// Other options for those of the ordinary bundle, by their index in it.
fn ordinary_mounts() -> Topic {
    let proc = change(
        "/mounts/0/options",
        some_of(&["nosuid", "nodev", "noexec"], 3).prop_map(|flags| json!(flags)),
    );
    let dev = change("/mounts/1/options", dev_options());
    let pts = change(
        "/mounts/2/options",
        some_of(
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0600",
                "gid=0",
            ],
            6,
        )
        .prop_map(|flags| json!(flags)),
    );
    let shm = change(
        "/mounts/3/options",
        some_of(&["nosuid", "noexec", "nodev", "mode=0700", "size=1m"], 5)
            .prop_map(|flags| json!(flags)),
    );
    let sys = change(
        "/mounts/5/options",
        one_of(&[
            json!(["nosuid", "noexec", "nodev", "ro"]),
            json!(["nosuid", "ro"]),
            json!(["rw"]),
        ]),
    );
    let cgroup = change(
        "/mounts/6/options",
        one_of(&[
            json!(["nosuid", "noexec", "nodev", "relatime", "rw"]),
            json!(["ro"]),
            json!([]),
        ]),
    );
    prop_oneof![proc, dev, pts, shm, sys, cgroup].boxed()
}

fn dev_options() -> BoxedStrategy<Value> {
    let more = some_of(&["noexec", "size=1m", "noatime"], 2);
    more.prop_map(|more| json!([vec!["nosuid", "mode=755"], more].concat()))
        .boxed()
}

/// Of every kind: of the kernel's and of the root file system's, and missing.
fn paths() -> BoxedStrategy<Value> {
    some_of(
        &[
            "/proc/kcore",
            "/proc/keys",
            "/proc/timer_list",
            "/proc/sysrq-trigger",
            "/proc/sys",
            "/proc/sys/kernel",
            "/proc/irq",
            "/proc/bus",
            "/sys/fs",
            "/sys/kernel",
            "/etc/passwd",
            "/etc",
            "/home",
            "/tmp",
            "/private",
            "/bin/busybox",
            "/dev/null",
            "/dev/shm",
            "/missing",
            "/link",
        ],
        8,
    )
    .prop_map(|paths| json!(paths))
    .boxed()
}
