//! `process`: user, capabilities, limits, environment, folder; and the names of the machine.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Topic, change, one_of, some_of};

pub fn topics() -> Vec<Topic> {
    vec![
        user(),
        change("/process/capabilities", capabilities()),
        change("/process/rlimits", rlimits()),
        change(
            "/process/noNewPrivileges",
            any::<bool>().prop_map(Value::from),
        ),
        change(
            "/process/oomScoreAdj",
            one_of(&[-1000, -1, 0, 1, 500, 1000]).prop_map(Value::from),
        ),
        change("/process/env", environment()),
        change("/process/cwd", folder()),
        change("/hostname", name()),
        change("/domainname", name()),
    ]
}

fn user() -> Topic {
    let ids = [0u32, 1, 5, 1000, 1001, 65534, 2_147_483_647];
    let groups = prop::option::of(some_of(&ids, 4));
    let umask = prop::option::of(one_of(&[0u32, 0o002, 0o022, 0o027, 0o077, 0o777]));
    let user = (one_of(&ids), one_of(&ids), groups, umask).prop_map(|(uid, gid, groups, umask)| {
        let mut user = json!({ "uid": uid, "gid": gid });
        if let Some(groups) = groups {
            user["additionalGids"] = json!(groups);
        }
        if let Some(umask) = umask {
            user["umask"] = json!(umask);
        }
        user
    });
    change("/process/user", user)
}

/// capabilities(7), in the order of their numbers.
const CAPABILITIES: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// The five sets: mostly such that the kernel takes them, sometimes any.
fn capabilities() -> BoxedStrategy<Value> {
    let sets = prop::collection::vec(any::<[bool; 5]>(), CAPABILITIES.len());
    let all = prop_oneof![9 => Just(true), 1 => Just(false)];
    prop_oneof![
        1 => Just(json!({})),
        9 => (sets, all).prop_map(|(sets, sane)| five_sets(&sets, sane)),
    ]
    .boxed()
}

fn five_sets(drawn: &[[bool; 5]], sane: bool) -> Value {
    let mut sets = [const { Vec::new() }; 5];
    for (name, &[bounding, permitted, effective, inheritable, ambient]) in
        CAPABILITIES.iter().zip(drawn)
    {
        let wanted = if sane {
            let permitted = permitted && bounding;
            let inheritable = inheritable && permitted;
            [
                bounding,
                permitted,
                effective && permitted,
                inheritable,
                ambient && inheritable,
            ]
        } else {
            [bounding, permitted, effective, inheritable, ambient]
        };
        for (set, wanted) in sets.iter_mut().zip(wanted) {
            if wanted {
                set.push(*name);
            }
        }
    }
    let [bounding, permitted, effective, inheritable, ambient] = sets;
    json!({
        "bounding": bounding, "permitted": permitted, "effective": effective,
        "inheritable": inheritable, "ambient": ambient,
    })
}

/// The limits, each with the least value that lets the control and the probe start.
const LIMITS: &[(&str, u64)] = &[
    ("RLIMIT_AS", 1 << 33),
    ("RLIMIT_CORE", 0),
    ("RLIMIT_CPU", 100),
    ("RLIMIT_DATA", 1 << 33),
    ("RLIMIT_FSIZE", 1 << 24),
    ("RLIMIT_LOCKS", 0),
    ("RLIMIT_MEMLOCK", 0),
    ("RLIMIT_MSGQUEUE", 0),
    ("RLIMIT_NICE", 0),
    ("RLIMIT_NOFILE", 64),
    ("RLIMIT_NPROC", 200),
    ("RLIMIT_RSS", 1 << 20),
    ("RLIMIT_RTPRIO", 0),
    ("RLIMIT_RTTIME", 1 << 24),
    ("RLIMIT_SIGPENDING", 10),
    ("RLIMIT_STACK", 1 << 22),
];

fn rlimits() -> BoxedStrategy<Value> {
    let more = [0, 1, 20, 1000, 1 << 16, 1 << 34];
    some_of(LIMITS, 6)
        .prop_flat_map(move |limits| {
            let limits = limits.into_iter().map(move |(name, least)| {
                let most = if name == "RLIMIT_NOFILE" {
                    1 << 20
                } else {
                    u64::MAX
                };
                let hard = prop_oneof![
                    3 => one_of(&more).prop_map(move |more| (least + more).min(most)),
                    1 => Just(most),
                ];
                (hard, any::<bool>()).prop_map(move |(hard, lower)| {
                    let soft = if lower { least } else { hard };
                    json!({ "type": name, "soft": soft, "hard": hard })
                })
            });
            limits.collect::<Vec<_>>()
        })
        .prop_map(Value::from)
        .boxed()
}

fn environment() -> BoxedStrategy<Value> {
    some_of(
        &[
            "PATH=/bin",
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
            "TERM=xterm",
            "A=1",
            "B=two words",
            "A=2",
            "EMPTY=",
            "EQUALS=a=b",
            "UMLAUT=grün",
            "HOME=/tmp",
            "HOME=",
            "NEWLINE=a\nb",
            "lower=x",
            "A=1",
        ],
        10,
    )
    .prop_map(|entries| json!(entries))
    .boxed()
}

fn folder() -> BoxedStrategy<Value> {
    one_of(&[
        "/",
        "/tmp",
        "/home",
        "/etc/",
        "/bin/../tmp",
        "/new",
        "/new/folder",
        "/link",
        "/private",
        "/proc/self",
    ])
    .prop_map(Value::from)
    .boxed()
}

fn name() -> BoxedStrategy<Value> {
    one_of(&[
        "box",
        "a.long-name.example",
        "x",
        "UPPER",
        "64-characters-are-the-most-that-a-name-may-have-as-the-kernel-sa",
    ])
    .prop_map(Value::from)
    .boxed()
}
