//! What the agent does at boot: the kernel has started this program as PID 1, and nothing else runs.
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

/// The largest fs.nr_open that the kernel takes, `sysctl_nr_open_max` of fs/file.c: engines pass on the
/// RLIMIT_NOFILE of hosts that allow as many.
const MAX_NR_OPEN: &str = "2147483584";

/// Allocations are never refused, `OVERCOMMIT_ALWAYS` of linux/mman.h. The container's memory limit applies
/// when pages are touched, as on a host that has more memory than the container may use.
const OVERCOMMIT_ALWAYS: &str = "1";

/// The agent's own program, which helpers execute.
const AGENT_PROGRAM: &str = "/proc/self/exe";

/// The main function of PID 1. It doesn't return: on an error it ends the VM.
pub fn run() -> ExitCode {
    sys::reset_fault_handlers();
    let result = start().and_then(|()| serve());
    if let Err(fatal) = result {
        console::write(Level::Error, &format!("cannot continue: {fatal}"));
    }
    power_off();
    ExitCode::FAILURE
}

/// Ends the VM: by a triple fault, which the VMM sees as a shutdown. Does nothing outside a guest.
pub fn power_off() {
    if std::process::id() == 1 {
        rustix::fs::sync();
        let _ = reboot(RebootCommand::Restart);
    }
}

fn start() -> Result<(), Fatal> {
    make_root_pivotable().map_err(Fatal::io("make / a mount that pivot_root can leave"))?;
    let noexec = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount_at("devtmpfs", "devtmpfs", "/dev", MountFlags::NOSUID, None)?;
    mount_at("proc", "proc", "/proc", noexec, None)?;
    let command_line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    console::init(console::level(&command_line));
    mount_at("sysfs", "sysfs", "/sys", noexec, None)?;
    let nodev = MountFlags::NOSUID | MountFlags::NODEV;
    mount_at("tmpfs", "run", "/run", nodev, Some(c"mode=0755"))?;
    mount_at(
        "cgroup2",
        "cgroup2",
        cgroup::MOUNT,
        noexec,
        Some(c"nsdelegate"),
    )?;
    sys::bring_loopback_up().map_err(Fatal::io("bring lo up"))?;
    sethostname(HOSTNAME).map_err(Fatal::io("set the host name"))
}

/// Bind-mounts the root onto itself: pivot_root(2), which containers are entered by, fails on the kernel's
/// rootfs, but not on a mount on top of it.
fn make_root_pivotable() -> rustix::io::Result<()> {
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
        .map_err(Fatal::io(format!("mount {filesystem} at {target}")))
}

/// Mounts the shared tree, prepares the cgroups, and raises the sysctls that bound what containers may ask for.
fn prepare_for_containers() -> Result<(), Fatal> {
    fs::write("/proc/sys/fs/nr_open", MAX_NR_OPEN).map_err(Fatal::io("set fs.nr_open"))?;
    // Otherwise an allocation larger than the guest's memory fails, which succeeds on a host.
    fs::write("/proc/sys/vm/overcommit_memory", OVERCOMMIT_ALWAYS)
        .map_err(Fatal::io("set vm.overcommit_memory"))?;
    cgroup::prepare()?;
    let share = Path::new(paths::SHARE);
    fs::create_dir_all(share).map_err(Fatal::io(format!("make {}", paths::SHARE)))?;
    // Without nosuid and nodev: containers' roots are on it.
    mount_at(
        "virtiofs",
        ports::SHARE_TAG,
        paths::SHARE,
        MountFlags::empty(),
        None,
    )
}

fn serve() -> Result<(), Fatal> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Fatal::io("start the runtime"))?;
    runtime.block_on(async {
        let reaper = Reaper::start().map_err(Fatal::io("listen to SIGCHLD"))?;
        let sandbox = Sandbox::new(
            PathBuf::from(AGENT_PROGRAM),
            Box::new(Vsock),
            reaper,
            Box::new(prepare_for_containers),
        );
        let listener = Vsock::listen().map_err(Fatal::io("listen on vsock"))?;
        let _server = server::serve(Arc::clone(&sandbox), listener)
            .await
            .map_err(|e| Fatal::io("serve ttrpc")(io::Error::other(e)))?;
        let on_signal = Box::new(move |signal| sandbox.signal_owner(signal));
        let notices = connect_to_host(&Vsock, on_signal)
            .await
            .map_err(Fatal::io("greet the host on its vsock port"))?;
        log::info!("serving");
        if let Some(notices) = notices {
            clock::follow(notices).await;
        }
        std::future::pending().await
    })
}

/// Connects to the host's notices port, then sends the host the hello. In this order: the notices port has no
/// token, so it must be taken before there is a container, and the host asks for one once it has the hello.
async fn connect_to_host(host: &dyn Dial, on_signal: OnSignal) -> io::Result<Option<Notices>> {
    let notices = Notices::connect(host, on_signal).await;
    let notices = notices.inspect_err(|e| {
        log::warn!(
            "cannot receive notices of the host's clock and of signals to the VM process: {e}"
        );
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

    /// A host that refuses connections to one port and accepts those to others.
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

    /// The ports that such a host is dialled on, with the bytes that it receives there, and whether the agent
    /// has a connection for notices.
    fn received(refuses: u32) -> (Vec<(u32, Vec<u8>)>, bool) {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.expect("a runtime").block_on(async {
            let dialled = Mutex::default();
            let host = Host { refuses, dialled };
            let notices = connect_to_host(&host, Box::new(|_| ()))
                .await
                .expect("it greets");
            let has_notices = notices.is_some();
            drop(notices);
            let mut received = Vec::new();
            for (port, mut stream) in host.dialled.into_inner().expect("no panic") {
                let mut bytes = Vec::new();
                stream.read_to_end(&mut bytes).await.expect("read");
                received.push((port, bytes));
            }
            (received, has_notices)
        })
    }

    #[test]
    fn the_notices_port_is_connected_before_the_hello_is_sent() {
        let greeting = (ports::READY, hello::encode().to_vec());
        let listens = (ports::NOTICES, vec![notices::LISTENING]);
        assert_eq!(received(0), (vec![listens, greeting.clone()], true));
        assert_eq!(received(ports::NOTICES), (vec![greeting], false));
    }
}
