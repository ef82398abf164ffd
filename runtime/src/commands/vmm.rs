//! `hull vmm`: the process that runs a VM, not for users. `create` starts it with everything it needs
//! in inherited file descriptors.

use std::os::fd::RawFd;
use std::process::ExitCode;

use crate::sandbox;

/// `hull vmm`.
#[derive(Debug, clap::Args)]
pub struct Vmm {
    /// Of the container, so that `ps` on the host shows it
    #[arg(long)]
    #[allow(dead_code)] // read by people
    id: String,
    /// The memory file with the configuration
    #[arg(long)]
    config_fd: RawFd,
}

/// Runs the VM to its end.
pub fn run(args: &Vmm) -> ExitCode {
    sandbox::run_vmm(args.config_fd)
}
