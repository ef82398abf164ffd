//! What an engine's monitor does: adopts the process of the container that a command creates, and
//! learns from it how the container ended.

use std::io;
use std::path::Path;
use std::process::Command;

use rustix::process::{Pid, WaitOptions, getpid, set_child_subreaper, waitpid};

/// Runs the command (a `create` or a detached `run`) to its end, prints `ready`, waits for the
/// process in its pid file to die as a child of this one, and prints `exit CODE` or `signal N`.
pub fn run(pid_file: &Path, command: &[&str]) -> io::Result<()> {
    set_child_subreaper(Some(getpid()))?;
    let status = Command::new(command[0]).args(&command[1..]).status()?;
    if !status.success() {
        return Err(io::Error::other(format!("the command ended with {status}")));
    }
    let pid: i32 = std::fs::read_to_string(pid_file)?
        .trim()
        .parse()
        .map_err(io::Error::other)?;
    println!("ready");
    let (_, status) = waitpid(Pid::from_raw(pid), WaitOptions::empty())?
        .ok_or_else(|| io::Error::other("waitpid returned early"))?;
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => println!("exit {code}"),
        (_, signal) => println!("signal {}", signal.unwrap_or(0)),
    }
    Ok(())
}
