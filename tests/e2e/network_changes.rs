//! What changes in a container's network while it runs: engines connect and disconnect networks then, and call nobody.

use std::time::{Duration, Instant};

use hull_tests::process::limit;
use hull_tests::{Container, Running, leaks, only_hull};

use crate::network::{Engine, count_queues, inside, kill_and_wait_for, queues_of_every_cpu};

/// Another network of the engine's: net1, a veth whose other end is in the namespace of `$outside`.
const CONNECT: &str = "set -e
ip link add net1 address 02:91:00:00:00:02 type veth peer name wire1
ip link set wire1 netns $outside
nsenter -t $outside -n sh -ec 'ip addr add 10.91.0.1/24 dev wire1; ip link set wire1 up'
ip addr add 10.91.0.2/24 dev net1
ip link set net1 up
";

/// In the container: waits for it, uses it, waits for its end, and tells of each.
const USE: &str = "until ping -c 1 -W 1 10.91.0.1 >/dev/null 2>&1; do usleep 20000; done
echo pings $(cat /sys/class/net/net1/address)
while [ -e /sys/class/net/net1 ]; do usleep 20000; done
echo gone";

impl Engine {
    fn connect(&self) {
        let script = format!("outside={}\n{CONNECT}", self.outside.pid());
        let _ = inside(self.inside.pid(), &script);
    }

    fn disconnect(&self) {
        let _ = inside(self.inside.pid(), "ip link del net1");
    }

    /// What hull has left in the namespace at any interface.
    fn left_anywhere(&self) -> String {
        let look = "ip -o link | grep -o 'hull-[0-9]*'; tc qdisc show | grep ingress; true";
        inside(self.inside.pid(), look)
    }
}

/// The process that follows the changes for a container.
fn follower(token: &str) -> Option<i32> {
    let all = leaks::processes(token).into_iter();
    all.filter(|(_, arguments)| arguments.contains("hull follow --id="))
        .map(|(pid, _)| pid)
        .next()
}

fn started(engine: &Engine, script: &str) -> (Container, Running, String) {
    let bundle = engine.bundle();
    let token = bundle.token().to_owned();
    let container = Container::new(bundle.shell(&format!("echo ready; {script}")));
    let running = container.run_until_ready();
    (container, running, token)
}

/// A container that uses another network of the engine's, and its follower's pid.
fn connected() -> (Engine, Container, Running, i32) {
    let engine = Engine::new();
    let (container, mut running, token) = started(&engine, USE);
    engine.connect();
    assert_eq!(running.line(), "pings 02:91:00:00:00:02");
    let pid = follower(&token).expect("a follower");
    (engine, container, running, pid)
}

#[test]
fn an_interface_comes_and_goes_as_often_as_an_engine_likes() {
    only_hull!("runc's containers are in the namespace");
    const ROUNDS: usize = 20;
    let engine = Engine::new();
    let script = format!("for i in $(seq {ROUNDS}); do {USE}; done");
    let (_container, mut running, _) = started(&engine, &script);
    for round in 0..ROUNDS {
        engine.connect();
        assert_eq!(running.line(), "pings 02:91:00:00:00:02", "round {round}");
        engine.disconnect();
        assert_eq!(running.line(), "gone", "round {round}");
    }
    let _ = running.finish().ok();
    assert_eq!(engine.left_anywhere(), "");
}

#[test]
fn addresses_routes_and_the_mtu_follow() {
    only_hull!("runc's containers are in the namespace");
    let engine = Engine::new();
    let script = "cd /sys/class/net/eth0
        has() { until ip -o addr show eth0 | grep -q 10.88.7.7; do usleep 20000; done; }
        has_not() { while ip -o addr show eth0 | grep -q 10.88.7.7; do usleep 20000; done; }
        has; echo address; has_not; echo no address
        until ip route | grep -q '198.51.100.0/24 via 10.88.0.1'; do usleep 20000; done; echo route
        until [ $(cat mtu) = 1300 ]; do usleep 20000; done; echo mtu; exec cat";
    let (_container, mut running, _) = started(&engine, script);
    for (change, seen) in [
        ("ip addr add 10.88.7.7/16 dev eth0", "address"),
        ("ip addr del 10.88.7.7/16 dev eth0", "no address"),
        ("ip route add 198.51.100.0/24 via 10.88.0.1", "route"),
        ("ip link set eth0 mtu 1300", "mtu"),
    ] {
        let _ = inside(engine.inside.pid(), change);
        assert_eq!(running.line(), seen);
    }
}

#[test]
fn an_interface_that_comes_later_has_queues_for_every_cpu_too() {
    only_hull!("runc's containers are in the namespace");
    let engine = Engine::new();
    let config = "default_vcpus = 4\n";
    let bundle = engine.bundle();
    let config = bundle.file("hull.toml", config).display().to_string();
    let script = format!(
        "echo ready; until ping -c 1 -W 1 10.91.0.1 >/dev/null 2>&1; do usleep 20000; done; {}",
        count_queues("net1")
    );
    let container = Container::new(bundle.shell(&script)).with_global(&["--config", &config]);
    let mut running = container.run_until_ready();
    engine.connect();
    assert_eq!(running.line(), queues_of_every_cpu());
    let _ = running.finish().ok();
    assert_eq!(engine.left_anywhere(), "");
}

#[test]
fn a_follower_that_is_killed_leaves_what_it_has_connected_for_delete() {
    only_hull!("runc's containers are in the namespace");
    let (engine, container, _running, pid) = connected();
    kill_and_wait_for(pid, pid);
    let _ = container.exec_shell("ping -c 1 -W 20 10.91.0.1").ok();
    let _ = container.delete_force().ok();
    assert_eq!(engine.left_anywhere(), "");
}

#[test]
fn a_follower_goes_with_its_vm() {
    only_hull!("runc's containers are in the namespace");
    let (engine, container, _running, pid) = connected();
    kill_and_wait_for(container.state().pid, pid);
    let _ = container.delete_force().ok();
    assert_eq!(engine.left_anywhere(), "");
}

#[test]
fn nothing_is_left_whenever_a_container_is_deleted() {
    only_hull!("runc's containers are in the namespace");
    let mut random = hull_tests::random::Random::new(hull_tests::random::seed());
    for _ in 0..4 {
        let engine = Engine::new();
        let (container, _running, token) = started(&engine, "exec sleep 3600");
        engine.connect();
        std::thread::sleep(random.moment(std::time::Duration::from_millis(1500)));
        let _ = container.delete_force().ok();
        assert_eq!(engine.left_anywhere(), "");
        assert_eq!(follower(&token), None);
    }
}

/// Nobody can change a network of which nobody has been told.
#[test]
fn a_container_without_an_interface_has_no_follower() {
    only_hull!("runc has none");
    let bundle = hull_tests::Bundle::new();
    let token = bundle.token().to_owned();
    let container = Container::new(bundle.shell("echo ready; exec sleep 3600"));
    let _running = container.run_until_ready();
    assert_eq!(follower(&token), None);
}

/// What the kernel says of a follower that has got itself ready, for which it takes its time.
fn status_once_jailed(pid: i32) -> String {
    let end = Instant::now() + limit();
    loop {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
        if status.contains("Seccomp:\t2") {
            return status;
        }
        assert!(Instant::now() < end, "not jailed: {status}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_follower_has_one_right_and_nothing_of_the_hosts_files() {
    only_hull!("runc has none");
    let engine = Engine::new();
    let (container, _running, token) = started(&engine, "exec sleep 3600");
    let pid = follower(&token).expect("a follower");
    let status = status_once_jailed(pid);
    let net_admin = format!("{:016x}", 1 << 12);
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        let held = status
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{set}:")));
        assert_eq!(held.map(str::trim), Some(&*net_admin), "{set}");
    }
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    let files = crate::host_namespaces::shell(&format!("cd /proc/{pid}/root; find . -xdev"));
    let mut files: Vec<_> = files
        .lines()
        .filter(|name| !name.starts_with("./proc/sys/net/"))
        .collect();
    files.sort_unstable();
    let all = [
        ".",
        "./dev",
        "./dev/net",
        "./dev/net/tun",
        "./dev/vhost-net",
        "./proc",
        "./proc/sys",
        "./proc/sys/net",
        "./proc/thread-self",
        "./proc/thread-self/net",
        "./proc/thread-self/net/udp",
        "./vsock.sock",
    ];
    assert!(files.iter().all(|file| all.contains(file)), "{files:?}");
    let own = |name: &str, pid: i32| {
        std::fs::read_link(format!("/proc/{pid}/ns/{name}")).expect("a link")
    };
    let vmm = container.state().pid;
    assert_eq!(own("net", pid), own("net", vmm));
    let me = std::process::id().cast_signed();
    for name in ["mnt", "ipc", "uts", "pid", "cgroup", "net"] {
        assert_ne!(own(name, pid), own(name, me), "{name}");
    }
    let cgroup =
        |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("its cgroup");
    assert_eq!(cgroup(pid), cgroup(vmm));
}
