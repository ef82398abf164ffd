//! Rootless engines, podman foremost, run hull as root of a user namespace that they have made, in which their user's
//! subordinate ids are mapped: it is root there, and an ordinary user to the host.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hull_tests::threads;
use hull_tests::{Bundle, Container, Running, only_hull};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::host_namespaces::{shell, within};
use crate::oom;
use crate::rootless::USER;

/// The first of the user's subordinate ids, which is 1 in the namespace, and how many there are.
const FIRST: u32 = 100_000;
const COUNT: u32 = 65_535;

/// The devices and the runtime where the user gets at them, in a mount namespace; then that user, and a user namespace
/// without ids in it yet.
const PREPARE: &str = r#"set -e
for device in kvm:232 net/tun:200; do
    node="$0/device-${device##*:}"
    mknod -m 666 "$node" c 10 "${device##*:}"
    [ ! -e "/dev/${device%:*}" ] || mount --bind "$node" "/dev/${device%:*}"
done
: >"$0/runtime"
mount --bind "$1" "$0/runtime"
exec setpriv --reuid 1000 --regid 1000 --clear-groups -- \
    unshare --user --mount sh -c 'echo ready; exec sleep 3600'"#;

/// Has its words run where the engine runs them: by root of its namespaces.
const AS_ENGINE: &str = r#"shift; export XDG_RUNTIME_DIR="$0"; exec "$0/runtime" "$@""#;

/// What an engine has made before it runs its runtime.
struct Engine {
    /// Who is in its namespaces. It ends before its folder goes.
    keeper: Running,
    home: TempDir,
}

impl Engine {
    fn new() -> Self {
        let home = tempfile::tempdir().expect("a folder");
        own(home.path());
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", PREPARE]);
        command.arg(home.path()).arg(hull_tests::runtime::binary());
        let mut keeper = Running::spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()));
        assert_eq!(keeper.line(), "ready");
        let map = format!("0 {USER} 1\n1 {FIRST} {COUNT}\n");
        for file in ["uid_map", "gid_map"] {
            let file = format!("/proc/{}/{file}", keeper.pid());
            fs::write(file, &map).expect("root may map any ids");
        }
        Self { keeper, home }
    }

    fn container(&self, bundle: Bundle) -> Container {
        self.below(&self.home.path().join("state"), bundle)
    }

    fn below(&self, root: &Path, bundle: Bundle) -> Container {
        own(bundle.path().parent().expect("it lies in a folder"));
        let home = self.home.path().display().to_string();
        let words = ["sh", "-c", AS_ENGINE, &home];
        let container = Container::below(root, bundle).wrapped(&words);
        container.wrapped(&self.enter().each_ref().map(String::as_str))
    }

    /// The words before those that are to be root of its namespaces.
    fn enter(&self) -> [String; 5] {
        let pid = self.keeper.pid().to_string();
        ["nsenter", "-t", &pid, "--user", "--mount"].map(str::to_owned)
    }

    /// A network namespace that belongs to its user namespace, and who keeps it.
    fn network(&self, script: &str) -> (Running, PathBuf) {
        let [nsenter, rest @ ..] = self.enter();
        let script = format!("{script}\necho ready; exec sleep 3600");
        let mut command = Command::new(nsenter);
        command
            .args(rest)
            .args(["unshare", "--net", "sh", "-ec", &script]);
        let mut keeper = Running::spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()));
        assert_eq!(keeper.line(), "ready");
        let path = format!("/proc/{}/ns/net", keeper.pid());
        (keeper, path.into())
    }
}

/// Gives all in a folder to the user.
fn own(folder: &Path) {
    let owner = format!("{USER}:{USER}");
    let chowned = Command::new("chown")
        .args(["-R", &owner])
        .arg(folder)
        .status();
    assert!(chowned.expect("chown runs").success());
}

/// As podman writes it without a cgroup of its own: the runtime is to do as it can.
fn bundle() -> Bundle {
    Bundle::new().unset("/linux", "cgroupsPath")
}

fn owner(path: &Path) -> (u32, u32) {
    let metadata = fs::metadata(path).expect("the file is there");
    (metadata.uid(), metadata.gid())
}

const WRITE: &str = "id -u; echo made >/made; echo other >/other; chown 5:7 /other; stat -c %u:%g /made /other; exit 3";

#[test]
fn root_is_the_user_and_others_are_its_subordinates() {
    let engine = Engine::new();
    let container = engine.container(bundle().shell(WRITE).add_capability("CAP_CHOWN"));
    let done = container.run().exits(3);
    assert_eq!(done.out(), "0\n0:0\n5:7");
    let rootfs = container.bundle.rootfs();
    assert_eq!(owner(&rootfs.join("made")), (USER, USER));
    assert_eq!(owner(&rootfs.join("other")), (FIRST + 4, FIRST + 6));
}

/// As podman's --userns=keep-id has it: the user has the same id within, and the namespace's other ids are around it.
#[test]
fn a_further_user_namespace_maps_what_the_first_one_has() {
    let map = json!([
        { "containerID": 0, "hostID": 1, "size": USER },
        { "containerID": USER, "hostID": 0, "size": 1 },
        { "containerID": USER + 1, "hostID": USER + 1, "size": 1000 },
    ]);
    let engine = Engine::new();
    let script = "id -u; echo mine >/tmp/mine; stat -c %u:%g /tmp/mine /bin";
    let user = json!({ "uid": USER, "gid": USER });
    let bundle = bundle().shell(script).in_user_namespace(map);
    let container = engine.container(bundle.set("/process/user", user));
    let done = container.run().ok();
    assert_eq!(done.out(), "1000\n1000:1000\n1000:1000");
    let made = container.bundle.rootfs().join("tmp/mine");
    assert_eq!(owner(&made), (USER, USER));
}

#[test]
fn what_is_not_the_users_stays_out_of_reach() {
    let bundle =
        bundle().shell("cat /secret/file || echo refused; chown 1 /secret || echo refused");
    let secret = bundle.folder("secret");
    fs::write(secret.join("file"), "secret").expect("a file");
    let bundle = bundle
        .bind(&secret, "/secret", &[])
        .add_capability("CAP_CHOWN");
    let engine = Engine::new();
    let container = engine.container(bundle);
    chown(secret.join("file"), Some(0), Some(0)).expect("chown");
    chown(&secret, Some(0), Some(0)).expect("chown");
    fs::set_permissions(secret.join("file"), fs::Permissions::from_mode(0o600)).expect("chmod");
    assert_eq!(container.run().ok().out(), "refused\nrefused");
}

/// The user's id is all that an ordinary user's VM process has, but it has it without rights.
#[test]
fn goes_through_its_states_as_the_user() {
    only_hull!("runc has no VM");
    let engine = Engine::new();
    let mut container = engine.container(bundle().args(&["/bin/sleep", "1000"]));
    container.create();
    let _ = container.start().ok();
    let state = container.state();
    assert_eq!(state.status, "running");
    for thread in threads::of(state.pid) {
        let user = USER.to_string();
        assert!(thread.status("Uid").starts_with(&user), "{}", thread.name);
    }
    assert_eq!(container.exec(&["id", "-u"]).ok().out(), "0");
    let _ = container.kill("KILL").ok();
    let _ = container.delete_force().ok();
    assert_eq!(container.leaks(), [""; 0]);
}

#[test]
fn a_read_only_root_is_so() {
    let engine = Engine::new();
    let bundle = bundle().shell("echo x >/new || echo refused");
    let container = engine.container(bundle.set("/root/readonly", true.into()));
    assert_eq!(container.run().ok().out(), "refused");
}

#[test]
fn its_state_is_below_the_users_own_folder() {
    only_hull!("runc's folder is another");
    let engine = Engine::new();
    let root = engine.home.path().join("hull");
    let container = engine.below(&root, bundle().args(&["/bin/sleep", "1000"]));
    let with_root =
        container.command(&["create", "--bundle", container.bundle_path(), &container.id]);
    let mut words = with_root.get_args().peekable();
    let mut command = Command::new(with_root.get_program());
    while let Some(word) = words.next() {
        match word == "--root" {
            true => drop(words.next()),
            false => drop(command.arg(word)),
        }
    }
    let _ = Running::spawn(command.stdin(Stdio::null()).stdout(Stdio::null()))
        .finish()
        .ok();
    assert!(root.join(&container.id).is_dir());
    assert_eq!(container.state().status, "created");
}

#[test]
fn a_vm_whose_state_is_gone_is_found_by_its_process() {
    only_hull!("runc has no VM");
    let engine = Engine::new();
    let mut container = engine.container(bundle().args(&["/bin/sleep", "1000"]));
    container.create();
    let _ = container.start().ok();
    fs::remove_dir_all(container.root().join(&container.id)).expect("the user's own folder");
    let _ = container.delete_force().ok();
    assert_eq!(container.leaks(), [""; 0]);
}

#[test]
fn a_cgroup_is_needed_only_where_one_is_asked_for() {
    let engine = Engine::new();
    let limits = json!({ "pids": { "limit": 100 }, "memory": { "limit": 64 << 20 } });
    let script = "cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/memory.max";
    let limited = bundle().shell(script).set("/linux/resources", limits);
    assert_eq!(engine.container(limited).run().ok().out(), "100\n67108864");

    let asking = bundle();
    let path = json!(format!("/{}", asking.token()));
    let asking = engine.container(asking.set("/linux/cgroupsPath", path));
    let _ = asking.run().exits(1).fails_saying("ermission denied");

    let weight = json!({ "weight": 500 });
    let limited = engine.container(bundle().set("/linux/resources/blockIO", weight));
    let _ = limited
        .run()
        .exits(1)
        .fails_saying("linux.resources.blockIO");
}

/// A cgroup that is the user's, in which the engine is, too, but for the container's.
#[test]
fn a_kill_for_memory_is_counted_in_a_cgroup_that_is_the_users() {
    let engine = Engine::new();
    let bundle = oom::limited(bundle().shell("echo ready; exec sleep 3600"));
    let token = bundle.token().to_owned();
    let delegated = Path::new("/sys/fs/cgroup").join(format!("user-{token}"));
    let own_leaf = delegated.join("engine");
    fs::create_dir_all(&own_leaf).expect("a cgroup");
    own(&delegated);
    let path = json!(format!("/user-{token}/box"));
    let container = engine.container(bundle.set("/linux/cgroupsPath", path));
    let enter = r#"echo 0 >"$0/cgroup.procs"; exec "$@""#;
    let leaf = own_leaf.display().to_string();
    let container = container.wrapped(&["sh", "-c", enter, &leaf]);
    let running = container.run_until_ready();
    oom::run_out_of_memory(&container);
    oom::is_counted(&delegated.join("box"), 1);
    let _ = container.delete_force().ok();
    drop(running);
    fs::remove_dir(own_leaf).expect("nobody is in it");
    fs::remove_dir(delegated).expect("nothing is left in it");
}

/// A veth of address 10.`network`.0.2 in the network namespace of a process of the engine's, and its other end, 10.`network`.0.1,
/// in that of another one.
fn connect(engine: &Engine, inside: i32, outside: i32, network: u8) {
    let connect = format!(
        "set -e
        nsenter -t {inside} -n ip link add net{network} address 02:{network}:00:00:00:02 type veth peer name wire{network} netns {outside}
        nsenter -t {inside} -n sh -ec 'ip addr add 10.{network}.0.2/16 dev net{network}; ip link set net{network} up'
        nsenter -t {outside} -n sh -ec 'ip addr add 10.{network}.0.1/16 dev wire{network}; ip link set wire{network} up'",
    );
    let pid = engine.keeper.pid().to_string();
    let _ = shell(&within(&pid, "--user --mount", &connect));
}

/// Taps are made, and packets redirected, in a namespace that isn't the host's; also while the container runs.
#[test]
fn its_network_is_that_of_the_engines_namespace() {
    let engine = Engine::new();
    let (outside, _) = engine.network("ip link set lo up");
    let (inside, path) = engine.network("ip link set lo up");
    connect(&engine, inside.pid(), outside.pid(), 88);
    let look = "ip -o addr show net88 | grep -o 10.88.0.2/16; ping -c 1 -W 20 10.88.0.1 | grep -o '1 packets received'
        echo ready; until ping -c 1 -W 1 10.91.0.1 >/dev/null 2>&1; do usleep 20000; done; echo pings";
    let network: Value = json!({ "type": "network", "path": path });
    let bundle = bundle().set("/linux/namespaces/1", network);
    let container = engine.container(bundle.add_capability("CAP_NET_RAW").shell(look));
    let mut running = Running::spawn(&mut container.run_command());
    assert_eq!(running.line(), "10.88.0.2/16");
    assert_eq!(running.line(), "1 packets received");
    assert_eq!(running.line(), "ready");
    connect(&engine, inside.pid(), outside.pid(), 91);
    assert_eq!(running.line(), "pings");
    let _ = running.finish().ok();
    let left = "ip -o link | grep -o 'hull-[0-9]*'; tc qdisc show | grep ingress; true";
    assert_eq!(shell(&within(&inside.pid().to_string(), "-n", left)), "");
    assert_eq!(container.leaks(), [""; 0]);
}

/// What hull can leave in a network namespace, among the rules that every one has.
const REMAINS: &str =
    "ip -o link | grep -o 'hull-[0-9]*'; ip rule; ip -o -4 addr | grep -o '192.0.0.8'; true";

/// As podman forwards ports that are published: by a process in the namespace, which connects to the container's address.
#[test]
fn processes_of_its_network_namespace_reach_it() {
    let engine = Engine::new();
    let (outside, _) = engine.network("ip link set lo up");
    let (inside, path) = engine.network("ip link set lo up");
    let look = |script: &str| shell(&within(&inside.pid().to_string(), "-n", script));
    connect(&engine, inside.pid(), outside.pid(), 88);
    let _ = look("ip route add default via 10.88.0.1");
    let before = look(REMAINS);
    let serve = "nc -ll -p 80 -e sh -c 'echo served; cat' & echo ready; exec sleep 3600";
    let network: Value = json!({ "type": "network", "path": path });
    let bundle = bundle().set("/linux/namespaces/1", network);
    let container = engine.container(bundle.shell(serve));
    let running = container.run_until_ready();
    let served = |address: &str| {
        look(&format!(
            "until echo echoed | busybox nc -w 5 {address} 80; do sleep 0.1; done"
        ))
    };
    assert_eq!(served("10.88.0.2"), "served\nechoed\n");
    // By the route that it has: its answers leave it by the first interface.
    connect(&engine, inside.pid(), outside.pid(), 91);
    assert_eq!(served("10.91.0.2"), "served\nechoed\n");
    // What the first rule leads to isn't the container's.
    assert_eq!(
        container.exec(&["ip", "rule"]).ok().out().lines().count(),
        3
    );
    let _ = look("ip addr del 10.88.0.2/16 dev net88");
    let _ = look("until ! ip route show table 26741 | grep 10.88.0.2; do sleep 0.1; done");

    let _ = container.delete_force().ok();
    drop(running);
    assert_eq!(look(REMAINS), before);
    assert_eq!(container.leaks(), [""; 0]);
}

/// A way for answers isn't one for questions: who listens in the namespace, on all its addresses, is nobody's to reach.
#[test]
fn its_container_reaches_no_process_of_its_network_namespace() {
    only_hull!("runc's containers are in the namespace");
    let engine = Engine::new();
    let (outside, _) = engine.network("ip link set lo up");
    let (inside, path) = engine.network("ip link set lo up; busybox nc -ll -p 7 -e echo reached &");
    connect(&engine, inside.pid(), outside.pid(), 88);
    let pid = inside.pid().to_string();
    let _ = shell(&within(&pid, "-n", "ip route add default via 10.88.0.1"));
    let ask = "nc -w 3 192.0.0.8 7 </dev/null || echo refused";
    let network: Value = json!({ "type": "network", "path": path });
    let bundle = bundle().set("/linux/namespaces/1", network);
    let container = engine.container(bundle.shell("echo ready; exec sleep 3600"));
    let running = container.run_until_ready();
    let own = shell(&within(&pid, "-n", "busybox nc -w 3 192.0.0.8 7"));
    assert_eq!(own, "reached\n", "it listens there");
    assert_eq!(container.exec_shell(ask).ok().out(), "refused");
    let _ = container.delete_force().ok();
    drop(running);
}
