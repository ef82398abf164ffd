//! Pods as engines make them: a first container, and further ones that name it by an annotation, or its namespaces by
//! its process. In hull all are in one VM.

use std::fs;
use std::path::Path;

use hull_tests::mount::HostMount;
use hull_tests::{Bundle, Container, Running, only_hull};
use serde_json::json;

use crate::joined::{creates_that_are_killed, goes_on};
use crate::lifecycle::waiting;

/// What no two guests have in common.
const BOOT_ID: &str = "cat /proc/sys/kernel/random/boot_id";

/// The namespaces that the containers of a pod have in common: their types, and their files in /proc.
const OF_PODS: [(&str, &str); 3] = [("network", "net"), ("ipc", "ipc"), ("uts", "uts")];

/// The first container of a pod, as containerd has it, which runs.
fn pod() -> (Container, Running) {
    let bundle = waiting()
        .set("/hostname", json!("pod"))
        .set("/annotations", annotations("sandbox", "itself"));
    let first = Container::new(bundle);
    let running = first.run_until_ready();
    (first, running)
}

fn annotations(role: &str, sandbox: &str) -> serde_json::Value {
    json!({ "io.kubernetes.cri.container-type": role, "io.kubernetes.cri.sandbox-id": sandbox })
}

/// A bundle with these namespaces of a container's.
fn sharing(first: &Container, bundle: Bundle, kinds: &[(&str, &str)]) -> Bundle {
    let pid = first.state().pid;
    let mut namespaces = bundle.config()["linux"]["namespaces"].clone();
    for namespace in namespaces.as_array_mut().unwrap() {
        if let Some((_, file)) = kinds.iter().find(|(kind, _)| namespace["type"] == *kind) {
            namespace["path"] = json!(format!("/proc/{pid}/ns/{file}"));
        }
    }
    bundle.set("/linux/namespaces", namespaces)
}

/// A further container of a pod, which the engine has named by an annotation, too.
fn member(first: &Container, bundle: Bundle) -> Container {
    member_with(first, bundle, &OF_PODS)
}

fn member_with(first: &Container, bundle: Bundle, kinds: &[(&str, &str)]) -> Container {
    let bundle = sharing(first, bundle, kinds)
        .unset("", "hostname")
        .set("/annotations", annotations("container", &first.id));
    Container::below(first.root(), bundle)
}

#[test]
fn containers_of_a_pod_share_a_network_a_name_queues_and_memory() {
    let shm = Bundle::new();
    let folder = shm.folder("shm");
    let _mount = HostMount::tmpfs(&folder, "size=3m,mode=1777");
    let with_shm = |bundle: Bundle| {
        let mount = json!({ "destination": "/dev/shm", "type": "bind", "source": folder,
                            "options": ["rbind"] });
        bundle.set("/mounts/3", mount)
    };
    let (first, _running) = pod();
    let script = "touch /dev/mqueue/queue; echo text >/dev/shm/file; echo ready
        while :; do echo hello | nc -l -p 7000; done";
    let server = member(&first, with_shm(Bundle::new().shell(script)));
    let _server = server.run_until_ready();
    let script = "hostname; ls /dev/mqueue; cat /dev/shm/file
        for try in 1 2 3 4 5 6 7 8 9; do nc 127.0.0.1 7000 </dev/null && break; sleep 1; done
        grep -c ' /dev/shm tmpfs .*size=3072k' /proc/mounts";
    let client = member(&first, with_shm(Bundle::new().shell(script)));

    let done = client.run().ok();

    assert_eq!(done.out(), "pod\nqueue\ntext\nhello\n1", "{}", done.err());
    let alone = Container::below(
        first.root(),
        Bundle::new().shell("hostname; ls /dev/mqueue"),
    );
    assert_eq!(alone.run().ok().out(), "box");
}

#[test]
fn a_pod_is_one_vm_whoever_names_it() {
    only_hull!("runc has no VM to share");
    let (first, _running) = pod();
    let guest = first.exec_shell(BOOT_ID).ok().out();
    let boots = |bundle: Bundle| {
        let container = Container::below(first.root(), bundle);
        container.run().ok().out()
    };
    let shell = || Bundle::new().shell(BOOT_ID);
    assert_eq!(member(&first, shell()).run().ok().out(), guest);
    assert_eq!(
        boots(sharing(&first, shell(), &OF_PODS)),
        guest,
        "by its process"
    );
    assert_eq!(
        boots(sharing(&first, shell(), &OF_PODS[..1])),
        guest,
        "by its network"
    );
    let crio = json!({ "io.kubernetes.cri-o.ContainerType": "container",
                       "io.kubernetes.cri-o.SandboxID": first.id });
    assert_eq!(boots(shell().set("/annotations", crio)), guest);
    // A pod of podman's without a container of its own.
    let nobodys = json!({ "io.kubernetes.cri-o.SandboxID": "0123456789abcdef",
                          "io.container.manager": "libpod" });
    assert_ne!(boots(shell().set("/annotations", nobodys)), guest);
    assert_ne!(boots(shell()), guest);
    goes_on(&first);
}

#[test]
fn what_a_container_sets_in_a_shared_namespace_all_see() {
    let (first, _running) = pod();
    let bundle = sharing(&first, Bundle::new().args(&["true"]), &OF_PODS)
        .set("/hostname", json!("renamed"))
        .set("/linux/sysctl", json!({ "net.ipv4.ip_default_ttl": "77" }));
    let _ = Container::below(first.root(), bundle).run().ok();
    let script = "hostname; cat /proc/sys/net/ipv4/ip_default_ttl";
    assert_eq!(first.exec_shell(script).ok().out(), "renamed\n77");
}

#[test]
fn processes_of_a_pod_see_each_other_where_its_containers_share_them() {
    let (first, _running) = pod();
    let kinds = [&OF_PODS[..], &[("pid", "pid")]].concat();
    let own = member(&first, Bundle::new().shell("echo ready; exec sleep 1111"));
    let _own = own.run_until_ready();
    let shared = Bundle::new().shell("echo ready; exec sleep 2222");
    let shared = member_with(&first, shared, &kinds);
    let _shared = shared.run_until_ready();

    let ps = member_with(&first, Bundle::new().shell("ps -o pid,args"), &kinds);
    let seen = ps.run().ok().out();

    let of = |program: &str| {
        let line = seen.lines().find(|line| line.contains(program));
        line.map(|line| line.split_whitespace().next().unwrap().to_owned())
    };
    assert_eq!(of("sleep 3600").as_deref(), Some("1"), "{seen}");
    assert!(
        of("sleep 2222").is_some() && of("sleep 1111").is_none(),
        "{seen}"
    );
    // The table's head, the first container, the other one, this one's shell and ps, which may be one process.
    assert!(seen.lines().count() <= 5, "{seen}");
    // Without CAP_SYS_PTRACE, who is another user doesn't get at another's files.
    let reads = Bundle::new()
        .shell("ls /proc/1/root 2>&1")
        .set("/process/user/uid", json!(1000));
    let reads = member_with(&first, reads, &kinds).run();
    assert!(reads.out().contains("Permission denied"), "{reads:?}");
}

#[test]
fn one_joins_the_processes_of_another_member() {
    only_hull!("runc has no VM to share");
    let (first, _running) = pod();
    let target = member(&first, Bundle::new().shell("echo ready; exec sleep 1111"));
    let _target = target.run_until_ready();
    let path = json!(format!("/proc/{}/ns/pid", target.state().pid));
    let bundle = Bundle::new()
        .shell("ps -o pid,args")
        .set("/linux/namespaces/0/path", path);
    let debug = Container::below(first.root(), sharing(&first, bundle, &OF_PODS));
    let seen = debug.run().ok().out();
    assert!(seen.contains("1 sleep 1111"), "{seen}");
}

#[test]
fn a_member_crashes_and_starts_again() {
    let (first, _running) = pod();
    let steady = member(&first, waiting());
    let _steady = steady.run_until_ready();
    let crashing = member(
        &first,
        Bundle::new().shell("sh -c 'kill -SEGV $$'; exit $?"),
    );
    for _ in 0..3 {
        let _ = crashing.run().exits(139);
    }
    goes_on(&first);
    goes_on(&steady);
}

#[test]
fn a_pod_ends_with_its_first_container() {
    only_hull!("runc has no VM that ends");
    let (first, _running) = pod();
    let second = member(&first, waiting());
    let running = second.run_until_ready();

    let _ = first.kill("KILL").ok();

    let _ = running.finish().exits(137);
    assert_eq!(second.leaks(), Vec::<String>::new());
    let late = Bundle::new().set("/annotations", annotations("container", &first.id));
    let late = Container::below(first.root(), late);
    let _ = late.run().exits(1).fails_saying("does not exist");
}

#[test]
fn its_process_on_the_host_is_in_the_cgroup_that_the_engine_names() {
    only_hull!("runc's is the container's own");
    let (first, _running) = pod();
    let mut second = member(&first, waiting());
    second.create();
    let path = second.bundle.config()["linux"]["cgroupsPath"]
        .as_str()
        .unwrap();
    let cgroup = Path::new("/sys/fs/cgroup").join(path.trim_start_matches('/'));
    let there = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap();
    assert_eq!(there.trim(), second.state().pid.to_string());
    let _ = second.delete_force().ok();
    assert!(!cgroup.exists());
    goes_on(&first);
}

#[test]
fn a_create_of_a_member_that_is_killed_leaves_what_delete_removes() {
    only_hull!("runc leaves its cgroup where it is killed");
    let (first, _running) = pod();
    let second = member(&first, waiting());
    creates_that_are_killed(&second);
    let _ = member(&first, Bundle::new()).run().ok();
    goes_on(&first);
}

#[test]
fn a_pods_vm_has_as_much_memory_as_its_containers_may_use() {
    only_hull!("runc has no VM to give memory to");
    let sum = json!({ "io.kubernetes.cri.container-type": "sandbox",
                      "io.kubernetes.cri.sandbox-memory": "134217728" });
    let first = Container::new(waiting().set("/annotations", sum));
    let _running = first.run_until_ready();
    let total = || -> u64 {
        let said = first.exec_shell("sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo");
        said.ok().out().trim().parse::<u64>().unwrap() >> 10
    };
    let before = total();
    assert!((120..180).contains(&before), "{before} MiB");
    // More CPUs than the VM has are no more than it has.
    let limits = json!({ "memory": { "limit": 512 << 20 }, "cpu": { "quota": 6_400_000 } });
    let second = member(&first, waiting().set("/linux/resources", limits));
    let running = second.run_until_ready();
    let grown = total();
    assert!(grown >= 512 + 30, "{grown} MiB");
    let _ = second.update(&["--memory", "700m"]).ok();
    assert!(total() >= 700 + 30, "{} MiB", total());
    let _ = second.kill("KILL").ok();
    let _ = running.finish().exits(137);
    assert!(total() < grown, "{} MiB", total());
    goes_on(&first);
}

#[test]
fn users_of_a_pod_are_shared_with_its_other_namespaces() {
    let mapping = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
    let owned = |bundle: Bundle| {
        for entry in ["", "tmp", "home"] {
            let path = bundle.rootfs().join(entry);
            std::os::unix::fs::chown(path, Some(100_000), Some(100_000)).unwrap();
        }
        bundle.in_user_namespace(mapping.clone())
    };
    let first = Container::new(owned(waiting()));
    let _running = first.run_until_ready();
    let kinds = [&OF_PODS[..], &[("user", "user")]].concat();
    let script = "id -u; cat /proc/self/uid_map | tr -s ' '; touch /tmp/file && stat -c %u /tmp/file; hostname new; hostname";
    let bundle = owned(Bundle::new().shell(script).add_capability("CAP_SYS_ADMIN"));
    let bundle = sharing(&first, bundle.unset("", "hostname"), &kinds);
    let second = Container::below(first.root(), bundle);
    let done = second.run().ok();
    assert_eq!(done.out(), "0\n 0 100000 65536\n0\nnew", "{}", done.err());
    assert_eq!(first.exec_shell("hostname").ok().out(), "new");
}

#[test]
fn namespaces_that_are_nobodys_in_the_vm_are_refused() {
    only_hull!("runc joins the host's");
    let (first, _running) = pod();
    let refused = |bundle: Bundle, said: &str| {
        let container = Container::below(first.root(), bundle);
        let _ = container.run().exits(1).fails_saying(said);
    };
    let queues = sharing(&first, Bundle::new(), &[("ipc", "ipc")]);
    refused(
        queues,
        &format!(
            "linux.namespaces[2].path: /proc/{}/ns/ipc: it is that of container {}",
            first.state().pid,
            first.id
        ),
    );
    let hosts = |bundle: Bundle| bundle.set("/linux/namespaces/2/path", json!("/proc/1/ns/ipc"));
    refused(
        hosts(Bundle::new()),
        "linux.namespaces[2].path: /proc/1/ns/ipc: it is that of no container",
    );
    let of_pod = sharing(&first, Bundle::new(), &OF_PODS);
    refused(
        hosts(of_pod),
        "linux.namespaces[2].path: /proc/1/ns/ipc: it is that of no container",
    );
    refused(
        Bundle::new().set("/linux/namespaces/4/path", json!("/proc/1/ns/mnt")),
        "linux.namespaces[4].path",
    );
    goes_on(&first);
}
