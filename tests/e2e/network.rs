//! The network of a container: what an engine puts into its network namespace on the host, the container has.

use std::process::{Command, Stdio};
use std::time::Instant;

use hull_tests::process::{limit, wait_for_death};
use hull_tests::{Bundle, Container, Running, only_hull};
use serde_json::json;

use crate::host_namespaces::{hook, shell, within};
use crate::namespaces::{joining, network};

/// What an engine makes: a namespace for the container, whose eth0 is a veth to another namespace, where somebody
/// answers at 10.88.0.1 and fd00:88::1.
pub(crate) struct Engine {
    /// Its namespace for the container.
    pub inside: Running,
    path: String,
    /// Where the other end of the veth is.
    pub outside: Running,
}

/// The container's end, by a script in the container's namespace. `$outside` is the pid of who has the other's.
const INSIDE: &str = "set -e
ip link add eth0 address 02:88:00:00:00:02 mtu 1400 type veth peer name wire mtu 1400
ip link set wire netns $outside
nsenter -t $outside -n sh -ec '
    ip addr add 10.88.0.1/16 dev wire; ip -6 addr add fd00:88::1/64 dev wire nodad; ip link set wire up'
ip addr add 10.88.0.2/16 dev eth0
ip -6 addr add fd00:88::2/64 dev eth0 nodad
ip link set eth0 up
ip link set lo up
ip route add default via 10.88.0.1
ip -6 route add default via fd00:88::1
ip route add 192.0.2.0/24 via 10.88.0.1 metric 7
ip neigh add 10.88.9.9 lladdr 02:88:00:00:09:09 nud permanent dev eth0
";

/// What a container sees of all that.
const LOOK: &str = "cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu
ip -o addr show eth0; ip route; ip -6 route; ip neigh
ping -c 1 -W 20 10.88.0.1; ping -c 1 -W 20 fd00:88::1";

/// Runs a script in the network namespace of a process.
pub(crate) fn inside(pid: impl std::fmt::Display, script: &str) -> String {
    shell(&within(&pid.to_string(), "-n", script))
}

/// A bundle for a container that may ping.
fn pinging() -> Bundle {
    Bundle::new().add_capability("CAP_NET_RAW")
}

fn outside() -> Running {
    network("ip link set lo up").0
}

impl Engine {
    pub fn new() -> Self {
        Self::with("")
    }

    /// With a further script in the container's namespace.
    fn with(script: &str) -> Self {
        let outside = outside();
        let (inside, path) = network(&format!("outside={}\n{INSIDE}{script}", outside.pid()));
        Self {
            inside,
            path,
            outside,
        }
    }

    /// A bundle for a container that joins the namespace, and may ping.
    pub fn bundle(&self) -> Bundle {
        joining(&self.path).add_capability("CAP_NET_RAW")
    }

    /// What hull has left in the namespace.
    fn left(&self) -> String {
        let look = "ip -o link | grep -o 'hull-[0-9]*'; tc qdisc show dev eth0 ingress; tc filter show dev eth0 ingress; true";
        inside(self.inside.pid(), look)
    }
}

/// Whether a container has seen what there is to see.
fn sees_it(seen: &str) {
    for part in [
        "02:88:00:00:00:02",
        "1400",
        "10.88.0.2/16",
        "fd00:88::2/64",
        "default via 10.88.0.1 dev eth0",
        "192.0.2.0/24 via 10.88.0.1 dev eth0  metric 7",
        "default via fd00:88::1 dev eth0",
        "10.88.9.9 dev eth0 lladdr 02:88:00:00:09:09",
        "1 packets received",
    ] {
        let seen = seen.split_whitespace().collect::<Vec<_>>().join(" ");
        let part = part.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(seen.contains(&part), "{part} is not in: {seen}");
    }
    assert_eq!(seen.matches(" 1 packets received").count(), 2, "{seen}");
}

#[test]
fn it_is_that_of_the_namespace_that_config_json_names() {
    let engine = Engine::new();
    let container = Container::new(engine.bundle().shell(LOOK));
    sees_it(&container.run().ok().out());
    assert_eq!(engine.left(), "", "once it is deleted");
    let _ = inside(engine.inside.pid(), "busybox ping -c 1 -W 20 10.88.0.1");
}

#[test]
fn the_vms_process_moves_the_packets_where_the_hosts_kernel_is_not_to() {
    only_hull!("runc has no VM");
    let engine = Engine::new();
    let bundle = engine.bundle().shell(LOOK);
    let config = bundle.file("hull.toml", "vhost_net = false\n");
    let container =
        Container::new(bundle).with_global(&["--config", &config.display().to_string()]);
    sees_it(&container.run().ok().out());
    assert_eq!(engine.left(), "");
}

/// As docker does since 26, and podman with user namespaces.
#[test]
fn it_has_what_is_set_up_between_create_and_start() {
    let outside = outside();
    let mut container = Container::new(pinging().shell(LOOK));
    container.create();
    let script = format!("outside={}\n{INSIDE}", outside.pid());
    let _ = inside(container.state().pid, &script);
    let _ = container.start().ok();
    let mut stdout = container.stdout.take().expect("its output");
    let end = Instant::now() + hull_tests::process::limit();
    let seen = stdout.to_end("the container", end);
    sees_it(&String::from_utf8_lossy(seen));
}

/// As docker did until 25.
#[test]
fn it_has_what_a_hook_of_create_sets_up() {
    for stage in ["prestart", "createRuntime"] {
        let outside = outside();
        let hook = hook(&format!("outside={}\n{INSIDE}", outside.pid()));
        let bundle = pinging().shell(LOOK).set(&format!("/hooks/{stage}"), hook);
        sees_it(&Container::new(bundle).run().ok().out());
    }
}

/// More than fits in the segments of either side, so that offloads are used, and each byte counts.
#[test]
fn what_is_sent_arrives_whole_both_ways() {
    for vhost in [true, false] {
        let engine = Engine::new();
        let bundle = engine.bundle();
        let data = bundle.rootfs().join("data");
        let data = data.display();
        let _ = shell(&format!("head -c 6000000 /dev/urandom >{data}"));
        let sum = shell(&format!("md5sum <{data}"));
        let config = bundle.file("hull.toml", &format!("vhost_net = {vhost}\n"));
        let send =
            "until nc 10.88.0.1 7000 </data; do usleep 100000; done; exec nc -l -p 7001 -e md5sum";
        let container = Container::new(bundle.shell(send));
        let container = match hull_tests::runtime::is_hull() {
            true => container.with_global(&["--config", &config.display().to_string()]),
            false => container,
        };
        let receive = "busybox nc -l -p 7000 -e md5sum";
        let outside = engine.outside.pid().to_string();
        let mut command = Command::new("nsenter");
        let command = command.args(["-t", &outside, "-n", "sh", "-c", receive]);
        let _receiver = Running::spawn(command.stdin(Stdio::null()));
        let mut running = container.start_run();
        assert_eq!(running.line(), sum.trim_end(), "sent, vhost_net = {vhost}");
        let send = format!("until busybox nc 10.88.0.2 7001 <{data}; do sleep 0.1; done");
        let received = inside(&outside, &send);
        assert_eq!(received, sum, "received, vhost_net = {vhost}");
        let _ = running.finish().ok();
    }
}

/// How many queues an interface has each way, in the container.
pub(crate) fn count_queues(interface: &str) -> String {
    format!(
        "cd /sys/class/net/{interface}/queues; echo $(ls -d rx-* | wc -l) $(ls -d tx-* | wc -l) queues; cd /; "
    )
}

/// What [`count_queues`] says where a VM has as many CPUs as it can: one pair for each, up to four.
pub(crate) fn queues_of_every_cpu() -> String {
    let cpus = shell("nproc").trim().parse().unwrap_or(1);
    let pairs = 4.min(cpus);
    format!("{pairs} {pairs} queues")
}

/// Several connections at once, so that there is something to do for every queue.
#[test]
fn every_cpu_has_queues_of_its_own_and_what_goes_through_them_arrives_whole() {
    only_hull!("a veth has its own number of queues");
    const PORTS: std::ops::Range<u16> = 1..5;
    for vhost in [true, false] {
        let engine = Engine::new();
        let bundle = engine.bundle();
        let data = bundle.rootfs().join("data");
        let data = data.display();
        let _ = shell(&format!("head -c 3000000 /dev/urandom >{data}"));
        let sum = shell(&format!("md5sum <{data}"));
        let config = format!("vhost_net = {vhost}\ndefault_vcpus = 4\n");
        let config = bundle.file("hull.toml", &config);
        let script = "for i in 1 2 3 4; do
            nc -l -p 710$i -e md5sum & (until nc 10.88.0.1 700$i </data; do usleep 100000; done) &
            done; wait";
        let script = count_queues("eth0") + script;
        let container = Container::new(bundle.shell(&script))
            .with_global(&["--config", &config.display().to_string()]);
        let outside = engine.outside.pid().to_string();
        let in_network = |script: &str| {
            let mut command = Command::new("nsenter");
            let _ = command.args(["-t", &outside, "-n", "sh", "-c", script]);
            command
        };
        let listen = |port| {
            let receive = format!("exec busybox nc -l -p 700{port} -e md5sum");
            Running::spawn(in_network(&receive).stdin(Stdio::null()))
        };
        let _receivers: Vec<_> = PORTS.map(listen).collect();
        let mut running = container.start_run();
        assert_eq!(running.line(), queues_of_every_cpu());
        let send =
            |port| format!("(until busybox nc 10.88.0.2 710{port} <{data}; do sleep 0.1; done) &");
        let send: String = PORTS.map(send).collect();
        let received = inside(&outside, &format!("{send} wait"));
        assert_eq!(received, sum.repeat(PORTS.len()), "vhost_net = {vhost}");
        for _ in PORTS {
            assert_eq!(running.line(), sum.trim_end(), "vhost_net = {vhost}");
        }
        let _ = running.finish().ok();
        assert_eq!(engine.left(), "");
    }
}

#[test]
fn a_vm_with_one_cpu_has_one_pair_of_queues() {
    only_hull!("a veth has its own number of queues");
    let engine = Engine::new();
    let cpu = json!({ "quota": 100_000, "period": 100_000 });
    let bundle = engine.bundle().set("/linux/resources/cpu", cpu);
    let seen = Container::new(bundle.shell(&(count_queues("eth0") + LOOK)));
    let seen = seen.run().ok().out();
    assert!(seen.starts_with("1 1 queues\n"), "{seen}");
    sees_it(&seen);
}

/// Kills a process with SIGKILL, and waits for the end of `of`: its own, or another's that ends with it.
pub(crate) fn kill_and_wait_for(pid: i32, of: i32) {
    shell(&format!("kill -9 {pid}"));
    assert!(wait_for_death(of, limit()), "{of} lives");
}

#[test]
fn an_interface_is_connected_to_one_container() {
    only_hull!("runc's containers share a namespace");
    let engine = Engine::new();
    let first = Container::new(engine.bundle().shell("echo ready; exec sleep 3600"));
    let _running = first.run_until_ready();
    let _ = Container::new(engine.bundle())
        .run()
        .exits(1)
        .fails_saying("interface eth0 is connected to a VM already");
    // What was refused has taken nothing away from the one that is connected.
    let _ = first.exec_shell("ping -c 1 -W 20 10.88.0.1").ok();
    let _ = first.delete_force().ok();
    let _ = Container::new(engine.bundle().shell("ping -c 1 -W 20 10.88.0.1"))
        .run()
        .ok();
    assert_eq!(engine.left(), "");
}

#[test]
fn nothing_is_left_in_the_namespace_of_a_container_whose_vm_was_killed() {
    only_hull!("runc has no VM");
    let engine = Engine::new();
    let mut container = Container::new(engine.bundle().shell("echo ready; exec sleep 3600"));
    container.create();
    assert!(engine.left().contains("hull-"));
    let pid = container.state().pid;
    kill_and_wait_for(pid, pid);
    let _ = container.delete_force().ok();
    assert_eq!(engine.left(), "");
    let _ = inside(engine.inside.pid(), "busybox ping -c 1 -W 20 10.88.0.1");
}

#[test]
fn deleting_an_ended_container_leaves_the_interface_to_the_one_that_came_later() {
    only_hull!("runc's containers share a namespace");
    let engine = Engine::new();
    let mut ended = Container::new(engine.bundle());
    ended.create();
    let pid = ended.state().pid;
    kill_and_wait_for(pid, pid);
    let later = Container::new(engine.bundle().shell("echo ready; exec sleep 3600"));
    let _running = later.run_until_ready();
    let _ = ended.delete_force().ok();
    let _ = later.exec_shell("ping -c 1 -W 20 10.88.0.1").ok();
    let _ = later.delete_force().ok();
    assert_eq!(engine.left(), "");
}

#[test]
fn what_a_vm_cannot_be_connected_to_is_refused_by_name() {
    only_hull!("runc joins any namespace");
    let engine =
        Engine::with("ip link add link eth0 name vlan5 type vlan id 5; ip link set vlan5 up\n");
    let _ = Container::new(engine.bundle())
        .run()
        .exits(1)
        .fails_saying("joined to another one in it");
    let filter = "tc qdisc add dev eth0 ingress
        tc filter add dev eth0 ingress protocol ip u32 match u32 0 0 action drop\n";
    let engine = Engine::with(filter);
    let _ = Container::new(engine.bundle())
        .run()
        .exits(1)
        .fails_saying("eth0");
    assert!(engine.left().contains("u32"), "the engine's filter stays");
}

#[test]
fn several_interfaces_are_the_containers_under_their_names() {
    let more = "for i in 1 2; do
        ip link add net$i address 02:88:00:00:01:0$i type veth peer name other$i; ip link set other$i up
        ip addr add 10.9$i.0.2/24 dev net$i; ip link set net$i up
    done\n";
    let engine = Engine::with(more);
    let bundle = engine
        .bundle()
        .shell("cd /sys/class/net; for i in *; do echo $i $(cat $i/address); done");
    let seen = Container::new(bundle).run().ok().out();
    for part in [
        "eth0 02:88:00:00:00:02",
        "net1 02:88:00:00:01:01",
        "net2 02:88:00:00:01:02",
    ] {
        assert!(seen.contains(part), "{part} is not in: {seen}");
    }
    // The other ends are interfaces of the same namespace, and so the container's as well.
    assert!(seen.contains("other1 "), "{seen}");
    assert!(!seen.contains("hull-"), "{seen}");
}

#[test]
fn an_interface_of_the_hosts_is_moved_to_the_container_that_lists_it() {
    only_hull!("runc 1.1 has no linux.netDevices");
    let add = "ip link add moved77 type dummy; ip addr add 10.77.0.5/24 dev moved77";
    let _ = shell(add);
    let devices = json!({ "moved77": { "name": "eth7" } });
    let bundle = Bundle::new()
        .set("/linux/netDevices", devices)
        .shell("ip -o addr show eth7 up");
    let seen = Container::new(bundle).run().ok().out();
    assert!(seen.contains("10.77.0.5/24"), "{seen}");

    let bundle = Bundle::new().set("/linux/netDevices", json!({ "moved77": {} }));
    let _ = Container::new(bundle)
        .run()
        .exits(1)
        .fails_saying("config.json: linux.netDevices[\"moved77\"]");
}
