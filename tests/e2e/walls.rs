//! What a process of a container can't reach in its guest: the agent, and the host's ports in the agent's
//! place. The probe makes the very calls, whatever the container may do otherwise.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hull_tests::{Bundle, Container, Running, bundle, leaks, only_hull};
use serde_json::json;

/// docker's, without those that the kernel may not know.
const DOCKERS: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// What a privileged container has besides.
const PRIVILEGED: [&str; 10] = [
    "CAP_SYS_ADMIN",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_BOOT",
    "CAP_DAC_READ_SEARCH",
    "CAP_NET_ADMIN",
    "CAP_IPC_OWNER",
    "CAP_BPF",
    "CAP_PERFMON",
];

/// The probe as an ordinary user with nothing.
fn nobody(words: &[&str]) -> Bundle {
    Bundle::new()
        .probe(words)
        .capabilities(&[])
        .set("/process/user", json!({ "uid": 1000, "gid": 1000 }))
}

/// The probe as root, with docker's capabilities.
fn root(words: &[&str]) -> Bundle {
    Bundle::new().probe(words).capabilities(&DOCKERS)
}

/// The probe with all that a container can be given, and no seccomp filter.
fn privileged(words: &[&str]) -> Bundle {
    Bundle::new()
        .probe(words)
        .capabilities(&[&DOCKERS[..], &PRIVILEGED[..]].concat())
        .set("/process/noNewPrivileges", json!(false))
        .set("/linux/maskedPaths", json!([]))
        .set("/linux/readonlyPaths", json!([]))
        .set(
            "/linux/resources/devices",
            json!([{ "allow": true, "access": "rwm" }]),
        )
}

/// In the guest's own namespaces: all but a mount namespace can be done without.
fn in_the_guests_namespaces(bundle: Bundle) -> Bundle {
    bundle
        .set("/linux/namespaces", json!([{ "type": "mount" }]))
        .unset("", "hostname")
}

/// Runs a probe that has a line for all that it reached, and then says how much it tried.
fn reaches_nothing(who: &str, bundle: Bundle) {
    let done = Container::new(bundle).run().ok();
    let said = done.out();
    let nothing = said.starts_with("tried ") && said.lines().count() == 1;
    assert!(nothing, "{who} reached:\n{said}");
}

#[test]
fn nobody_but_the_agent_has_vsock() {
    only_hull!("runc has no agent");
    let words = ["reach-vsock"];
    let own = [
        ("an ordinary user", nobody(&words)),
        ("root", root(&words)),
        ("a privileged container", privileged(&words)),
    ];
    for (who, bundle) in own {
        reaches_nothing(who, bundle);
    }
    let guests = [
        ("an ordinary user", nobody(&words)),
        ("a privileged container", privileged(&words)),
    ];
    for (who, bundle) in guests {
        let who = format!("{who} in the guest's namespaces");
        reaches_nothing(&who, in_the_guests_namespaces(bundle));
    }
}

#[test]
fn nobody_gets_into_the_agent() {
    only_hull!("runc has no agent");
    let words = ["into-init"];
    for (who, bundle) in [
        ("root", root(&words)),
        ("a privileged container", privileged(&words)),
    ] {
        reaches_nothing(who, in_the_guests_namespaces(bundle));
    }
}

#[test]
fn no_signals_end_the_agent() {
    only_hull!("runc has no agent");
    // The three that programs like the agent have handlers for, and then all. They come at once: the agent
    // doesn't get the CPU in between.
    let script = "probe signal 1 7 11 17; probe signal 1 $(seq 64); echo ready; sleep 3600";
    let scheduler = json!({ "policy": "SCHED_FIFO", "priority": 50 });
    let bundle = root(&[]).shell(script).set("/process/scheduler", scheduler);
    let container = Container::new(in_the_guests_namespaces(bundle));
    let _running = container.run_until_ready();

    let _ = container.exec(&["/bin/true"]).ok();
}

#[test]
fn an_exit_status_can_not_be_forged() {
    let bundle = nobody(&[]).shell("probe forge-exit-status 0 & sleep 2; exit 3");
    let _ = Container::new(bundle).run().exits(3);
}

#[test]
fn nobody_takes_the_streams_of_an_exec() {
    let bundle = nobody(&[]).shell("probe take-streams 3600 & echo ready; wait; sleep 3600");
    let container = Container::new(bundle);
    let _running = container.run_until_ready();
    for _ in 0..3 {
        let mut command = container.exec_command(&["--user", "0"], &["cat"]);
        let mut exec = Running::spawn(command.stdin(Stdio::piped()));
        let mut stdin = exec.stdin.take().unwrap();
        stdin.write_all(b"a secret").unwrap();
        drop(stdin);
        assert_eq!(exec.finish().ok().out(), "a secret");
    }
}

#[test]
fn no_flood_of_connections_keeps_the_host_out() {
    let bundle = nobody(&[]).shell("probe flood-agent 1500 >&2 & echo ready; wait");
    let container = Container::new(bundle);
    let mut running = container.run_until_ready();
    let made = running.stderr.as_mut().unwrap().line("the flood");
    assert_eq!(made, "0 connections");

    let _ = container.exec(&["/bin/true"]).ok();
    let _ = container.kill("KILL").ok();
    let _ = running.finish().exits(137);
}

#[test]
fn a_host_that_is_slow_to_answer_is_dialled_again() {
    only_hull!("runc has no virtual machine");
    let mut container = Container::new(Bundle::new());
    let mut create = Running::spawn(&mut container.create_command());
    // The guest runs as soon as there is a vCPU's thread, and can't be answered while the main one stands.
    let token = container.bundle.token().to_owned();
    let vmm = wait_for("the vCPU's thread", || {
        let processes = leaks::processes(&token).into_iter();
        processes.map(|(pid, _)| pid).find(|pid| has_vcpu(*pid))
    });
    let mut hold = Command::new(bundle::probe_on_host());
    let held = hold.args(["hold-thread", &vmm.to_string(), "12"]).status();
    assert!(held.unwrap().success());

    assert!(create.exit().success());
    container.stderr = create.stderr.take();
    let _ = container.start().ok();
}

/// Whether the process has a thread that runs a guest.
fn has_vcpu(pid: i32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task"));
    threads.into_iter().flatten().flatten().any(|thread| {
        let name = fs::read_to_string(thread.path().join("comm"));
        name.is_ok_and(|name| name.starts_with("vcpu"))
    })
}

/// What comes sooner or later.
fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + hull_tests::process::limit();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "waited for {what}, in vain");
        std::thread::sleep(Duration::from_millis(1));
    }
}
