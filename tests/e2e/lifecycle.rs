//! From `create` to `delete`: the states, their pid, signals, and who may be deleted.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use hull_tests::process::{limit, wait_for_death};
use hull_tests::{Bundle, Container, Running, bundle, runtime};
use libc::{SIGKILL, SIGTERM, SIGUSR1, SIGWINCH};
use serde_json::json;

use crate::rootless::{of_user, rootless};

/// A container that writes `ready` and then waits to be killed.
pub fn waiting() -> Bundle {
    Bundle::new().shell("echo ready; exec sleep 3600")
}

fn is_alive(pid: i32) -> bool {
    pid > 0 && Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn goes_through_its_states() {
    let bundle = Bundle::new()
        .shell("echo ready >/started; sleep 3600 & wait")
        .set("/annotations", json!({ "org.example.color": "green" }));
    let mut container = Container::new(bundle);
    let started = container.bundle.rootfs().join("started");

    container.create();
    let created = container.state();
    assert_eq!(created.status, "created");
    assert_eq!(created.id, container.id);
    assert_eq!(created.bundle, container.bundle.path());
    assert_eq!(created.annotations["org.example.color"], "green");
    assert!(created.oci_version.starts_with("1."), "{created:?}");
    assert!(is_alive(created.pid), "{created:?}");
    assert!(!started.exists(), "the process ran before start");

    let _ = container.start().ok();
    let running = container.state();
    assert_eq!(running.status, "running");
    assert_eq!(running.pid, created.pid);
    assert!(is_alive(running.pid));

    let _ = container.kill("KILL").ok();
    assert!(wait_for_death(running.pid, limit()), "kill had no effect");
    let stopped = container.state();
    assert_eq!((stopped.status.as_str(), stopped.pid), ("stopped", 0));

    let _ = container.delete().ok();
    let gone = container.call(&["state", &container.id]);
    let _ = gone.exits(1).fails_saying("does not exist");
}

#[test]
fn starts_a_minute_after_create() {
    let mut container = Container::new(Bundle::new().shell("echo started; exit 0"));
    container.create();

    std::thread::sleep(Duration::from_secs(65)); // no time limit of a minute may end it

    let created = container.state();
    assert_eq!(created.status, "created");
    let _ = container.start().ok();
    assert_eq!(container.stdout.as_mut().unwrap().line("stdout"), "started");
    assert!(wait_for_death(created.pid, limit()));
}

#[test]
fn an_exit_by_itself_ends_in_stopped() {
    let mut container = Container::new(Bundle::new());
    container.create();
    let pid = container.state().pid;

    let _ = container.start().ok();

    assert!(
        wait_for_death(pid, limit()),
        "pid {pid} outlives its container"
    );
    assert_eq!(container.state().status, "stopped");
    let _ = container.delete().ok();
}

#[test]
fn signals_by_name_and_number() {
    let script = "trap 'echo hup' HUP; trap 'echo usr1; exit 5' USR1; echo ready;
                  while :; do sleep 3600 & wait; done";
    let container = Container::new(Bundle::new().shell(script));
    let mut running = container.run_until_ready();

    for name in ["HUP", "SIGHUP", "1"] {
        let _ = container.kill(name).ok();
        assert_eq!(running.line(), "hup", "after kill {name}");
    }
    let wrong = container.kill("SIGNONSENSE");
    let _ = wrong.exits(1);
    let _ = container.kill("10").ok();

    assert_eq!(running.line(), "usr1");
    let _ = running.finish().exits(5);
}

/// Sends a signal to the process that `state` names, as systemd and administrators do.
pub fn signal_pid(container: &Container, signal: i32) {
    let pid = container.state().pid.to_string();
    let kill = Command::new("kill")
        .args([&format!("-{signal}"), &pid])
        .status();
    assert!(kill.unwrap().success());
}

/// All but TERM, KILL and STOP, what faults cause, PIPE and CHLD; of the real-time signals two.
const PASSED_ON: [i32; 23] = [
    1, 2, 3, 5, 6, 10, 12, 14, 16, 18, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 35, 64,
];

/// A program that says of each but TERM that it came.
fn trapping() -> Bundle {
    let numbers = PASSED_ON.map(|signal| signal.to_string()).join(" ");
    let traps = format!("for s in {numbers}; do trap \"echo $s\" $s; done");
    Bundle::new().shell(&format!(
        "{traps}; trap 'exit 5' TERM; echo ready; while :; do :; done"
    ))
}

/// Signals to its pid are the container's.
fn gets_its_signals(container: &Container) {
    let mut running = container.run_until_ready();
    for signal in PASSED_ON {
        signal_pid(container, signal);
        assert_eq!(running.line(), signal.to_string());
    }
    signal_pid(container, SIGTERM);
    let _ = running.finish().exits(5);
}

#[test]
fn a_signal_to_its_pid_on_the_host_is_the_containers() {
    gets_its_signals(&Container::new(trapping()));
}

#[test]
fn an_ordinary_users_container_gets_the_signals_to_its_pid_too() {
    gets_its_signals(&of_user(rootless(trapping())));
}

#[test]
fn a_container_that_ignores_a_signal_to_its_pid_lives_on() {
    // The kernel lets PID 1 of a namespace see only what it handles.
    let container = Container::new(waiting());
    let running = container.run_until_ready();
    for signal in PASSED_ON.into_iter().chain([SIGTERM]) {
        signal_pid(&container, signal);
    }
    let _ = container.exec(&["/bin/true"]).ok();
    assert_eq!(container.state().status, "running");
    signal_pid(&container, SIGKILL);
    let _ = running.finish().exits(137);
}

#[test]
fn a_signal_to_its_pid_ends_a_created_container() {
    let mut container = Container::new(waiting());
    container.create();
    let pid = container.state().pid;
    for signal in [SIGUSR1, SIGWINCH] {
        signal_pid(&container, signal);
    }
    assert_eq!(container.state().status, "created");
    signal_pid(&container, SIGTERM);
    assert!(wait_for_death(pid, limit()));
    assert_eq!(container.state().status, "stopped");
    let _ = container.delete().ok();
}

#[test]
fn delete_spares_a_running_container_unless_forced() {
    let container = Container::new(waiting());
    let running = container.run_until_ready();
    let pid = container.state().pid;

    let refused = container.delete();
    let _ = refused.exits(1).fails_saying("cannot delete container");
    assert_eq!(container.state().status, "running");

    let _ = container.delete_force().ok();
    assert!(!is_alive(pid), "process {pid} is still there");
    let _ = container.call(&["state", &container.id]).exits(1);
    let _ = running.finish().exits(137);
}

#[test]
fn detached_run_returns_at_once_and_leaves_a_pid_file() {
    let container = Container::new(waiting());
    let pid_file = container.bundle.beside("pid");
    let pid_file_word = pid_file.display().to_string();
    let args = ["run", "--detach", "--pid-file", &pid_file_word, "--bundle"];
    let args: Vec<_> = args
        .into_iter()
        .chain([container.bundle_path(), container.id.as_str()])
        .collect();

    let mut run = Running::spawn(&mut container.command(&args));
    assert!(run.exit().success());

    assert_eq!(run.line(), "ready");
    let state = container.state();
    assert_eq!(state.status, "running");
    assert_eq!(fs::read_to_string(pid_file).unwrap(), state.pid.to_string());
}

#[test]
fn list_shows_every_container_of_its_root() {
    let first = Container::new(waiting());
    let _running = first.run_until_ready();
    let mut second = Container::below(first.root(), Bundle::new());
    second.create();

    let names = first.call(&["list", "--quiet"]).ok().out();
    let table = first.call(&["list"]).ok().out();
    let json = first.call(&["list", "--format", "json"]).ok();

    assert_eq!(names, format!("{}\n{}", first.id, second.id));
    assert_eq!(table.lines().count(), 3, "{table}");
    let json: Vec<serde_json::Value> = serde_json::from_slice(&json.stdout).unwrap();
    let states: Vec<_> = json.iter().map(|c| (&c["id"], &c["status"])).collect();
    assert_eq!(
        states,
        [
            (&json!(first.id), &json!("running")),
            (&json!(second.id), &json!("created"))
        ]
    );
}

/// An engine's monitor is no parent of the container's process, but adopts it.
fn adopted_end(script: &str, then: impl FnOnce(&Container)) -> String {
    let container = Container::new(Bundle::new().shell(script));
    let pid_file = container.bundle.beside("pid").display().to_string();
    let create = container.command(&[
        "create",
        "--pid-file",
        &pid_file,
        "--bundle",
        container.bundle_path(),
        &container.id,
    ]);
    let mut adopt = Command::new(bundle::probe_on_host());
    adopt
        .args(["adopt", &pid_file])
        .arg(create.get_program())
        .args(create.get_args())
        .stdin(Stdio::null())
        .stdout(Stdio::piped());

    let mut monitor = Running::spawn(&mut adopt);
    assert_eq!(monitor.line(), "ready");
    let _ = container.start().ok();
    then(&container);
    let end = monitor.line();
    let _ = monitor.finish().ok();
    end
}

#[test]
fn the_adopted_process_ends_like_the_container() {
    assert_eq!(adopted_end("exit 7", |_| {}), "exit 7");

    let killed = adopted_end("exec sleep 3600", |container| {
        let _ = container.kill("KILL").ok();
    });

    // The process of a virtual machine can't die of the guest's signal: it exits as a shell does.
    let expected = if runtime::is_hull() {
        "exit 137"
    } else {
        "signal 9"
    };
    assert_eq!(killed, expected);
}
