//! The bundles that every runtime gets: what `runc spec` writes, without a terminal, and with the
//! memory limit that sizes a VM; and what docker makes of a `docker run` without options, with the
//! same limit.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

/// The container's memory limit: 128 MiB, in bytes.
const MEMORY: u64 = 128 << 20;

/// A folder with a config.json.
#[derive(Debug)]
pub struct Bundle {
    /// The folder.
    pub path: PathBuf,
}

impl Bundle {
    /// Writes a bundle below `work` whose container runs `args` in a copy of the root file system `rootfs`.
    pub fn write(work: &Path, rootfs: &Path, args: &[&str]) -> Result<Self> {
        let rootfs = copy_rootfs(rootfs, work)?;
        Self::with_config(work.join("bundle"), &config(&rootfs, args))
    }

    /// Writes a bundle as docker does: its mounts and masks, its capabilities, its seccomp profile.
    pub fn write_as_docker(work: &Path, rootfs: &Path, args: &[&str]) -> Result<Self> {
        let rootfs = copy_rootfs(rootfs, work)?;
        let mut config = config(&rootfs, args);
        let dockers: Value = serde_json::from_str(include_str!("docker.json"))?;
        merge(&mut config, dockers);
        let bundle = Self::with_config(work.join("bundle"), &config)?;
        let engine = bundle.path.join("engine");
        std::fs::create_dir_all(&engine).with_context(|| format!("make {}", engine.display()))?;
        for name in ["resolv.conf", "hostname", "hosts"] {
            let file = engine.join(name);
            std::fs::write(&file, "").with_context(|| format!("write {}", file.display()))?;
        }
        Ok(bundle)
    }

    /// Has the container in the network namespace of this path.
    pub fn join_network(&self, namespace: &Path) -> Result<()> {
        let file = self.path.join("config.json");
        let json = std::fs::read(&file).with_context(|| format!("read {}", file.display()))?;
        let mut config: Value = serde_json::from_slice(&json).context("read config.json")?;
        let namespaces = config["linux"]["namespaces"].as_array_mut();
        let network = namespaces
            .and_then(|all| all.iter_mut().find(|one| one["type"] == "network"))
            .context("config.json has no network namespace")?;
        network["path"] = json!(namespace);
        Self::with_config(self.path.clone(), &config).map(drop)
    }

    fn with_config(path: PathBuf, config: &Value) -> Result<Self> {
        std::fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        let file = path.join("config.json");
        std::fs::write(&file, serde_json::to_vec_pretty(config)?)
            .with_context(|| format!("write {}", file.display()))?;
        Ok(Self { path })
    }
}

/// Copies `rootfs` below `work`, off whatever slow file system it lies on, and returns where it is.
fn copy_rootfs(rootfs: &Path, work: &Path) -> Result<PathBuf> {
    std::fs::create_dir_all(work).with_context(|| format!("make {}", work.display()))?;
    let copy = work.join("rootfs");
    let status = Command::new("cp")
        .arg("-a")
        .arg("--")
        .arg(rootfs)
        .arg(&copy)
        .status()
        .context("run cp")?;
    ensure!(
        status.success(),
        "could not copy {} to {}",
        rootfs.display(),
        copy.display()
    );
    Ok(copy)
}

fn config(rootfs: &Path, args: &[&str]) -> Value {
    let capabilities = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": args,
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"],
            "cwd": "/",
            "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
            "noNewPrivileges": true
        },
        "root": { "path": rootfs, "readonly": true },
        "hostname": "bench",
        "mounts": [
            mount("/proc", "proc", "proc", &[]),
            mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"])
        ],
        "linux": {
            "resources": { "devices": [{ "allow": false, "access": "rwm" }], "memory": { "limit": MEMORY } },
            "namespaces": [
                { "type": "pid" }, { "type": "network" }, { "type": "ipc" },
                { "type": "uts" }, { "type": "mount" }, { "type": "cgroup" }
            ],
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi"
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]
        }
    })
}

/// Puts in what another has, object by object.
fn merge(config: &mut Value, other: Value) {
    match other {
        Value::Object(members) => {
            for (key, member) in members {
                merge(&mut config[key], member);
            }
        }
        other => *config = other,
    }
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Value {
    json!({ "destination": destination, "type": kind, "source": source, "options": options })
}
