//! An ordinary user's containers: the VM's process is root in a user namespace, and the files stay the
//! user's.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

use hull_tests::{Bundle, Container};
use serde_json::{Value, json};

/// Anybody but root.
pub const USER: u32 = 1000;

/// Has its words run by an ordinary user who may open /dev/kvm and execute the runtime: both are bound
/// to where that user can reach them, in a mount namespace, where the user also has subordinate ids.
const AS_USER: &str = r#"set -e
mknod -m 666 "$0/kvm" c 10 232
[ ! -e /dev/kvm ] || mount --bind "$0/kvm" /dev/kvm
: >"$0/runtime"
mount --bind "$1" "$0/runtime"
rm "$0/kvm"
echo tester:x:1000:1000::/:/bin/sh >"$0/passwd"
mount --bind "$0/passwd" /etc/passwd
echo 1000:100000:100 >"$0/ids"
mount --bind "$0/ids" /etc/subuid
mount --bind "$0/ids" /etc/subgid
shift
export XDG_RUNTIME_DIR="$0"
exec setpriv --reuid 1000 --regid 1000 --clear-groups -- "$0/runtime" "$@""#;

/// As `spec --rootless` writes it: one user, no group of terminals, the host's sysfs.
pub fn rootless(bundle: Bundle) -> Bundle {
    mapped(
        bundle,
        json!([{ "containerID": 0, "hostID": USER, "size": 1 }]),
    )
}

/// The same, with these mappings.
fn mapped(bundle: Bundle, map: Value) -> Bundle {
    let sys = json!({ "destination": "/sys", "type": "none", "source": "/sys",
                      "options": ["rbind", "nosuid", "noexec", "nodev", "ro"] });
    bundle
        .unset("/linux", "cgroupsPath")
        .in_user_namespace(map)
        .set(
            "/mounts/2/options",
            json!([
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620"
            ]),
        )
        .set("/mounts/5", sys)
}

/// A container of that user's: bundle and state are the user's own.
pub fn of_user(bundle: Bundle) -> Container {
    let home = bundle.folder("home");
    let root = bundle.folder("state");
    let folder = bundle.path();
    let folder = folder.parent().expect("the bundle lies in a folder");
    let chowned = Command::new("chown")
        .args(["-R", "1000:1000"])
        .arg(folder)
        .status();
    assert!(chowned.expect("chown runs").success());
    let home = home.to_str().expect("a plain path").to_owned();
    Container::below(&root, bundle).wrapped(&["unshare", "--mount", "sh", "-c", AS_USER, &home])
}

fn owner(path: &Path) -> (u32, u32) {
    let metadata = fs::metadata(path).expect("the file is there");
    (metadata.uid(), metadata.gid())
}

#[test]
fn root_in_the_container_is_the_user_outside() {
    let script = "id -u; id -g; echo made >/made; mkdir /folder; chown 5 /made 2>/dev/null || echo no; exit 3";
    let bundle = rootless(Bundle::new().shell(script)).add_capability("CAP_CHOWN");
    let rootfs = bundle.rootfs();
    let container = of_user(bundle);

    let done = container.run().exits(3);

    assert_eq!(done.out(), "0\n0\nno");
    assert_eq!(owner(&rootfs.join("made")), (USER, USER));
    assert_eq!(owner(&rootfs.join("folder")), (USER, USER));
}

#[test]
fn others_in_the_container_are_the_users_subordinates() {
    let script = "echo made >/made; chown 5:7 /made; stat -c %u:%g /made; chown 99 /made 2>/dev/null || echo no";
    let map = json!([
        { "containerID": 0, "hostID": USER, "size": 1 },
        { "containerID": 1, "hostID": 100_000, "size": 10 },
    ]);
    let bundle = mapped(Bundle::new().shell(script), map).add_capability("CAP_CHOWN");
    let rootfs = bundle.rootfs();
    let container = of_user(bundle);

    let done = container.run().ok();

    assert_eq!(done.out(), "5:7\nno");
    assert_eq!(owner(&rootfs.join("made")), (100_004, 100_006));
}

#[test]
fn ids_that_are_not_the_users_are_refused() {
    let map = json!([{ "containerID": 0, "hostID": 5, "size": 1 }]);
    let done = of_user(mapped(Bundle::new(), map)).run();
    let done = done.exits(1).fails_saying("newuidmap");
    assert_eq!(done.err().lines().count(), 1, "{}", done.err());
}

#[test]
fn goes_through_its_states() {
    let bundle = rootless(Bundle::new().args(&["/bin/sleep", "1000"]));
    let mut container = of_user(bundle);
    container.create();
    let _ = container.start().ok();
    assert_eq!(container.state().status, "running");
    assert_eq!(container.exec(&["id", "-u"]).ok().out(), "0");
    let _ = container.kill("KILL").ok();
    let _ = container.delete_force().ok();
    assert_eq!(container.leaks(), [""; 0]);
}

#[test]
fn files_that_are_others_stay_out_of_reach() {
    let bundle = rootless(Bundle::new().shell("cat /secret/file || echo refused"));
    let secret = bundle.folder("secret");
    fs::write(secret.join("file"), "secret").expect("a file");
    let bundle = bundle.bind(&secret, "/secret", &[]);
    let container = of_user(bundle);
    chown(secret.join("file"), Some(0), Some(0)).expect("chown");
    fs::set_permissions(secret.join("file"), fs::Permissions::from_mode(0o600)).expect("chmod");

    let done = container.run().ok();

    assert_eq!(done.out(), "refused");
}

#[test]
fn a_read_only_root_is_so() {
    let bundle = rootless(Bundle::new().shell("echo x >/new || echo refused"));
    let bundle = bundle.set("/root/readonly", true.into());
    assert_eq!(of_user(bundle).run().ok().out(), "refused");
}

#[test]
fn without_a_user_namespace_it_is_refused() {
    let container = of_user(Bundle::new());
    let done = container.run().exits(1).fails_saying("user namespace");
    assert_eq!(done.err().lines().count(), 1, "{}", done.err());
}

#[test]
fn a_cgroup_that_the_user_may_not_make_is_refused_only_if_asked_for() {
    let bundle = || rootless(Bundle::new().args(&["echo", "runs"]));
    assert_eq!(of_user(bundle()).run().ok().out(), "runs");

    let asking = bundle();
    let path = json!(format!("/{}", asking.token()));
    let asking = of_user(asking.set("/linux/cgroupsPath", path));
    let _ = asking.run().exits(1).fails_saying("ermission denied");

    let weight = json!({ "weight": 500 });
    let limited = of_user(bundle().set("/linux/resources/blockIO", weight));
    let refused = limited.run().exits(1);
    let _ = refused.fails_saying("linux.resources.blockIO");
}
