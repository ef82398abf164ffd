//! Further containers in a sandbox: each lives and ends by itself, in the VM of the first.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use hull_tests::disk::HostDisk;
use hull_tests::process::{limit, wait_for_death};
use hull_tests::random::{Random, seed};
use hull_tests::terminal::ConsoleSocket;
use hull_tests::{Bundle, Container, Running, only_hull, skip};
use libc::{SIGCONT, SIGKILL, SIGSTOP, SIGTERM};
use serde_json::json;

use crate::lifecycle::{signal_pid, waiting};

/// What no two guests have in common.
const BOOT_ID: &str = "cat /proc/sys/kernel/random/boot_id";

/// The first container of a sandbox, which runs.
pub fn first() -> (Container, Running) {
    let container = Container::new(waiting());
    let running = container.run_until_ready();
    (container, running)
}

/// A container to be created in its sandbox.
pub fn beside(first: &Container, bundle: Bundle) -> Container {
    Container::in_sandbox_of(first, bundle)
}

/// The first container is as it was.
#[track_caller]
pub fn goes_on(first: &Container) {
    assert_eq!(first.state().status, "running");
    assert_eq!(first.exec_shell("echo here").ok().out(), "here");
}

#[test]
fn two_containers_live_in_one_vm_and_know_nothing_of_each_other() {
    only_hull!("runc has no VM to share");
    let (first, _running) = first();
    let bundle = waiting().set("/hostname", json!("second"));
    fs::write(bundle.rootfs().join("mine"), "second's").unwrap();
    let mut second = beside(&first, bundle);

    second.create();
    assert_eq!(second.state().status, "created");
    let _ = second.start().ok();
    assert_eq!(second.stdout.as_mut().unwrap().line("stdout"), "ready");

    let (one, two) = (first.state(), second.state());
    assert_eq!(
        (one.status.as_str(), two.status.as_str()),
        ("running", "running")
    );
    assert_ne!(one.pid, two.pid);
    let guest = |container: &Container| container.exec_shell(BOOT_ID).ok().out();
    assert_eq!(guest(&first), guest(&second));
    assert_eq!(
        second.exec_shell("hostname; cat /mine").ok().out(),
        "second\nsecond's"
    );
    let _ = first.exec_shell("test ! -e /mine").ok();
    let seen = second.exec_shell("ls -d /proc/[0-9]* | wc -l").ok().out();
    assert!(seen.trim().parse::<u32>().unwrap() < 6, "{seen}");
    let ps = second.call(&["ps", &second.id]).ok().out();
    assert_eq!(ps.lines().count(), 2, "{ps}");
    let ps = second.call(&["ps", "--format", "json", &second.id]);
    assert_eq!(ps.ok().out(), format!("[{}]", two.pid));

    let _ = second.kill("KILL").ok();
    assert!(wait_for_death(two.pid, limit()));
    assert_eq!(second.state().status, "stopped");
    let _ = second.delete().ok();
    goes_on(&first);
}

#[test]
fn it_is_run_again_and_again_with_its_output_and_exit_code() {
    only_hull!("runc has no VM to share");
    let (first, _running) = first();
    for code in [0, 7] {
        let script = format!("yes | head -c 300000; echo err >&2; read line; exit {code}");
        let second = beside(&first, Bundle::new().shell(&script));
        for _ in 0..2 {
            let done = second.run().exits(code);
            assert_eq!((done.out().len(), &*done.err()), (299_999, "err"));
        }
    }
    let missing = beside(&first, Bundle::new().args(&["/no/such"]));
    let _ = missing.run().exits(1).fails_saying("/no/such");
    goes_on(&first);
}

#[test]
fn it_has_its_volumes_and_a_root_that_the_host_keeps_read_only() {
    only_hull!("runc has no VM to share");
    let (first, _running) = first();
    let bundle = Bundle::new().set("/root/readonly", json!(true));
    let volume = bundle.folder("volume");
    fs::write(volume.join("in"), "text\n").unwrap();
    let script =
        "cat /volume/in; echo out >/volume/out; echo x 2>&1 >/new; echo x 2>&1 >/fixed/new; true";
    let bundle = bundle
        .bind(&volume, "/volume", &["rw"])
        .bind(&volume, "/fixed", &["ro"])
        .shell(script);
    let second = beside(&first, bundle);

    let done = second.run().ok();

    assert!(done.out().starts_with("text\n"), "{}", done.out());
    assert_eq!(
        done.out().matches("Read-only file system").count()
            + done.err().matches("Read-only file system").count(),
        2,
        "{done:?}"
    );
    assert_eq!(fs::read_to_string(volume.join("out")).unwrap(), "out\n");
    assert!(!second.bundle.rootfs().join("new").exists());
    goes_on(&first);
}

#[test]
fn signals_to_its_pid_are_its_own() {
    only_hull!("runc has no VM to share");
    let (first, _running) = first();
    let script = "trap 'echo term; exit 9' TERM; echo ready; while :; do sleep 1; done";
    let second = beside(&first, Bundle::new().shell(script));
    let mut running = second.run_until_ready();

    signal_pid(&second, SIGTERM);

    assert_eq!(running.line(), "term");
    let _ = running.finish().exits(9);
    goes_on(&first);
}

#[test]
fn it_dies_with_the_process_that_stands_for_it() {
    only_hull!("runc has no VM to share");
    let (first, _running) = first();
    let bundle = Bundle::new();
    let volume = bundle.folder("volume");
    let script = "echo ready; while :; do echo x >>/volume/ticks; sleep 0.1; done";
    let bundle = bundle.bind(&volume, "/volume", &["rw"]).shell(script);
    let mut second = beside(&first, bundle);
    second.create();
    let _ = second.start().ok();
    assert_eq!(second.stdout.as_mut().unwrap().line("stdout"), "ready");

    let pid = second.state().pid;
    signal_pid(&second, SIGKILL);
    assert!(wait_for_death(pid, limit()));

    let ticks = || fs::read(volume.join("ticks")).map_or(0, |ticks| ticks.len());
    let end = Instant::now() + limit();
    while {
        let before = ticks();
        std::thread::sleep(Duration::from_secs(1));
        before != ticks()
    } {
        assert!(Instant::now() < end, "the container's process goes on");
    }
    assert_eq!(second.state().status, "stopped");
    let _ = second.delete().ok();
    goes_on(&first);
}

#[test]
fn what_its_program_leaves_running_ends_with_it() {
    only_hull!("runc has no VM to share");
    let (first, _running) = first();
    // In the sandbox's own, which doesn't end with it.
    let without_pids = |bundle: Bundle| {
        let namespaces = bundle.config()["linux"]["namespaces"].clone();
        let mut namespaces = namespaces.as_array().unwrap().clone();
        namespaces.retain(|namespace| namespace["type"] != "pid");
        bundle.set("/linux/namespaces", json!(namespaces))
    };
    for script in [
        "sleep 3333 & echo out; exit 3",
        "sleep 3333 </dev/null >/dev/null 2>&1 & echo out; exit 3",
    ] {
        let second = beside(&first, without_pids(Bundle::new().shell(script)));
        assert_eq!(second.run().exits(3).out(), "out");
    }
    let seen = beside(&first, without_pids(Bundle::new().shell("ps; true")));
    assert!(!seen.run().ok().out().contains("3333"));
    goes_on(&first);
}

#[test]
fn its_events_end_with_it() {
    only_hull!("runc has no VM to share");
    let (first, _running) = first();
    let mut second = beside(&first, waiting());
    second.create();
    let _ = second.start().ok();
    let events = ["events", "--interval", "200ms", &second.id];
    let mut events = Running::spawn(&mut second.command(&events));
    let _ = events.line();
    let _ = second.kill("KILL").ok();
    let _ = events.finish().ok();
    let _ = second.delete().ok();
}

#[test]
fn the_file_systems_of_its_volumes_are_free_once_it_is_deleted() {
    only_hull!("runc has no VM to share");
    let (first, _running) = first();
    let bundle = Bundle::new();
    let Some(disk) = HostDisk::new(&bundle, "image", 16 << 20) else {
        skip!("no loop devices on this machine");
    };
    let on_host = |program: &str, words: &[&Path]| {
        let done = Command::new(program).args(words).output().unwrap();
        assert!(done.status.success(), "{program}: {done:?}");
    };
    let volume = bundle.folder("volume");
    on_host("mkfs.ext4", &[Path::new("-q"), &disk.path]);
    on_host("mount", &[&disk.path, &volume]);
    let bundle = bundle
        .bind(&volume, "/volume", &["rw"])
        .shell("echo in >/volume/file; ls /volume");
    let second = beside(&first, bundle);
    let _ = second.run().ok();

    on_host("umount", &[&volume]);

    // The kernel lists a device's file system for as long as it is in use.
    let name = disk.path.file_name().unwrap();
    let in_use = Path::new("/sys/fs/ext4").join(name);
    let end = Instant::now() + limit();
    while in_use.exists() {
        assert!(Instant::now() < end, "the file system is still in use");
        std::thread::sleep(Duration::from_millis(100));
    }
    goes_on(&first);
}

#[test]
fn a_sandbox_keeps_nothing_open_of_containers_that_were_deleted() {
    only_hull!("runc has no VM to share");
    let (first, _running) = first();
    let bundle = Bundle::new().shell("ls /a /b");
    let volume = bundle.folder("volume");
    let bundle = bundle
        .bind(&volume, "/a", &["rw"])
        .bind(&volume, "/b", &["ro"]);
    let second = beside(&first, bundle);
    let pid = first.state().pid;
    let open = || -> usize {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        let count = |task: fs::DirEntry| fs::read_dir(task.path().join("fd")).unwrap().count();
        tasks.map(count).sum()
    };
    let _ = second.run().ok();
    let one = open();
    for _ in 0..4 {
        let _ = second.run().ok();
    }
    let end = Instant::now() + limit();
    while open() > one {
        assert!(Instant::now() < end, "{} and then {}", one, open());
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn it_ends_with_the_sandbox() {
    only_hull!("runc has no VM to share");
    let mut first = Container::new(waiting());
    first.create();
    let _ = first.start().ok();
    let second = beside(&first, waiting());
    let running = second.run_until_ready();
    let mut third = beside(&first, waiting());
    third.create();

    let _ = first.kill("KILL").ok();

    let _ = running.finish().exits(137);
    assert_eq!(third.state().status, "stopped");
    let _ = first.delete().ok();
    assert_eq!(third.state().status, "stopped");
    let late = beside(&first, waiting());
    let _ = late.run().exits(1).fails_saying("does not exist");
    let _ = third.delete().ok();
}

#[test]
fn pause_and_limits_are_its_own() {
    only_hull!("runc has no VM to share");
    let (first, _running) = first();
    let second = beside(&first, waiting());
    let _running = second.run_until_ready();

    let _ = second.call(&["pause", &second.id]).ok();
    assert_eq!(second.state().status, "paused");
    goes_on(&first);
    let _ = second.call(&["resume", &second.id]).ok();
    let _ = second.update(&["--pids-limit", "7"]).ok();
    let pids = |container: &Container| {
        let stats = container.call(&["events", "--stats", &container.id]).ok();
        let stats: serde_json::Value = serde_json::from_slice(&stats.stdout).unwrap();
        stats["data"]["pids"]["limit"].clone()
    };
    assert_eq!(pids(&second), json!(7));
    assert_ne!(pids(&first), json!(7));
    let cpus = second.update(&["--cpuset-cpus", "0"]);
    let _ = cpus.exits(1).fails_saying("linux.resources.cpu.cpus");
    let _ = second
        .update(&["--memory", "100g"])
        .exits(1)
        .fails_saying("more than the VM has");
}

#[test]
fn what_is_the_whole_vms_is_refused() {
    only_hull!("runc has no VM to share");
    let (first, _running) = first();
    let refused = |bundle: Bundle, said: &str| {
        let second = beside(&first, bundle);
        let _ = second.run().exits(1).fails_saying(said);
    };
    let with = |field: &str, value| waiting().set(field, value);
    refused(
        with("/linux/resources/cpu", json!({"cpus": "0"})),
        "linux.resources.cpu.cpus",
    );
    refused(
        with("/linux/resources/memory", json!({"limit": 1_u64 << 40})),
        "linux.resources.memory.limit",
    );
    let network = json!([{"type": "network", "path": "/proc/1/ns/net"}]);
    refused(with("/linux/namespaces", network), "linux.namespaces");

    let second = beside(&first, waiting());
    let _running = second.run_until_ready();
    let third = beside(&second, waiting());
    let _ = third
        .run()
        .exits(1)
        .fails_saying(&format!("in the sandbox of {}", first.id));
    goes_on(&first);
}

#[test]
fn an_id_that_is_used_again_at_once_has_its_own_files() {
    only_hull!("runc has no VM to share");
    let (first, _running) = first();
    let bundle = |text: &str| {
        let bundle = Bundle::new().shell("cat /mine");
        fs::write(bundle.rootfs().join("mine"), text).unwrap();
        bundle
    };
    let one = beside(&first, bundle("one"));
    let mut two = beside(&first, bundle("two"));
    two.id = one.id.clone();
    for _ in 0..3 {
        assert_eq!(one.run().ok().out(), "one");
        assert_eq!(two.run().ok().out(), "two");
    }
}

#[test]
fn it_is_deleted_by_force_while_the_vm_stands_still() {
    only_hull!("runc has no VM to share");
    let mut first = Container::new(waiting());
    first.create();
    let _ = first.start().ok();
    let mut second = beside(&first, waiting());
    second.create();
    let _ = second.start().ok();
    let begun = Instant::now();

    signal_pid(&first, SIGSTOP);
    let _ = second.delete_force().ok();

    assert!(begun.elapsed() < limit() / 4, "{:?}", begun.elapsed());
    assert_eq!(second.leaks(), Vec::<String>::new());
    signal_pid(&first, SIGCONT);
    goes_on(&first);
}

#[test]
fn its_terminal_is_an_engines() {
    only_hull!("runc has no VM to share");
    let (first, _running) = first();
    let bundle = Bundle::new()
        .shell("stty size; read line; stty size; exit 4")
        .set("/process/terminal", json!(true))
        .set("/process/consoleSize", json!({"height": 33, "width": 44}));
    let second = beside(&first, bundle);
    let socket = ConsoleSocket::listen(&second.bundle.beside("console"));
    let mut create = second.create_command();
    let _ = Running::spawn(create.args(["--console-socket", &socket.path()]))
        .finish()
        .ok();
    let mut terminal = socket.receive();
    let pid = second.state().pid;
    let _ = second.start().ok();
    terminal.shows("33 44");
    terminal.resize(11, 22);
    terminal.types("\n");
    terminal.shows("11 22");
    assert!(wait_for_death(pid, limit()));
    let _ = second.delete().ok();
}

#[test]
fn one_whose_state_is_damaged_is_deleted_and_can_be_created_again() {
    only_hull!("runc has no VM to share");
    let (first, _running) = first();
    let mut second = beside(&first, waiting());
    second.create();
    let _ = second.start().ok();
    let pid = second.state().pid;
    fs::write(second.root().join(&second.id).join("state.json"), "{").unwrap();

    let _ = second.delete_force().ok();

    assert!(wait_for_death(pid, limit()));
    second.create();
    let _ = second.start().ok();
    assert_eq!(second.stdout.as_mut().unwrap().line("stdout"), "ready");
    let _ = second.delete_force().ok();
    goes_on(&first);
}

/// Kills the `create` of a further container at random moments: `delete` removes all that it has left.
pub fn creates_that_are_killed(container: &Container) {
    let mut random = Random::new(seed());
    for _ in 0..12 {
        let mut create = Running::spawn(&mut container.create_command());
        std::thread::sleep(random.moment(Duration::from_millis(400)));
        create.kill();
        let _ = container.delete_force().ok();
        assert_eq!(container.leaks(), Vec::<String>::new());
    }
}

#[test]
fn a_create_that_is_killed_leaves_what_delete_removes() {
    only_hull!("runc has no VM to share");
    let (first, _running) = first();
    let second = beside(&first, waiting());
    creates_that_are_killed(&second);
    let _ = beside(&first, Bundle::new()).run().ok();
    goes_on(&first);
}

/// A bundle to attach disks to.
fn without_devices(script: &str) -> Bundle {
    Bundle::new()
        .shell(script)
        .set("/linux/devices", json!([]))
        .set("/linux/resources/devices", json!([]))
}

#[test]
fn disks_are_handed_to_it_while_there_are_slots() {
    only_hull!("runc has no VM to hand disks to");
    // Dropped after the VM, which has them open to its end.
    let mut disks = Vec::new();
    let bundle = waiting();
    let config = bundle.file("hull.toml", "disk_slots = 2\n");
    let config = config.display().to_string();
    let first = Container::new(bundle).with_further_global(&["--config", &config]);
    let _running = first.run_until_ready();
    let script = "dd if=/dev/disk bs=1 count=1 2>/dev/null; echo; echo x >/dev/disk; echo $?";
    for letter in ["a", "b"] {
        let bundle = without_devices(script);
        let Some(disk) = HostDisk::new(&bundle, "image", 1 << 20) else {
            skip!("no loop devices on this machine");
        };
        disk.write(0, letter);
        let second = beside(&first, disk.attach(bundle, "/dev/disk", "r"));
        let done = second.run().ok();
        assert_eq!(done.out(), format!("{letter}\n1"), "{}", done.err());
        disks.push(disk);
    }
    let bundle = without_devices(script);
    let disk = HostDisk::new(&bundle, "image", 1 << 20).expect("a loop device");
    let third = beside(&first, disk.attach(bundle, "/dev/disk", "r"));
    let _ = third.run().exits(1).fails_saying("no slot is empty");
    goes_on(&first);
}

#[test]
fn a_vm_without_slots_takes_no_further_disk() {
    only_hull!("runc has no VM to hand disks to");
    let (first, _running) = first();
    let bundle = without_devices("true");
    let Some(disk) = HostDisk::new(&bundle, "image", 1 << 20) else {
        skip!("no loop devices on this machine");
    };
    let second = beside(&first, disk.attach(bundle, "/dev/disk", "r"));
    let _ = second.run().exits(1).fails_saying("disk_slots");
    goes_on(&first);
}
