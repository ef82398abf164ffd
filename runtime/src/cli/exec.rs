//! `hull exec`: run a further process in a running container.
//!
//! The pid of the process, for an engine, is that of a stand-in on the host that ends as the process
//! ends: this very process, or with `--detach` a child of it that goes on alone.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;

use hull_runtime::chain::chain;
use hull_runtime::lifecycle::{self, Context, Execution, Target};
use hull_runtime::sandbox::{SandboxError, Sizes, Stdio, forward_signals};
use hull_runtime::spec;
use oci_spec::runtime::Process;
use rustix::pipe::PipeFlags;

use super::terminal::{Console, Relay, RunningRelay};
use super::{Error, process};

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
pub fn run(context: &Context, args: &Exec) -> Result<ExitCode, Error> {
    if args.preserve_fds > 0 {
        return Err(Error::preserve_fds());
    }
    if let Some(cgroup) = args.cgroup.as_ref().filter(|cgroup| cgroup.contains(':')) {
        return Err(Error::Usage(format!(
            "--cgroup {cgroup}: cgroup v2 has no hierarchies of controllers: give a path alone"
        )));
    }
    let target = lifecycle::find_for_exec(context, &args.id.parse()?, args.ignore_paused)?;
    let process = match &args.process {
        Some(path) => spec::load_process(path)?,
        None => {
            let own = lifecycle::own_process(&target.dir)?;
            args.changes.apply(&own, &args.command)?
        }
    };
    let process = lifecycle::for_guest(context, process, &target)?;
    let terminal = process.terminal().unwrap_or(false);
    let console = Console::of(terminal, args.detach, args.console_socket.as_deref())?;
    if args.detach {
        detached(args, &target, &process, console)
    } else {
        start(args, &target, &process, console)?.wait(|| tell_pid(args))
    }
}

/// A process that has been started in the guest.
struct Started {
    execution: Execution,
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

/// Starts the process, with this one as its stand-in.
fn start(
    args: &Exec,
    target: &Target,
    process: &Process,
    console: Console<'_>,
) -> Result<Started, Error> {
    let cgroup = args.cgroup.as_deref().unwrap_or_default();
    let exec = |stdio| lifecycle::exec(target, process, cgroup, stdio);
    let (execution, screen) = match console {
        Console::None => {
            let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
            let streams = Stdio::Streams([stdin.as_fd(), stdout.as_fd(), stderr.as_fd()]);
            (exec(streams)?, Screen::None)
        }
        Console::Foreground => {
            let (relay, ends) = Relay::new()?;
            let execution = exec(Stdio::Terminal(ends))?;
            (execution, Screen::Relay(relay.start()?))
        }
        Console::Engine(socket) => {
            let (sizes, streams) = lifecycle::send_followed_terminal(socket)?;
            (exec(Stdio::Terminal(streams))?, Screen::Engine(sizes))
        }
    };
    Ok(Started {
        execution,
        screen,
        stands_for_it: args.detach || args.pid_file.is_some(),
    })
}

/// Tells an engine which process of the host stands for the other.
fn tell_pid(args: &Exec) -> Result<(), lifecycle::Error> {
    match &args.pid_file {
        Some(path) => lifecycle::write_pid_file(path, std::process::id().cast_signed()),
        None => Ok(()),
    }
}

impl Started {
    /// Stands for the process up to its end, and calls `tell` as soon as it does: signals to this process are passed
    /// on from then on, and its death isn't missed.
    fn wait(self, tell: impl FnOnce() -> Result<(), lifecycle::Error>) -> Result<ExitCode, Error> {
        let Self {
            execution,
            screen,
            stands_for_it,
        } = self;
        let status = execution.agent().ask(|agent| {
            forward_signals(
                agent,
                execution.container(),
                execution.id(),
                screen.sizes(),
                async { Ok::<_, io::Error>(execution.wait(agent, stands_for_it, tell).await) },
            )
        });
        let status = status.map_err(SandboxError::host("handle signals"))??;
        // The bytes are this process's user's: they must be written before it is gone.
        execution.wait_flushed();
        if let Screen::Relay(relay) = screen {
            relay.finish();
        }
        Ok(ExitCode::from(status))
    }
}

/// Leaves a stand-in behind, and returns once the process has been started.
fn detached(
    args: &Exec,
    target: &Target,
    process: &Process,
    console: Console<'_>,
) -> Result<ExitCode, Error> {
    let failed = |what| move |e: rustix::io::Errno| Error::from(SandboxError::host(what)(e.into()));
    let (reader, writer) =
        rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(failed("make a pipe"))?;
    match process::fork().map_err(failed("fork"))? {
        None => {
            drop(reader);
            Ok(stand_in(args, target, process, console, File::from(writer)))
        }
        Some(_) => {
            drop(writer);
            let mut said = String::new();
            File::from(reader)
                .read_to_string(&mut said)
                .map_err(SandboxError::host("wait for the stand-in"))?;
            match said.strip_prefix(STARTED) {
                Some(_) => Ok(ExitCode::SUCCESS),
                None => Err(Error::StandIn(said)),
            }
        }
    }
}

/// What a stand-in tells its parent when the process runs; anything else is why it doesn't.
const STARTED: &str = "\0started";

fn stand_in(
    args: &Exec,
    target: &Target,
    process: &Process,
    console: Console<'_>,
    parent: File,
) -> ExitCode {
    let started = match start(args, target, process, console) {
        Ok(started) => started,
        Err(e) => {
            refuse(parent, &e);
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
    let mut parent = Some(parent);
    let stood = alone
        .map_err(SandboxError::host("detach from the terminal"))
        .map_err(Error::from)
        .and_then(|()| {
            started.wait(|| {
                tell_pid(args)?;
                if let Some(mut parent) = parent.take() {
                    let _ = parent.write_all(STARTED.as_bytes());
                }
                Ok(())
            })
        });
    stood.unwrap_or_else(|e| {
        match parent {
            Some(parent) => refuse(parent, &e),
            None => log::error!("{}", chain(&e)),
        }
        ExitCode::from(255)
    })
}

/// Tells the parent why there is no process.
fn refuse(mut parent: File, error: &Error) {
    let _ = parent.write_all(chain(error).as_bytes());
}
