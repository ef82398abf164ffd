//! `process`: user, capabilities, limits, environment, folder; and the names of the machine.

use proptest::prelude::*;
use rustix::thread::CapabilitySet;
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
fn names_of_capabilities() -> Vec<String> {
    let all = CapabilitySet::all();
    all.iter_names()
        .map(|(name, _)| format!("CAP_{name}"))
        .collect()
}

/// The five sets: mostly such that the kernel takes them, sometimes any.
fn capabilities() -> BoxedStrategy<Value> {
    let names = names_of_capabilities();
    let sets = prop::collection::vec(any::<[bool; 5]>(), names.len());
    let all = prop_oneof![9 => Just(true), 1 => Just(false)];
    prop_oneof![
        1 => Just(json!({})),
        9 => (sets, all).prop_map(move |(sets, sane)| five_sets(&names, &sets, sane)),
    ]
    .boxed()
}

fn five_sets(names: &[String], drawn: &[[bool; 5]], sane: bool) -> Value {
    let mut sets = [const { Vec::new() }; 5];
    for (name, &[bounding, permitted, effective, inheritable, ambient]) in names.iter().zip(drawn) {
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
                set.push(name.as_str());
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
