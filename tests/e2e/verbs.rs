//! What can be asked of a container that runs: `ps`, `pause`, `resume`, `update`, `events`.

use std::io::Write;
use std::process::Stdio;
use std::time::Instant;

use hull_tests::process::{limit, wait_for_death};
use hull_tests::{Bundle, Container, Running, only_hull};
use serde_json::{Value, json};

use crate::lifecycle::waiting;

/// One that never rests.
fn busy() -> Bundle {
    Bundle::new().shell("trap 'echo got TERM; exit 5' TERM; echo ready; while :; do :; done")
}

fn stats(container: &Container) -> Value {
    let done = container.call(&["events", "--stats", &container.id]).ok();
    let event: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(event["type"], "stats");
    assert_eq!(event["id"], container.id);
    event["data"].clone()
}

fn cpu_time(container: &Container) -> u64 {
    let data = stats(container);
    data["cpu"]["usage"]["total"].as_u64().unwrap()
}

/// What the container's own cgroup file says.
fn cgroup_file(container: &Container, name: &str) -> String {
    let script = format!("cat /sys/fs/cgroup/{name}");
    container.exec_shell(&script).ok().out()
}

#[test]
fn paused_it_stands_still_and_resumed_it_goes_on() {
    let container = Container::new(busy());
    let _running = container.run_until_ready();

    let _ = container.call(&["pause", &container.id]).ok();
    assert_eq!(container.state().status, "paused");
    let stands = cpu_time(&container);
    let list = container.call(&["list"]).ok().out();
    assert!(list.contains("paused"), "{list}");
    assert_eq!(cpu_time(&container), stands);

    let _ = container.call(&["resume", &container.id]).ok();
    assert_eq!(container.state().status, "running");
    let start = Instant::now();
    while cpu_time(&container) == stands {
        assert!(start.elapsed() < limit(), "it does not go on");
    }
}

#[test]
fn a_paused_container_takes_no_exec() {
    let container = Container::new(waiting());
    let _running = container.run_until_ready();
    let _ = container.call(&["pause", &container.id]).ok();

    let refused = container.exec(&["/bin/true"]);
    let _ = refused.exits(255).fails_saying("cannot exec in a paused");

    let mut command = container.exec_command(&["--ignore-paused"], &["echo", "late"]);
    let mut ignoring = Running::spawn(&mut command);
    let _ = container.call(&["resume", &container.id]).ok();
    assert_eq!(ignoring.line(), "late");
    let _ = ignoring.finish().ok();
}

#[test]
fn an_exec_that_a_pause_outlasts_never_runs() {
    only_hull!("runc waits for ever");
    let container = Container::new(waiting());
    let _running = container.run_until_ready();
    let _ = container.call(&["pause", &container.id]).ok();

    let mut command = container.exec_command(&["--ignore-paused"], &["touch", "/late"]);
    let exec = Running::spawn_within(&mut command, 3 * limit());
    let _ = exec.finish().exits(255).fails_saying("60 s");
    let _ = container.call(&["resume", &container.id]).ok();

    // Any process that goes on has done so before a further one has come and gone.
    let _ = container.exec(&["/bin/true"]).ok();
    assert!(!container.bundle.rootfs().join("late").exists());
}

#[test]
fn a_signal_waits_for_a_paused_container_to_resume() {
    let container = Container::new(busy());
    let mut running = container.run_until_ready();
    let _ = container.call(&["pause", &container.id]).ok();

    let _ = container.kill("TERM").ok();
    assert_eq!(container.state().status, "paused");
    let _ = container.call(&["resume", &container.id]).ok();

    assert_eq!(running.line(), "got TERM");
    let _ = running.finish().exits(5);
}

#[test]
fn a_paused_container_can_be_killed_and_deleted() {
    let container = Container::new(waiting());
    let running = container.run_until_ready();
    let pid = container.state().pid;
    let _ = container.call(&["pause", &container.id]).ok();

    let _ = container.kill("KILL").ok();
    assert!(wait_for_death(pid, limit()));
    let _ = running.finish().exits(137);

    let container = Container::new(waiting());
    let _running = container.run_until_ready();
    let _ = container.call(&["pause", &container.id]).ok();
    let _ = container.delete_force().ok();
    let _ = container.call(&["state", &container.id]).exits(1);
}

#[test]
fn ps_shows_every_process_of_the_container_and_no_other() {
    let container = Container::new(waiting());
    let _running = container.run_until_ready();
    let mut command = container.exec_command(&[], &["sh", "-c", "echo up; exec sleep 1234"]);
    let mut exec = Running::spawn(&mut command);
    assert_eq!(exec.line(), "up");

    let table = container.call(&["ps", &container.id]).ok().out();
    let mut lines = table.lines();
    let head: Vec<_> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(
        head,
        ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    );
    let commands: Vec<_> = lines
        .map(|line| {
            line.split_whitespace()
                .skip(7)
                .collect::<Vec<_>>()
                .join(" ")
        })
        .collect();
    assert_eq!(commands.len(), 2, "{table}");
    for command in ["sleep 3600", "sleep 1234"] {
        assert!(commands.iter().any(|c| c == command), "{table}");
    }
}

/// docker shows of the host's processes those that have one of these pids.
#[test]
fn as_json_ps_names_the_hosts_processes_alone() {
    let mut container = Container::new(waiting());
    let listed = |container: &Container| -> Vec<i32> {
        let words = ["ps", "--format", "json", &container.id];
        serde_json::from_slice(&container.call(&words).ok().stdout).unwrap()
    };
    container.create();
    let pid = container.state().pid;
    assert_eq!(listed(&container), [pid]);
    let _ = container.start().ok();
    assert_eq!(container.stdout.as_mut().unwrap().line("stdout"), "ready");
    assert_eq!(listed(&container), [pid]);

    let _ = container.kill("KILL").ok();
    assert!(wait_for_death(pid, limit()));

    let words = ["ps", "--format", "json", &container.id];
    let left = container.call(&words).ok().out();
    assert!(["[]", "null"].contains(&&*left), "{left}");
}

#[test]
fn ps_shows_nothing_that_does_something_to_a_terminal() {
    only_hull!("runc leaves that to ps");
    let container = Container::new(waiting());
    let _running = container.run_until_ready();
    let words = ["sh", "-c", "echo up; read word", "a\x1b[2Jb"];
    let mut command = container.exec_command(&[], &words);
    let mut exec = Running::spawn(command.stdin(Stdio::piped()));
    assert_eq!(exec.line(), "up");

    let table = container.call(&["ps", &container.id]).ok().out();

    assert!(table.contains("a?[2Jb"), "{table:?}");
    assert!(!table.contains('\u{1b}'), "{table:?}");
}

#[test]
fn update_changes_limits_for_good() {
    let bundle = waiting()
        .set("/linux/resources/memory", json!({ "limit": 64 << 20 }))
        .set(
            "/linux/resources/cpu",
            json!({ "quota": 50000, "period": 100000 }),
        );
    let container = Container::new(bundle);
    let _running = container.run_until_ready();
    let update = |words: &[&str]| container.update(words);

    let _ = update(&[
        "--memory",
        "48m",
        "--memory-reservation",
        "32M",
        "--pids-limit",
        "77",
    ])
    .ok();
    assert_eq!(
        cgroup_file(&container, "memory.max"),
        (48 << 20).to_string()
    );
    assert_eq!(
        cgroup_file(&container, "memory.low"),
        (32 << 20).to_string()
    );
    assert_eq!(cgroup_file(&container, "pids.max"), "77");
    assert_eq!(cgroup_file(&container, "cpu.max"), "50000 100000");
    // The period is kept, across commands.
    let _ = update(&["--cpu-quota", "20000"]).ok();
    assert_eq!(cgroup_file(&container, "cpu.max"), "20000 100000");
    let _ = update(&["--cpu-share", "2048"]).ok();
    assert_ne!(cgroup_file(&container, "cpu.weight"), "100");
    assert_eq!(cgroup_file(&container, "cpu.max"), "20000 100000");
    assert_eq!(
        cgroup_file(&container, "memory.max"),
        (48 << 20).to_string()
    );
}

#[test]
fn update_reads_a_file_or_standard_input() {
    let container = Container::new(waiting());
    let _running = container.run_until_ready();
    let file = container
        .bundle
        .file("limits", r#"{"pids": {"limit": 55}}"#);

    let file = file.display().to_string();
    let _ = container.update(&["--resources", &file]).ok();
    assert_eq!(cgroup_file(&container, "pids.max"), "55");

    let mut command = container.command(&["update", "-r", "-", &container.id]);
    let mut update = Running::spawn(command.stdin(Stdio::piped()));
    let mut stdin = update.stdin.take().unwrap();
    stdin.write_all(br#"{"pids": {"limit": 66}}"#).unwrap();
    drop(stdin);
    let _ = update.finish().ok();
    assert_eq!(cgroup_file(&container, "pids.max"), "66");
}

#[test]
fn what_update_cannot_change_is_refused_by_name() {
    only_hull!("runc's host has what a guest lacks");
    let container = Container::new(waiting());
    let _running = container.run_until_ready();
    let cases: [(&[&str], &str); 6] = [
        (&["--cpuset-mems", "1000"], "linux.resources.cpu.mems"),
        (
            &["--cpu-rt-period", "1000"],
            "linux.resources.cpu.realtimePeriod",
        ),
        (&["--memory", "100g"], "linux.resources.memory.limit"),
        (&["--memory", "lots"], "lots"),
        (&["--cpuset-cpus", "1000"], "linux.resources.cpu.cpus"),
        (&["--l3-cache-schema", "x"], "--l3-cache-schema"),
    ];
    for (words, expected) in cases {
        let _ = container.update(words).fails_saying(expected);
    }
    assert_eq!(cgroup_file(&container, "pids.max"), "max");
}

#[test]
fn events_show_statistics_and_the_end_ends_them() {
    let container = Container::new(waiting());
    let running = container.run_until_ready();

    let data = stats(&container);
    assert!(
        data["memory"]["usage"]["usage"].as_u64() > Some(0),
        "{data}"
    );
    assert_eq!(data["pids"]["current"], 1);
    assert!(data["memory"]["raw"]["anon"].is_u64());

    let words = ["events", "--interval", "100ms", &container.id];
    let mut events = Running::spawn(&mut container.command(&words));
    for _ in 0..3 {
        let event: Value = serde_json::from_str(&events.line()).unwrap();
        assert_eq!(event["type"], "stats");
    }
    let _ = container.kill("KILL").ok();
    assert!(events.exit().success());
    let _ = running.finish().exits(137);

    let _ = container
        .call(&["events", "--interval", "0", &container.id])
        .exits(1);
}

#[test]
fn events_tell_of_a_lack_of_memory() {
    let bundle = waiting().set(
        "/linux/resources/memory",
        json!({ "limit": 32 << 20, "swap": 32 << 20 }),
    );
    let container = Container::new(bundle);
    let _running = container.run_until_ready();
    let words = ["events", "--interval", "100ms", &container.id];
    let mut events = Running::spawn(&mut container.command(&words));
    let _ = events.line();

    let _ = container.exec_shell("exec tail /dev/zero").exits(137);

    let start = Instant::now();
    while !events.line().contains(r#""type":"oom""#) {
        assert!(start.elapsed() < limit(), "no event of it");
    }
}

#[test]
fn checkpoint_and_restore_say_that_they_cannot() {
    only_hull!("runc needs criu");
    let container = Container::new(Bundle::new());
    for verb in ["checkpoint", "restore"] {
        let done = container.call(&[verb, "--image-path", "/tmp/x", &container.id]);
        let _ = done.exits(1).fails_saying("not save and restore");
    }
}
