//! A helper's task: to make a container.
//!
//! It runs in two processes. The helper has all rights in the guest and makes ready what takes them; then it
//! makes the container's first process, in new namespaces and in the container's cgroup. That process makes
//! its own surroundings, in the order of `become_container`, and waits to be started.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::process::exit;

use oci_spec::runtime::{LinuxNamespaceType, Spec};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::{DumpableBehavior, set_dumpable_behavior, setsid};
use rustix::stdio::stderr;
use serde::{Deserialize, Serialize};

use super::devices::{self, Nodes};
use super::mounts::Mounts;
use super::namespaces::{Line, Namespaces};
use super::paths::Paths;
use super::root;
use super::sysctl::Sysctls;
use crate::error::Failure;
use crate::helper::{Report, Reporter};
use crate::process::{Launch, Ready, attributes, cwd, keyring, rlimits, terminal, user};
use crate::sys;

/// runc's exit status when a container's program turns out not to be one after it was started.
const NOT_A_PROGRAM: i32 = 255;

/// What to make.
#[derive(Debug, Serialize, Deserialize)]
pub struct Task {
    /// The container's directory in the guest.
    pub directory: PathBuf,
    /// The directory of its cgroup.
    pub cgroup: PathBuf,
    /// Its config.json.
    pub spec: Box<Spec>,
    /// What its root has of the host's mounts, as options of a mount.
    pub root_options: Vec<String>,
    /// The last step.
    pub launch: Launch,
}

/// What the first process makes its surroundings of.
struct Parts {
    namespaces: Namespaces,
    root: PathBuf,
    mounts: Mounts,
    nodes: Nodes,
    sysctls: Option<Sysctls>,
    paths: Paths,
    launch: Launch,
}

/// Makes the container and reports its first process. An error of that one is reported by itself.
///
/// # Errors
/// When there is none now.
pub fn run(task: Task, reporter: &Reporter) -> Result<(), Failure> {
    let process = &task.launch.process;
    // Here, as what a user namespace's root may do is not enough. The container's process inherits them.
    rlimits::allow(process)?;
    attributes::set_oom_score(process)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let cgroup = openat(CWD, &task.cgroup, flags, Mode::empty())
        .map_err(Failure::io("open the container's cgroup"))?;
    let mut parts = Parts::prepare(task, cgroup.as_fd())?;
    // From here on, the container's processes could otherwise look into these two.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(Failure::io("become undumpable"))?;
    let (here, there) = Line::pair().map_err(Failure::io("make a socket"))?;
    let namespaces = parts.namespaces.of_the_process();
    let pid = sys::fork_sibling(namespaces, Some(cgroup.as_fd()))
        .map_err(Failure::field("linux.namespaces"))?;
    let Some(pid) = pid else {
        drop(here);
        match become_container(&mut parts, &there, reporter) {
            Ok(ready) => start(ready, &there, reporter),
            Err(failure) => reporter.fail(failure),
        }
        // Nothing is dropped: what the helper cleans up is not this process's.
        exit(1);
    };
    drop(there);
    parts.namespaces.describe(pid, &here).inspect_err(|_| {
        // It would say that the helper is gone, which explains nothing.
        let _ = sys::kill(pid, libc::SIGKILL);
    })?;
    here.hear().map_err(|_| {
        Failure::other("the container's process has ended before it could be started")
    })?;
    parts.mounts.keep();
    reporter
        .send(&Report::Made(pid), None)
        .map_err(Failure::io("report the container's process"))
}

impl Parts {
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
            nodes: Nodes::prepare(spec, terminal, mounts.of_dev(), &task.directory)?,
            mounts,
            sysctls: Sysctls::of(spec)?,
            paths: Paths::of(spec),
            launch: task.launch,
        })
    }
}

/// The first process's way into the container.
fn become_container(
    parts: &mut Parts,
    helper: &Line,
    reporter: &Reporter,
) -> Result<Ready, Failure> {
    let process = &parts.launch.process;
    setsid().map_err(Failure::io("make a session"))?;
    parts.namespaces.enter(helper)?;

    root::mount(&parts.root)?;
    let (root, finish) = parts.mounts.make()?;
    let root = root.as_fd();
    parts.nodes.make(root)?;
    root::own_null(root)?;
    root::enter(root, parts.namespaces.has(LinuxNamespaceType::Mount))?;
    if process.terminal() == Some(true) {
        let master = terminal::take(true)?;
        reporter
            .send(&Report::Terminal, Some(master.as_fd()))
            .map_err(Failure::io("report the terminal"))?;
    }
    cwd::make(process);
    finish.apply(root)?;
    if let Some(sysctls) = &parts.sysctls {
        sysctls.write()?;
    }
    parts.paths.apply(root)?;
    finish.propagate_root(root)?;

    keyring::join(&parts.launch.keyring)?;
    sys::close_the_rest_on_exec().map_err(Failure::io("close the helper's files on exec"))?;
    user::become_user(process)?;
    cwd::enter(process)?;
    parts.launch.prepare()
}

/// Waits to be started, and becomes the program. Nobody waits for an error any more: as with runc, it goes to
/// the container's stderr.
fn start(ready: Ready, helper: &Line, reporter: &Reporter) {
    if helper.say().is_err() || reporter.wait_for_start().is_err() {
        return;
    }
    let failure = ready.execute();
    let _ = rustix::io::write(stderr(), format!("{failure}\n").as_bytes());
    exit(NOT_A_PROGRAM);
}
