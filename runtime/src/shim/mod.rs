//! containerd's shim: this program under the name `containerd-shim-hull-v2`, for the runtime `io.containerd.hull.v2`.
//!
//! containerd executes it in a container's bundle with `start` ([`bootstrap`]), which leaves a server behind
//! ([`server`]) and tells its address: one for a container, or for all of a pod. What containerd wants of a container it
//! asks of that by ttrpc ([`task`]), and it learns what happens by events ([`events`]). Where the server is gone,
//! containerd executes the shim with `delete` ([`cleanup`]).
//!
//! Like the command line, this is a caller of the library's verbs and has no way of its own to a VM. What it adds is what
//! containerd leaves to a shim: the root file system is mounted ([`rootfs`]), streams are opened by their names
//! ([`streams`]), and exit statuses are kept until they are fetched ([`process`]). The bytes of a container's streams
//! don't pass through it, but for those of a terminal.

mod arguments;
mod bootstrap;
mod cleanup;
mod container;
mod error;
mod events;
mod info;
mod logger;
mod options;
mod process;
mod rootfs;
mod server;
mod stats;
mod streams;
mod task;

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use hull_runtime::chain::chain;
use hull_runtime::config::Settings;
use hull_runtime::lifecycle::Context;

use arguments::{Action, Arguments};
use error::Error;

/// What containerd makes of the runtime's name `io.containerd.hull.v2`.
const BINARY: &str = "containerd-shim-hull-v2";

/// The runtime's name.
const RUNTIME: &str = "io.containerd.hull.v2";

/// Below it are the stores of the containers, one for each of containerd's namespaces: a container's id is unique within
/// its own. Beside runc's, which `ctr` users know.
const STORES: &str = "/run/containerd/hull";

/// Whether this program was called by the shim's name.
pub fn is_called() -> bool {
    let name = std::env::args_os().next();
    let name = name.as_deref().map(Path::new).and_then(Path::file_name);
    name.is_some_and(|name| name == OsStr::new(BINARY))
}

/// Does what containerd asks for by the arguments.
pub fn run() -> ExitCode {
    match Arguments::parse(std::env::args().skip(1)).and_then(|arguments| act(&arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            // containerd shows it, after the name.
            let _ = writeln!(std::io::stderr(), "{RUNTIME}: {}", chain(&e));
            ExitCode::FAILURE
        }
    }
}

fn act(arguments: &Arguments) -> Result<(), Error> {
    match arguments.action {
        Action::Version => info::print_version(),
        Action::Info => info::print(),
        Action::Start => bootstrap::start(arguments),
        Action::Delete => cleanup::delete(arguments),
        Action::Serve => server::serve(arguments),
    }
}

/// What the library's verbs have to know, for containers of this namespace of containerd's.
fn context(namespace: &str, root: Option<&Path>, debug: bool, config: Option<PathBuf>) -> Context {
    let root = root.unwrap_or_else(|| Path::new(STORES));
    Context {
        root: root.join(namespace),
        systemd_cgroup: false,
        debug,
        // containerd is told of them by an event.
        oom_in_cgroup: false,
        settings: Settings {
            file: config,
            ..Settings::default()
        },
    }
}
