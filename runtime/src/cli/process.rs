//! The process that `exec` starts, as config.json's own with the user's changes; and what the stand-in
//! for it on the host needs.
#![allow(unsafe_code)] // fork(2), for a stand-in that is still this process

use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;

use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilitiesBuilder, Process};
use rustix::fs::{Mode, OFlags};

use super::Error;
use hull_runtime::spec;

/// What `exec` can change about the container's own process.
#[derive(Debug, clap::Args)]
pub struct Changes {
    /// The working folder in the container
    #[arg(long, value_name = "DIR")]
    cwd: Option<PathBuf>,
    /// Set an environment variable: NAME=VALUE
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Give the process a terminal
    #[arg(short, long)]
    tty: bool,
    /// Run as UID or UID:GID
    #[arg(short, long, value_name = "UID[:GID]")]
    user: Option<String>,
    /// Further groups
    #[arg(short = 'g', long, value_name = "GID")]
    additional_gids: Vec<u32>,
    /// Add a capability to the process's sets
    #[arg(short, long, value_name = "CAPABILITY")]
    cap: Vec<String>,
    /// Do not let the process gain privileges
    #[arg(long)]
    no_new_privs: bool,
    /// An AppArmor profile: unconfined, or an engine's default; guests have no AppArmor, so others are refused
    #[arg(long, value_name = "PROFILE")]
    apparmor: Option<String>,
    /// An SELinux label: refused, for it is the container's VM that has one
    #[arg(long, value_name = "LABEL")]
    process_label: Option<String>,
}

impl Changes {
    /// The container's process with these changes, running `command`.
    ///
    /// # Errors
    /// When there is no command, or a change that makes no sense.
    pub fn apply(&self, base: &Process, command: &[String]) -> Result<Process, Error> {
        let usage = |text: &str| Error::Usage(text.to_owned());
        if command.is_empty() {
            return Err(usage("exec: give a command, or --process FILE"));
        }
        if self.process_label.is_some() {
            return Err(usage(
                "--process-label: the guest's kernel has no SELinux (a container's own label is its VM's)",
            ));
        }
        let mut process = base.clone();
        if self.apparmor.is_some() {
            process.set_apparmor_profile(self.apparmor.clone());
        }
        process.set_args(Some(command.to_vec()));
        process.set_terminal(Some(self.tty));
        if let Some(cwd) = &self.cwd {
            process.set_cwd(cwd.clone());
        }
        let mut env = process.env().clone().unwrap_or_default();
        env.extend(self.env.iter().cloned());
        process.set_env(Some(env));
        if self.no_new_privs {
            process.set_no_new_privileges(Some(true));
        }
        self.change_user(&mut process)?;
        self.add_capabilities(&mut process)?;
        spec::validate_process(&process)?;
        Ok(process)
    }

    fn change_user(&self, process: &mut Process) -> Result<(), Error> {
        let mut user = process.user().clone();
        if let Some(text) = &self.user {
            let (uid, gid) = parse_user(text).ok_or_else(|| {
                Error::Usage(format!("--user {text}: not UID or UID:GID, in numbers"))
            })?;
            user.set_uid(uid);
            user.set_gid(gid.unwrap_or(user.gid()));
        }
        if !self.additional_gids.is_empty() {
            let mut gids = user.additional_gids().clone().unwrap_or_default();
            gids.extend(&self.additional_gids);
            user.set_additional_gids(Some(gids));
        }
        process.set_user(user);
        Ok(())
    }

    /// Adds to the sets that runc adds to: what a program of the container would inherit stays as it is.
    /// Names that nobody knows are ignored with a warning, as in config.json.
    fn add_capabilities(&self, process: &mut Process) -> Result<(), Error> {
        if self.cap.is_empty() {
            return Ok(());
        }
        let added: Vec<Capability> = self
            .cap
            .iter()
            .filter_map(|name| {
                let known = parse_capability(name);
                if known.is_none() {
                    log::warn!("--cap {name}: no such capability, ignored");
                }
                known
            })
            .collect();
        let old = match process.capabilities() {
            Some(old) => old.clone(),
            None => LinuxCapabilitiesBuilder::default()
                .build()
                .map_err(|e| Error::Usage(e.to_string()))?,
        };
        let with = |set: &Option<Capabilities>| {
            let mut set = set.clone().unwrap_or_default();
            set.extend(added.iter().copied());
            Some(set)
        };
        let mut new = old.clone();
        new.set_bounding(with(old.bounding()));
        new.set_effective(with(old.effective()));
        new.set_permitted(with(old.permitted()));
        process.set_capabilities(Some(new));
        Ok(())
    }
}

fn parse_user(text: &str) -> Option<(u32, Option<u32>)> {
    match text.split_once(':') {
        None => Some((text.parse().ok()?, None)),
        Some((uid, gid)) => Some((uid.parse().ok()?, Some(gid.parse().ok()?))),
    }
}

fn parse_capability(text: &str) -> Option<Capability> {
    let upper = text.to_ascii_uppercase();
    let name = if upper.starts_with("CAP_") {
        upper
    } else {
        format!("CAP_{upper}")
    };
    serde_json::from_value(serde_json::Value::String(name)).ok()
}

/// Forks: the child's pid in the parent, none in the child.
///
/// # Errors
/// When there can be no further process.
pub fn fork() -> rustix::io::Result<Option<i32>> {
    // SAFETY: commands run on one thread until they connect to an agent, which callers do afterwards,
    // so the child finds no lock held by a thread that it doesn't have.
    match unsafe { libc::fork() } {
        0 => Ok(None),
        pid if pid > 0 => Ok(Some(pid)),
        _ => Err(rustix::io::Errno::AGAIN),
    }
}

/// Gives up the terminal and the standard streams.
///
/// # Errors
/// When /dev/null is missing.
pub fn detach_from_terminal() -> io::Result<()> {
    rustix::process::setsid()?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(null.as_fd())?;
    rustix::stdio::dup2_stdout(null.as_fd())?;
    rustix::stdio::dup2_stderr(null.as_fd())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_numbers() {
        assert_eq!(parse_user("7"), Some((7, None)));
        assert_eq!(parse_user("7:8"), Some((7, Some(8))));
        for text in ["", "root", "7:", ":8", "-1", "7:8:9"] {
            assert_eq!(parse_user(text), None, "{text:?}");
        }
    }

    #[test]
    fn capabilities_need_no_prefix() {
        assert_eq!(
            parse_capability("net_admin").expect("known"),
            Capability::NetAdmin
        );
        assert_eq!(
            parse_capability("CAP_SYS_PTRACE").expect("known"),
            Capability::SysPtrace
        );
        assert!(parse_capability("FLY").is_none());
    }
}
