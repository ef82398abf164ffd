//! A process that is killed for want of memory: engines look for it in the cgroup of the host.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use hull_tests::captive::{Called, Captive};
use hull_tests::process::limit;
use hull_tests::random::{Random, seed};
use hull_tests::{Bundle, Container, Running, leaks, only_hull};
use serde_json::json;

use crate::lifecycle::waiting;
use crate::network::kill_and_wait_for;

/// With 32 MiB.
pub fn limited(bundle: Bundle) -> Bundle {
    let limit = 32 << 20;
    let memory = json!({ "limit": limit, "swap": limit });
    bundle.set("/linux/resources/memory", memory)
}

fn running() -> (Container, Running) {
    let container = Container::new(limited(waiting()));
    let running = container.run_until_ready();
    (container, running)
}

pub fn run_out_of_memory(container: &Container) {
    let _ = container.exec_shell("exec tail /dev/zero").exits(137);
}

fn directory(container: &Container) -> PathBuf {
    Path::new("/sys/fs/cgroup").join(container.bundle.token())
}

/// What `memory.events` of a cgroup of the host says of kills.
fn kills(cgroup: &Path) -> u64 {
    let events = fs::read_to_string(cgroup.join("memory.events")).expect("events");
    let kills = events
        .lines()
        .find_map(|line| line.strip_prefix("oom_kill "));
    kills.expect("a count").parse().expect("a number")
}

fn soon<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < end, "not seen: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until so many kills are counted in a cgroup of the host.
pub fn is_counted(cgroup: &Path, least: u64) {
    let counted = || (kills(cgroup) >= least).then_some(());
    soon("a kill in memory.events", counted);
}

/// The pids of what hull leaves on the host for a running container beside its VM.
fn helpers(container: &Container) -> [i32; 2] {
    let named = |name: &str| {
        let all = leaks::processes(container.bundle.token()).into_iter();
        all.map(|(pid, _)| pid).find(|pid| {
            let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            comm.trim_end() == name && status.contains("Seccomp:\t2")
        })
    };
    ["hull-follow", "hull-oom"].map(|name| soon(name, || named(name)))
}

#[test]
fn it_is_counted_in_the_cgroup_of_the_host_and_the_container_goes_on() {
    let (container, _running) = running();
    assert_eq!(kills(&directory(&container)), 0);
    for count in 1..=2 {
        run_out_of_memory(&container);
        is_counted(&directory(&container), count);
    }
    assert_eq!(container.exec_shell("echo lives").ok().out(), "lives");
    let _ = container.delete_force().ok();
    assert!(!directory(&container).exists());
}

#[test]
fn a_container_that_runs_out_again_and_again_has_the_host_kill_little() {
    only_hull!("with runc each is the host's own");
    let (container, _running) = running();
    run_out_of_memory(&container);
    is_counted(&directory(&container), 1);
    let begun = Instant::now();
    let script = "for i in $(seq 20); do tail /dev/zero; done; true";
    let _ = container.exec_shell(script).ok();
    // One a second, if not less.
    let most = 2 + begun.elapsed().as_secs();
    assert!(
        kills(&directory(&container)) <= most,
        "{} of {most}",
        kills(&directory(&container))
    );
}

#[test]
fn a_container_without_a_limit_has_nobody_for_it() {
    only_hull!("runc leaves no processes");
    let container = Container::new(waiting());
    let _running = container.run_until_ready();
    let all = leaks::processes(container.bundle.token());
    assert!(
        all.iter().all(|(_, words)| !words.contains("hull follow")),
        "{all:?}"
    );
}

#[test]
fn who_tells_of_it_has_no_files_and_hardly_a_right() {
    only_hull!("runc leaves no processes");
    let (container, _running) = running();
    let vmm = container.state().pid;
    let me = std::process::id().cast_signed();
    let own =
        |name: &str, pid: i32| fs::read_link(format!("/proc/{pid}/ns/{name}")).expect("a link");
    // The second one makes a cgroup where the mode of the directory allows nobody to (CAP_DAC_OVERRIDE).
    let expected = [(0, ""), (1 << 1, "cgroups")];
    for (pid, (rights, root)) in helpers(&container).into_iter().zip(expected) {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
        for set in ["CapPrm", "CapEff", "CapBnd"] {
            assert!(
                status.contains(&format!("{set}:\t{rights:016x}\n")),
                "{status}"
            );
        }
        assert!(status.contains("NoNewPrivs:\t1"), "{status}");
        let files = crate::host_namespaces::shell(&format!("ls -A /proc/{pid}/root"));
        assert_eq!(files.trim(), root);
        for name in ["mnt", "ipc", "uts", "pid"] {
            assert_ne!(own(name, pid), own(name, me), "{name}");
        }
        let cgroup =
            |pid: i32| fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("a cgroup");
        assert_eq!(cgroup(pid), cgroup(vmm));
    }
}

#[test]
fn who_makes_the_kills_in_other_hands_reaches_nothing_above_its_cgroups() {
    only_hull!("runc leaves no processes");
    let (container, _running) = running();
    let [_, reporter] = helpers(&container);
    let mut captive = Captive::take(reporter);
    let paths = [
        c"../../../../../../etc/passwd",
        c"../../../../../../proc/sys/kernel/core_pattern",
        c"/etc/passwd",
        c"../../../../../../tmp/made-by-hull-oom",
    ];
    let mut has_cgroups = false;
    for directory in (0..32).chain([libc::AT_FDCWD.cast_unsigned().into()]) {
        for path in paths {
            for flags in [libc::O_RDONLY, libc::O_WRONLY] {
                let path = captive.text(path);
                let arguments = [directory, path, flags.unsigned_abs().into()];
                let opened = captive.call(libc::SYS_openat, &arguments);
                assert!(
                    matches!(opened, Called::Failed(_)),
                    "{directory}: {opened:?}"
                );
            }
            let path = captive.text(path);
            let made = captive.call(libc::SYS_mkdirat, &[directory, path, 0o755]);
            assert!(matches!(made, Called::Failed(_)), "{directory}: {made:?}");
        }
        let path = captive.text(c"cgroup.procs");
        let opened = captive.call(libc::SYS_openat, &[directory, path, 0]);
        if let Called::Done(opened) = opened {
            has_cgroups = true;
            captive.call(libc::SYS_close, &[opened.unsigned_abs()]);
        }
    }
    assert!(has_cgroups, "it has the directory that it needs");
    assert!(!Path::new("/tmp/made-by-hull-oom").exists());
    drop(captive);
    run_out_of_memory(&container);
    is_counted(&directory(&container), 1);
}

#[test]
fn no_container_has_the_name_of_the_cgroup_in_which_processes_are_killed() {
    only_hull!("runc makes none");
    let bundle = waiting();
    let path = json!(format!("/{}.hull-oom", bundle.token()));
    let refused = Container::new(bundle.set("/linux/cgroupsPath", path)).run();
    let _ = refused.exits(1).fails_saying("linux.cgroupsPath");
}

#[test]
fn who_is_in_the_cgroup_of_that_name_is_not_killed() {
    only_hull!("runc makes none");
    let (container, _running) = running();
    let beside = format!("{}.hull-oom", container.bundle.token());
    let beside = directory(&container).with_file_name(beside);
    fs::create_dir(&beside).expect("a cgroup");
    let mut somebody = Command::new("sleep").arg("3600").spawn().expect("somebody");
    let entered = fs::write(beside.join("cgroup.procs"), somebody.id().to_string());
    run_out_of_memory(&container);
    let log = container.root().join(&container.id).join("console.log");
    soon("why it isn't told", || {
        let said = fs::read_to_string(&log).unwrap_or_default();
        (said.contains("is somebody else's") || kills(&directory(&container)) > 0).then_some(())
    });
    let limit = fs::read_to_string(beside.join("memory.max")).expect("its limit");
    let ended = somebody.try_wait().expect("its end");
    let told = kills(&directory(&container));
    let _ = container.delete_force().ok();
    let is_left = beside.exists();
    let _ = somebody.kill();
    let _ = somebody.wait();
    let removed = fs::remove_dir(&beside);
    entered.expect("it is in that cgroup");
    assert_eq!((limit.trim(), ended, told), ("max", None, 0));
    assert!(is_left, "delete has removed it");
    removed.expect("nobody is in it");
}

#[test]
fn nothing_is_left_of_who_makes_the_kills_when_it_alone_is_killed() {
    only_hull!("runc leaves no processes");
    let (container, _running) = running();
    let [follower, reporter] = helpers(&container);
    kill_and_wait_for(reporter, reporter);
    let process = |pid: i32| PathBuf::from(format!("/proc/{pid}"));
    let is_gone = || (!process(reporter).exists()).then_some(());
    soon("the end of what is left of it", is_gone);
    assert!(process(follower).exists(), "the follower stays");
}

/// The container's end finds all of it gone, by the test's own look at what is left.
#[test]
fn nothing_is_left_whoever_is_killed_meanwhile() {
    only_hull!("runc leaves no processes");
    let mut random = Random::new(seed());
    for round in 0..6 {
        let (container, _running) = running();
        let helpers = helpers(&container);
        let pid = match round % 3 {
            0 => helpers[0],
            1 => helpers[1],
            _ => container.state().pid,
        };
        let words = ["exec", &container.id, "tail", "/dev/zero"];
        let exec = Running::spawn(&mut container.command(&words));
        std::thread::sleep(random.moment(Duration::from_millis(800)));
        kill_and_wait_for(pid, pid);
        drop(exec);
        let _ = container.delete_force().ok();
        let beside = format!("{}.hull-oom", container.bundle.token());
        assert!(!directory(&container).with_file_name(beside).exists());
        assert!(!directory(&container).exists());
        let is_empty = || leaks::processes(container.bundle.token()).is_empty();
        soon("the end of all processes", || is_empty().then_some(()));
    }
}

#[test]
fn a_cgroup_that_was_left_is_removed_with_the_container() {
    only_hull!("runc makes none");
    let (container, _running) = running();
    let beside = format!("{}.hull-oom", container.bundle.token());
    let beside = directory(&container).with_file_name(beside);
    fs::create_dir(&beside).expect("a cgroup");
    let _ = container.delete_force().ok();
    assert!(!beside.exists());
}
