//! Namespaces, sysctls, devices and cgroup limits.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Topic, change, one_of, some_of};

pub fn topics() -> Vec<Topic> {
    vec![
        namespaces(),
        change("/linux/sysctl", sysctls()),
        change("/linux/devices", devices()),
        change("/linux/resources/devices", device_rules()),
        change("/linux/resources/memory", memory()),
        change("/linux/resources/cpu", cpu()),
        change(
            "/linux/resources/pids",
            one_of(&[
                json!({ "limit": 100 }),
                json!({ "limit": 4000 }),
                json!({ "limit": -1 }),
                json!({ "limit": 0 }),
            ]),
        ),
        change("/linux/resources/unified", unified()),
    ]
}

/// All that a container mostly has, but for the cgroup namespace.
fn namespaces() -> Topic {
    let kinds = ["pid", "network", "ipc", "uts", "mount"];
    let namespaces = kinds.iter().map(|kind| json!({ "type": kind })).collect();
    change("/linux/namespaces", Just(Value::Array(namespaces)))
}

fn sysctls() -> BoxedStrategy<Value> {
    some_of(
        &[
            ("kernel.msgmax", "16384"),
            ("kernel.msgmni", "64"),
            ("kernel.sem", "250 32000 32 256"),
            ("kernel.shmmax", "1048576"),
            ("kernel.shm_rmid_forced", "1"),
            ("fs.mqueue.msg_max", "20"),
            ("net.ipv4.ip_forward", "1"),
            ("net.ipv4.ip_unprivileged_port_start", "80"),
            ("net.ipv4.ping_group_range", "0 1000"),
            ("net.core.somaxconn", "256"),
        ],
        5,
    )
    .prop_map(|sysctls| sysctls.into_iter().collect())
    .boxed()
}

fn devices() -> BoxedStrategy<Value> {
    let kinds = [
        ("c", 1, 3),
        ("c", 1, 5),
        ("c", 1, 8),
        ("c", 5, 0),
        ("p", 0, 0),
        ("c", 10, 229),
        ("c", 10, 200),
    ];
    let places = ["/dev/one", "/dev/two", "/dev/fuse"];
    let mode = prop::option::of(one_of(&[0o600u32, 0o644, 0o666, 0o777]));
    let owner = prop::option::of(one_of(&[0u32, 5, 1000]));
    let device = (one_of(&kinds), mode, owner).prop_map(|((kind, major, minor), mode, owner)| {
        let mut device = json!({ "type": kind });
        if kind != "p" {
            device["major"] = major.into();
            device["minor"] = minor.into();
        }
        if let Some(mode) = mode {
            device["fileMode"] = mode.into();
        }
        if let Some(owner) = owner {
            device["uid"] = owner.into();
            device["gid"] = owner.into();
        }
        device
    });
    let placed = (some_of(&places, 3), prop::collection::vec(device, 3));
    placed
        .prop_map(|(places, devices)| {
            let both = places.into_iter().zip(devices);
            both.map(|(place, mut device)| {
                device["path"] = place.into();
                device
            })
            .collect()
        })
        .boxed()
}

fn device_rules() -> BoxedStrategy<Value> {
    let rules = some_of(
        &[
            json!({ "allow": true, "type": "c", "major": 1, "minor": 11, "access": "rwm" }),
            json!({ "allow": true, "type": "c", "major": 10, "minor": 229, "access": "rwm" }),
            json!({ "allow": true, "type": "c", "major": 10, "access": "r" }),
            json!({ "allow": true, "type": "b", "access": "m" }),
            json!({ "allow": false, "type": "c", "major": 1, "minor": 8, "access": "w" }),
            json!({ "allow": true, "access": "rwm" }),
        ],
        4,
    );
    (any::<bool>(), rules)
        .prop_map(|(deny_first, mut rules)| {
            if deny_first {
                rules.insert(0, json!({ "allow": false, "access": "rwm" }));
            }
            json!(rules)
        })
        .boxed()
}

fn memory() -> BoxedStrategy<Value> {
    let limit = prop::option::of(one_of(&[64i64 << 20, 200 << 20, 256 << 20, -1]));
    let reservation = prop::option::of(one_of(&[32i64 << 20, 64 << 20]));
    let swap = prop::option::of(one_of(&[0i64, 64 << 20, -1]));
    (limit, reservation, swap)
        .prop_map(|(limit, reservation, swap)| {
            let mut memory = json!({});
            if let Some(limit) = limit {
                memory["limit"] = limit.into();
                if let (Some(swap), 1..) = (swap, limit) {
                    // Beside a limit it is memory and swap together.
                    memory["swap"] = if swap < 0 { swap } else { limit + swap }.into();
                }
            }
            if let Some(reservation) = reservation {
                memory["reservation"] = reservation.into();
            }
            memory
        })
        .boxed()
}

fn cpu() -> BoxedStrategy<Value> {
    let shares = prop::option::of(one_of(&[0u64, 2, 100, 1024, 262_144]));
    let quota = prop::option::of(one_of(&[50_000i64, 100_000, 150_000, -1]));
    let period = prop::option::of(one_of(&[50_000u64, 100_000]));
    (shares, quota, period)
        .prop_map(|(shares, quota, period)| {
            let mut cpu = json!({});
            let fields = [
                ("shares", shares.map(Value::from)),
                ("quota", quota.map(Value::from)),
                ("period", period.map(Value::from)),
            ];
            for (name, value) in fields {
                if let Some(value) = value {
                    cpu[name] = value;
                }
            }
            cpu
        })
        .boxed()
}

fn unified() -> BoxedStrategy<Value> {
    some_of(
        &[
            ("memory.high", "209715200"),
            ("memory.low", "1048576"),
            ("memory.oom.group", "1"),
            ("pids.max", "500"),
            ("cpu.weight", "50"),
            ("cpu.idle", "1"),
        ],
        2,
    )
    .prop_map(|mut files| {
        // runc writes them in an order of chance, and the idle take no weight.
        if files.iter().any(|(file, _)| *file == "cpu.idle") {
            files.retain(|(file, _)| *file != "cpu.weight");
        }
        files.into_iter().collect()
    })
    .boxed()
}
