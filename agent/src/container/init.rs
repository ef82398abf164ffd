//! A helper's task: to make a container.
//!
//! This runs in two processes. The helper has all privileges in the guest, and prepares what takes them; then it
//! makes the container's first process, in new namespaces and in the container's cgroup. That process sets up its
//! mounts, devices and so on, in the order of `enter_container`, and waits to be started.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::process::exit;

use oci_spec::runtime::{LinuxNamespaceType, Spec};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::{DumpableBehavior, set_dumpable_behavior, setsid};
use rustix::stdio::stderr;
use serde::{Deserialize, Serialize};

use super::devices::{self, DeviceNodes};
use super::mounts::Mounts;
use super::namespaces::{Namespaces, Shared, SyncSocket};
use super::restricted_paths::RestrictedPaths;
use super::root;
use super::sysctl::Sysctls;
use crate::error::Failure;
use crate::helper::{Report, Reporter};
use crate::process::{Launch, ReadyToExec, attributes, cwd, keyring, rlimits, terminal, user};
use crate::sys;

/// The exit status when execve(2) fails after `start`, as with runc.
const EXEC_FAILED: i32 = 255;

/// What to make.
#[derive(Debug, Serialize, Deserialize)]
pub struct Task {
    /// The container's directory in the guest.
    pub directory: PathBuf,
    /// The directory of its cgroup.
    pub cgroup: PathBuf,
    /// Its config.json.
    pub spec: Box<Spec>,
    /// Mount options for its root: the attributes that the mounts have on the host.
    pub root_options: Vec<String>,
    /// The namespaces of other containers that it is to have.
    pub shared: Vec<Shared>,
    /// The process to start.
    pub launch: Launch,
}

/// What the helper has prepared for the first process.
struct ContainerSetup {
    namespaces: Namespaces,
    root: PathBuf,
    mounts: Mounts,
    nodes: DeviceNodes,
    sysctls: Option<Sysctls>,
    restricted_paths: RestrictedPaths,
    launch: Launch,
}

/// Makes the container and reports its first process, which reports its own errors.
///
/// # Errors
/// When the container could not be made.
pub fn run(mut task: Task, reporter: &Reporter) -> Result<(), Failure> {
    let shared = std::mem::take(&mut task.shared);
    let process = &task.launch.process;
    // Set here, as the root of a user namespace lacks the privileges. The container's process inherits them.
    rlimits::raise_hard_limits(process)?;
    attributes::set_oom_score_adj(process)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let cgroup = openat(CWD, &task.cgroup, flags, Mode::empty())
        .map_err(Failure::io("open the container's cgroup"))?;
    let mut setup = ContainerSetup::prepare(task, cgroup.as_fd())?;
    // From here on, the container's processes could otherwise ptrace these two and read their /proc files.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(Failure::io("become undumpable"))?;
    let (helper_end, process_end) = SyncSocket::pair().map_err(Failure::io("make a socket"))?;
    // The last thing before the clone: from here on, what the helper sees of the network is a container's.
    setup.namespaces.enter_shared(&shared)?;
    let namespaces = setup.namespaces.clone_flags();
    let pid = sys::fork_sibling(namespaces, Some(cgroup.as_fd()))
        .map_err(Failure::field("linux.namespaces"))?;
    let Some(pid) = pid else {
        drop(helper_end);
        match enter_container(&mut setup, &process_end, reporter) {
            Ok(ready) => wait_and_execute(ready, &process_end, reporter),
            Err(failure) => reporter.fail(failure),
        }
        // exit() drops nothing: the cleanup on drop is the helper's to do, not this process's.
        exit(1);
    };
    drop(process_end);
    setup
        .namespaces
        .write_mappings(pid, &helper_end)
        .inspect_err(|_| {
            // Otherwise the process would report that the helper has ended, which hides the error.
            let _ = sys::kill(pid, libc::SIGKILL);
        })?;
    helper_end.wait().map_err(|_| {
        Failure::other("the container's process has ended before it could be started")
    })?;
    setup.mounts.keep_disks();
    reporter
        .send(&Report::Pid(pid), None)
        .map_err(Failure::io("report the container's process"))
}

impl ContainerSetup {
    fn prepare(task: Task, cgroup: BorrowedFd<'_>) -> Result<Self, Failure> {
        let spec = &task.spec;
        if let Some(linux) = spec.linux() {
            devices::enforce(linux, cgroup)?;
        }
        let terminal = task.launch.process.terminal().unwrap_or(false);
        let mounts = Mounts::prepare(spec, task.root_options, task.cgroup)?;
        let root = spec.root().as_ref().map(|root| root.path().clone());
        Ok(Self {
            namespaces: Namespaces::of(spec),
            root: root.unwrap_or_default(),
            nodes: DeviceNodes::prepare(spec, terminal, mounts.dev_binds(), &task.directory)?,
            mounts,
            sysctls: Sysctls::of(spec)?,
            restricted_paths: RestrictedPaths::of(spec),
            launch: task.launch,
        })
    }
}

/// Runs in the first process: sets the container up and enters it.
fn enter_container(
    setup: &mut ContainerSetup,
    helper: &SyncSocket,
    reporter: &Reporter,
) -> Result<ReadyToExec, Failure> {
    let process = &setup.launch.process;
    setsid().map_err(Failure::io("make a session"))?;
    setup.namespaces.unshare(helper)?;

    root::mount(&setup.root)?;
    let (root, deferred) = setup.mounts.mount_all()?;
    let root = root.as_fd();
    setup.nodes.make(root)?;
    root::reopen_dev_null(root)?;
    root::enter(root, setup.namespaces.has(LinuxNamespaceType::Mount))?;
    if process.terminal() == Some(true) {
        let master = terminal::set_up(true)?;
        reporter
            .send(&Report::Terminal, Some(master.as_fd()))
            .map_err(Failure::io("report the terminal"))?;
    }
    cwd::create(process);
    deferred.apply(root)?;
    if let Some(sysctls) = &setup.sysctls {
        sysctls.write()?;
    }
    setup.restricted_paths.apply(root)?;
    deferred.set_root_propagation(root)?;

    keyring::join(&setup.launch.keyring)?;
    sys::set_cloexec_above_stderr()
        .map_err(Failure::io("mark the helper's files close-on-exec"))?;
    user::become_user(process)?;
    cwd::enter(process)?;
    setup.launch.prepare()
}

/// Waits to be started, and executes the program. The agent no longer waits for an error by then: as with runc, it
/// goes to the container's stderr.
fn wait_and_execute(ready: ReadyToExec, helper: &SyncSocket, reporter: &Reporter) {
    if helper.notify().is_err() || reporter.wait_for_start().is_err() {
        return;
    }
    let failure = ready.execute();
    let _ = rustix::io::write(stderr(), format!("{failure}\n").as_bytes());
    exit(EXEC_FAILED);
}
