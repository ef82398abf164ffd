//! A bundle in a temporary folder: a busybox root file system and a config.json like `runc spec`'s.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// Where the probe lies in a bundle's root file system.
pub const PROBE: &str = "/bin/probe";

/// The sets that make a capability root's; another user's must be ambient.
const ROOTS_SETS: [&str; 3] = ["bounding", "effective", "permitted"];

/// A bundle, and a folder beside it for whatever else a test needs. Dropped, it is removed.
#[derive(Debug)]
pub struct Bundle {
    token: String,
    folder: TempDir,
    config: Value,
}

impl Bundle {
    /// A bundle whose process is `/bin/true`.
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        // What a container leaves behind is found by this word.
        let token = format!("e2e-{}-{count:04}", std::process::id());
        let folder = tempfile::Builder::new()
            .prefix(&format!("{token}."))
            .tempdir()
            .expect("a temporary folder can be made");
        let bundle = Self {
            config: default_config(&token),
            folder,
            token,
        };
        fill_rootfs(&bundle.rootfs());
        bundle.args(&["/bin/true"])
    }

    /// A word that is in every path and id of this bundle, and in no others.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// The bundle's own folder.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("bundle")
    }

    /// The root file system.
    pub fn rootfs(&self) -> PathBuf {
        self.path().join("rootfs")
    }

    /// A path beside the bundle, where tests may put things (a pid file, a bind mount's source).
    pub fn beside(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A new folder beside the bundle.
    pub fn folder(&self, name: &str) -> PathBuf {
        let path = self.beside(name);
        fs::create_dir(&path).expect("a folder can be made");
        path
    }

    /// A new file beside the bundle.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.beside(name);
        fs::write(&path, text).expect("a file can be written");
        path
    }

    /// The process's arguments.
    #[must_use]
    pub fn args(self, args: &[&str]) -> Self {
        self.set("/process/args", json!(args))
    }

    /// A shell script as the process.
    #[must_use]
    pub fn shell(self, script: &str) -> Self {
        self.args(&["/bin/sh", "-c", script])
    }

    /// A check of the probe (`src/bin/probe`) as the process.
    #[must_use]
    pub fn probe(self, args: &[&str]) -> Self {
        let args: Vec<_> = [PROBE].iter().chain(args).copied().collect();
        self.args(&args)
    }

    /// Puts a value at a JSON pointer, making the objects on the way. For an array, `-` is the place
    /// behind its last element (RFC 6901).
    #[must_use]
    pub fn set(mut self, pointer: &str, value: Value) -> Self {
        let mut at = &mut self.config;
        for key in pointer.trim_start_matches('/').split('/') {
            at = match at {
                Value::Array(items) => {
                    let index = match key {
                        "-" => items.len(),
                        key => key.parse().expect("an array's index is a number"),
                    };
                    if index == items.len() {
                        items.push(Value::Null);
                    }
                    &mut items[index]
                }
                _ => &mut at[key],
            };
        }
        *at = value;
        self
    }

    /// Takes away the member at a JSON pointer.
    #[must_use]
    pub fn unset(mut self, parent: &str, key: &str) -> Self {
        let parent = self.config.pointer_mut(parent).expect("the parent exists");
        parent
            .as_object_mut()
            .expect("the parent is an object")
            .remove(key);
        self
    }

    /// Appends a value to the array at a JSON pointer.
    #[must_use]
    pub fn push(mut self, pointer: &str, value: Value) -> Self {
        let array = self.config.pointer_mut(pointer).expect("the array exists");
        array.as_array_mut().expect("it is an array").push(value);
        self
    }

    /// A bind mount with these further options.
    #[must_use]
    pub fn bind(self, source: &Path, destination: &str, options: &[&str]) -> Self {
        let options: Vec<_> = ["rbind"].iter().chain(options).copied().collect();
        let mount = json!({
            "destination": destination,
            "type": "bind",
            "source": source,
            "options": options,
        });
        self.push("/mounts", mount)
    }

    /// The process's capabilities, for root: these and no others.
    #[must_use]
    pub fn capabilities(self, names: &[&str]) -> Self {
        let sets = ROOTS_SETS.map(|set| (set.to_owned(), json!(names)));
        self.set("/process/capabilities", Map::from_iter(sets).into())
    }

    /// The process's capabilities, for whoever it is: these in all five sets, and no others.
    #[must_use]
    pub fn ambient_capabilities(self, names: &[&str]) -> Self {
        self.capabilities(names)
            .set("/process/capabilities/inheritable", json!(names))
            .set("/process/capabilities/ambient", json!(names))
    }

    /// A further capability of the process, for root.
    #[must_use]
    pub fn add_capability(self, name: &str) -> Self {
        ROOTS_SETS.iter().fold(self, |bundle, set| {
            bundle.push(&format!("/process/capabilities/{set}"), json!(name))
        })
    }

    /// A user namespace of its own; the users and the groups are mapped alike.
    #[must_use]
    pub fn in_user_namespace(self, mappings: Value) -> Self {
        self.push("/linux/namespaces", json!({ "type": "user" }))
            .set("/linux/uidMappings", mappings.clone())
            .set("/linux/gidMappings", mappings)
    }

    /// The config.json that will be written.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// Writes config.json; [`crate::Container`] does so before it needs it.
    pub fn write(&self) {
        let text = serde_json::to_string_pretty(&self.config).expect("a Value has a text");
        fs::write(self.path().join("config.json"), text).expect("config.json can be written");
    }
}

impl Default for Bundle {
    fn default() -> Self {
        Self::new()
    }
}

/// Busybox with its applets, the probe, and the users and groups that tests name.
fn fill_rootfs(rootfs: &Path) {
    for folder in [
        "bin", "dev", "etc", "home", "mnt", "proc", "root", "sys", "var",
    ] {
        fs::create_dir_all(rootfs.join(folder)).expect("a folder can be made");
    }
    let tmp = rootfs.join("tmp");
    fs::create_dir(&tmp).expect("a folder can be made");
    fs::set_permissions(&tmp, fs::Permissions::from_mode(0o1777)).expect("it is our folder");

    let (busybox, applets) = busybox();
    fs::copy(busybox, rootfs.join("bin/busybox")).expect("busybox can be copied");
    for applet in applets {
        let link = rootfs.join("bin").join(applet);
        if applet != "busybox" {
            symlink("busybox", link).expect("a link can be made");
        }
    }
    let probe = probe_on_host();
    fs::copy(probe, rootfs.join(PROBE.trim_start_matches('/'))).expect("the probe can be copied");

    let passwd = "root:x:0:0:root:/root:/bin/sh\nsailor:x:1000:1000::/home:/bin/sh\n";
    fs::write(rootfs.join("etc/passwd"), passwd).expect("a file can be written");
    fs::write(rootfs.join("etc/group"), "root:x:0:\nsailor:x:1000:\n")
        .expect("a file can be written");
}

/// This machine's static busybox, and the names that it goes by.
fn busybox() -> &'static (PathBuf, Vec<String>) {
    static BUSYBOX: OnceLock<(PathBuf, Vec<String>)> = OnceLock::new();
    BUSYBOX.get_or_init(|| {
        let path = ["/bin/busybox", "/usr/bin/busybox"]
            .map(PathBuf::from)
            .into_iter()
            .find(|path| path.exists())
            .expect("busybox-static is installed");
        let list = Command::new(&path)
            .arg("--list")
            .output()
            .expect("busybox lists its applets");
        let names = String::from_utf8_lossy(&list.stdout);
        (path, names.lines().map(str::to_owned).collect())
    })
}

/// The probe, on the host.
pub fn probe_on_host() -> PathBuf {
    program("probe")
}

/// A program of `src/bin`, which cargo puts two folders above a test's own binary.
pub fn program(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("a process has a binary");
    let folder = own.ancestors().nth(2).expect("it lies in target/…/deps");
    folder.join(name)
}

/// What `runc spec` writes, except for the terminal, the read-only root and a cgroup of our own.
fn default_config(token: &str) -> Value {
    let capabilities = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": [],
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities,
                "effective": capabilities,
                "permitted": capabilities,
            },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": false },
        "hostname": "box",
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
              "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
              "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] },
            { "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
              "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"] },
            { "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
              "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/sys", "type": "sysfs", "source": "sysfs",
              "options": ["nosuid", "noexec", "nodev", "ro"] },
            { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
              "options": ["nosuid", "noexec", "nodev", "relatime", "ro"] },
        ],
        "linux": {
            "cgroupsPath": format!("/{token}"),
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "namespaces": [
                { "type": "pid" }, { "type": "network" }, { "type": "ipc" },
                { "type": "uts" }, { "type": "mount" }, { "type": "cgroup" },
            ],
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware",
                "/proc/scsi",
            ],
            "readonlyPaths": [
                "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
            ],
        },
    })
}
