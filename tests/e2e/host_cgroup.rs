//! The host's cgroup that a container's VM runs in: made, limited, and gone with the container.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use hull_tests::device_filter::DeviceFilter;
use hull_tests::process::{limit, wait_for_death};
use hull_tests::{Bundle, Container, Running, only_hull, runtime, skip};
use serde_json::{Value, json};

use crate::lifecycle::{signal_pid, waiting};

const MOUNT: &str = "/sys/fs/cgroup";

/// Where the bundles' `cgroupsPath` is.
fn directory(container: &Container) -> PathBuf {
    Path::new(MOUNT).join(container.bundle.token())
}

/// A file of the cgroup on the host.
fn file(container: &Container, name: &str) -> String {
    let text = fs::read_to_string(directory(container).join(name)).unwrap();
    text.trim_end().to_owned()
}

/// The cgroup of the process that `state` names.
fn cgroup_of_the_process(container: &Container) -> String {
    let path = format!("/proc/{}/cgroup", container.state().pid);
    fs::read_to_string(path).unwrap().trim_end().to_owned()
}

#[test]
fn the_process_is_where_cgroups_path_says_until_it_is_deleted() {
    let mut container = Container::new(waiting());
    container.create();
    let expected = format!("0::/{}", container.bundle.token());
    assert_eq!(cgroup_of_the_process(&container), expected);

    let _ = container.delete_force().ok();
    assert!(!directory(&container).exists());
}

#[test]
fn without_cgroups_path_it_is_beside_who_calls() {
    let mut container = Container::new(waiting().unset("/linux", "cgroupsPath"));
    container.create();
    let own = fs::read_to_string("/proc/self/cgroup").unwrap();
    let around = Path::new(own.trim_end().strip_prefix("0::").unwrap()).parent();
    let expected = around.unwrap().join(&container.id);
    assert_eq!(
        cgroup_of_the_process(&container),
        format!("0::{}", expected.display())
    );
}

#[test]
fn a_path_of_several_levels_is_made() {
    let bundle = waiting();
    let path = format!("/{}/some/where", bundle.token());
    let mut container = Container::new(bundle.set("/linux/cgroupsPath", json!(path)));
    container.create();
    assert_eq!(cgroup_of_the_process(&container), format!("0::{path}"));

    let _ = container.delete_force().ok();
    let some = directory(&container).join("some");
    assert!(!some.join("where").exists());
    // What is above it may be others' too.
    fs::remove_dir(&some).unwrap();
    fs::remove_dir(directory(&container)).unwrap();
}

#[test]
fn it_may_be_one_in_which_no_device_can_be_opened() {
    only_hull!("runc opens the container's devices there");
    let bundle = Bundle::new().shell("echo hello >/dev/null; cat; echo ran");
    let token = bundle.token().to_owned();
    let filter = match DeviceFilter::make(&token) {
        Ok(filter) => filter,
        Err(e) => skip!("this host's kernel takes no program about devices: {e}"),
    };
    let path = format!("/{token}/inner");
    let container = Container::new(bundle.set("/linux/cgroupsPath", json!(path)));
    let mut run = container.run_command();
    run.stdin(Stdio::null());
    let done = Running::spawn(&mut run).finish().ok();
    assert_eq!(done.out(), "ran");
    let _ = container.delete_force().ok();
    drop(filter);
}

#[test]
fn a_vm_process_that_gets_no_time_is_given_up_as_late_as_asked() {
    only_hull!("runc waits for ever");
    let bundle = waiting();
    let path = format!("/{}/frozen", bundle.token());
    let container = Container::new(bundle.set("/linux/cgroupsPath", json!(path)));
    let container = container.with_global(&["--boot-timeout", "3"]);
    fs::create_dir(directory(&container)).unwrap();
    fs::write(directory(&container).join("cgroup.freeze"), "1").unwrap();

    let _ = (container.run())
        .fails_saying("waited 3 s for the VM process to set up the machine, in vain");

    assert!(!directory(&container).join("frozen").exists());
    fs::remove_dir(directory(&container)).unwrap();
}

/// A container with a limit of each kind.
fn limited() -> Bundle {
    let mib = 1 << 20;
    waiting()
        .set(
            "/linux/resources/memory",
            json!({ "limit": 256 * mib, "swap": 256 * mib, "reservation": 32 * mib }),
        )
        .set(
            "/linux/resources/cpu",
            json!({ "shares": 2048, "quota": 90000, "period": 100000, "cpus": "0", "mems": "0" }),
        )
        .set("/linux/resources/pids", json!({ "limit": 7 }))
        .set("/linux/resources/blockIO", json!({ "weight": 500 }))
}

#[test]
fn the_host_limits_the_whole_vm() {
    only_hull!("runc has no VM");
    let mut container = Container::new(limited());
    container.create();

    // The guest's memory is the limit, 48 MiB and 1/64 of it; 64 MiB are for the VM's process, and twice
    // the guest's memory for the files that it may know.
    let whole = (3 * (256 + 48 + 4) + 64) << 20;
    assert_eq!(file(&container, "memory.max"), whole.to_string());
    assert_eq!(file(&container, "memory.swap.max"), "0");
    assert_eq!(file(&container, "memory.low"), (32 << 20).to_string());
    assert_eq!(file(&container, "cpu.max"), "90000 100000");
    assert_ne!(file(&container, "cpu.weight"), "100");
    assert_eq!(file(&container, "cpuset.cpus"), "0");
    assert_eq!(file(&container, "cpuset.mems"), "0");
    assert_eq!(
        file(&container, "io.weight").lines().next(),
        Some("default 4950")
    );
    let threads: u32 = file(&container, "pids.max").parse().unwrap();
    let used: u32 = file(&container, "pids.current").parse().unwrap();
    assert!(used > 1 && threads >= used + 100, "{used} of {threads}");
    let used: u64 = file(&container, "memory.current").parse().unwrap();
    assert!(used > 8 << 20, "the guest's memory is counted: {used}");
}

#[test]
fn no_swap_beyond_memory_is_none_at_all() {
    let container = Container::new(limited());
    let _running = container.run_until_ready();
    let swap = container.exec(&["cat", "/sys/fs/cgroup/memory.swap.max"]);
    assert_eq!(swap.ok().out(), "0");
}

#[test]
fn update_changes_the_hosts_limits_too() {
    only_hull!("runc has no VM");
    let container = Container::new(limited());
    let _running = container.run_until_ready();
    let update = |words: &[&str]| container.update(words);

    let _ = update(&["--cpu-quota", "50000", "--blkio-weight", "1000"]).ok();
    assert_eq!(file(&container, "cpu.max"), "50000 100000");
    assert_eq!(
        file(&container, "io.weight").lines().next(),
        Some("default 10000")
    );
    // A VM without a limit has 2 GiB; one that can grow is held to what it has.
    let max = || file(&container, "memory.max").parse::<u64>().unwrap();
    let unlimited = (2048 + 2 * (256 + 48 + 4) + 64) << 20;
    let _ = update(&["--memory", "-1"]).ok();
    assert_eq!(max(), unlimited);
    assert_eq!(file(&container, "memory.swap.max"), unlimited.to_string());

    // It shrinks as far as its guest can give memory back, and never below what it was created with.
    let whole = (3 * (256 + 48 + 4) + 64) << 20;
    let _ = update(&["--memory", "64m", "--memory-swap", "64m"]).ok();
    assert!((whole..unlimited).contains(&max()), "{}", max());
}

#[test]
fn an_update_that_the_guest_refuses_changes_nothing_on_the_host() {
    only_hull!("runc has no guest");
    let container = Container::new(limited());
    let _running = container.run_until_ready();
    let before = file(&container, "cpu.weight");
    let changes = json!({ "cpu": { "shares": 9999 }, "unified": { "memory.high": "much" } });
    let changes = container.bundle.file("changes", &changes.to_string());

    let update = container.update(&["-r", &changes.display().to_string()]);
    let _ = update.exits(1).fails_saying("memory.high");

    assert_eq!(file(&container, "cpu.weight"), before);
}

#[test]
fn events_tell_what_the_vm_takes_beside_what_the_container_does() {
    only_hull!("runc has no VM");
    let container = Container::new(limited());
    let _running = container.run_until_ready();

    let done = container.call(&["events", "--stats", &container.id]).ok();
    let event: Value = serde_json::from_slice(&done.stdout).unwrap();
    let (own, vm) = (&event["data"], &event["data"]["hull"]["vm"]);

    let memory = |data: &Value, what: &str| data["memory"]["usage"][what].as_u64().unwrap();
    assert!(memory(vm, "usage") > memory(own, "usage"), "{event}");
    assert_eq!(
        memory(vm, "limit").to_string(),
        file(&container, "memory.max")
    );
    assert_eq!(memory(own, "limit"), 256 << 20);
    let cpu = |data: &Value| data["cpu"]["usage"]["total"].as_u64().unwrap();
    assert!(cpu(vm) > cpu(own), "a boot is the VM's: {event}");
    assert_eq!(own["pids"]["current"], 1);
    assert!(vm["pids"]["current"].as_u64() > Some(2), "{event}");
    assert!(vm["blkio"]["ioServicedRecursive"].is_array(), "{event}");
}

/// Where the quota is used up, the host suspends the VM, and the guest can't see why its processes don't get on. Were they
/// charged for it, they would get a part of their quota alone, down to a tenth.
#[test]
fn a_container_is_charged_for_no_time_that_the_host_has_not_given_its_vm() {
    only_hull!("runc has no VM");
    let bundle = waiting().set(
        "/linux/resources/cpu",
        json!({ "quota": 10000, "period": 100000 }),
    );
    let container = Container::new(bundle);
    let _running = container.run_until_ready();
    let used = || {
        let done = container.call(&["events", "--stats", &container.id]).ok();
        let event: Value = serde_json::from_slice(&done.stdout).unwrap();
        let total = |of: &Value| of["cpu"]["usage"]["total"].as_u64().unwrap();
        (total(&event["data"]), total(&event["data"]["hull"]["vm"]))
    };
    let (own_before, vm_before) = used();
    let _ = container
        .exec_shell("i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done")
        .ok();

    let (own, vm) = used();
    let (own, vm) = (own - own_before, vm - vm_before);
    assert!(own < vm, "charged with {own} ns, while its VM had {vm}");
}

#[test]
fn it_is_removed_though_the_process_was_killed() {
    let mut container = Container::new(waiting());
    container.create();
    let pid = container.state().pid;
    signal_pid(&container, libc::SIGKILL);
    assert!(wait_for_death(pid, limit()));
    assert!(directory(&container).exists());

    let _ = container.delete().ok();
    assert!(!directory(&container).exists());
}

#[test]
fn a_create_that_fails_leaves_none() {
    let failing = json!([{ "path": "/bin/false" }]);
    let container = Container::new(waiting().set("/hooks", json!({ "prestart": failing })));
    let _ = container.run().exits(1);
    assert!(!directory(&container).exists());

    let cpus = json!({ "cpus": "0", "mems": "1000" });
    let container = Container::new(waiting().set("/linux/resources/cpu", cpus));
    let _ = container
        .run()
        .exits(1)
        .fails_saying("linux.resources.cpu.mems");
    assert!(!directory(&container).exists());
}

/// A process of somebody else's in the cgroup that a container asks for.
struct Squatter(Child);

impl Squatter {
    fn new(directory: &Path) -> Self {
        fs::create_dir(directory).unwrap();
        let child = Command::new("sleep").arg("3600").spawn().unwrap();
        fs::write(directory.join("cgroup.procs"), child.id().to_string()).unwrap();
        Self(child)
    }
}

impl Drop for Squatter {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn one_that_somebody_uses_is_shared_with_a_warning_and_left_to_them() {
    let mut container = Container::new(waiting());
    let mut squatter = Squatter::new(&directory(&container));

    container.create();
    let warning = container.stderr.as_mut().unwrap().until("\n");
    assert!(
        warning.contains("container's cgroup is not empty: 1 process(es) found"),
        "{warning}"
    );
    let expected = format!("0::/{}", container.bundle.token());
    assert_eq!(cgroup_of_the_process(&container), expected);

    let deleted = container.delete_force();
    if runtime::is_hull() {
        let _ = deleted.ok();
    }
    assert_eq!(squatter.0.try_wait().unwrap(), None);
    drop(squatter);
    fs::remove_dir(directory(&container)).unwrap();
}

#[test]
fn one_that_two_containers_share_goes_with_the_last() {
    let mut first = Container::new(waiting());
    let path = json!(format!("/{}", first.bundle.token()));
    let mut second = Container::new(waiting().set("/linux/cgroupsPath", path));
    first.create();
    second.create();

    let deleted = first.delete_force();
    if runtime::is_hull() {
        let _ = deleted.ok();
    }
    assert_eq!(second.state().status, "created");
    assert!(directory(&first).exists());

    let _ = second.delete_force().ok();
    assert!(!directory(&first).exists());
}

#[test]
fn one_that_is_frozen_is_refused() {
    let container = Container::new(waiting());
    fs::create_dir(directory(&container)).unwrap();
    fs::write(directory(&container).join("cgroup.freeze"), "1").unwrap();

    let _ = container
        .run()
        .exits(1)
        .fails_saying("cgroup unexpectedly frozen");

    if runtime::is_hull() {
        fs::remove_dir(directory(&container)).unwrap();
    }
}

/// A host that has no cgroup2 where it should be.
fn without_cgroup2(bundle: Bundle) -> Container {
    Container::new(bundle).after("umount /sys/fs/cgroup")
}

#[test]
fn without_cgroup2_only_what_asks_for_nothing_runs() {
    only_hull!("runc uses version 1 then");
    let plain = || Bundle::new().args(&["echo", "runs"]);
    let refused = without_cgroup2(plain()).run().exits(1);
    let _ = refused.fails_saying("linux.cgroupsPath: the host's cgroups are not version 2");
    let bundle = plain().unset("/linux", "cgroupsPath");
    assert_eq!(without_cgroup2(bundle).run().ok().out(), "runs");
    let bundle = plain().unset("/linux", "cgroupsPath");
    let bundle = bundle.set("/linux/resources/blockIO", json!({ "weight": 500 }));
    let refused = without_cgroup2(bundle).run().exits(1);
    let _ = refused.fails_saying("linux.resources.blockIO: the host's cgroups are not version 2");
}

#[test]
fn a_systemd_that_is_not_there_is_told() {
    only_hull!("runc says it in other words");
    if Path::new("/run/systemd/system").exists() {
        hull_tests::skip!("this host runs systemd");
    }
    let bundle = waiting();
    let path = format!("system.slice:hull:{}", bundle.token());
    let container = Container::new(bundle.set("/linux/cgroupsPath", json!(path)));
    let container = container.with_global(&["--systemd-cgroup"]);
    let refused = container
        .run()
        .exits(1)
        .fails_saying("cannot reach systemd");
    assert_eq!(refused.err().lines().count(), 1, "{}", refused.err());

    let container = Container::new(waiting()).with_global(&["--systemd-cgroup"]);
    let refused = container.run().exits(1);
    let _ = refused.fails_saying("is not of the form slice:prefix:name");
}
