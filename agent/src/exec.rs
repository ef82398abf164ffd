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
use crate::container::spec;
use crate::error::{Error, Failure};
use crate::helper::{Report, Reporter};
use crate::process::{Launch, attributes, capabilities, cwd, keyring, rlimits, terminal, user};
use crate::sys;

/// The file of a cgroup that pids are written to.
const CGROUP_PROCS: &str = "cgroup.procs";

/// What to start.
#[derive(Debug, Serialize, Deserialize)]
pub struct Task {
    /// The number of a pidfd of the container's first process.
    pub init: RawFd,
    /// Its pid, to find its cgroup with.
    pub init_pid: i32,
    /// The namespaces to enter, `CLONE_NEW*`.
    pub namespaces: u32,
    /// The directory of the cgroup to join: the container's, or one below it.
    pub cgroup: PathBuf,
    /// Whether to fail if that cgroup takes no process, rather than to join that of the first process.
    pub cgroup_required: bool,
    /// The process.
    pub launch: Launch,
}

/// The `process` object of a further process. Capabilities, rlimits, scheduler, I/O priority and CPU affinity that
/// it doesn't name are those of the container's config.json, as with runc.
///
/// # Errors
/// When it doesn't parse, or asks for what the guest can't do.
pub fn process_spec(json: &[u8], defaults: &Process) -> Result<Process, Error> {
    let mut process: Process = serde_json::from_slice(json).map_err(|source| Error::Json {
        document: "process",
        source,
    })?;
    spec::check_process(&process)?;
    if process.capabilities().is_none() {
        process.set_capabilities(defaults.capabilities().clone());
    }
    if process.rlimits().is_none() {
        process.set_rlimits(defaults.rlimits().clone());
    }
    if process.scheduler().is_none() {
        process.set_scheduler(defaults.scheduler().clone());
    }
    if process.io_priority().is_none() {
        process.set_io_priority(*defaults.io_priority());
    }
    if process.exec_cpu_affinity().is_none() {
        process.set_exec_cpu_affinity(defaults.exec_cpu_affinity().clone());
    }
    Ok(process)
}

/// Starts the process and reports it. An error of its last steps is reported by the process itself.
///
/// # Errors
/// When there is no process.
pub fn run(task: Task, reporter: &Reporter) -> Result<(), Failure> {
    let process = &task.launch.process;
    let init =
        sys::take_inherited_fd(task.init).map_err(Failure::io("use the container's pidfd"))?;
    attributes::set_oom_score_adj(process)?;
    rlimits::raise_hard_limits(process)?;
    let init_cgroup = match task.cgroup_required {
        true => None,
        false => cgroup_of_init(task.init_pid),
    };
    let affinity = process.exec_cpu_affinity().as_ref();
    // The child inherits the affinity, and keeps it until it is in the container's cgroup.
    attributes::set_cpu_affinity(
        "process.execCPUAffinity.initial",
        affinity.and_then(|affinity| affinity.initial().as_deref()),
    )?;

    // From here on, the container's processes could otherwise ptrace this one and read its /proc files.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(Failure::io("become undumpable"))?;
    // Opened here, where the guest's cgroup tree is still visible.
    let own = cgroup_file(&task.cgroup);
    let init_cgroup = init_cgroup.and_then(|path| cgroup_file(&path).ok());
    let namespaces = ThreadNameSpaceType::from_bits_retain(task.namespaces);
    move_into_thread_name_spaces(init.as_fd(), namespaces)
        .map_err(Failure::io("enter the container's namespaces"))?;

    // setns(2) changes the pid namespace of children only, so the helper forks. The child waits until it is in
    // the container's cgroup: forked in there it could fail for pids.max, and it must not escape the limits.
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
            let entered = own.and_then(|own| Ok(enter_cgroup(&own, init_cgroup.as_ref(), pid)?));
            let file = task.cgroup.join(CGROUP_PROCS);
            let what = format!("adding pid {pid} to cgroups: {}", file.display());
            entered.map_err(Failure::io::<io::Error>(what))?;
            reporter
                .send(&Report::Pid(pid), None)
                .map_err(Failure::io("report the process"))?;
            rustix::io::write(&go, &[1]).map_err(Failure::io("let the process continue"))?;
            Ok(())
        }
    }
}

/// Runs in the new process, in the container's namespaces. Returns only if it fails, with the reason.
fn become_process(launch: &Launch, reporter: &Reporter) -> Failure {
    let affinity = launch.process.exec_cpu_affinity().as_ref();
    let last = affinity.and_then(|affinity| affinity.cpu_affinity_final().as_deref());
    let set_up = || {
        attributes::set_cpu_affinity("process.execCPUAffinity.final", last)?;
        // In a user namespace this process still has the overflow uid.
        capabilities::change_ids_keeping_capabilities(Uid::ROOT, Gid::ROOT)?;
        keyring::join(&launch.keyring)?;
        enter_session(&launch.process, reporter)?;
        launch.prepare()
    };
    match set_up() {
        Ok(ready) => ready.execute(),
        Err(failure) => failure,
    }
}

/// Sets the session, the terminal, the user and the working directory.
fn enter_session(process: &Process, reporter: &Reporter) -> Result<(), Failure> {
    setsid().map_err(Failure::io("make a session"))?;
    if process.terminal().unwrap_or(false) {
        let master = terminal::set_up(false)?;
        reporter
            .send(&Report::Terminal, Some(master.as_fd()))
            .map_err(Failure::io("report the terminal"))?;
    }
    sys::set_cloexec_above_stderr()
        .map_err(Failure::io("mark the helper's files close-on-exec"))?;
    user::become_user(process)?;
    cwd::enter(process)
}

fn cgroup_file(directory: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(
        directory.join(CGROUP_PROCS),
        flags,
        Mode::empty(),
    )?)
}

/// The directory of the cgroup that the container's first process is in: the container may have moved it to a
/// cgroup below its own.
fn cgroup_of_init(init_pid: i32) -> Option<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{init_pid}/cgroup")).ok()?;
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(Path::new(cgroup::MOUNT).join(path))
}

/// Moves a process into the container's cgroup. If that has processes only in cgroups below it (EBUSY, as
/// cgroup2 allows none beside enabled controllers), the process joins `init_cgroup`.
fn enter_cgroup(own: &OwnedFd, init_cgroup: Option<&OwnedFd>, pid: i32) -> rustix::io::Result<()> {
    let pid = pid.to_string();
    match (rustix::io::write(own, pid.as_bytes()), init_cgroup) {
        (Err(rustix::io::Errno::BUSY), Some(init_cgroup)) => {
            rustix::io::write(init_cgroup, pid.as_bytes()).map(drop)
        }
        (result, _) => result.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_further_process_inherits_what_it_does_not_name() {
        let defaults = serde_json::from_str(
            r#"{"user":{"uid":0,"gid":0},"cwd":"/","args":["a"],
                "rlimits":[{"type":"RLIMIT_NOFILE","soft":9,"hard":9}],
                "ioPriority":{"class":"IOPRIO_CLASS_IDLE","priority":0},
                "capabilities":{"bounding":["CAP_KILL"]}}"#,
        )
        .expect("valid JSON");
        let json = br#"{"user":{"uid":1,"gid":1},"cwd":"/","args":["b"],
            "scheduler":{"policy":"SCHED_IDLE"}}"#;
        let process = process_spec(json, &defaults).expect("valid");
        assert_eq!(process.rlimits(), defaults.rlimits());
        assert_eq!(process.capabilities(), defaults.capabilities());
        assert_eq!(process.io_priority(), defaults.io_priority());
        assert!(process.scheduler().is_some() && defaults.scheduler().is_none());
        assert_eq!(process.user().uid(), 1);
    }
}
