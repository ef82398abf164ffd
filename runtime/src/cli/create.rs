//! `hull create`: from a bundle to a container that waits to be started.

use std::path::PathBuf;
use std::process::ExitCode;

use hull_runtime::lifecycle::{self, Context, Created, Terminal};
use hull_runtime::spec;
use oci_spec::runtime::Process;

use super::Error;
use super::terminal::{Console, Relay};

/// The options of `create`, which `run` has too.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The folder with config.json
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    bundle: PathBuf,
    /// Write the process's pid to FILE
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// A UNIX socket that gets the terminal's file descriptor
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    /// Accepted: a guest's rootfs is never an initramfs, so there is nothing to pivot around
    #[arg(long)]
    no_pivot: bool,
    /// Do not give the container a session keyring of its own
    #[arg(long)]
    no_new_keyring: bool,
    /// Create the container in the sandbox of this one, its VM, beside it
    #[arg(long, value_name = "CONTAINER-ID")]
    sandbox: Option<String>,
    /// Pass N further file descriptors
    #[arg(long, value_name = "N", default_value_t = 0)]
    preserve_fds: u32,
}

/// `hull create`.
#[derive(Debug, clap::Args)]
pub struct Create {
    #[command(flatten)]
    options: Options,
    /// The container's id: unique on this host
    #[arg(value_name = "CONTAINER-ID")]
    id: String,
}

/// Creates a container.
///
/// # Errors
/// Every failure undoes what was made.
pub fn run(context: &Context, args: &Create) -> Result<ExitCode, Error> {
    create(context, &args.options, &args.id, true)?;
    Ok(ExitCode::SUCCESS)
}

/// What `create` does, for `run` as well. `detached` says that this process ends before the container. Returns
/// also the user's terminal, where that is the container's.
///
/// # Errors
/// Every failure undoes what was made.
pub fn create(
    context: &Context,
    options: &Options,
    id: &str,
    detached: bool,
) -> Result<(Created, Option<Relay>), Error> {
    let id = id.parse()?;
    if options.preserve_fds > 0 {
        return Err(Error::preserve_fds());
    }
    let bundle = spec::load(&options.bundle)?;
    let process = bundle.spec().process().as_ref();
    let has_terminal = process.and_then(Process::terminal).unwrap_or(false);
    let (terminal, relay) =
        match Console::of(has_terminal, detached, options.console_socket.as_deref())? {
            Console::None => (Terminal::None, None),
            Console::Engine(socket) => (Terminal::Engine(socket), None),
            Console::Foreground => {
                let (relay, ends) = Relay::new()?;
                (Terminal::Relayed(ends), Some(relay))
            }
        };
    let request = lifecycle::Create {
        id,
        bundle,
        terminal,
        pid_file: options.pid_file.as_deref(),
        service_manager: lifecycle::service_manager(),
        sandbox: options.sandbox.as_deref().map(str::parse).transpose()?,
    };
    Ok((lifecycle::create(context, request)?, relay))
}
