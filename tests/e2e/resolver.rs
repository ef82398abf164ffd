//! The resolver of docker's user-defined networks, at 127.0.0.11 in the container's network namespace.

use std::process::{Command, Stdio};
use std::time::Instant;

use hull_tests::{Bundle, Container, Running, bundle};

use crate::host_namespaces::{shell, within};
use crate::namespaces::{joining, network};

/// Asks for three names at once, and for one on a connection.
const ASK: &str = "probe ask-names 127.0.0.11:53 web database cache.example
probe ask-name-connected 127.0.0.11:53 web";

/// What is answered to that, in any order.
const ANSWERS: [&str; 4] = [
    "cache.example 10.88.0.5",
    "database 10.88.0.8",
    "web 10.88.0.3",
    "web 10.88.0.3",
];

/// A resolver as docker's, in the network namespace of a process: at a port of its own, to which what is sent to port 53
/// is redirected.
struct Resolver {
    process: Running,
}

impl Resolver {
    fn of(pid: i32) -> Self {
        let probe = bundle::probe_on_host();
        let mut command = Command::new("nsenter");
        command.args(["-t", &pid.to_string(), "-n"]).arg(probe);
        command.args(["answer-names", "127.0.0.11:0", "10.88.0.0"]);
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut process = Running::spawn(command);
        let port = process.line();
        let redirect = ["udp", "tcp"].map(|protocol| {
            format!(
                "iptables -t nat -A OUTPUT -d 127.0.0.11 -p {protocol} --dport 53 -j DNAT --to 127.0.0.11:{port}"
            )
        });
        let script = format!("set -e; iptables -t nat -F; {}", redirect.join("; "));
        let _ = shell(&within(&pid.to_string(), "-n", &script));
        Self { process }
    }

    fn end(mut self) {
        self.process.kill();
        let _ = self.process.exit();
    }
}

fn sorted(answers: &str) -> Vec<&str> {
    let mut lines: Vec<_> = answers.lines().collect();
    lines.sort_unstable();
    lines
}

/// As with docker up to 25, whose hook of `create` makes it.
#[test]
fn a_container_reaches_one_that_is_there_at_create() {
    let (keeper, path) = network("ip link set lo up");
    let _resolver = Resolver::of(keeper.pid());
    let answers = Container::new(joining(&path).shell(ASK)).run().ok().out();
    assert_eq!(sorted(&answers), ANSWERS);
}

/// As with docker since 26.
#[test]
fn a_container_reaches_one_that_comes_between_create_and_start() {
    let mut container = Container::new(Bundle::new().shell(ASK));
    container.create();
    let _resolver = Resolver::of(container.state().pid);
    let _ = container.start().ok();
    let mut stdout = container.stdout.take().expect("its output");
    let end = Instant::now() + hull_tests::process::limit();
    let answers = String::from_utf8_lossy(stdout.to_end("the container", end)).into_owned();
    assert_eq!(sorted(&answers), ANSWERS);
}

/// As with `docker network connect`, for a container that was on docker's default bridge alone.
#[test]
fn a_container_reaches_one_that_comes_with_a_network_while_it_runs() {
    let (keeper, path) = network("ip link set lo up");
    let ask = "until probe ask-name-connected 127.0.0.11:53 web; do usleep 20000; done 2>/dev/null";
    let container = Container::new(joining(&path).shell(&format!("echo ready; {ask}")));
    let mut running = container.run_until_ready();
    let _resolver = Resolver::of(keeper.pid());
    let come = "ip link add net1 type veth peer name wire1";
    let _ = shell(&within(&keeper.pid().to_string(), "-n", come));
    assert_eq!(running.line(), "web 10.88.0.3");
    let _ = running.finish().ok();
}

/// As with a dockerd that is started again and has let its containers run.
#[test]
fn a_resolver_that_begins_anew_is_reached_at_its_new_port() {
    let (keeper, path) = network("ip link set lo up");
    let resolver = Resolver::of(keeper.pid());
    let container = Container::new(joining(&path).shell("echo ready; exec sleep 3600"));
    let _running = container.run_until_ready();
    let ask = container.exec(&["probe", "ask-names", "127.0.0.11:53", "web"]);
    assert_eq!(ask.ok().out(), "web 10.88.0.3");
    resolver.end();
    let _resolver = Resolver::of(keeper.pid());
    // What is asked first may be lost, as the kernel still knows the old port.
    let ask = "until timeout 3 probe ask-names 127.0.0.11:53 database; do :; done 2>/dev/null";
    let answers = container.exec_shell(ask).ok().out();
    assert_eq!(answers, "database 10.88.0.8");
}

#[test]
fn where_there_is_none_nobody_listens() {
    let (_keeper, path) = network("ip link set lo up");
    let ask = "probe ask-name-connected 127.0.0.11:53 web";
    let _ = Container::new(joining(&path).shell(ask))
        .run()
        .exits(1)
        .fails_saying("Connection refused");
}
