//! The systemd driver, with a real systemd: as PID 1 of a namespace that has a D-Bus of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hull_tests::process::{limit, wait_for_death};
use hull_tests::{Bundle, Container, Running, only_hull};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::lifecycle::waiting;
use crate::oom;

/// Becomes systemd, in the cgroup $0, which is all that it manages. Once its D-Bus serves, it says so.
const BOOT: &str = r#"set -e
mkdir "$0"
echo 0 >"$0/cgroup.procs"
mount -t tmpfs -o mode=755 run /run
mkdir /run/units
cd /run/units
cat >dbus.socket <<END
[Unit]
DefaultDependencies=no
[Socket]
ListenStream=/run/dbus/system_bus_socket
END
cat >dbus.service <<END
[Unit]
DefaultDependencies=no
Requires=dbus.socket
[Service]
Type=notify
ExecStart=/usr/bin/dbus-daemon --system --address=systemd: --nofork --nopidfile --systemd-activation --syslog-only
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
ExecStart=/bin/sh -c 'busctl --system call org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.DBus.Peer Ping && echo ready >"$1"'
END
export container=hull-test SYSTEMD_UNIT_PATH=/run/units
exec /lib/systemd/systemd --log-target=null"#;

/// A systemd that is up.
pub struct Systemd {
    /// `unshare`, which takes it along.
    process: Running,
    /// The cgroup that it manages.
    cgroup: PathBuf,
    /// Where it says that it is up.
    _folder: TempDir,
}

impl Systemd {
    pub fn start() -> Self {
        // Nothing of it has a container's token: it isn't what a container has left.
        let folder = tempfile::Builder::new().prefix("systemd-").tempdir();
        let folder = folder.unwrap();
        let cgroup = Path::new("/sys/fs/cgroup").join(folder.path().file_name().unwrap());
        let fifo = folder.path().join("ready");
        let made = Command::new("mkfifo").arg(&fifo).status().unwrap();
        assert!(made.success());
        let boot = BOOT.replace("$1", fifo.to_str().unwrap());
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["sh", "-c", &boot])
            .arg(&cgroup)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let process = Running::spawn(&mut command);
        let mut said = Command::new("cat");
        said.arg(&fifo)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        assert_eq!(Running::spawn(&mut said).line(), "ready");
        Self {
            process,
            cgroup,
            _folder: folder,
        }
    }

    /// The words that run a command where this systemd is PID 1.
    fn inside(&self) -> [String; 3] {
        let namespace = |kind: &str| format!("/proc/{}/ns/{kind}", self.process.pid());
        [
            "nsenter".to_owned(),
            format!("--mount={}", namespace("mnt")),
            format!("--pid={}", namespace("pid_for_children")),
        ]
    }

    /// A container of the systemd driver, whose scope is `hull-TOKEN.scope` in `hulltest.slice`.
    pub fn container(&self, bundle: Bundle) -> Container {
        let path = format!("hulltest.slice:hull:{}", bundle.token());
        let words = self.inside();
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        Container::new(bundle.set("/linux/cgroupsPath", json!(path)))
            .wrapped(&words)
            .with_further_global(&["--systemd-cgroup"])
    }

    fn scope(&self, container: &Container) -> PathBuf {
        let unit = unit(container);
        self.cgroup.join("hulltest.slice").join(unit)
    }

    /// What systemd says of the container's unit.
    fn property(&self, container: &Container, name: &str) -> String {
        let unit = unit(container);
        let words = ["systemctl", "show", "--value", "--property", name, &unit];
        let shown = self.command(&words).output().unwrap();
        let text = String::from_utf8(shown.stdout).unwrap();
        text.trim_end().to_owned()
    }

    /// A command where this systemd is PID 1.
    fn command(&self, words: &[&str]) -> Command {
        let inside = self.inside();
        let mut command = Command::new(&inside[0]);
        command.args(&inside[1..]).args(words).stdin(Stdio::null());
        command
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        let _ = fs::write(self.cgroup.join("cgroup.kill"), "1");
        assert!(wait_for_death(self.process.pid(), limit()));
        let _ = Command::new("find")
            .arg(&self.cgroup)
            .args(["-depth", "-type", "d", "-delete"])
            .status();
    }
}

fn unit(container: &Container) -> String {
    format!("hull-{}.scope", container.bundle.token())
}

fn limited() -> Bundle {
    let resources = json!({
        "memory": { "limit": 256 << 20 },
        "cpu": { "shares": 2048, "quota": 90000, "period": 100_000, "cpus": "0" },
        "pids": { "limit": 7 },
    });
    waiting().set("/linux/resources", resources)
}

#[test]
fn a_scope_in_which_a_kill_for_memory_is_counted_goes_on() {
    let systemd = Systemd::start();
    let container = systemd.container(oom::limited(waiting()));
    let _running = container.run_until_ready();
    oom::run_out_of_memory(&container);
    let scope = systemd.scope(&container);
    oom::is_counted(&scope, 1);
    assert_eq!(systemd.property(&container, "ActiveState"), "active");
    assert_eq!(container.exec_shell("echo lives").ok().out(), "lives");
    let _ = container.delete_force().ok();
    let left = fs::read_dir(scope.parent().unwrap()).into_iter().flatten();
    let left: Vec<_> = left
        .flatten()
        .filter(|entry| entry.path().is_dir())
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn the_vm_is_a_scope_with_its_limits_until_it_is_deleted() {
    only_hull!("runc has no VM");
    let systemd = Systemd::start();
    let mut container = systemd.container(limited());
    container.create();
    let show = |name: &str| systemd.property(&container, name);

    assert_eq!(show("ActiveState"), "active");
    assert_eq!(show("Slice"), "hulltest.slice");
    let processes = fs::read_to_string(systemd.scope(&container).join("cgroup.procs")).unwrap();
    assert_eq!(processes.lines().count(), 1, "the VM's process alone");
    let file = |name: &str| {
        let text = fs::read_to_string(systemd.scope(&container).join(name)).unwrap();
        text.trim_end().to_owned()
    };
    assert_eq!(show("MemoryMax"), file("memory.max"));
    assert_ne!(show("MemoryMax"), "infinity");
    assert_eq!(show("CPUWeight"), file("cpu.weight"));
    assert_eq!(show("AllowedCPUs"), "0");
    assert_eq!(show("CPUQuotaPerSecUSec"), "900ms");
    assert_eq!(file("cpu.max"), "90000 100000");
    assert_eq!(show("TasksMax"), file("pids.max"));

    // systemd writes what it knows again when it is reloaded.
    let _ = container.update(&["--cpu-quota", "50000"]).ok();
    assert_eq!(show("CPUQuotaPerSecUSec"), "500ms");
    assert_eq!(file("cpu.max"), "50000 100000");

    let stats = container.call(&["events", "--stats", &container.id]).ok();
    let stats: Value = serde_json::from_slice(&stats.stdout).unwrap();
    let used = &stats["data"]["hull"]["vm"]["memory"]["usage"]["usage"];
    assert!(used.as_u64() > Some(8 << 20), "{stats}");

    let _ = container.delete_force().ok();
    assert!(!systemd.scope(&container).exists());
    assert_eq!(systemd.property(&container, "LoadState"), "not-found");
}

#[test]
fn an_update_that_the_guest_refuses_changes_nothing_of_the_scope() {
    only_hull!("runc has no guest");
    let systemd = Systemd::start();
    let container = systemd.container(limited());
    let _running = container.run_until_ready();
    let now = || {
        let properties = ["CPUWeight", "CPUQuotaPerSecUSec", "TasksMax"];
        let files = ["cpu.weight", "cpu.max", "pids.max"];
        let scope = systemd.scope(&container);
        let properties = properties.map(|name| systemd.property(&container, name));
        let files = files.map(|name| fs::read_to_string(scope.join(name)).unwrap());
        (properties, files)
    };
    let before = now();
    let changes = json!({
        "cpu": { "shares": 9999, "quota": 50000 },
        "pids": { "limit": -1 },
        "unified": { "memory.high": "much" },
    });
    let changes = container.bundle.file("changes", &changes.to_string());

    let changes = changes.display().to_string();
    let done = container.call(&["update", "-r", &changes, &container.id]);
    let _ = done.exits(1).fails_saying("memory.high");

    assert_eq!(now(), before);
}

#[test]
fn a_create_that_fails_leaves_no_scope() {
    let systemd = Systemd::start();
    let failing = json!([{ "path": "/bin/false" }]);
    let container = systemd.container(waiting().set("/hooks", json!({ "prestart": failing })));
    let _ = container.run().exits(1);
    assert!(!systemd.scope(&container).exists());
}

#[test]
fn a_killed_vm_leaves_no_scope() {
    let systemd = Systemd::start();
    let mut container = systemd.container(waiting());
    container.create();
    let processes = fs::read_to_string(systemd.scope(&container).join("cgroup.procs")).unwrap();
    let pid = processes.trim_end().parse().unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    assert!(wait_for_death(pid, limit()));

    let _ = container.delete().ok();
    assert!(!systemd.scope(&container).exists());
}

#[test]
fn a_scope_of_somebody_elses_is_refused_and_left_alone() {
    only_hull!("runc says it in other words");
    let systemd = Systemd::start();
    let container = systemd.container(waiting());
    let unit = unit(&container);
    // In the foreground, systemd-run becomes the process, once the scope is there.
    let others = [
        "systemd-run",
        "--scope",
        "--unit",
        &unit,
        "sh",
        "-c",
        "echo up; exec sleep 3600",
    ];
    let mut others = systemd.command(&others);
    let mut others = Running::spawn(others.stdout(Stdio::piped()).stderr(Stdio::piped()));
    assert_eq!(others.line(), "up");

    let _ = container.run().exits(1).fails_saying("refuses to start");

    assert_eq!(systemd.property(&container, "ActiveState"), "active");
    let stopped = systemd.command(&["systemctl", "stop", &unit]).status();
    assert!(stopped.unwrap().success());
    let _ = others.finish();
}
