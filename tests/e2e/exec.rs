//! Further processes in a running container.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use hull_tests::process::{limit, wait_for_death};
use hull_tests::{Bundle, Container, Running, bundle, pattern};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::lifecycle::waiting;

#[test]
fn exit_codes() {
    let container = Container::new(waiting());
    let _running = container.run_until_ready();

    let _ = container.exec(&["/bin/true"]).ok();
    let _ = container.exec_shell("exit 7").exits(7);
    let _ = container.exec_shell("kill -KILL $$").exits(137);
    let _ = container.exec_shell("kill -TERM $$").exits(143);
    let _ = container
        .exec(&["nonsense"])
        .exits(255)
        .fails_saying("exec: \"nonsense\": executable file not found in $PATH");
    let _ = container
        .exec(&[&"n".repeat(20_000)])
        .exits(255)
        .fails_saying("executable file not found in $PATH");
    // To the kernel it means "as it is", which is root.
    let mut nobody = container.exec_command(&["--user", "4294967295"], &["/bin/true"]);
    let _ = Running::spawn(&mut nobody).finish().exits(255);
    assert_eq!(container.state().status, "running");
}

#[test]
fn stdio_of_its_own() {
    let container = Container::new(waiting());
    let _running = container.run_until_ready();

    let done = container.exec_shell("echo out; echo err >&2").ok();
    assert_eq!((done.out().as_str(), done.err().as_str()), ("out", "err"));

    let mut command = container.exec_command(&[], &["cat"]);
    let mut cat = Running::spawn(command.stdin(Stdio::piped()));
    let mut stdin = cat.stdin.take().unwrap();
    stdin.write_all(b"one\n").unwrap();
    assert_eq!(cat.line(), "one");
    let writer = std::thread::spawn(move || pattern::write(&mut stdin, 4 << 20));
    let done = cat.finish().ok();
    writer.join().unwrap().unwrap();
    pattern::check(&mut &done.stdout[4..], 4 << 20).unwrap();
}

#[test]
fn what_a_child_that_was_left_behind_writes_is_awaited() {
    let container = Container::new(waiting());
    let _running = container.run_until_ready();
    let _ = container.exec_shell("mkfifo /tmp/lives /tmp/says").ok();

    // The shell's end is the end of /tmp/lives.
    let script = "exec 3>/tmp/lives; cat /tmp/says 3>&- & echo first; exit 3";
    let output = container.bundle.file("output", "");
    let mut command = container.exec_command(&[], &["sh", "-c", script]);
    let mut exec = Running::spawn(command.stdout(fs::File::create(&output).unwrap()));
    let script = "cat /tmp/lives; echo last >/tmp/says";
    let mut command = container.exec_command(&[], &["sh", "-c", script]);
    let other = Running::spawn(&mut command);

    assert_eq!(exec.exit().code(), Some(3));
    assert_eq!(fs::read_to_string(output).unwrap(), "first\nlast\n");
    let _ = other.finish().ok();
}

#[test]
fn ten_at_once() {
    let container = Container::new(waiting());
    let _running = container.run_until_ready();

    let mut all: Vec<_> = (0..10)
        .map(|n| {
            let script = format!("echo up; read word; echo $word {n}; exit {n}");
            let mut command = container.exec_command(&[], &["sh", "-c", &script]);
            Running::spawn(command.stdin(Stdio::piped()))
        })
        .collect();
    // all of them run before the first may end
    for exec in &mut all {
        assert_eq!(exec.line(), "up");
    }
    for exec in &mut all {
        exec.stdin.as_mut().unwrap().write_all(b"word\n").unwrap();
    }

    for (n, exec) in all.into_iter().enumerate() {
        let done = exec.finish().exits(n as i32);
        assert_eq!(done.out(), format!("up\nword {n}"));
    }
}

#[test]
fn options_set_its_user_folder_and_environment() {
    let container = Container::new(waiting());
    let _running = container.run_until_ready();
    let identity = |options: &[&str]| -> Value {
        let mut command = container.exec_command(options, &[bundle::PROBE, "identity"]);
        let done = Running::spawn(&mut command).finish().ok();
        serde_json::from_slice(&done.stdout).unwrap()
    };

    let plain = identity(&[]);
    assert_eq!(plain["cwd"], "/");
    assert_eq!(plain["uid"], json!([0, 0, 0, 0]));
    assert_eq!(plain["hostname"], "box");
    assert_eq!(plain["no_new_privs"], "1");
    assert_eq!(plain["rlimits"]["nofile"], json!([1024, 1024]));
    assert_ne!(plain["pid"], 1);

    let set = identity(&[
        "--user",
        "1000:1001",
        "--cwd",
        "/tmp",
        "--env",
        "COLOR=green",
    ]);
    assert_eq!(set["uid"], json!([1000, 1000, 1000, 1000]));
    assert_eq!(set["gid"], json!([1001, 1001, 1001, 1001]));
    assert_eq!(set["cwd"], "/tmp");
    assert_eq!(set["env"]["COLOR"], "green");
    assert_eq!(set["capabilities"]["effective"], "0000000000000000");
}

#[test]
fn a_process_file_describes_it_whole() {
    let container = Container::new(waiting());
    let _running = container.run_until_ready();
    let process = json!({
        "args": [bundle::PROBE, "identity"],
        "cwd": "/etc",
        "env": ["PATH=/bin", "COLOR=green"],
        "user": { "uid": 1000, "gid": 1000, "additionalGids": [7, 8] },
        "rlimits": [{ "type": "RLIMIT_CORE", "soft": 64, "hard": 128 }],
    });
    let file = container.bundle.file("process.json", &process.to_string());
    let file = file.display().to_string();

    let mut command = container.exec_command(&["--process", &file], &[]);
    let done = Running::spawn(&mut command).finish().ok();

    let found: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(found["cwd"], "/etc");
    assert_eq!(found["env"]["COLOR"], "green");
    assert_eq!(found["uid"], json!([1000, 1000, 1000, 1000]));
    assert_eq!(found["groups"], json!([7, 8]));
    assert_eq!(found["rlimits"]["core"], json!([64, 128]));
}

#[test]
fn a_process_file_may_be_a_pipe() {
    let container = Container::new(waiting());
    let _running = container.run_until_ready();
    let process = json!({ "args": ["echo", "read"], "cwd": "/", "env": ["PATH=/bin"] });

    let mut command = container.exec_command(&["--process", "/dev/stdin"], &[]);
    let mut exec = Running::spawn(command.stdin(Stdio::piped()));
    let mut stdin = exec.stdin.take().unwrap();
    write!(stdin, "{process}").unwrap();
    drop(stdin);

    assert_eq!(exec.finish().ok().out(), "read");
}

#[test]
fn is_inside_the_container() {
    let container = Container::new(waiting());
    let _running = container.run_until_ready();

    let seen = container.exec_shell("tr '\\0' ' ' </proc/1/cmdline; hostname; touch /made");

    assert_eq!(seen.ok().out(), "sleep 3600 box");
    assert!(container.bundle.rootfs().join("made").exists());
}

/// Starts a script that says "up", and returns the pid that stands for it on the host.
fn detached(container: &Container, script: &str) -> i32 {
    let pid_file = container.bundle.beside("exec-pid");
    let options = ["--detach", "--pid-file", &pid_file.display().to_string()];
    let mut exec = Running::spawn(&mut container.exec_command(&options, &["sh", "-c", script]));
    assert!(exec.exit().success());
    assert_eq!(exec.line(), "up");
    fs::read_to_string(pid_file).unwrap().parse().unwrap()
}

#[test]
fn detached_it_leaves_a_pid_that_lives_as_long() {
    let container = Container::new(waiting());
    let _running = container.run_until_ready();
    let pid = detached(&container, "echo up; exec sleep 3600");

    assert!(Path::new(&format!("/proc/{pid}")).exists());
    let _ = container.exec_shell("killall sleep").ok();
    assert!(wait_for_death(pid, limit()), "{pid} outlives its process");
}

/// As engines do at a time limit.
#[test]
fn detached_it_is_killed_by_its_pid() {
    let container = Container::new(waiting());
    let _running = container.run_until_ready();
    let pid = detached(&container, "echo up; exec sleep 4242");

    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();

    // The pattern isn't itself what it looks for.
    let until_gone = "while grep -q '42[4]2' /proc/[0-9]*/cmdline 2>/dev/null; do sleep 0.1; done";
    let _ = container
        .exec(&["timeout", "60", "sh", "-c", until_gone])
        .ok();
}

#[test]
fn one_whose_pid_file_cannot_be_written_is_ended() {
    let container = Container::new(waiting());
    let _running = container.run_until_ready();
    for detach in [&[][..], &["--detach"]] {
        let options = [detach, &["--pid-file", "/nonexistent/pid"]].concat();
        let mut exec = container.exec_command(&options, &["sleep", "3600"]);
        // Its output ends, for which it has to.
        let exec = Running::spawn(&mut exec).finish();
        let _ = exec.exits(255).fails_saying("/nonexistent/");
    }
}

#[test]
fn ends_with_its_container() {
    let container = Container::new(Bundle::new().shell("echo ready; read word"));
    let mut command = container.run_command();
    let mut running = Running::spawn(command.stdin(Stdio::piped()));
    assert_eq!(running.line(), "ready");
    let words = ["sh", "-c", "echo up; exec sleep 3600"];
    let mut exec = Running::spawn(&mut container.exec_command(&[], &words));
    assert_eq!(exec.line(), "up");

    let _ = running.finish().exits(1); // `read` meets the end of its input

    let _ = exec.finish().exits(137);
}

#[test]
fn it_is_in_the_cgroup_that_is_asked_for() {
    let container = Container::new(waiting().set("/mounts/6/options", json!(["nosuid", "rw"])));
    let _running = container.run_until_ready();
    let at = |options: &[&str]| {
        let mut command = container.exec_command(options, &["cat", "/proc/self/cgroup"]);
        Running::spawn(&mut command).finish()
    };
    assert_eq!(at(&[]).ok().out(), "0::/");
    assert_eq!(at(&["--cgroup", "/"]).ok().out(), "0::/");
    let _ = at(&["--cgroup", "none"])
        .exits(255)
        .fails_saying("/none/cgroup.procs: no such file");

    // The container moves its first process away, and then itself can't have any.
    let script = "cd /sys/fs/cgroup; mkdir first other; echo 1 >first/cgroup.procs; \
                  echo $$ >other/cgroup.procs; echo +memory >cgroup.subtree_control";
    let _ = container.exec_shell(script).ok();
    assert_eq!(at(&[]).ok().out(), "0::/first");
    assert_eq!(at(&["--cgroup", "other"]).ok().out(), "0::/other");
    let _ = at(&["--cgroup", "/"])
        .exits(255)
        .fails_saying("/cgroup.procs: device or resource busy");
    let _ = at(&["--cgroup", "../other"]).exits(255);
}
