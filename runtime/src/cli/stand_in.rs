//! `hull stand-in`: the process that stands for a container in another's sandbox, not for users. `create` starts it
//! with everything it needs in inherited file descriptors.

use std::os::fd::RawFd;
use std::process::ExitCode;

use hull_runtime::sandbox;

/// `hull stand-in`.
#[derive(Debug, clap::Args)]
pub struct StandIn {
    /// Of the container, so that `ps` on the host shows it, and `delete` finds it without a state
    #[arg(long)]
    #[allow(dead_code)] // read by people and by `sandbox::search`, as are the next three
    id: String,
    /// The folder of the container's folder
    #[arg(long)]
    #[allow(dead_code)]
    store: String,
    /// The container whose sandbox it is
    #[arg(long)]
    #[allow(dead_code)]
    sandbox: String,
    /// The folder of its shares in the VM's tree
    #[arg(long)]
    #[allow(dead_code)]
    folder: String,
    /// The memory file with the configuration
    #[arg(long)]
    config_fd: RawFd,
}

/// Stands for the container to its end.
pub fn run(args: &StandIn) -> ExitCode {
    sandbox::run_stand_in(args.config_fd)
}
