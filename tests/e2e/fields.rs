//! Field by field: what config.json asks for, and what the container then sees of it.
//!
//! A test gives a bundle many fields at once, and each has its own look, so that one boot checks them
//! all. What only newer versions of runc have than Debian 12's is asked of hull alone.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use hull_tests::runtime::is_hull;
use hull_tests::{Bundle, Container, Running, only_hull};
use serde_json::{Value, json};

use crate::lifecycle::waiting;

/// A field of config.json, the script that looks in the container whether it holds, and what it then
/// sees.
struct Field {
    pointer: &'static str,
    value: Value,
    look: &'static str,
    sees: &'static str,
}

fn field(pointer: &'static str, value: Value, look: &'static str, sees: &'static str) -> Field {
    Field {
        pointer,
        value,
        look,
        sees,
    }
}

/// What comes before each look's output.
const MARK: &str = "--- ";

/// A script of all looks.
fn looks(fields: &[Field]) -> String {
    let look = |field: &Field| format!("echo '{MARK}'; {{ {}; }} 2>&1\n", field.look);
    fields.iter().map(look).collect()
}

/// Compares what the looks saw with what they should have.
#[track_caller]
fn assert_seen(fields: &[Field], output: &str) {
    let seen: Vec<_> = output.split(MARK).skip(1).map(str::trim).collect();
    assert_eq!(seen.len(), fields.len(), "looks that ended: {output}");
    let wrong: Vec<_> = fields
        .iter()
        .zip(seen)
        .filter(|(field, seen)| field.sees != *seen)
        .map(|(field, seen)| format!("{}: {seen:?} instead of {:?}", field.pointer, field.sees))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn with(bundle: Bundle, fields: &[Field]) -> Bundle {
    fields.iter().fold(bundle, |bundle, field| {
        bundle.set(field.pointer, field.value.clone())
    })
}

/// Boots one container with all fields, which has to see them all.
#[track_caller]
fn hold(bundle: Bundle, fields: &[Field]) -> Container {
    let container = Container::new(with(bundle, fields).shell(&looks(fields)));
    let done = container.run().ok();
    assert_seen(fields, &done.out());
    container
}

#[test]
fn the_process_is_as_told() {
    let mut fields = vec![
        field(
            "/process/user",
            json!({ "uid": 1000, "gid": 1001, "additionalGids": [5, 6], "umask": 0o027 }),
            "id -u; id -g; id -G; umask",
            "1000\n1001\n1001 5 6\n0027",
        ),
        field(
            "/process/capabilities",
            json!({
                "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"],
                "inheritable": ["CAP_CHOWN", "CAP_KILL"],
                "permitted": ["CAP_CHOWN", "CAP_KILL"],
                "effective": ["CAP_KILL"],
                "ambient": ["CAP_KILL"],
            }),
            // execve leaves a user that isn't root the ambient ones alone
            "awk '/^Cap/ { print $1 substr($2, 13) }' /proc/self/status",
            "CapInh:0021\nCapPrm:0020\nCapEff:0020\nCapBnd:2021\nCapAmb:0020",
        ),
        field(
            "/process/noNewPrivileges",
            json!(true),
            "grep NoNewPrivs /proc/self/status",
            "NoNewPrivs:\t1",
        ),
        field(
            "/process/oomScoreAdj",
            json!(321),
            "cat /proc/self/oom_score_adj",
            "321",
        ),
        rlimits(),
    ];
    if is_hull() {
        fields.extend([
            field(
                "/process/scheduler",
                json!({ "policy": "SCHED_BATCH", "nice": 5 }),
                "cut -d' ' -f19,41 /proc/self/stat",
                "5 3",
            ),
            field(
                "/process/ioPriority",
                json!({ "class": "IOPRIO_CLASS_BE", "priority": 2 }),
                "ionice -p $$",
                "best-effort: prio 2",
            ),
            field(
                "/linux/personality",
                json!({ "domain": "LINUX32" }),
                "uname -m",
                "i686",
            ),
        ]);
    }
    hold(Bundle::new(), &fields);
}

/// All of them, in the kernel's order, each with numbers of its own.
fn rlimits() -> Field {
    const GIB: u64 = 1 << 30;
    // Engines hand on what systemd's hosts allow, which is more than a kernel does by itself.
    let files = if is_hull() { 1_073_741_816 } else { 513 };
    let limits: [(&str, u64, u64); 16] = [
        ("CPU", 1000, 1001),
        ("FSIZE", GIB, 2 * GIB),
        ("DATA", 64 * GIB, 65 * GIB),
        ("STACK", 8_392_704, 16_785_408),
        ("CORE", 0, 4096),
        ("RSS", GIB, 3 * GIB),
        ("NPROC", 1000, 1002),
        ("NOFILE", 512, files),
        ("MEMLOCK", 65_536, 131_072),
        ("AS", 66 * GIB, 67 * GIB),
        ("LOCKS", 100, 101),
        ("SIGPENDING", 200, 201),
        ("MSGQUEUE", 300_000, 300_001),
        ("NICE", 3, 4),
        ("RTPRIO", 5, 6),
        ("RTTIME", 7_000_000, 7_000_001),
    ];
    let config = limits.map(|(name, soft, hard)| {
        json!({ "type": format!("RLIMIT_{name}"), "soft": soft, "hard": hard })
    });
    let sees: Vec<_> = limits
        .iter()
        .map(|(_, soft, hard)| format!("{soft} {hard}"))
        .collect();
    field(
        "/process/rlimits",
        json!(config),
        "tail -n +2 /proc/self/limits | cut -c27-67 | awk '{ print $1, $2 }'",
        sees.join("\n").leak(),
    )
}

#[test]
fn the_container_is_as_told() {
    let mut bundle = Bundle::new();
    let mut fields = vec![
        field("/hostname", json!("cabin"), "hostname", "cabin"),
        field(
            "/linux/sysctl",
            json!({
                "net.ipv4.ip_unprivileged_port_start": "79",
                "net/ipv4/conf/lo/forwarding": "1",
                "kernel.shmmax": "1234567",
                "fs.mqueue.msg_max": "20",
            }),
            "cd /proc/sys; cat net/ipv4/ip_unprivileged_port_start net/ipv4/conf/lo/forwarding \
             kernel/shmmax fs/mqueue/msg_max",
            "79\n1\n1234567\n20",
        ),
        field(
            "/linux/maskedPaths",
            json!(["/proc/version", "/sys/kernel", "/not/there"]),
            "wc -c </proc/version; ls /sys/kernel | wc -l",
            "0\n0",
        ),
        field(
            "/linux/readonlyPaths",
            json!(["/home", "/not/there/either"]),
            "touch /home/new; echo $?",
            "touch: /home/new: Read-only file system\n1",
        ),
        field(
            "/linux/rootfsPropagation",
            json!("shared"),
            "awk '$5 == \"/\" { print $7 }' /proc/self/mountinfo | cut -d: -f1",
            "shared",
        ),
    ];
    if is_hull() {
        bundle = bundle.push("/linux/namespaces", json!({ "type": "time" }));
        fields.extend([
            field(
                "/domainname",
                json!("wood"),
                "cat /proc/sys/kernel/domainname",
                "wood",
            ),
            field(
                "/linux/timeOffsets",
                json!({ "monotonic": { "secs": 1_000_000 }, "boottime": { "secs": 2_000_000, "nanosecs": 5 } }),
                "tr -s ' ' </proc/self/timens_offsets; [ $(cut -d. -f1 /proc/uptime) -ge 2000000 ] && echo later",
                "monotonic 1000000 0\nboottime 2000000 5\nlater",
            ),
        ]);
    }
    hold(bundle, &fields);
}

#[test]
fn limits_are_those_of_its_cgroup() {
    let mut fields = vec![
        field(
            "/linux/resources/memory",
            json!({ "limit": 128 << 20, "reservation": 32 << 20, "swap": 192 << 20 }),
            "cd /sys/fs/cgroup; cat memory.max memory.low memory.swap.max",
            "134217728\n33554432\n67108864",
        ),
        field(
            "/linux/resources/pids",
            json!({ "limit": 77 }),
            "cat /sys/fs/cgroup/pids.max",
            "77",
        ),
        field(
            "/linux/resources/hugepageLimits",
            json!([{ "pageSize": "2MB", "limit": 4 << 20 }]),
            "cat /sys/fs/cgroup/hugetlb.2MB.max",
            "4194304",
        ),
        field(
            "/linux/resources/unified",
            json!({ "memory.high": "100663296", "cgroup.max.depth": "3" }),
            "cd /sys/fs/cgroup; cat memory.high cgroup.max.depth",
            "100663296\n3",
        ),
    ];
    // The versions of runc agree on the weight at the end of the scale.
    let (cpu, look, sees) = if is_hull() {
        (
            json!({ "shares": 262_144, "quota": 50_000, "period": 100_000, "burst": 10_000 }),
            "cd /sys/fs/cgroup; cat cpu.weight cpu.max cpu.max.burst",
            "10000\n50000 100000\n10000",
        )
    } else {
        (
            json!({ "shares": 262_144, "quota": 50_000, "period": 100_000 }),
            "cd /sys/fs/cgroup; cat cpu.weight cpu.max",
            "10000\n50000 100000",
        )
    };
    fields.push(field("/linux/resources/cpu", cpu, look, sees));
    hold(Bundle::new(), &fields);
}

/// Makes these ids the owners of a bundle's root, and lets them walk to it.
fn give_root(bundle: &Bundle, owner: &str) {
    let root = bundle.rootfs();
    for folder in root.ancestors().skip(1).take(2) {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::set_permissions(root.join("home"), fs::Permissions::from_mode(0o777)).unwrap();
    let chown = Command::new("chown")
        .args(["-hR", owner])
        .arg(&root)
        .status();
    assert!(chown.unwrap().success());
}

#[test]
fn in_a_user_namespace_ids_are_mapped_and_so_are_files() {
    let fields = [
        field(
            "/linux/uidMappings",
            json!([
                { "containerID": 0, "hostID": 100_000, "size": 1000 },
                { "containerID": 1000, "hostID": 300_000, "size": 10 },
            ]),
            "tr -s ' ' </proc/self/uid_map",
            "0 100000 1000\n 1000 300000 10",
        ),
        field(
            "/linux/gidMappings",
            json!([{ "containerID": 0, "hostID": 200_000, "size": 65_536 }]),
            "tr -s ' ' </proc/self/gid_map; stat -c %u:%g /bin/busybox /stranger",
            "0 200000 65536\n0:0\n65534:65534",
        ),
        field(
            "/process/user",
            json!({ "uid": 7, "gid": 8, "additionalGids": [9] }),
            "id -u; id -G; touch /home/made; stat -c %u:%g /home/made",
            "7\n8 9\n7:8",
        ),
        field(
            "/linux/sysctl",
            json!({ "net.core.somaxconn": "77", "kernel.shmmni": "99" }),
            "cd /proc/sys; cat net/core/somaxconn kernel/shmmni",
            "77\n99",
        ),
    ];
    let bundle = Bundle::new().push("/linux/namespaces", json!({ "type": "user" }));
    give_root(&bundle, "100000:200000");
    fs::write(bundle.rootfs().join("stranger"), "").unwrap();

    let container = hold(bundle, &fields);

    let made = fs::metadata(container.bundle.rootfs().join("home/made")).unwrap();
    assert_eq!((made.uid(), made.gid()), (100_007, 200_008));
}

#[test]
fn a_further_process_is_in_the_user_namespace_too() {
    let maps = json!([
        { "containerID": 0, "hostID": 100_000, "size": 10 },
        { "containerID": 10, "hostID": 300_000, "size": 10 },
    ]);
    let bundle = waiting().in_user_namespace(maps);
    give_root(&bundle, "100000:100000");
    let container = Container::new(bundle);
    let _running = container.run_until_ready();
    let script = "id -u; id -g; tr -s ' ' </proc/self/uid_map";
    let mut exec = container.exec_command(&["--user", "11:12"], &["/bin/sh", "-c", script]);
    let out = Running::spawn(&mut exec).finish().ok().out();
    assert_eq!(out, "11\n12\n 0 100000 10\n 10 300000 10");
}

#[test]
fn a_further_process_has_its_own_scheduler_and_the_containers_personality() {
    only_hull!("runc 1.1 has no scheduler, I/O priority, CPU affinity or personality");
    let bundle = waiting()
        .set("/linux/personality", json!({ "domain": "LINUX32" }))
        .set(
            "/process/ioPriority",
            json!({ "class": "IOPRIO_CLASS_IDLE", "priority": 0 }),
        );
    let container = Container::new(bundle);
    let _running = container.run_until_ready();
    let exec = |fields: &[Field]| {
        let process = json!({ "cwd": "/", "args": ["/bin/sh", "-c", looks(fields)] });
        let mut config = json!({ "process": process });
        for field in fields
            .iter()
            .filter(|field| field.pointer.starts_with("/process/"))
        {
            let key = field.pointer.trim_start_matches("/process/");
            config["process"][key] = field.value.clone();
        }
        let file = container.bundle.beside("process.json");
        fs::write(&file, config["process"].to_string()).unwrap();
        container.call(&["exec", "--process", file.to_str().unwrap(), &container.id])
    };
    let fields = [
        field(
            "/process/scheduler",
            json!({ "policy": "SCHED_RR", "priority": 7, "flags": ["SCHED_FLAG_RESET_ON_FORK"] }),
            // of the shell, and of a child of it
            "cut -d' ' -f40,41 /proc/$$/stat; cut -d' ' -f40,41 /proc/self/stat",
            "7 2\n0 0",
        ),
        field(
            "/process/execCPUAffinity",
            json!({ "initial": "0", "final": "0" }),
            "grep Cpus_allowed_list /proc/$$/status",
            "Cpus_allowed_list:\t0",
        ),
        field(
            "/process/user",
            json!({ "uid": 1000, "gid": 1000, "umask": 0o077 }),
            "id -u; umask",
            "1000\n0077",
        ),
        field(
            "of the container",
            json!(null),
            "ionice -p $$; uname -m",
            "idle\ni686",
        ),
    ];
    assert_seen(&fields, &exec(&fields).ok().out());
    let plain = container.exec_shell("ionice -p $$").ok().out();
    assert_eq!(plain.trim(), "idle", "without --process");

    let nowhere = field(
        "/process/execCPUAffinity",
        json!({ "final": "63" }),
        "true",
        "",
    );
    let _ = exec(&[nowhere])
        .exits(255)
        .fails_saying("process.execCPUAffinity.final");
}

#[test]
fn the_vms_memory_is_allocated_by_the_hosts_policy() {
    only_hull!("runc 1.1 has no memory policy");
    let with = |nodes: &str| {
        let policy =
            json!({ "mode": "MPOL_BIND", "nodes": nodes, "flags": ["MPOL_F_STATIC_NODES"] });
        waiting().set("/linux/memoryPolicy", policy)
    };
    let mut container = Container::new(with("0"));
    container.create();
    let maps = fs::read_to_string(format!("/proc/{}/numa_maps", container.state().pid)).unwrap();
    let policies: Vec<_> = maps
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .collect();
    assert!(policies.contains(&"bind=static:0"), "{policies:?}");

    let _ = Container::new(with("1000"))
        .run()
        .exits(1)
        .fails_saying("linux.memoryPolicy");
}

#[test]
fn a_sysctl_that_the_guests_kernel_refuses_is_named() {
    only_hull!("runc names it in its own words");
    for (key, value, why) in [
        (
            "fs.mqueue.nothing",
            "1",
            "the guest's kernel has no such sysctl",
        ),
        (
            "fs.mqueue.msg_max",
            "many",
            "set it to \"many\": invalid argument",
        ),
    ] {
        let _ = Container::new(Bundle::new().set("/linux/sysctl", json!({ key: value })))
            .run()
            .exits(1)
            .fails_saying(&format!("linux.sysctl[\"{key}\"]: {why}"));
    }
}

#[test]
fn one_process_is_enough_to_run() {
    let user = json!({ "uid": 0, "gid": 0, "umask": 0o1022 });
    let bundle = Bundle::new().args(&["echo", "runs"]);
    let bundle = bundle.set("/linux/resources/pids", json!({ "limit": 1 }));
    let container = Container::new(bundle.set("/process/user", user));
    assert_eq!(container.run().ok().out(), "runs");
}

#[test]
fn what_the_guests_kernel_refuses_is_named_by_its_field() {
    only_hull!("runc names it in its own words");
    let mount = |destination: &str, options: Value| json!({ "destination": destination, "type": "tmpfs", "source": "x", "options": options });
    let cases = [
        (
            "/mounts/1",
            mount("/dev", json!(["nosuid", "nr_inodes=much"])),
            "mounts[1]: /dev: cannot mount tmpfs: option \"nr_inodes=much\": invalid argument",
        ),
        (
            "/mounts/4",
            mount("/a/b", json!(["noexec", "size=much"])),
            "mounts[4]: /a/b: cannot mount tmpfs: option \"size=much\": invalid argument",
        ),
        (
            "/mounts/4",
            mount("/etc/passwd/below", json!([])),
            "mounts[4]: /etc/passwd/below: cannot mount tmpfs: not a directory",
        ),
        (
            "/linux/resources/unified",
            json!({ "memory.high": "much" }),
            "linux.resources.unified[\"memory.high\"]: cannot set memory.high to \"much\": \
             invalid argument",
        ),
    ];
    for (pointer, value, expected) in cases {
        let container = Container::new(Bundle::new().set(pointer, value));
        let done = container.run().exits(1);
        let done = done.fails_saying(&format!("config.json: {expected}"));
        assert_eq!(done.err().lines().count(), 1, "{}", done.err());
    }
}

#[test]
fn a_bind_mount_that_finds_no_place_is_named_by_its_field() {
    only_hull!("runc names it in its own words");
    let bundle = Bundle::new();
    let shared = bundle.folder("shared");
    let bundle = bundle.bind(&shared, "/etc/passwd/below", &[]);
    let done = Container::new(bundle).run().exits(1);
    let done =
        done.fails_saying("mounts[7]: /etc/passwd/below: cannot bind it there: not a directory");
    assert_eq!(done.err().lines().count(), 1, "{}", done.err());
}
