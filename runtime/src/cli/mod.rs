//! The command line: runc's global options, and a file for each verb with its options, what it prints, and how it
//! exits. What the verbs do is the library's (`lifecycle`).
//!
//! [`foreground`], [`notify`] and [`terminal`] are what `run` and `exec` share while they wait; [`output`],
//! [`colour`] and [`table`] are how things are printed; [`logging`] is how they are logged.

mod check;
mod checkpoint;
mod colour;
mod completion;
mod config;
mod create;
mod delete;
mod error;
mod events;
mod exec;
pub(crate) mod features;
mod foreground;
mod hidden;
mod kill;
mod list;
pub(crate) mod logging;
mod notify;
mod output;
mod pause;
mod process;
mod ps;
mod run;
mod signal;
mod spec;
mod start;
mod state;
mod table;
mod terminal;
mod update;

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind as Usage;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};

use hull_runtime::chain::chain;
use hull_runtime::config::Settings;
use hull_runtime::host::Privilege;
use hull_runtime::lifecycle::Context;

use error::Error;

/// An OCI runtime that gives every container its own KVM microVM.
#[derive(Debug, Parser)]
#[command(
    name = "hull",
    version,
    propagate_version = true,
    disable_version_flag = true
)]
#[command(
    after_help = "A bundle is a folder with a config.json and a root file system. \
    `hull spec` writes a config.json to start from, `hull check` says whether this host can run one."
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// The options before the command, as in runc.
#[derive(Clone, Debug, clap::Args)]
struct Global {
    /// Log what hull does
    #[arg(long)]
    debug: bool,
    /// Append log lines to FILE (default: standard error)
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// The form of log lines
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,
    /// Where the state of containers is kept: best on tmpfs
    #[arg(long, value_name = "DIR", default_value_os_t = default_root())]
    root: PathBuf,
    /// Have systemd make the VM's cgroup: cgroupsPath is slice:prefix:name then
    #[arg(long)]
    systemd_cgroup: bool,
    /// Accepted as runc accepts it: whether cgroups may be out of reach is seen by who runs this
    #[arg(long, value_name = "BOOL", default_value = "auto", hide_possible_values = true, value_parser = BOOLS)]
    rootless: String,
    /// Accepted as runc accepts it, and not used by either
    #[arg(long, value_name = "PATH", hide = true)]
    criu: Option<PathBuf>,
    /// Read hull's configuration from FILE (default: /etc/hull/hull.toml, if it is there)
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Boot this kernel (uncompressed ELF) instead of the built-in one
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Boot this initramfs (cpio) instead of the built-in one
    #[arg(long, value_name = "FILE")]
    initramfs: Option<PathBuf>,
    /// How long the guest may take to come up, in seconds (default: 30)
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    boot_timeout: Option<u32>,
    /// Print the version
    #[arg(short = 'v', long, action = clap::ArgAction::Version)]
    version: Option<bool>,
}

/// What runc takes for a boolean, and "auto".
const BOOLS: [&str; 13] = [
    "auto", "1", "t", "T", "true", "TRUE", "True", "0", "f", "F", "false", "FALSE", "False",
];

/// The forms of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// `time="…" level=… msg="…"`
    Text,
    /// One JSON object a line
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say what this host has and lacks for running hull
    Check(check::Check),
    /// Save a container: not supported yet
    Checkpoint(checkpoint::NotYet),
    /// Print what makes a shell complete hull's words
    Completion(completion::Completion),
    /// Print the configuration in force
    Config(config::Config),
    /// Create a container
    Create(create::Create),
    /// Delete what a container has left, or a running one with --force
    Delete(delete::Delete),
    /// Show statistics and out-of-memory events
    Events(events::Events),
    /// Run a further process in a container
    Exec(exec::Exec),
    /// Show what hull supports, as the runtime-spec's features structure
    Features(features::Features),
    /// Send a signal to a container's process
    Kill(kill::Kill),
    /// List containers
    List(list::List),
    /// Write the manual pages into a folder
    Man(completion::Man),
    /// Suspend all processes of a container
    Pause(pause::Pause),
    /// Show a container's processes
    ///
    /// The table's pids are those of the guest, where process 1 is hull's agent: neither the host's nor those
    /// that the container itself sees. Users are numbers, start times are in UTC. As JSON, the pids are the
    /// host's: of the process that runs the container's VM, or waits for the container in another's.
    Ps(ps::Ps),
    /// Bring back a saved container: not supported yet
    Restore(checkpoint::NotYet),
    /// Resume all processes of a paused container
    Resume(pause::Resume),
    /// Create and start a container
    Run(run::Run),
    /// Write a config.json to start from
    Spec(spec::Spec),
    /// Start the process of a created container
    Start(start::Start),
    /// Show a container's state
    State(state::State),
    /// Change a container's limits
    ///
    /// The guest's kernel enforces them, and the host's for the VM as a whole. A VM doesn't grow: a limit
    /// above what it was created with is refused.
    Update(update::Update),
    /// The process that stands for a container in another's sandbox; `create` starts it
    #[command(hide = true)]
    StandIn(hidden::StandIn),
    /// The process that has a VM's network follow the host's; `start` starts it
    #[command(hide = true)]
    Follow(hidden::Follow),
    /// The process that runs a VM; `create` starts it
    #[command(hide = true)]
    Vmm(hidden::Vmm),
}

impl Global {
    /// What every verb has to know.
    fn context(&self) -> Context {
        Context {
            root: self.root.clone(),
            systemd_cgroup: self.systemd_cgroup,
            debug: self.debug,
            oom_in_cgroup: true,
            settings: Settings {
                file: self.config.clone(),
                kernel: self.kernel.clone(),
                initramfs: self.initramfs.clone(),
                boot_timeout: self.boot_timeout,
            },
        }
    }
}

/// What a shell shows of a command that SIGPIPE has ended.
const PIPE_BROKEN: u8 = 128 + 13;

/// Reads the arguments, runs the command, reports its failure.
pub fn run() -> ExitCode {
    let matches = Cli::command().version(version()).try_get_matches();
    let cli = matches.and_then(|matches| Cli::from_arg_matches(&matches));
    let Cli { global, command } = match cli {
        Ok(cli) => cli,
        Err(e) => return refused(&e),
    };
    match command {
        Command::Vmm(args) => return hidden::vmm(&args),
        Command::StandIn(args) => return hidden::stand_in(&args),
        Command::Follow(args) => return hidden::follow(&args),
        _ => {}
    }
    if let Err(e) = logging::init(&global) {
        logging::tell(&format!("hull: {}", chain(&e)));
        return ExitCode::FAILURE;
    }
    // runc's `exec` has an exit code of its own for its own failures (255), so that they aren't taken
    // for the process's.
    let failure = if matches!(command, Command::Exec(_)) {
        255
    } else {
        1
    };
    match dispatch(&global.context(), command) {
        Ok(code) => code,
        // Whoever reads has had enough, and isn't told so: as when SIGPIPE ends a command.
        Err(Error::Output(e)) if e.kind() == ErrorKind::BrokenPipe => ExitCode::from(PIPE_BROKEN),
        Err(e) => {
            logging::fatal(&chain(&e));
            ExitCode::from(failure)
        }
    }
}

/// Shows what is wrong with the arguments, or what they ask for, and ends as runc does.
fn refused(error: &clap::Error) -> ExitCode {
    // Where nobody hears it, nobody is told.
    let _ = error.print();
    match error.kind() {
        Usage::InvalidSubcommand => ExitCode::from(3),
        Usage::DisplayHelpOnMissingArgumentOrSubcommand => ExitCode::SUCCESS,
        _ if error.use_stderr() => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    }
}

fn dispatch(context: &Context, command: Command) -> Result<ExitCode, Error> {
    match command {
        Command::Check(args) => check::run(context, &args),
        Command::Checkpoint(args) => checkpoint::run("checkpoint", &args),
        Command::Completion(args) => completion::completion(Cli::command(), &args),
        Command::Config(args) => config::run(context, &args),
        Command::Create(args) => create::run(context, &args),
        Command::Delete(args) => delete::run(context, &args),
        Command::Events(args) => events::run(context, &args),
        Command::Exec(args) => exec::run(context, &args),
        Command::Features(features::Features {}) => features::run(),
        Command::Kill(args) => kill::run(context, &args),
        Command::List(args) => list::run(context, &args),
        Command::Man(args) => completion::man(Cli::command(), &args),
        Command::Pause(args) => pause::pause(context, &args),
        Command::Ps(args) => ps::run(context, &args),
        Command::Restore(args) => checkpoint::run("restore", &args),
        Command::Resume(args) => pause::resume(context, &args),
        Command::Run(args) => run::run(context, &args),
        Command::Spec(args) => spec::run(context, &args),
        Command::Start(args) => start::run(context, &args),
        Command::State(args) => state::run(context, &args),
        Command::Update(args) => update::run(context, &args),
        Command::StandIn(args) => Ok(hidden::stand_in(&args)),
        Command::Follow(args) => Ok(hidden::follow(&args)),
        Command::Vmm(args) => Ok(hidden::vmm(&args)),
    }
}

/// In the form that engines parse: in the first line, which clap begins with `hull`, docker looks for the word
/// "version"; the second names the spec's.
fn version() -> String {
    format!(
        "version {}\nspec: {}",
        env!("CARGO_PKG_VERSION"),
        hull_runtime::spec::OCI_VERSION
    )
}

fn default_root() -> PathBuf {
    let is_root = is_system(Privilege::own(), std::env::var_os("USER"));
    root_below(std::env::var_os("XDG_RUNTIME_DIR").filter(|_| !is_root))
}

/// Whether /run is this user's: root of a user namespace is mostly an ordinary user whose engine has made it. But a
/// container's whole system may run in one, and its root calls itself so.
fn is_system(privilege: Privilege, user: Option<OsString>) -> bool {
    match privilege {
        Privilege::HostRoot => true,
        Privilege::NamespaceRoot => user.is_some_and(|user| user == "root"),
        Privilege::User => false,
    }
}

/// Below an ordinary user's own directory, if it has one: one that isn't absolute counts as none, as the XDG
/// Base Directory Specification has it.
fn root_below(own: Option<OsString>) -> PathBuf {
    let own = own.map(PathBuf::from).filter(|dir| dir.is_absolute());
    own.unwrap_or_else(|| "/run".into()).join("hull")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_default_root_is_the_same_in_every_folder() {
        let root = |own: Option<&str>| root_below(own.map(OsString::from));
        assert_eq!(root(Some("/run/user/7")), Path::new("/run/user/7/hull"));
        for none in [None, Some(""), Some("here")] {
            assert_eq!(root(none), Path::new("/run/hull"), "{none:?}");
        }
    }

    #[test]
    fn docker_finds_the_version() {
        let printed = Cli::command().version(version()).render_version();
        let line = printed.lines().next().expect("a line");
        let (name, version) = line.split_once("version").expect("the word");
        assert_eq!(
            (name.trim(), version.trim()),
            ("hull", env!("CARGO_PKG_VERSION"))
        );
    }

    #[test]
    fn a_rootless_engines_user_is_no_root() {
        let is_system = |privilege, user: Option<&str>| is_system(privilege, user.map(Into::into));
        for user in [None, Some("tester"), Some("root")] {
            assert!(is_system(Privilege::HostRoot, user));
            assert!(!is_system(Privilege::User, user));
            let is_root = user == Some("root");
            assert_eq!(is_system(Privilege::NamespaceRoot, user), is_root);
        }
    }

    #[test]
    fn an_engines_words_are_understood() {
        let words = "hull --root /r --log /l --log-format json --systemd-cgroup --criu criu \
                     create --bundle /b --pid-file /p --console-socket /s id";
        assert!(Cli::try_parse_from(words.split_whitespace()).is_ok());
    }
}
