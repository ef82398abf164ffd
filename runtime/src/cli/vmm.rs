//! `hull vmm`: the process that runs a VM, not for users. `create` starts it with everything it needs
//! in inherited file descriptors.

use std::os::fd::RawFd;
use std::process::ExitCode;

use hull_runtime::sandbox;

/// `hull vmm`.
#[derive(Debug, clap::Args)]
pub struct Vmm {
    /// Of the container, so that `ps` on the host shows it, and `delete` finds it without a state
    #[arg(long)]
    #[allow(dead_code)] // read by people and by `sandbox::search`, as are the next two
    id: String,
    /// The folder of the container's folder
    #[arg(long)]
    #[allow(dead_code)]
    store: String,
    /// The cgroup was made for this process
    #[arg(long)]
    #[allow(dead_code)]
    own_cgroup: bool,
    /// The memory file with the configuration
    #[arg(long)]
    config_fd: RawFd,
}

/// Runs the VM to its end.
pub fn run(args: &Vmm) -> ExitCode {
    sandbox::run_vmm(args.config_fd)
}
