//! `hull vmm`, `hull stand-in` and `hull follow`: the processes that stay for a container, not for users. `create` and
//! `start` start them with everything they need in inherited file descriptors.

use std::os::fd::RawFd;
use std::process::ExitCode;

use hull_runtime::sandbox;

/// What all are told. All but the last is read by people, and by `sandbox::search`.
#[derive(Debug, clap::Args)]
struct OfContainer {
    /// The container, so that `ps` on the host shows it, and `delete` finds it without a state
    #[arg(long)]
    #[allow(dead_code)]
    id: String,
    /// The folder of the container's folder
    #[arg(long)]
    #[allow(dead_code)]
    store: String,
    /// The memory file with the configuration
    #[arg(long)]
    config_fd: RawFd,
}

/// `hull vmm`.
#[derive(Debug, clap::Args)]
pub struct Vmm {
    #[command(flatten)]
    of: OfContainer,
    /// The cgroup was made for this process
    #[arg(long)]
    #[allow(dead_code)]
    own_cgroup: bool,
}

/// `hull stand-in`.
#[derive(Debug, clap::Args)]
pub struct StandIn {
    #[command(flatten)]
    of: OfContainer,
    /// The container whose sandbox it is
    #[arg(long)]
    #[allow(dead_code)]
    sandbox: String,
    /// The folder of its shares in the VM's tree
    #[arg(long)]
    #[allow(dead_code)]
    folder: String,
    /// The cgroup was made for this process
    #[arg(long)]
    #[allow(dead_code)]
    own_cgroup: bool,
}

/// `hull follow`.
#[derive(Debug, clap::Args)]
pub struct Follow {
    #[command(flatten)]
    of: OfContainer,
}

/// Has the VM's network follow the host's to its end.
pub fn follow(args: &Follow) -> ExitCode {
    sandbox::run_follower(args.of.config_fd)
}

/// Runs the VM to its end.
pub fn vmm(args: &Vmm) -> ExitCode {
    sandbox::run_vmm(args.of.config_fd)
}

/// Stands for the container to its end.
pub fn stand_in(args: &StandIn) -> ExitCode {
    sandbox::run_stand_in(args.of.config_fd)
}
