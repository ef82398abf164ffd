//! The end of a container: it comes whatever the guest does, and counts at once.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use hull_tests::process::{limit, wait_for_death};
use hull_tests::{Bundle, Container, Running, guest, only_hull};
use serde_json::json;

use crate::lifecycle::waiting;

/// `kill KILL` and `delete --force` take no longer, whatever the guest does.
const TEN_SECONDS: Duration = Duration::from_secs(10);

/// Without a pid namespace of its own: its first process is no init that takes all along.
fn without_pid_namespace(bundle: Bundle) -> Bundle {
    let namespaces = ["mount", "ipc", "uts", "network"].map(|kind| json!({ "type": kind }));
    bundle.set("/linux/namespaces", json!(namespaces))
}

/// Stands in for the VM behind a container's control socket: takes connections to the agent, and has
/// `serve` do with each as it likes.
fn pretend(container: &Container, serve: fn(UnixStream)) {
    let socket = container.root().join(&container.id).join("vsock.sock");
    std::fs::remove_file(&socket).unwrap();
    let listener = UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(stream));
        }
    });
}

/// An agent that is connected and never says anything.
fn mute(mut stream: UnixStream) {
    let _ = stream.read(&mut [0; 64]);
    let _ = stream.write_all(b"OK 1\n");
    let _ = stream.read_to_end(&mut Vec::new());
}

/// An agent that says yes to everything, and does nothing. A message of ttrpc is its length, its stream,
/// its type and its flags, and then its data; an empty answer is a success.
fn lying(mut stream: UnixStream) {
    const ANSWER: u8 = 2;
    let _ = stream.read(&mut [0; 64]);
    let _ = stream.write_all(b"OK 1\n");
    let mut header = [0; 10];
    while stream.read_exact(&mut header).is_ok() {
        let [l0, l1, l2, l3, s0, s1, s2, s3, ..] = header;
        let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
        let _ = stream.read_exact(&mut vec![0; length]);
        let _ = stream.write_all(&[0, 0, 0, 0, s0, s1, s2, s3, ANSWER, 0]);
    }
}

/// A command that must end the container's process in time.
fn ends(container: &Container, mut running: Running, words: &[&str]) {
    let pid = container.state().pid;
    let begun = Instant::now();
    let _ = container.call(words).ok();
    let took = begun.elapsed();
    assert!(wait_for_death(pid, Duration::ZERO), "{words:?}: it lives");
    assert!(took < TEN_SECONDS, "{words:?} took {took:?}");
    assert_eq!(running.exit().code(), Some(137), "{words:?}");
}

#[test]
fn kill_does_not_depend_on_the_agent() {
    only_hull!("runc has no agent");
    for serve in [mute, lying] {
        let container = Container::new(waiting());
        let running = container.run_until_ready();
        pretend(&container, serve);
        ends(&container, running, &["kill", &container.id, "KILL"]);
    }
    let container = Container::new(waiting());
    let running = container.run_until_ready();
    pretend(&container, lying);
    ends(&container, running, &["kill", "--all", &container.id, "9"]);
}

#[test]
fn kill_does_not_depend_on_the_virtual_machine() {
    only_hull!("it has no VM");
    let container = Container::new(waiting());
    let running = container.run_until_ready();
    let pid = container.state().pid.to_string();
    let stopped = std::process::Command::new("kill")
        .args(["-STOP", &pid])
        .status();
    assert!(stopped.unwrap().success());
    ends(&container, running, &["kill", &container.id, "KILL"]);
}

#[test]
fn delete_by_force_does_not_depend_on_the_agent() {
    only_hull!("runc has no agent");
    let container = Container::new(waiting());
    let running = container.run_until_ready();
    pretend(&container, mute);
    ends(&container, running, &["delete", "--force", &container.id]);
}

#[test]
fn a_guest_that_never_comes_up_is_killed() {
    only_hull!("runc has no virtual machine");
    let bundle = waiting();
    let kernel = bundle.beside("kernel");
    std::fs::write(&kernel, guest::mute()).unwrap();
    let kernel = kernel.display().to_string();
    let container =
        Container::new(bundle).with_global(&["--kernel", &kernel, "--boot-timeout", "200"]);
    let mut create = Running::spawn(&mut container.create_command());
    let console = container.root().join(&container.id).join("console.log");
    let end = Instant::now() + limit();
    while !std::fs::read_to_string(&console).is_ok_and(|said| said.contains("no agent here")) {
        assert!(Instant::now() < end, "it doesn't boot");
        std::thread::sleep(Duration::from_millis(50));
    }

    let begun = Instant::now();
    let _ = container.kill("KILL").ok();

    assert!(begun.elapsed() < TEN_SECONDS, "{:?}", begun.elapsed());
    assert!(!create.exit().success());
}

#[test]
fn a_paused_container_is_killed() {
    let container = Container::new(waiting());
    let running = container.run_until_ready();
    let _ = container.call(&["pause", &container.id]).ok();
    ends(&container, running, &["kill", &container.id, "KILL"]);
}

#[test]
fn a_container_that_takes_all_it_can_is_killed() {
    let script = "(while :; do tail /dev/zero 2>/dev/null; done) &
                  for n in 1 2 3 4 5 6 7 8; do (while :; do :; done) & done
                  (bomb() { bomb | bomb & }; bomb) 2>/dev/null &
                  echo ready; exec sleep 1000000";
    let bundle = Bundle::new()
        .shell(script)
        .set("/linux/resources/pids", json!({ "limit": 100 }))
        .set(
            "/linux/resources/cpu",
            json!({ "shares": 2, "quota": 20000, "period": 100000 }),
        )
        .set(
            "/linux/resources/memory",
            json!({ "limit": 32 << 20, "swap": 32 << 20 }),
        );
    let container = Container::new(bundle);
    let running = container.run_until_ready();
    let mut load: Vec<_> = (0..2)
        .map(|_| {
            let mut command = std::process::Command::new("sh");
            Running::spawn(command.args(["-c", "while :; do :; done"]))
        })
        .collect();

    ends(&container, running, &["kill", &container.id, "KILL"]);

    load.iter_mut().for_each(Running::kill);
}

#[test]
fn a_start_that_waits_for_its_hook_does_not_keep_the_container() {
    only_hull!("runc 1.1 runs poststart hooks in create");
    let hook = json!({ "path": "/bin/sleep", "args": ["sleep", "3600"] });
    let mut container = Container::new(waiting().set("/hooks/poststart", json!([hook])));
    container.create();
    let mut start = Running::spawn(&mut container.command(&["start", &container.id]));
    assert_eq!(container.stdout.as_mut().unwrap().line("stdout"), "ready");

    let begun = Instant::now();
    let _ = container.delete_force().ok();

    assert!(begun.elapsed() < TEN_SECONDS, "{:?}", begun.elapsed());
    assert!(!start.exit().success());
}

#[test]
fn a_container_is_stopped_when_its_output_has_ended() {
    for script in ["exit 0", "exec 1>&2; echo bye; exit 3"] {
        for _ in 0..5 {
            let mut container = Container::new(Bundle::new().shell(script));
            container.create();
            let _ = container.start().ok();
            let end = Instant::now() + limit();
            for stream in [&mut container.stdout, &mut container.stderr] {
                stream.as_mut().unwrap().to_end("an output", end);
            }
            let state = container.state();
            assert_eq!((state.status.as_str(), state.pid), ("stopped", 0));
            let _ = container.kill("TERM").exits(1);
            let _ = container.delete().ok();
        }
    }
}

#[test]
fn a_container_that_ends_at_once_is_deleted_without_force() {
    for _ in 0..10 {
        let mut container = Container::new(Bundle::new());
        container.create();
        let _ = container.start().ok();
        let _ = container.delete().ok();
    }
}

#[test]
fn a_child_that_holds_the_output_does_not_hold_up_the_end() {
    let script = "sleep 3600 & echo ready; exit 3";
    let container = Container::new(without_pid_namespace(Bundle::new().shell(script)));
    let mut run = container.start_run();
    assert_eq!(run.line(), "ready");
    assert_eq!(run.exit().code(), Some(3));

    let mut container = Container::new(without_pid_namespace(Bundle::new().shell(script)));
    container.create();
    let pid = container.state().pid;
    let _ = container.start().ok();
    assert!(wait_for_death(pid, limit()));
    assert_eq!(container.state().status, "stopped");
    let _ = container.delete().ok();
}

#[test]
fn output_that_nobody_has_read_survives_the_end() {
    let mut container = Container::new(Bundle::new().shell("yes | head -c 50000"));
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut create = container.create_command();
    let mut created = Running::spawn(create.stdout(writer));
    drop(create);
    assert!(created.exit().success());
    container.stderr = created.stderr.take();
    let pid = container.state().pid;
    let _ = container.start().ok();
    assert!(wait_for_death(pid, limit()));
    let _ = container.delete().ok();
    let mut output = Vec::new();
    reader.read_to_end(&mut output).unwrap();
    assert_eq!(output.len(), 50_000);
}
