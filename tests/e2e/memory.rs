//! The memory of a container, raised above what its VM was created with, and lowered again.

use std::fs;
use std::path::Path;
use std::time::Duration;

use hull_tests::random::{self, Random};
use hull_tests::{Bundle, Container, Running, guest, leaks, only_hull};
use serde_json::json;

use crate::joined::beside;
use crate::lifecycle::waiting;

const MIB: u64 = 1 << 20;

/// What the VM of a container with 64 MiB may take of the host: 128 MiB of guest memory, 64 for the VM's process, and
/// twice the guest's memory for the files that it may know.
const SMALL_VM: u64 = (3 * 128 + 64) * MIB;

/// The same once the container has 400 MiB, for which a VM has 454.
const LARGE_VM: u64 = SMALL_VM + (454 - 128) * MIB;

/// A bundle with a limit of 64 MiB.
fn small() -> Bundle {
    waiting().set(
        "/linux/resources/memory",
        json!({ "limit": 64 * MIB, "swap": 64 * MIB }),
    )
}

/// A file of the VM's cgroup on the host.
fn on_host(container: &Container, file: &str) -> u64 {
    let path = Path::new("/sys/fs/cgroup").join(container.bundle.token());
    let text = fs::read_to_string(path.join(file)).unwrap();
    text.trim().parse().unwrap()
}

/// All memory of the guest that its kernel knows of, in MiB.
fn of_guest(container: &Container) -> u64 {
    let script = "while read name kib unit; do case $name in MemTotal:) echo $kib; esac; done </proc/meminfo";
    let kib: u64 = container.exec_shell(script).ok().out().parse().unwrap();
    kib >> 10
}

/// A program that takes so many MiB at once.
fn take(container: &Container, mib: u64) -> i32 {
    let script = format!("exec dd if=/dev/zero of=/dev/null bs={mib}M count=1 2>/dev/null");
    container.exec_shell(&script).code()
}

fn set_limit(container: &Container, mib: u64) -> hull_tests::Finished {
    let size = format!("{mib}m");
    container.update(&["--memory", &size, "--memory-swap", &size])
}

#[test]
fn a_container_can_use_what_it_is_given_above_its_vms_size_and_gives_it_back() {
    only_hull!("runc has no VM");
    let container = Container::new(small());
    let _running = container.run_until_ready();
    let before = of_guest(&container);
    assert_eq!(take(&container, 300), 137, "it has 64 MiB");
    assert_eq!(on_host(&container, "memory.max"), SMALL_VM);

    let _ = set_limit(&container, 400).ok();
    assert_eq!(on_host(&container, "memory.max"), LARGE_VM);
    let grown = of_guest(&container);
    assert!(grown >= before + 300, "{before} MiB, then {grown}");
    assert_eq!(take(&container, 300), 0, "it has 400 MiB");
    assert_eq!(take(&container, 450), 137, "and no more");
    let used = on_host(&container, "memory.current");

    let _ = set_limit(&container, 64).ok();
    let shrunk = of_guest(&container);
    assert!(shrunk <= grown - 200, "{grown} MiB, then {shrunk}");
    assert!(on_host(&container, "memory.max") < LARGE_VM - 200 * MIB);
    let kept = on_host(&container, "memory.current");
    assert!(kept < used - 150 * MIB, "{used} bytes, then {kept}");
    assert_eq!(take(&container, 300), 137, "it has 64 MiB again");
}

#[test]
fn engines_send_all_resources() {
    only_hull!("runc has no VM");
    let container = Container::new(small());
    let _running = container.run_until_ready();
    let resources = json!({
        "memory": { "limit": 200 * MIB, "swap": 400 * MIB },
        "cpu": { "shares": 1024 },
        "pids": { "limit": 50 },
        "devices": container.bundle.config()["linux"]["resources"]["devices"],
    });
    let file = container.bundle.file("resources", &resources.to_string());
    let _ = container
        .update(&["--resources", &file.display().to_string()])
        .ok();
    let pids = container.exec(&["cat", "/sys/fs/cgroup/pids.max"]).ok();
    assert_eq!(pids.out(), "50");
    assert_eq!(take(&container, 150), 0);
}

#[test]
fn a_limit_that_is_lifted_takes_nothing_away() {
    only_hull!("runc has no VM");
    let container = Container::new(small());
    let _running = container.run_until_ready();
    let _ = set_limit(&container, 2500).ok();
    let had = (of_guest(&container), on_host(&container, "memory.max"));
    let _ = container.update(&["--memory", "-1"]).ok();
    assert_eq!(
        (of_guest(&container), on_host(&container, "memory.max")),
        had
    );
}

#[test]
fn a_container_without_a_limit_has_a_vm_that_never_grows() {
    only_hull!("runc has no VM");
    let container = Container::new(waiting());
    let _running = container.run_until_ready();
    let _ = container
        .update(&["--memory", "3g"])
        .fails_saying("MiB), which cannot grow");
}

#[test]
fn nobody_has_more_than_the_host() {
    only_hull!("runc takes any limit");
    let container = Container::new(small());
    let _running = container.run_until_ready();
    let _ = container
        .update(&["--memory", "100g", "--memory-swap", "-1"])
        .fails_saying("linux.resources.memory.limit: it is more than the VM can have");
    assert_eq!(on_host(&container, "memory.max"), SMALL_VM);
}

#[test]
fn a_vm_that_cannot_grow_has_everything_as_it_was() {
    only_hull!("runc has no VM");
    let bundle = small();
    let words =
        "kernel_params = \"initcall_blacklist=virtio_mem_driver_init\"\nboot_timeout = 120\n";
    let file = bundle.file("hull.toml", words).display().to_string();
    let container = Container::new(bundle).with_global(&["--config", &file]);
    let _running = container.run_until_ready();

    let _ = set_limit(&container, 400).fails_saying("the guest has no driver for it");

    assert_eq!(on_host(&container, "memory.max"), SMALL_VM);
    let limit = container.exec(&["cat", "/sys/fs/cgroup/memory.max"]).ok();
    assert_eq!(limit.out(), (64 * MIB).to_string());
    // What the VM has is enough for that.
    let _ = set_limit(&container, 60).ok();
}

#[test]
fn a_vm_grows_by_what_its_containers_may_use_together() {
    only_hull!("runc has no sandboxes");
    let first = Container::new(small());
    let _running = first.run_until_ready();
    let _ = set_limit(&first, 400).ok();
    let second = beside(&first, small());
    let _second = second.run_until_ready();
    let _ = set_limit(&second, 300).ok();
    assert_eq!((take(&first, 300), take(&second, 200)), (0, 0));
    let _ = set_limit(&second, 1 << 30).fails_saying("more than the VM can have");
}

#[test]
fn an_update_that_is_killed_on_its_way_is_made_good_by_the_next() {
    only_hull!("runc has no VM");
    let seed = random::seed();
    eprintln!("HULL_E2E_SEED={seed}");
    let mut random = Random::new(seed);
    let container = Container::new(small());
    let _running = container.run_until_ready();
    for round in 0..6 {
        let size = ["400m", "64m"][round % 2];
        let words = ["update", "--memory", size, "--memory-swap", size];
        let mut command = container.command(&[&words[..], &[&container.id]].concat());
        let mut update = Running::spawn(&mut command);
        std::thread::sleep(Duration::from_millis(random.below(1500)));
        update.kill();
    }
    let _ = set_limit(&container, 400).ok();
    assert_eq!(on_host(&container, "memory.max"), LARGE_VM, "seed {seed}");
    assert_eq!(take(&container, 300), 0, "seed {seed}");
    let _ = set_limit(&container, 64).ok();
    assert_eq!(take(&container, 300), 137, "seed {seed}");
    assert_eq!(container.state().status, "running");
}

/// What isn't plugged in is memory all the same to a guest that doesn't keep the rules: the host's cgroup holds it.
#[test]
fn a_guest_that_takes_what_it_was_not_given_is_held_by_the_host() {
    only_hull!("runc has no VM");
    let bundle = small();
    let kernel = bundle.beside("kernel");
    fs::write(&kernel, guest::greedy()).unwrap();
    let kernel = kernel.display().to_string();
    let container =
        Container::new(bundle).with_global(&["--kernel", &kernel, "--boot-timeout", "140"]);
    let run = container.start_run();
    let mut most = 0;
    let path = Path::new("/sys/fs/cgroup").join(container.bundle.token());
    while !run.exits_within(Duration::from_millis(100)) {
        let used = fs::read_to_string(path.join("memory.current")).unwrap_or_default();
        most = most.max(used.trim().parse().unwrap_or(0));
    }
    let _ = run.finish().exits(1).fails_saying("signal: 9");
    assert!(most > 200 * MIB, "it took {} MiB", most >> 20);
    assert!(most <= SMALL_VM, "it took {} MiB", most >> 20);
    assert!(leaks::processes(container.bundle.token()).is_empty());
}
