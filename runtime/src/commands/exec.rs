//! `hull exec`: run a further process in a running container.
//!
//! The pid of the process, for an engine, is that of a stand-in on the host that ends as the process
//! ends: this very process, or with `--detach` a child of it that goes on alone.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use oci_spec::runtime::Process;
use rustix::pipe::PipeFlags;

use super::terminal::{self, Console, Relay, RunningRelay};
use super::{create::write_pid_file, foreground, process};
use crate::cli::Global;
use crate::container::{ContainerDir, ContainerError, Status, Store};
use crate::error::{Error, chain};
use crate::sandbox::{Agent, AgentError, AttachedStdio, SandboxError, Sizes, Stdio};
use crate::spec;

/// `hull exec`.
#[derive(Debug, clap::Args)]
pub struct Exec {
    /// Do not wait for the process's end
    #[arg(short, long)]
    detach: bool,
    /// Write the pid of the process's stand-in to FILE
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// The process, as in config.json, in FILE
    #[arg(short, long, value_name = "FILE")]
    process: Option<PathBuf>,
    #[command(flatten)]
    changes: process::Changes,
    /// A UNIX socket that gets the terminal's file descriptor
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    /// Pass N further file descriptors
    #[arg(long, value_name = "N", default_value_t = 0)]
    preserve_fds: u32,
    /// The cgroup below the container's own, which is /, that the process is to be in
    #[arg(long, value_name = "PATH")]
    cgroup: Option<String>,
    /// Also in a paused container: the process runs once that is resumed, within a minute
    #[arg(long)]
    ignore_paused: bool,
    /// The container's id
    #[arg(value_name = "CONTAINER-ID")]
    id: String,
    /// The command and its arguments
    #[arg(
        value_name = "COMMAND",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    command: Vec<String>,
}

/// Runs the process; exits as it exits.
///
/// # Errors
/// When the container doesn't run, or the process can't be started.
pub fn run(global: &Global, args: &Exec) -> Result<ExitCode, Error> {
    if args.preserve_fds > 0 {
        return Err(Error::Usage(
            "--preserve-fds: a host's file descriptor has no meaning inside a VM".to_owned(),
        ));
    }
    if let Some(cgroup) = args.cgroup.as_ref().filter(|cgroup| cgroup.contains(':')) {
        return Err(Error::Usage(format!(
            "--cgroup {cgroup}: cgroup v2 has no hierarchies of controllers: give a path alone"
        )));
    }
    let dir = Store::open(&global.root)?.find(&args.id.parse()?)?;
    let state = dir.load()?;
    match state.status() {
        Status::Running | Status::Created => {}
        Status::Paused if args.ignore_paused => {}
        Status::Paused => return Err(ContainerError::Paused.into()),
        status => {
            let id = state.id;
            return Err(ContainerError::WrongState {
                verb: "exec in",
                id,
                status,
            }
            .into());
        }
    }
    let process = match &args.process {
        Some(path) => spec::load_process(path)?,
        None => args.changes.apply(&own_process(&dir)?, &args.command)?,
    };
    let process = without_label(process, &dir)?;
    let terminal = process.terminal().unwrap_or(false);
    let console = Console::of(terminal, args.detach, args.console_socket.as_deref())?;
    if args.detach {
        detached(args, &dir, &process, console)
    } else {
        start(args, &dir, &process, console)?.wait(&dir)
    }
}

/// The container's own process, as its stored config.json has it.
fn own_process(dir: &ContainerDir) -> Result<Process, Error> {
    let process = dir.load_config()?.process().clone();
    Ok(process.ok_or(spec::SpecError::Missing("process"))?)
}

/// The process as the guest can have it. Its SELinux label, if any, is that of the container, whose VM has
/// it: one VM can't have two.
fn without_label(mut process: Process, dir: &ContainerDir) -> Result<Process, Error> {
    let asked_for = process.selinux_label().clone().unwrap_or_default();
    if !asked_for.is_empty() {
        let own = own_process(dir)?.selinux_label().clone();
        if own.as_ref() != Some(&asked_for) {
            let own = own.unwrap_or_default();
            return Err(Error::Usage(format!(
                "process.selinuxLabel: {asked_for:?} is not the label of the container's VM, {own:?}"
            )));
        }
        process.set_selinux_label(None);
    }
    Ok(process)
}

/// A process that has been started in the guest.
struct Started {
    agent: Agent,
    exec_id: String,
    stdio: AttachedStdio,
    screen: Screen,
    /// Somebody has been told this process's pid for the other's, and may end it by SIGKILL.
    stands_for_it: bool,
}

/// What of a process's terminal stays with its stand-in.
enum Screen {
    /// It has none.
    None,
    /// The user's terminal.
    Relay(RunningRelay),
    /// An engine's, which changes its size.
    Engine(Sizes),
}

impl Screen {
    fn sizes(&self) -> Option<&Sizes> {
        match self {
            Self::None => None,
            Self::Relay(relay) => Some(relay.sizes()),
            Self::Engine(sizes) => Some(sizes),
        }
    }
}

/// Joins the process's stdio to the VMM.
fn attach(dir: &ContainerDir, console: Console<'_>) -> Result<(AttachedStdio, Screen), Error> {
    let attach = |stdio| AttachedStdio::attach(dir, stdio).map_err(SandboxError::from);
    match console {
        Console::None => {
            let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
            let streams = Stdio::Streams([stdin.as_fd(), stdout.as_fd(), stderr.as_fd()]);
            Ok((attach(streams)?, Screen::None))
        }
        Console::Foreground => {
            let (relay, ends) = Relay::new()?;
            let stdio = attach(Stdio::Terminal(ends))?;
            Ok((stdio, Screen::Relay(relay.start()?)))
        }
        Console::Engine(socket) => {
            let followed = Sizes::with_text(terminal::send_to_engine(socket)?);
            let failed = SandboxError::host("follow the terminal's size");
            let (sizes, streams) = followed.map_err(failed)?;
            Ok((attach(Stdio::Terminal(streams))?, Screen::Engine(sizes)))
        }
    }
}

/// Starts the process, with this one as its stand-in.
fn start(
    args: &Exec,
    dir: &ContainerDir,
    process: &Process,
    console: Console<'_>,
) -> Result<Started, Error> {
    let (stdio, screen) = attach(dir, console)?;
    let agent = Agent::connect(dir).map_err(SandboxError::from)?;
    let exec_id = unique_id();
    let json = serde_json::to_vec(process).map_err(std::io::Error::from)?;
    agent
        .exec(
            dir.id(),
            &exec_id,
            json,
            args.cgroup.as_deref().unwrap_or_default(),
            stdio.offer(),
        )
        .map_err(Error::exec_process)?;
    let started = Started {
        agent,
        exec_id,
        stdio,
        screen,
        stands_for_it: args.detach || args.pid_file.is_some(),
    };
    if let Some(path) = &args.pid_file {
        write_pid_file(path, std::process::id().cast_signed())
            .inspect_err(|_| started.kill(dir))?;
    }
    Ok(started)
}

impl Started {
    /// Ends a process that nobody will wait for.
    fn kill(&self, dir: &ContainerDir) {
        let signal = self
            .agent
            .signal_process(dir.id(), &self.exec_id, libc::SIGKILL, false);
        if let Err(e) = self.agent.block_on(signal) {
            log::warn!("the process goes on: {}", chain(&e));
        }
    }

    fn wait(self, dir: &ContainerDir) -> Result<ExitCode, Error> {
        let Self {
            agent,
            exec_id,
            stdio,
            screen,
            stands_for_it,
        } = self;
        let ended = async {
            let status = agent.wait(dir.id(), &exec_id, stands_for_it).await;
            Ok::<_, std::io::Error>(status)
        };
        let status = agent.block_on(foreground::forward_signals(
            &agent,
            dir.id(),
            &exec_id,
            screen.sizes(),
            ended,
        ));
        match status.map_err(|e| Error::from(SandboxError::host("handle signals")(e)))? {
            Ok(status) => {
                // The bytes are this process's user's: they must be written before it is gone.
                stdio.wait_flushed();
                if let Screen::Relay(relay) = screen {
                    relay.finish();
                }
                Ok(ExitCode::from(status))
            }
            // The container has ended, and everything in it was killed.
            Err(AgentError::Lost(_)) => Ok(ExitCode::from(128 + 9)),
            Err(e) => Err(SandboxError::from(e).into()),
        }
    }
}

/// One that no other exec in the container has or will have.
fn unique_id() -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    format!("{}-{}", std::process::id(), now.as_nanos())
}

/// Leaves a stand-in behind, and returns once the process has been started.
fn detached(
    args: &Exec,
    dir: &ContainerDir,
    process: &Process,
    console: Console<'_>,
) -> Result<ExitCode, Error> {
    let failed = |what| move |e: rustix::io::Errno| Error::from(SandboxError::host(what)(e.into()));
    let (reader, writer) =
        rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(failed("make a pipe"))?;
    match process::fork().map_err(failed("fork"))? {
        None => {
            drop(reader);
            Ok(stand_in(args, dir, process, console, File::from(writer)))
        }
        Some(_) => {
            drop(writer);
            let mut said = String::new();
            File::from(reader)
                .read_to_string(&mut said)
                .map_err(SandboxError::host("wait for the stand-in"))?;
            match said.strip_prefix(STARTED) {
                Some(_) => Ok(ExitCode::SUCCESS),
                None if said.is_empty() => Err(Error::Usage(
                    "the exec's stand-in died before it could start".to_owned(),
                )),
                None => Err(Error::Usage(said)),
            }
        }
    }
}

/// What a stand-in tells its parent when the process runs; anything else is why it doesn't.
const STARTED: &str = "\0started";

fn stand_in(
    args: &Exec,
    dir: &ContainerDir,
    process: &Process,
    console: Console<'_>,
    mut parent: File,
) -> ExitCode {
    let started = match start(args, dir, process, console) {
        Ok(started) => started,
        Err(e) => {
            let _ = parent.write_all(chain(&e).as_bytes());
            return ExitCode::from(255);
        }
    };
    // The VMM has the streams now: this process must not keep a pipe open that the container's closed.
    let alone = process::detach_from_terminal();
    if let Screen::Engine(sizes) = &started.screen
        && let Err(e) = sizes.take_control()
    {
        log::debug!("the terminal's size is not followed: {e}");
    }
    let _ = parent.write_all(STARTED.as_bytes());
    drop(parent);
    match alone
        .map_err(|e| Error::from(SandboxError::host("detach from the terminal")(e)))
        .and_then(|()| started.wait(dir))
    {
        Ok(code) => code,
        Err(e) => {
            log::error!("{}", chain(&e));
            ExitCode::from(255)
        }
    }
}
