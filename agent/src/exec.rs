//! A helper's task: to start a further process in a running container.
//!
//! The steps and their order are runc's.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::exit;

use oci_spec::runtime::Process;
use rustix::fs::{Mode, OFlags};
use rustix::process::{DumpableBehavior, setsid};
use rustix::thread::{Gid, ThreadNameSpaceType, Uid, move_into_thread_name_spaces};
use serde::{Deserialize, Serialize};

use crate::cgroup;
use crate::error::Failure;
use crate::helper::{Report, Reporter};
use crate::process::{Launch, attributes, capabilities, cwd, keyring, rlimits, terminal, user};
use crate::sys;

/// The file of a cgroup that a process is put into it by.
const PROCESSES: &str = "cgroup.procs";

/// What to start.
#[derive(Debug, Serialize, Deserialize)]
pub struct Task {
    /// The number of a pidfd of the container's first process.
    pub init: RawFd,
    /// Its pid, to find its cgroup with.
    pub init_pid: i32,
    /// The namespaces to enter, `CLONE_NEW*`.
    pub namespaces: u32,
    /// The directory of the cgroup to be in: the container's, or one below it.
    pub cgroup: PathBuf,
    /// Whether it must be that one, and not the first process's instead.
    pub only_there: bool,
    /// The process.
    pub launch: Launch,
}

/// Starts the process and reports it. An error of its last steps is reported by the process itself.
///
/// # Errors
/// When there is no process.
pub fn run(task: Task, reporter: &Reporter) -> Result<(), Failure> {
    let process = &task.launch.process;
    let init = sys::inherited(task.init).map_err(Failure::io("use the container's pidfd"))?;
    attributes::set_oom_score(process)?;
    rlimits::allow(process)?;
    let nested = match task.only_there {
        true => None,
        false => nested_cgroup(task.init_pid),
    };
    let affinity = process.exec_cpu_affinity().as_ref();
    // The child inherits it, and has it until it is in the container's cgroup.
    attributes::bind_to_cpus(
        "process.execCPUAffinity.initial",
        affinity.and_then(|affinity| affinity.initial().as_deref()),
    )?;

    // From here on, the container's processes could otherwise look into this one.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(Failure::io("become undumpable"))?;
    // Opened here, where the guest's cgroup tree is still to be seen.
    let own = cgroup_file(&task.cgroup);
    let nested = nested.and_then(|path| cgroup_file(&path).ok());
    let namespaces = ThreadNameSpaceType::from_bits_retain(task.namespaces);
    move_into_thread_name_spaces(init.as_fd(), namespaces)
        .map_err(Failure::io("enter the container's namespaces"))?;

    // The pid namespace is the children's, not the helper's own. The child waits until it is in the
    // container's cgroup: a fork in there could fail for pids.max, and must not escape the limits.
    let (wait, go) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(Failure::io("make a pipe"))?;
    match sys::fork_sibling(0, None).map_err(Failure::io("fork"))? {
        None => {
            drop(go);
            let mut byte = [0];
            if rustix::io::read(&wait, &mut byte) == Ok(1) {
                reporter.fail(become_process(&task.launch, reporter));
            }
            exit(1);
        }
        Some(pid) => {
            let entered = own.and_then(|own| Ok(enter_cgroup(&own, nested.as_ref(), pid)?));
            let file = task.cgroup.join(PROCESSES);
            let what = format!("adding pid {pid} to cgroups: {}", file.display());
            entered.map_err(Failure::io::<io::Error>(what))?;
            reporter
                .send(&Report::Made(pid), None)
                .map_err(Failure::io("report the process"))?;
            rustix::io::write(&go, &[1]).map_err(Failure::io("let the process go"))?;
            Ok(())
        }
    }
}

/// The process's own part, in the container's namespaces. Returns why it failed.
fn become_process(launch: &Launch, reporter: &Reporter) -> Failure {
    let affinity = launch.process.exec_cpu_affinity().as_ref();
    let last = affinity.and_then(|affinity| affinity.cpu_affinity_final().as_deref());
    let become_it = || {
        attributes::bind_to_cpus("process.execCPUAffinity.final", last)?;
        // In a user namespace this process is nobody yet.
        capabilities::keep_as(Uid::ROOT, Gid::ROOT)?;
        keyring::join(&launch.keyring)?;
        enter(&launch.process, reporter)?;
        launch.prepare()
    };
    match become_it() {
        Ok(ready) => ready.execute(),
        Err(failure) => failure,
    }
}

/// Session, terminal, user, directory.
fn enter(process: &Process, reporter: &Reporter) -> Result<(), Failure> {
    setsid().map_err(Failure::io("make a session"))?;
    if process.terminal().unwrap_or(false) {
        let master = terminal::take(false)?;
        reporter
            .send(&Report::Terminal, Some(master.as_fd()))
            .map_err(Failure::io("report the terminal"))?;
    }
    sys::close_the_rest_on_exec().map_err(Failure::io("close the helper's files on exec"))?;
    user::become_user(process)?;
    cwd::enter(process)
}

fn cgroup_file(directory: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(
        directory.join(PROCESSES),
        flags,
        Mode::empty(),
    )?)
}

/// Where the container's first process is, if the container has moved it to a cgroup of its own.
fn nested_cgroup(init_pid: i32) -> Option<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{init_pid}/cgroup")).ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(Path::new(cgroup::MOUNT).join(path))
}

/// A cgroup that has handed its controllers on takes no process: then it is the first process's.
fn enter_cgroup(own: &OwnedFd, nested: Option<&OwnedFd>, pid: i32) -> rustix::io::Result<()> {
    let pid = pid.to_string();
    match (rustix::io::write(own, pid.as_bytes()), nested) {
        (Err(rustix::io::Errno::BUSY), Some(nested)) => {
            rustix::io::write(nested, pid.as_bytes()).map(drop)
        }
        (result, _) => result.map(drop),
    }
}
