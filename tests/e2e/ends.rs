//! The end of a container: it comes whatever the guest does, and counts at once.

use std::io::Read;
use std::time::Instant;

use hull_tests::process::{limit, wait_for_death};
use hull_tests::{Bundle, Container, Running};
use serde_json::json;

/// Without a pid namespace of its own: its first process is no init that takes all along.
fn without_pid_namespace(bundle: Bundle) -> Bundle {
    let namespaces = ["mount", "ipc", "uts", "network"].map(|kind| json!({ "type": kind }));
    bundle.set("/linux/namespaces", json!(namespaces))
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
