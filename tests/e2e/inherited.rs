//! Whatever a caller has that its children inherit, a container runs: signals blocked or ignored, resource
//! limits, a terminal that is another job's.

use std::fs;

use hull_tests::process::limit;
use hull_tests::terminal::{Terminal, on_terminal};
use hull_tests::{Bundle, Container, Running, only_hull};
use serde_json::json;

/// The lines of `/proc/<pid>/status` or `limits` that begin with this.
fn line(pid: i32, file: &str, start: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
    let found = text.lines().find_map(|line| line.strip_prefix(start));
    found.expect("the kernel has it").trim().to_owned()
}

#[test]
fn the_end_is_seen_whatever_the_caller_does_about_children() {
    for change in ["--block-signal=CHLD", "--ignore-signal=CHLD"] {
        let container = Container::new(Bundle::new().shell("echo out; exit 3"));
        let container = container.wrapped(&["env", change]);
        let done = container.run();
        assert_eq!(done.out(), "out", "{change}");
        let _ = done.exits(3);
    }
}

#[test]
fn a_signal_that_the_caller_has_blocked_is_passed_on() {
    let script = "trap 'exit 7' TERM; echo ready; while :; do sleep 1; done";
    let container = Container::new(Bundle::new().shell(script));
    let container = container.wrapped(&["env", "--block-signal"]);
    let running = container.run_until_ready();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(running.pid()).unwrap(),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    let _ = running.finish().exits(7);
}

#[test]
fn the_vm_blocks_and_ignores_nothing_of_the_callers() {
    only_hull!("runc's container inherits what its caller ignores");
    let mut container = Container::new(Bundle::new());
    container = container.wrapped(&["env", "--block-signal", "--ignore-signal"]);
    container.create();
    let pid = container.state().pid;
    // What it blocks it passes on. Not its own faults, PIPE and CHLD, what kicks a vCPU, the C library's two, and
    // what nobody can block.
    let not_blocked = [4, 7, 8, 9, 11, 13, 17, 19, 31, 32, 33, 34];
    let others = not_blocked
        .map(|signal| 1 << (signal - 1))
        .iter()
        .sum::<u64>();
    assert_eq!(line(pid, "status", "SigBlk:"), format!("{:016x}", !others));
    // SIGPIPE: a write to nobody is an error like others.
    assert_eq!(line(pid, "status", "SigIgn:"), "0000000000001000");
}

#[test]
fn no_limit_of_the_callers_holds_for_the_vm() {
    only_hull!("runc's container inherits its caller's limits, and runc is killed by some");
    let limits = [
        "--fsize=4096",
        "--cpu=1",
        "--stack=65536",
        "--as=268435456",
        "--data=16777216",
        "--nproc=1",
        "--nofile=16",
        "--sigpending=0",
    ];
    let script = "head -c 65536 /dev/zero >/file; wc -c </file; head -c 8192 /dev/zero | tr '\\0' x
        echo; echo end; exec sleep 3600";
    let mut container = Container::new(Bundle::new().shell(script));
    container = container.wrapped(&[&["prlimit"], &limits[..]].concat());
    container.create();
    let pid = container.state().pid;
    let _ = container.start().ok();
    let mut stdout = container.stdout.take().unwrap();
    assert_eq!(stdout.line("the container"), "65536");
    assert_eq!(stdout.line("the container").len(), 8192);
    assert_eq!(stdout.line("the container"), "end");
    for limit in ["file size", "cpu time", "address space", "data size"] {
        let values = line(pid, "limits", &format!("Max {limit}"));
        assert!(values.starts_with("unlimited "), "{limit}: {values}");
    }
}

#[test]
fn a_limit_that_may_not_be_raised_is_named() {
    only_hull!("runc's container inherits its caller's limits");
    let container = Container::new(Bundle::new());
    let container = container.limited("--fsize=1073741824");
    let done = container.run().ok();
    assert!(done.err().contains("RLIMIT_FSIZE"), "{}", done.err());
}

#[test]
fn the_vm_processs_addresses_are_random_whatever_the_callers_are() {
    only_hull!("runc's personality is the container's");
    let container = Container::new(Bundle::new().shell("echo ready; sleep 3600"));
    let container = container.wrapped(&["setarch", "--addr-no-randomize"]);
    let _running = container.run_until_ready();
    let pid = container.state().pid;
    let personality = fs::read_to_string(format!("/proc/{pid}/personality")).unwrap();
    assert_eq!(personality.trim(), "00000000");
}

#[test]
fn hooks_have_the_callers_limits() {
    let bundle = Bundle::new();
    let told = bundle.beside("told");
    let script = format!("ulimit -s >{}", told.display());
    let hook = json!([{ "path": "/bin/sh", "args": ["sh", "-c", script] }]);
    let container = Container::new(bundle.set("/hooks/prestart", hook));
    let container = container.wrapped(&["prlimit", "--stack=2097152:"]);
    let _ = container.run().ok();
    assert_eq!(fs::read_to_string(told).unwrap(), "2048\n");
}

#[test]
fn a_job_in_the_background_runs_on_the_shells_terminal() {
    only_hull!("runc 1.1 shows the output, then tries for ever to set the terminal's mode");
    let bundle = Bundle::new().set("/process/terminal", json!(true));
    let container = Container::new(bundle.shell("tty; exit 5"));
    let job = r#""$@" & wait $!; echo "status $?""#;
    let container = container.wrapped(&["sh", "-mc", job, "sh"]);
    let (mut terminal, program) = Terminal::new();
    let before = format!("{:?}", terminal.mode());
    let mut command = on_terminal(&container.run_command(), program);
    let running = Running::spawn_within(&mut command, 2 * limit());
    terminal.shows("/dev/pts/");
    terminal.shows("status 5");
    let _ = running.finish().ok();
    assert_eq!(format!("{:?}", terminal.mode()), before);
}
