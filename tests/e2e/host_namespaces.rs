//! The namespaces that engines find through the pid of `state`: whatever they set up there, the host is as
//! before.

use std::fs;
use std::process::Command;

use hull_tests::{Bundle, Container, only_hull};
use serde_json::{Value, json};

use crate::rootless::{of_user, rootless};

/// What engines do in a container's network namespace: an interface, addresses, routes, rules, sysctls.
const NETWORK: &str = "set -e
echo 0 >/proc/sys/net/ipv6/conf/all/disable_ipv6
echo 0 >/proc/sys/net/ipv6/conf/default/disable_ipv6
ip link add $name type dummy
ip addr add $address dev $name
ip link set $name up
ip -6 addr add fd00:$index::1/64 dev $name nodad
ip route add 198.51.$index.0/24 dev $name
ip rule add from 198.51.$index.1 table 7$index
ip addr add 127.0.$index.9/32 dev lo
echo 1 >/proc/sys/net/ipv4/conf/all/forwarding
echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6
echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6
";

/// What of that there is in the namespace of who asks.
const LOOK: &str = "ip -o link; ip -o addr; ip route show table all; ip -6 route show table all
ip rule; cat /proc/sys/net/ipv4/conf/all/forwarding
cat /proc/sys/net/ipv6/conf/*/disable_ipv6";

/// And outside of the network: the name, the System V queues and their limits.
const OTHERS: &str = "hostname; cat /proc/sysvipc/msg /proc/sysvipc/shm
cat /proc/sys/kernel/shmmax /proc/sys/kernel/msgmni /proc/sys/fs/mqueue/queues_max";

pub(crate) fn shell(script: &str) -> String {
    let mut command = Command::new("sh");
    let output = command.args(["-c", script]).output().expect("sh runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn host() -> String {
    shell(&format!("{LOOK}\n{OTHERS}"))
}

/// What an engine calls its `index`th work on the network.
fn network(index: u8) -> String {
    format!("name=eth{index}\nindex={index}\naddress=10.88.{index}.2/16\n{NETWORK}")
}

/// This script in these namespaces of a process.
pub(crate) fn within(pid: &str, namespaces: &str, script: &str) -> String {
    let quoted = script.replace('\'', r"'\''");
    format!("nsenter -t {pid} {namespaces} sh -c '{quoted}'")
}

/// An engine's hook, which learns the pid from the state, and runs a script in its network namespace.
pub(crate) fn hook(script: &str) -> Value {
    let find = r#"pid=$(grep -o '"pid": *[0-9]*' | grep -o '[0-9]*$')"#;
    let work = within("$pid", "-n", script);
    json!([{ "path": "/bin/sh", "args": ["sh", "-c", format!("{find}; {work}")],
             "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"] }])
}

#[test]
fn what_engines_do_to_a_containers_network_stays_there() {
    let bundle = Bundle::new()
        .args(&["/bin/sleep", "3600"])
        .set("/hooks/prestart", hook(&network(1)))
        .set("/hooks/createRuntime", hook(&network(2)));
    let mut container = Container::new(bundle);
    // So that its module is there before.
    shell("ip link add warm type dummy; ip link del warm");
    let before = host();

    container.create();
    assert_eq!(host(), before, "after the hooks");
    let pid = container.state().pid.to_string();
    shell(&within(&pid, "-n", &network(3)));
    assert_eq!(host(), before, "between create and start");
    let _ = container.start().ok();
    shell(&within(&pid, "-n", &network(4)));
    assert_eq!(host(), before, "while it runs");

    let inside = shell(&within(&pid, "-n", "ip -o -4 addr"));
    for address in [
        "10.88.1.2/16",
        "10.88.2.2/16",
        "10.88.3.2/16",
        "10.88.4.2/16",
    ] {
        assert!(inside.contains(address), "{address} is not in: {inside}");
    }
    let _ = container.delete_force().ok();
    assert_eq!(host(), before, "after its end");
}

#[test]
fn its_network_has_lo_alone_and_that_is_up() {
    let mut container = Container::new(Bundle::new());
    container.create();
    let pid = container.state().pid.to_string();
    let addresses = shell(&within(&pid, "-n", "ip -o -4 addr show up"));
    assert_eq!(addresses.lines().count(), 1, "{addresses}");
    assert!(addresses.contains("127.0.0.1/8"), "{addresses}");
}

#[test]
fn its_name_queues_and_limits_are_not_the_hosts() {
    let mut container = Container::new(Bundle::new().args(&["/bin/sleep", "3600"]));
    container.create();
    let pid = container.state().pid.to_string();
    let before = host();
    let script = "set -e; echo elsewhere >/proc/sys/kernel/hostname; ipcmk -Q; ipcmk -M 4096
        echo 4096 >/proc/sys/kernel/shmmax; echo 7 >/proc/sys/kernel/msgmni";
    shell(&within(&pid, "-u -i", script));
    assert_eq!(host(), before);
}

/// The namespaces that this process and another one share.
fn shared_with(pid: i32) -> Vec<&'static str> {
    let of = |process: &str, kind: &str| {
        let path = format!("/proc/{process}/ns/{kind}");
        fs::read_link(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
    };
    let kinds = ["cgroup", "ipc", "mnt", "net", "pid", "uts"];
    let pid = pid.to_string();
    (kinds.into_iter())
        .filter(|kind| of(&pid, kind) == of("self", kind))
        .collect()
}

#[test]
fn none_of_the_process_that_state_names_is_the_hosts() {
    let mut container = Container::new(Bundle::new());
    container.create();
    assert!(shared_with(container.state().pid).is_empty());
}

#[test]
fn without_root_only_process_ids_are_the_hosts() {
    only_hull!("runc's are those of config.json");
    let mut container = of_user(rootless(Bundle::new()));
    container.create();
    assert_eq!(shared_with(container.state().pid), ["pid"]);
}
