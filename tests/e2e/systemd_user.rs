//! The systemd driver for an ordinary user: with a real systemd of that user, in a cgroup that is the user's,
//! and a D-Bus of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hull_tests::process::{limit, wait_for_death};
use hull_tests::{Bundle, Container, Running, only_hull};
use serde_json::json;
use tempfile::TempDir;

use crate::lifecycle::waiting;
use crate::rootless::{of_user, rootless};

/// Becomes the systemd of user 1000, in the cgroup $0, which is all that it manages. Once its D-Bus serves, it
/// says so at $1.
const BOOT: &str = r#"set -e
mkdir "$0"
mkdir "$0/callers"
for files in "$0" "$0/callers"; do
    chown 1000 "$files" "$files/cgroup.procs" "$files/cgroup.subtree_control" "$files/cgroup.threads"
done
echo 0 >"$0/cgroup.procs"
mount -t tmpfs -o mode=755 run /run
mkdir -p /run/systemd/system /run/units /run/user/1000
chown 1000 /run/user/1000 "$1"
cd /run/units
cat >dbus.socket <<END
[Unit]
DefaultDependencies=no
[Socket]
ListenStream=%t/bus
END
cat >dbus.service <<END
[Unit]
DefaultDependencies=no
Requires=dbus.socket
[Service]
Type=notify
ExecStart=/usr/bin/dbus-daemon --session --address=systemd: --nofork --nopidfile --systemd-activation --syslog-only
END
cat >default.target <<END
[Unit]
DefaultDependencies=no
Wants=ready.service
END
cat >ready.service <<END
[Unit]
DefaultDependencies=no
Requires=dbus.service
After=dbus.service
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'busctl --user call org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.DBus.Peer Ping && echo ready >"$1"'
END
export XDG_RUNTIME_DIR=/run/user/1000 SYSTEMD_UNIT_PATH=/run/units
exec setpriv --reuid 1000 --regid 1000 --clear-groups -- /lib/systemd/systemd --user --log-target=null"#;

/// Runs its words in the cgroup $0, where that systemd may take its processes from.
const CALL: &str = r#"set -e
echo 0 >"$0/callers/cgroup.procs"
export DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/1000/bus
exec "$@""#;

/// A user's systemd that is up.
struct UsersSystemd {
    process: Running,
    cgroup: PathBuf,
    _folder: TempDir,
}

impl UsersSystemd {
    fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("systemd-user-").tempdir();
        let folder = folder.unwrap();
        let cgroup = Path::new("/sys/fs/cgroup").join(folder.path().file_name().unwrap());
        let open = Command::new("chmod").arg("755").arg(folder.path()).status();
        assert!(open.unwrap().success());
        let fifo = folder.path().join("ready");
        let made = Command::new("mkfifo").arg(&fifo).status().unwrap();
        assert!(made.success());
        let boot = BOOT.replace("$1", fifo.to_str().unwrap());
        let process = running(
            Command::new("unshare")
                .args(["--mount", "sh", "-c", &boot])
                .arg(&cgroup),
        );
        assert_eq!(running(Command::new("cat").arg(&fifo)).line(), "ready");
        Self {
            process,
            cgroup,
            _folder: folder,
        }
    }

    /// A container of that user's, whose scope is `hull-TOKEN.scope` in `hulltest.slice`.
    fn container(&self, bundle: Bundle) -> Container {
        let path = format!("hulltest.slice:hull:{}", bundle.token());
        let bundle = rootless(bundle).set("/linux/cgroupsPath", json!(path));
        let namespace = format!("--mount=/proc/{}/ns/mnt", self.process.pid());
        let cgroup = self.cgroup.to_str().unwrap();
        of_user(bundle)
            .wrapped(&["nsenter", &namespace, "sh", "-c", CALL, cgroup])
            .with_further_global(&["--systemd-cgroup"])
    }

    fn scope(&self, container: &Container) -> PathBuf {
        let unit = format!("hull-{}.scope", container.bundle.token());
        self.cgroup.join("hulltest.slice").join(unit)
    }
}

impl Drop for UsersSystemd {
    fn drop(&mut self) {
        let _ = fs::write(self.cgroup.join("cgroup.kill"), "1");
        assert!(wait_for_death(self.process.pid(), limit()));
        let _ = Command::new("find")
            .arg(&self.cgroup)
            .args(["-depth", "-type", "d", "-delete"])
            .status();
    }
}

fn running(command: &mut Command) -> Running {
    let piped = command.stdin(Stdio::null()).stdout(Stdio::piped());
    Running::spawn(piped.stderr(Stdio::piped()))
}

#[test]
fn the_vm_is_a_scope_of_the_users_until_it_is_deleted() {
    only_hull!("runc has no VM");
    let systemd = UsersSystemd::start();
    let resources = json!({ "memory": { "limit": 256 << 20 }, "pids": { "limit": 7 } });
    let mut container = systemd.container(waiting().set("/linux/resources", resources));

    container.create();
    let scope = systemd.scope(&container);
    let file = |name: &str| fs::read_to_string(scope.join(name)).unwrap();
    assert_eq!(
        file("cgroup.procs").lines().count(),
        1,
        "the VM's process alone"
    );
    assert_ne!(file("memory.max").trim_end(), "max");
    let _ = container.start().ok();
    let _ = container
        .call(&["update", "--pids-limit", "9", &container.id])
        .ok();
    let limit = container.exec(&["cat", "/sys/fs/cgroup/pids.max"]).ok();
    assert_eq!(limit.out(), "9");

    let _ = container.delete_force().ok();
    assert!(!scope.exists());
}

#[test]
fn without_a_systemd_of_the_users_it_is_refused() {
    only_hull!("runc says it in other words");
    let bundle = rootless(waiting());
    let path = format!(":hull:{}", bundle.token());
    let container = of_user(bundle.set("/linux/cgroupsPath", json!(path)));
    let container = container.with_further_global(&["--systemd-cgroup"]);
    let refused = container.run().exits(1);
    let refused = refused.fails_saying("cannot reach the systemd of user 1000");
    assert_eq!(refused.err().lines().count(), 1, "{}", refused.err());
}
