//! What `hull check` looks at. Each check is one question to the host, and none changes anything.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use hull_runtime::cgroup;
use hull_runtime::chain::chain;
use hull_runtime::host::Privilege;
use hull_runtime::lifecycle::Context;
use hull_vmm::jail::userns::{self, IdMap};
use hull_vmm::kvm::{self, ProbeOutcome};
use nix::sched::{CloneFlags, unshare};

use super::Finding;

/// How long the test guest may take; it has four instructions.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// The oldest Linux that hull runs on: mount_setattr(2) came with it.
const OLDEST_KERNEL: (u32, u32) = (5, 12);

/// Below this much free memory, in MiB, no guest fits; below the other, none with the default size.
const LEAST_MEMORY: u64 = 128;
const GOOD_MEMORY: u64 = 512;

/// Free space under `--root` that is enough for the state and logs of some containers, in MiB.
const GOOD_DISK: u64 = 16;

/// Every check, in the order of the report.
pub fn all(context: &Context) -> Vec<Finding> {
    vec![
        kvm_device(),
        unmodified_kernel(),
        guest_files(context),
        user(),
        kernel(),
        namespaces(),
        seccomp(),
        memory(),
        state_folder(&context.root),
        host_cgroup(),
        tun(),
        vhost_net(),
    ]
}

fn kvm_device() -> Finding {
    match kvm::open(1) {
        Ok(kvm) => Finding::ok(
            "kvm",
            format!(
                "/dev/kvm opens, its API has version {}",
                kvm.get_api_version()
            ),
        ),
        Err(e) => Finding::missing("kvm", "/dev/kvm cannot be used", chain(&e)),
    }
}

/// Whether KVM runs guests on the processor. Some machines have a /dev/kvm that only interprets them:
/// it opens, and a stock kernel dies in it after half a minute.
fn unmodified_kernel() -> Finding {
    const NAME: &str = "virtualization";
    const REMEDY: &str = "switch on VT-x or AMD-V in the firmware; in a virtual machine, have its host \
                          switch on nested virtualisation";
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let extension = extension(&cpuinfo);
    match (probe(), extension) {
        (Ok(ProbeOutcome::RunsGuests), Some(extension)) => {
            let nested = if is_virtual(&cpuinfo) {
                "; this host is a virtual machine itself, so guests are slower"
            } else {
                ""
            };
            Finding::ok(
                NAME,
                format!("KVM runs unmodified kernels ({extension}{nested})"),
            )
        }
        (Ok(ProbeOutcome::RunsGuests), None) => Finding::warning(
            NAME,
            "KVM ran a test guest, but the processor shows neither VMX nor SVM; a kernel may fail",
            REMEDY,
        ),
        (Ok(ProbeOutcome::OnlyEmulates), _) => Finding::missing(
            NAME,
            "this /dev/kvm only interprets guests and cannot run an unmodified kernel: the processor \
             has neither VMX nor SVM",
            REMEDY,
        ),
        (Err(_), None) => Finding::missing(NAME, "the processor has neither VMX nor SVM", REMEDY),
        (Err(why), Some(_)) => Finding::missing(NAME, format!("no test guest ran: {why}"), REMEDY),
    }
}

/// The processor's extension for guests, as /proc/cpuinfo names it.
fn extension(cpuinfo: &str) -> Option<&'static str> {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"))?;
    ["vmx", "svm"]
        .into_iter()
        .find(|flag| flags.split_whitespace().any(|word| word == *flag))
}

fn is_virtual(cpuinfo: &str) -> bool {
    let flags = cpuinfo
        .lines()
        .find(|line| line.starts_with("flags"))
        .unwrap_or_default();
    flags.split_whitespace().any(|word| word == "hypervisor")
}

/// Runs the test guest, in a thread so that a KVM which hangs doesn't hang us.
fn probe() -> Result<ProbeOutcome, String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let outcome = kvm::open(1)
            .map_err(|e| chain(&e))
            .and_then(|kvm| kvm::probe(&kvm).map_err(|e| chain(&e)));
        // Nobody listens any more after the timeout.
        let _ = sender.send(outcome);
    });
    receiver.recv_timeout(PROBE_TIMEOUT).unwrap_or_else(|_| {
        Err(format!(
            "a guest of four instructions did not end within {} s",
            PROBE_TIMEOUT.as_secs()
        ))
    })
}

fn guest_files(context: &Context) -> Finding {
    let opened = context.settings.load().map(|config| config.boot().open());
    match opened {
        Ok(Ok(_)) => Finding::ok("guest files", "a guest kernel and its initramfs are there"),
        Err(e) => Finding::missing("guest files", chain(&e), "correct the configuration"),
        Ok(Err(e)) => Finding::missing(
            "guest files",
            chain(&e),
            "name them with --kernel and --initramfs, or use a hull that has them built in",
        ),
    }
}

fn user() -> Finding {
    let found = match Privilege::own() {
        Privilege::HostRoot => "root".to_owned(),
        Privilege::NamespaceRoot => "root of a user namespace".to_owned(),
        Privilege::User => {
            let uid = rustix::process::geteuid().as_raw();
            format!("uid {uid}: containers must have a user namespace (`hull spec --rootless`)")
        }
    };
    Finding::ok("user", found)
}

fn kernel() -> Finding {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy().into_owned();
    let (major, minor) = OLDEST_KERNEL;
    match version(&release) {
        Some(version) if version >= OLDEST_KERNEL => Finding::ok("linux", release),
        _ => Finding::missing(
            "linux",
            format!("{release}: it lacks system calls that hull uses"),
            format!("boot Linux {major}.{minor} or newer"),
        ),
    }
}

/// Major and minor of a kernel's release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn namespaces() -> Finding {
    match Privilege::own().is_some_root() {
        true => mount_namespace(),
        false => user_namespace(),
    }
}

fn user_namespace() -> Finding {
    let own = |outside| IdMap {
        inside: 0,
        outside,
        count: 1,
    };
    let uid = own(rustix::process::geteuid().as_raw());
    let gid = own(rustix::process::getegid().as_raw());
    match userns::create(&[uid], &[gid]) {
        Ok(_) => Finding::ok("namespaces", "a user namespace can be made"),
        Err(e) => Finding::missing(
            "namespaces",
            format!("no user namespace can be made: {}", chain(&e)),
            "let ordinary users make them (sysctl user.max_user_namespaces and \
             kernel.unprivileged_userns_clone), or run hull as root",
        ),
    }
}

fn mount_namespace() -> Finding {
    // Of a thread: it takes the namespace with it.
    let outcome = thread::spawn(|| unshare(CloneFlags::CLONE_NEWNS)).join();
    match outcome {
        Ok(Ok(())) => Finding::ok("namespaces", "a mount namespace can be made"),
        Ok(Err(e)) => Finding::missing(
            "namespaces",
            format!("no mount namespace can be made for the VM's jail: {e}"),
            "run hull with CAP_SYS_ADMIN, outside of a container that withholds it",
        ),
        Err(_) => Finding::missing("namespaces", "the test of namespaces failed", "report it"),
    }
}

fn seccomp() -> Finding {
    match fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail") {
        Ok(actions) if actions.contains("kill_process") => {
            Finding::ok("seccomp", "system calls can be filtered")
        }
        _ => Finding::missing(
            "seccomp",
            "the kernel has no seccomp filters, which the VM's jail needs",
            "boot a kernel with CONFIG_SECCOMP_FILTER",
        ),
    }
}

fn memory() -> Finding {
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let Some(free) = available_memory(&info) else {
        return Finding::warning(
            "memory",
            "/proc/meminfo does not say how much is free",
            "mount /proc",
        );
    };
    let found = format!("{free} MiB available");
    match free {
        ..LEAST_MEMORY => {
            Finding::missing("memory", found, "free some: a guest starts with 128 MiB")
        }
        LEAST_MEMORY..GOOD_MEMORY => Finding::warning(
            "memory",
            found,
            "free some, or give containers a memory limit",
        ),
        _ => Finding::ok("memory", found),
    }
}

/// MemAvailable of /proc/meminfo, in MiB.
fn available_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib >> 10)
}

/// Room for state under `--root`, or where that would be made.
fn state_folder(root: &Path) -> Finding {
    const NAME: &str = "state";
    let Some(there) = root.ancestors().find(|path| path.is_dir()) else {
        return Finding::missing(
            NAME,
            format!("{}: no such folder", root.display()),
            "set --root",
        );
    };
    let room = match rustix::fs::statvfs(there) {
        Ok(stat) => stat.f_bavail.saturating_mul(stat.f_frsize) >> 20,
        Err(e) => {
            let found = format!("{}: {}", there.display(), io::Error::from(e));
            return Finding::missing(NAME, found, "set --root");
        }
    };
    let writable = rustix::fs::access(there, rustix::fs::Access::WRITE_OK).is_ok();
    let found = format!("{}: {room} MiB free", root.display());
    match (writable, room) {
        (false, _) => {
            let found = format!("{}: it cannot be written", there.display());
            Finding::missing(NAME, found, "set --root, or run as root")
        }
        (true, 0) => Finding::missing(NAME, found, "free some, or set --root"),
        (true, 1..GOOD_DISK) => Finding::warning(NAME, found, "free some, or set --root"),
        (true, _) => Finding::ok(NAME, found),
    }
}

/// The host's cgroup2 is where engines see and limit the VM as a whole. A container's own limits are
/// enforced in the guest, whatever the host has; engines always ask for a cgroup, and get an error
/// where there is only version 1.
fn host_cgroup() -> Finding {
    const NAME: &str = "cgroup2";
    const REMEDY: &str = "boot with systemd.unified_cgroup_hierarchy=1, or mount cgroup2 there";
    if !cgroup::is_cgroup2() {
        let found = "/sys/fs/cgroup is not cgroup2: a container that has a cgroupsPath, as engines' have, or \
                     limits of block devices or NUMA nodes, is refused";
        return Finding::warning(NAME, found, REMEDY);
    }
    let controllers = Path::new(cgroup::MOUNT).join("cgroup.controllers");
    let controllers = fs::read_to_string(controllers).unwrap_or_default();
    let lacking: Vec<_> = ["cpu", "cpuset", "io", "memory", "pids"]
        .into_iter()
        .filter(|needed| !controllers.split_whitespace().any(|word| word == *needed))
        .collect();
    if lacking.is_empty() {
        Finding::ok(NAME, controllers.trim())
    } else {
        let found = format!("it lacks the controllers {}", lacking.join(", "));
        Finding::warning(
            NAME,
            found,
            "enable them in the kernel, or have them delegated",
        )
    }
}

fn tun() -> Finding {
    device(
        "tun",
        "/dev/net/tun",
        "containers get no network interfaces",
        "tun",
    )
}

fn vhost_net() -> Finding {
    device(
        "vhost-net",
        "/dev/vhost-net",
        "the network is slower without it",
        "vhost_net",
    )
}

/// A device that hull can do without.
fn device(name: &'static str, path: &str, without: &str, module: &str) -> Finding {
    match fs::OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Finding::ok(name, format!("{path} opens")),
        Err(e) => {
            let remedy = format!("modprobe {module}");
            Finding::warning(name, format!("{path}: {e}: {without}"), remedy)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_extension_is_a_flag_of_its_own() {
        assert_eq!(
            extension("processor: 0\nflags\t\t: fpu svm sse\n"),
            Some("svm")
        );
        assert_eq!(extension("flags\t\t: fpu svm_lock hypervisor\n"), None);
        assert!(is_virtual("flags\t\t: fpu hypervisor\n"));
    }

    #[test]
    fn a_release_is_compared_by_its_numbers() {
        assert_eq!(version("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(version("5.10"), Some((5, 10)));
        assert!(version("5.9.1") < Some(OLDEST_KERNEL));
        assert_eq!(version("x"), None);
    }

    #[test]
    fn available_memory_is_counted_in_mib() {
        let info = "MemTotal:  2048 kB\nMemAvailable:    1024000 kB\n";
        assert_eq!(available_memory(info), Some(1000));
        assert_eq!(available_memory(""), None);
    }
}
