//! The guest's first moments: the kernel has started this program as PID 1 and there is nothing else.
//!
//! Only what every guest needs is done before the host is greeted. What only containers need is done
//! before the first of them, in `prepare_for_containers`.

use std::ffi::CStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use hull_protocol::{paths, ports};
use log::Level;
use rustix::mount::{MountFlags, mount, mount_bind, mount_move};
use rustix::process::{chdir, chroot};
use rustix::system::{RebootCommand, reboot, sethostname};

use crate::error::Fatal;
use crate::notices::{Notices, OnSignal};
use crate::reaper::Reaper;
use crate::sandbox::Sandbox;
use crate::transport::{self, Dial, Vsock};
use crate::{cgroup, clock, console, server, sys};

/// The guest's own host name. Containers have theirs.
const HOSTNAME: &[u8] = b"hull";

/// As many open files as a process can be allowed, `sysctl_nr_open_max` of fs/file.c: engines hand on the
/// limits of hosts that allow as many.
const MOST_FILES: &str = "2147483584";

/// Memory counts when it is touched, `OVERCOMMIT_ALWAYS` of linux/mman.h. The container's limit is what
/// bounds it, by the kernel's OOM killer, as on a host that has more memory than the container may use.
const OVERCOMMIT_ALWAYS: &str = "1";

/// Where the agent finds itself.
const PROGRAM: &str = "/proc/self/exe";

/// PID 1's whole life. It doesn't return: the machine ends with it.
pub fn run() -> ExitCode {
    sys::take_no_faults();
    let result = start().and_then(|()| live());
    if let Err(fatal) = result {
        console::say(Level::Error, &format!("cannot go on: {fatal}"));
    }
    power_off();
    ExitCode::FAILURE
}

/// Ends the machine: by a triple fault, which the VMM sees as a shutdown. Does nothing outside a guest.
pub fn power_off() {
    if std::process::id() == 1 {
        rustix::fs::sync();
        let _ = reboot(RebootCommand::Restart);
    }
}

fn start() -> Result<(), Fatal> {
    make_root_movable().map_err(Fatal::at("make / a mount that can be left"))?;
    let quiet = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_at("devtmpfs", "devtmpfs", "/dev", MountFlags::NOSUID, None)?;
    mount_at("proc", "proc", "/proc", quiet, None)?;
    let command_line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    console::start(console::level(&command_line));
    mount_at("sysfs", "sysfs", "/sys", quiet, None)?;
    let private = MountFlags::NOSUID | MountFlags::NODEV;
    mount_at("tmpfs", "run", "/run", private, Some(c"mode=0755"))?;
    mount_at(
        "cgroup2",
        "cgroup2",
        cgroup::MOUNT,
        quiet,
        Some(c"nsdelegate"),
    )?;
    sys::bring_loopback_up().map_err(Fatal::at("bring lo up"))?;
    sethostname(HOSTNAME).map_err(Fatal::at("set the host name"))
}

/// The kernel's first root can't be left by pivot_root(2), as containers do: only a mount on top of it
/// can. A bind mount of it onto itself is one.
fn make_root_movable() -> rustix::io::Result<()> {
    mount_bind("/", "/run")?;
    chdir("/run")?;
    mount_move(".", "/")?;
    chroot(".")?;
    chdir("/")
}

fn mount_at(
    filesystem: &str,
    source: &str,
    target: &str,
    flags: MountFlags,
    data: Option<&CStr>,
) -> Result<(), Fatal> {
    mount(source, target, filesystem, flags, data)
        .map_err(Fatal::at(format!("mount {filesystem} at {target}")))
}

/// Mounts the shared tree, and prepares the cgroups and the limit of limits.
fn prepare_for_containers() -> Result<(), Fatal> {
    fs::write("/proc/sys/fs/nr_open", MOST_FILES).map_err(Fatal::at("set fs.nr_open"))?;
    // Else an allocation that is larger than the guest fails, which a host lets pass.
    fs::write("/proc/sys/vm/overcommit_memory", OVERCOMMIT_ALWAYS)
        .map_err(Fatal::at("set vm.overcommit_memory"))?;
    cgroup::prepare()?;
    let share = Path::new(paths::SHARE);
    fs::create_dir_all(share).map_err(Fatal::at(format!("make {}", paths::SHARE)))?;
    // No nosuid, no nodev: a container's root is as a container's root is.
    mount_at(
        "virtiofs",
        ports::SHARE_TAG,
        paths::SHARE,
        MountFlags::empty(),
        None,
    )
}

fn live() -> Result<(), Fatal> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Fatal::at("start the runtime"))?;
    runtime.block_on(async {
        let reaper = Reaper::start().map_err(Fatal::at("listen to SIGCHLD"))?;
        let sandbox = Sandbox::new(
            PathBuf::from(PROGRAM),
            Box::new(Vsock),
            reaper,
            Box::new(prepare_for_containers),
        );
        let listener = Vsock::listen().map_err(Fatal::at("listen on vsock"))?;
        let _server = server::serve(Arc::clone(&sandbox), listener)
            .await
            .map_err(|e| Fatal::at("serve ttrpc")(io::Error::other(e)))?;
        let on_signal = Box::new(move |signal| sandbox.signalled(signal));
        let notices = meet(&Vsock, on_signal)
            .await
            .map_err(Fatal::at("greet the host on its vsock port"))?;
        log::info!("serving");
        if let Some(notices) = notices {
            clock::follow(notices).await;
        }
        std::future::pending().await
    })
}

/// Listens to the host's notices, and greets the host. In this order: the notices' port has no token, so it
/// must be taken before there is a container, and once it was greeted the host asks for one.
async fn meet(host: &dyn Dial, on_signal: OnSignal) -> io::Result<Option<Notices>> {
    let notices = Notices::connect(host, on_signal).await;
    let notices = notices.inspect_err(|e| {
        log::warn!("neither the host's clock nor signals to the VM process are heard of: {e}");
    });
    transport::greet(host).await?;
    Ok(notices.ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    use async_trait::async_trait;
    use hull_protocol::{hello, notices};
    use tokio::io::{AsyncReadExt, DuplexStream, duplex};

    use crate::transport::Stream;

    /// A host that refuses a port, and has been dialled on others.
    struct Host {
        refuses: u32,
        dialled: Mutex<Vec<(u32, DuplexStream)>>,
    }

    #[async_trait]
    impl Dial for Host {
        async fn dial(&self, port: u32) -> io::Result<Box<dyn Stream>> {
            if port == self.refuses {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            let (ours, hosts) = duplex(64);
            let mut dialled = self.dialled.lock().expect("no panic");
            dialled.push((port, hosts));
            Ok(Box::new(ours))
        }
    }

    /// The ports that such a host is dialled on, with what it hears there once both are met, and whether
    /// its notices are listened to.
    fn heard(refuses: u32) -> (Vec<(u32, Vec<u8>)>, bool) {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.expect("a runtime").block_on(async {
            let dialled = Mutex::default();
            let host = Host { refuses, dialled };
            let notices = meet(&host, Box::new(|_| ())).await.expect("it greets");
            let is_listened_to = notices.is_some();
            drop(notices);
            let mut heard = Vec::new();
            for (port, mut stream) in host.dialled.into_inner().expect("no panic") {
                let mut bytes = Vec::new();
                stream.read_to_end(&mut bytes).await.expect("read");
                heard.push((port, bytes));
            }
            (heard, is_listened_to)
        })
    }

    #[test]
    fn the_notices_port_is_taken_before_the_host_is_greeted() {
        let greeting = (ports::READY, hello::encode().to_vec());
        let listens = (ports::NOTICES, vec![notices::LISTENING]);
        assert_eq!(heard(0), (vec![listens, greeting.clone()], true));
        assert_eq!(heard(ports::NOTICES), (vec![greeting], false));
    }
}
