//! Namespaces: which of the container's are its own, and which of the host's it may join.

use std::fs;
use std::process::{Command, Stdio};

use hull_tests::{Bundle, Container, Running, only_hull};
use serde_json::json;

/// A network namespace of somebody else's, set up by a script; it lasts as long as this.
pub(crate) fn network(script: &str) -> (Running, String) {
    let script = format!("{script}\necho ready; exec sleep 3600");
    let mut command = Command::new("unshare");
    let command = command.args(["--net", "sh", "-c", &script]);
    let mut keeper = Running::spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()));
    assert_eq!(keeper.line(), "ready");
    let path = format!("/proc/{}/ns/net", keeper.pid());
    (keeper, path)
}

pub(crate) fn joining(path: &str) -> Bundle {
    let network = json!({ "type": "network", "path": path });
    Bundle::new().set("/linux/namespaces/1", network)
}

#[test]
fn a_network_namespace_without_interfaces_is_joined() {
    let (_keeper, path) = network("ip link set lo up");
    let mut container =
        Container::new(joining(&path).shell("ls /sys/class/net; ip -o addr show lo"));

    container.create();
    let pid = container.state().pid;
    let joined = fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    assert_eq!(joined, fs::read_link(&path).unwrap());

    let _ = container.start().ok();
    let mut stdout = container.stdout.take().unwrap();
    let end = std::time::Instant::now() + hull_tests::process::limit();
    let out = String::from_utf8_lossy(stdout.to_end("the container", end)).into_owned();
    assert!(
        out.starts_with("lo\n") && out.contains("127.0.0.1"),
        "{out}"
    );
}

#[test]
fn the_hosts_own_is_refused() {
    only_hull!("runc joins it");
    let _ = Container::new(joining("/proc/self/ns/net"))
        .run()
        .exits(1)
        .fails_saying("the host's own network");
}
