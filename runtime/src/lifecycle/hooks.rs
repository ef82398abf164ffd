//! The hooks of config.json that run on the host (runtime-spec, config.md, "POSIX-platform Hooks").
//!
//! A hook gets the container's state on stdin; what it says is kept for the message should it fail. It
//! ends with this process, and when its time is over it is killed with all that it has started. The
//! `startContainer` hooks run in the guest: they are not here.
#![allow(unsafe_code)] // what a hook's process does before it executes its program

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use oci_spec::runtime::{Hook, Spec};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{MemfdFlags, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::host::{inherited, wait_for_any};

/// How much of each of a hook's outputs is kept, in bytes.
const OUTPUT_LIMIT: usize = 4 << 10;

/// When in a container's life hooks run on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// In `create`, once the VM's process is there; the old name of `createRuntime`.
    Prestart,
    /// In `create`, once the VM's process is there.
    CreateRuntime,
    /// In `create`, after `createRuntime`, before the container is made.
    CreateContainer,
    /// In `start`, once the container's process runs.
    Poststart,
    /// In `delete`, when nothing is left of the container.
    Poststop,
}

impl Stage {
    /// Those of `create`, in their order.
    pub const OF_CREATE: [Self; 3] = [Self::Prestart, Self::CreateRuntime, Self::CreateContainer];

    /// The name of the field in config.json.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        }
    }

    /// `createContainer` is for the container's namespaces. Those are in the guest, the hook's program
    /// is on the host: of them it gets a mount namespace, so that its mounts end with it, as they
    /// would with the container.
    fn has_mounts_of_its_own(self) -> bool {
        self == Self::CreateContainer
    }
}

/// What all hooks of a stage have in common.
#[derive(Clone, Copy, Debug, Default)]
pub struct HookContext<'a> {
    /// The container's state, in JSON.
    pub state: &'a [u8],
    /// The working folder, where it isn't this process's: in `create` it is the bundle, as with runc.
    pub folder: Option<&'a Path>,
    /// The pidfd of the sandbox that the hooks are for: when it ends, so do they.
    pub sandbox: Option<&'a OwnedFd>,
}

/// A hook that failed, in runc's words.
#[derive(Debug, thiserror::Error)]
#[error("error running {stage} hook #{index}")]
pub struct HookError {
    /// The name of the list that it is in.
    stage: &'static str,
    /// Its place in the list.
    index: usize,
    /// How it failed.
    #[source]
    source: HookFailure,
}

/// How a hook failed.
#[derive(Debug, thiserror::Error)]
pub enum HookFailure {
    /// Its process could not be made, or be watched.
    #[error("{path}")]
    Start {
        /// Its program.
        path: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It ended with something else than success.
    #[error("{}, stdout: {stdout}, stderr: {stderr}", end(*.status))]
    Ended {
        /// How.
        status: ExitStatus,
        /// The first that it wrote to stdout.
        stdout: String,
        /// The first that it wrote to stderr.
        stderr: String,
    },
    /// It was killed, as its time was over.
    #[error("hook ran past specified timeout of {seconds}.0s")]
    TimedOut {
        /// How long it may take.
        seconds: u64,
    },
    /// It was killed, as the sandbox that it was for had ended: somebody deletes the container.
    #[error("the sandbox ended before the hook")]
    SandboxEnded,
}

fn end(status: ExitStatus) -> String {
    match status.signal() {
        Some(signal) => format!("signal {signal}"),
        None => format!("exit status {}", status.code().unwrap_or_default()),
    }
}

/// A container's hooks.
#[derive(Clone, Debug, Default)]
pub struct Hooks(oci_spec::runtime::Hooks);

impl Hooks {
    /// Those of a config.json.
    pub fn of(spec: &Spec) -> Self {
        Self(spec.hooks().clone().unwrap_or_default())
    }

    /// Whether there are hooks of one of these stages.
    pub fn any_of(&self, stages: &[Stage]) -> bool {
        stages.iter().any(|stage| !self.list(*stage).is_empty())
    }

    /// Runs the hooks of a stage, one after the other.
    ///
    /// # Errors
    /// When one fails; those after it don't run.
    pub fn run(&self, stage: Stage, call: HookContext<'_>) -> Result<(), HookError> {
        for (index, hook) in self.list(stage).iter().enumerate() {
            log::debug!("run {} hook #{index}: {:?}", stage.name(), hook.path());
            run(hook, stage, call).map_err(|source| HookError {
                stage: stage.name(),
                index,
                source,
            })?;
        }
        Ok(())
    }

    /// Runs the `poststop` hooks. The container is gone, and its deletion can't fail any more: one that
    /// fails is logged, and the others still run.
    pub fn run_poststop(&self, state: &[u8]) {
        let stage = Stage::Poststop;
        let call = HookContext {
            state,
            ..HookContext::default()
        };
        for (index, hook) in self.list(stage).iter().enumerate() {
            if let Err(source) = run(hook, stage, call) {
                let stage = stage.name();
                let error = HookError {
                    stage,
                    index,
                    source,
                };
                log::warn!("{}", crate::chain::chain(&error));
            }
        }
    }

    #[allow(deprecated)] // prestart, which engines still use
    fn list(&self, stage: Stage) -> &[Hook] {
        let list = match stage {
            Stage::Prestart => self.0.prestart(),
            Stage::CreateRuntime => self.0.create_runtime(),
            Stage::CreateContainer => self.0.create_container(),
            Stage::Poststart => self.0.poststart(),
            Stage::Poststop => self.0.poststop(),
        };
        list.as_deref().unwrap_or_default()
    }
}

fn run(hook: &Hook, stage: Stage, call: HookContext<'_>) -> Result<(), HookFailure> {
    let failed = |source: io::Error| HookFailure::Start {
        path: hook.path().display().to_string(),
        source,
    };
    let (child, mut outputs) = spawn(hook, stage, call).map_err(failed)?;
    let mut group = Group(Some(child));
    let timeout = hook.timeout().and_then(|t| u64::try_from(t).ok());
    // One beyond the clock's end never comes.
    let deadline =
        timeout.and_then(|seconds| Instant::now().checked_add(Duration::from_secs(seconds)));
    let waited = group.wait(&mut outputs, call.sandbox, deadline);
    let status = match waited.map_err(failed)? {
        Event::Ended(status) if status.success() => return Ok(()),
        Event::Ended(status) => status,
        Event::SandboxEnded => return Err(HookFailure::SandboxEnded),
        Event::TimeOver => {
            let seconds = timeout.unwrap_or_default();
            return Err(HookFailure::TimedOut { seconds });
        }
    };
    let [stdout, stderr] = outputs.map(|output| output.finish());
    Err(HookFailure::Ended {
        status,
        stdout,
        stderr,
    })
}

fn spawn(hook: &Hook, stage: Stage, call: HookContext<'_>) -> io::Result<(Child, [Output; 2])> {
    let (stdout, their_stdout) = Output::pipe()?;
    let (stderr, their_stderr) = Output::pipe()?;
    let mut command = Command::new(hook.path());
    if let Some((name, arguments)) = hook.args().as_ref().and_then(|args| args.split_first()) {
        command.arg0(name).args(arguments);
    }
    // Without `env` a hook has this process's environment, as with runc.
    if let Some(env) = hook.env() {
        command.env_clear();
        command.envs(env.iter().filter_map(|entry| entry.split_once('=')));
    }
    if let Some(folder) = call.folder {
        command.current_dir(folder);
    }
    command
        .stdin(Stdio::from(memory_file(call.state)?))
        .stdout(their_stdout)
        .stderr(their_stderr)
        .process_group(0);
    let parent = rustix::process::getpid();
    let own_mounts = stage.has_mounts_of_its_own();
    // SAFETY: system calls that allocate nothing and take no lock.
    unsafe { command.pre_exec(move || prepare(parent, own_mounts)) };
    Ok((command.spawn()?, [stdout, stderr]))
}

/// In the hook's process, before its program.
fn prepare(parent: Pid, own_mounts: bool) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    if rustix::process::getppid() != Some(parent) {
        return Err(Errno::SRCH.into());
    }
    inherited::restore_limits()?;
    if own_mounts {
        // SAFETY: a mount namespace is nothing that this process's memory or files depend on.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
        let inward = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        mount_change(c"/", inward)?;
    }
    Ok(())
}

/// A file, not a pipe: it holds a state of any size, and nobody has to wait until it is read.
fn memory_file(text: &[u8]) -> io::Result<File> {
    let mut file = File::from(rustix::fs::memfd_create("hull-state", MemfdFlags::CLOEXEC)?);
    file.write_all(text)?;
    file.rewind()?;
    Ok(file)
}

/// A hook's process, the first of a group of its own. Dropped before it has ended, it is killed, and
/// the group with it.
struct Group(Option<Child>);

impl Group {
    /// Waits for the end of the hook; not for the end of its outputs, which what it leaves behind may
    /// hold open.
    fn wait(
        &mut self,
        outputs: &mut [Output; 2],
        sandbox: Option<&OwnedFd>,
        deadline: Option<Instant>,
    ) -> io::Result<Event> {
        let Some(child) = &mut self.0 else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
        loop {
            let [ended, sandbox_ended] = poll_once(&pidfd, sandbox, outputs, deadline)?;
            if ended {
                break;
            }
            if sandbox_ended {
                return Ok(Event::SandboxEnded);
            }
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return Ok(Event::TimeOver);
            }
        }
        let status = child.wait()?;
        self.0 = None;
        Ok(Event::Ended(status))
    }
}

/// What ends the wait for a hook.
enum Event {
    /// Its own end.
    Ended(ExitStatus),
    /// That of the sandbox.
    SandboxEnded,
    /// Its timeout.
    TimeOver,
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = rustix::process::kill_process_group(Pid::from_child(&child), Signal::KILL);
            let _ = child.wait();
        }
    }
}

/// Waits for something to happen, takes what there is of output, and says whether the hook and the
/// sandbox have ended.
fn poll_once(
    hook: &OwnedFd,
    sandbox: Option<&OwnedFd>,
    outputs: &mut [Output; 2],
    deadline: Option<Instant>,
) -> io::Result<[bool; 2]> {
    let pipes = outputs.iter().filter_map(|output| output.pipe.as_ref());
    let fds = [Some(hook), sandbox].into_iter().flatten().map(AsFd::as_fd);
    let mut fds: Vec<_> = fds
        .chain(pipes.map(AsFd::as_fd))
        .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
        .collect();
    wait_for_any(&mut fds, deadline)?;
    let ready = |index: usize| fds.get(index).is_some_and(|fd| !fd.revents().is_empty());
    let ended = [ready(0), sandbox.is_some() && ready(1)];
    drop(fds);
    outputs.iter_mut().for_each(Output::take);
    Ok(ended)
}

/// One output of a hook: its beginning is kept, all of it is read.
struct Output {
    /// Non-blocking; gone once it has come to its end.
    pipe: Option<File>,
    kept: Vec<u8>,
}

impl Output {
    fn pipe() -> io::Result<(Self, OwnedFd)> {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        rustix::fs::fcntl_setfl(reader.as_fd(), OFlags::NONBLOCK)?;
        let output = Self {
            pipe: Some(File::from(reader)),
            kept: Vec::new(),
        };
        Ok((output, writer))
    }

    /// Reads a piece, if there is one.
    fn take(&mut self) {
        let Some(pipe) = &mut self.pipe else { return };
        let mut piece = [0; OUTPUT_LIMIT];
        match pipe.read(&mut piece) {
            Ok(0) => self.pipe = None,
            Ok(read) => {
                let room = OUTPUT_LIMIT - self.kept.len();
                self.kept.extend(piece.iter().take(read.min(room)));
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => self.pipe = None,
        }
    }

    /// What was kept of it, as text.
    fn finish(mut self) -> String {
        self.take();
        String::from_utf8_lossy(&self.kept).trim_end().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::chain;
    use crate::host::wait_readable;
    use serde_json::{Value, json};

    fn hooks(stage: Stage, list: Value) -> Hooks {
        let hooks = Value::Object([(stage.name().to_owned(), list)].into_iter().collect());
        Hooks(serde_json::from_value(hooks).expect("hooks"))
    }

    fn shell(script: &str) -> Value {
        json!({"path": "/bin/sh", "args": ["hook", "-c", script], "env": ["COLOR=green"]})
    }

    fn call(state: &[u8]) -> HookContext<'_> {
        HookContext {
            state,
            folder: Some(Path::new("/proc")),
            sandbox: None,
        }
    }

    fn run_one(hook: Value) -> Result<(), String> {
        let result = hooks(Stage::Prestart, json!([hook])).run(Stage::Prestart, call(b"the state"));
        result.map_err(|e| chain(&e))
    }

    #[test]
    fn a_hook_gets_its_name_environment_and_the_state() {
        let script = r#"[ "$0 $COLOR $(cat) $HOME $PWD" = "hook green the state  /proc" ]"#;
        let script = json!(script);
        let hook = json!({"path": "/bin/sh", "args": ["sh", "-c", script, "hook"],
                          "env": ["COLOR=green", "PATH=/usr/bin:/bin"]});
        assert_eq!(run_one(hook), Ok(()));
    }

    #[test]
    fn a_failure_tells_what_the_hook_said() {
        let said = run_one(shell("echo out; echo err >&2; exit 3")).expect_err("exit 3");
        let expected = "error running prestart hook #0: exit status 3, stdout: out, stderr: err";
        assert_eq!(said, expected);
    }

    #[test]
    fn endless_output_is_read_and_not_kept() {
        let said = run_one(shell("head -c 1000000 /dev/zero | tr '\\0' x; exit 1"));
        assert!(said.expect_err("exit 1").len() < 2 * OUTPUT_LIMIT);
    }

    #[test]
    fn a_timeout_kills_the_hook_and_its_children() {
        let dir = tempfile::tempdir().expect("a folder");
        let pid = dir.path().join("pid");
        let script = format!("sleep 600 & echo $! >{}; wait", pid.display());
        let mut hook = shell(&script);
        hook["timeout"] = json!(1);
        let said = run_one(hook).expect_err("out of time");
        assert!(
            said.ends_with("hook ran past specified timeout of 1.0s"),
            "{said}"
        );
        let pid = std::fs::read_to_string(pid).expect("a pid");
        let pid = pid.trim().parse().ok().and_then(Pid::from_raw);
        // Killed is not yet dead. One that isn't there any more is.
        if let Ok(child) = pidfd_open(pid.expect("a pid"), PidfdFlags::empty()) {
            let limit = Instant::now() + Duration::from_secs(10);
            assert!(
                wait_readable(&child, limit).expect("poll"),
                "the child ends"
            );
        }
    }

    #[test]
    fn no_timeout_is_too_long() {
        let mut hook = shell("exit 0");
        hook["timeout"] = json!(i64::MAX);
        assert_eq!(run_one(hook), Ok(()));
    }

    #[test]
    fn what_a_hook_leaves_running_is_not_waited_for() {
        let started = Instant::now();
        assert_eq!(run_one(shell("sleep 60 & exit 0")), Ok(()));
        assert!(started.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_hook_ends_with_the_sandbox_that_it_is_for() {
        let mut sandbox = Command::new("true").spawn().expect("a process");
        let pid = Pid::from_child(&sandbox);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).expect("a pidfd");
        let hooks = hooks(Stage::Prestart, json!([shell("sleep 600")]));
        let call = HookContext {
            sandbox: Some(&pidfd),
            ..call(b"")
        };
        let error = hooks.run(Stage::Prestart, call).expect_err("killed");
        assert!(
            chain(&error).contains("the sandbox ended"),
            "{}",
            chain(&error)
        );
        sandbox.wait().expect("reaped");
    }

    #[test]
    fn after_a_failure_only_poststop_goes_on() {
        let dir = tempfile::tempdir().expect("a folder");
        let mark = dir.path().join("mark");
        let list = json!([
            {"path": "/nonexistent"},
            shell(&format!(": >{}", mark.display())),
        ]);
        assert!(
            hooks(Stage::Poststart, list.clone())
                .run(Stage::Poststart, call(b""))
                .is_err()
        );
        assert!(!mark.exists());
        hooks(Stage::Poststop, list).run_poststop(b"");
        assert!(mark.exists());
    }
}
