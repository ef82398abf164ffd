//! `hull`: an OCI runtime that gives every container its own KVM microVM.
//!
//! The way from here to the guest's process: [`commands`] has a file for each verb; `create` reads the
//! bundle ([`spec`]), launches the VMM process ([`sandbox`]) and asks the agent in the guest for the
//! container; [`container`] is what remains on disk between commands, and [`cgroup`] where the VM
//! runs on the host. [`config`] is what an operator can
//! change about all that, and [`inherited`] what a caller can't.

mod cgroup;
mod cli;
mod commands;
mod config;
mod container;
mod error;
mod inherited;
mod logging;
mod sandbox;
mod selinux;
mod spec;
mod staged;

use std::process::ExitCode;

fn main() -> ExitCode {
    inherited::put_right();
    cli::run()
}
