//! The last step into a container: what is left to do once a process stands in its namespaces, with
//! its user and its root, and still all capabilities. The same for a container's first process and for
//! every later one.
//!
//! The order follows runc's. A seccomp filter is loaded as late as possible, so that a profile need not
//! allow what only the runtime does: after the load come capset(2), prctl(2) and execve(2), or with
//! `noNewPrivileges` execve(2) alone.

pub mod attributes;
pub mod capabilities;
pub mod cwd;
mod environment;
mod hooks;
pub mod keyring;
mod lookup;
pub mod rlimits;
pub mod seccomp;
pub mod terminal;
pub mod user;

use std::ffi::CString;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use oci_spec::runtime::{LinuxPersonality, PosixRlimit, Process};
use rustix::fs::{Gid, Uid, fchown, fstat};
use rustix::thread::set_no_new_privs;
use serde::{Deserialize, Serialize};

use crate::error::{Failure, FailureKind, Message};
use crate::sys;
use capabilities::Sets;
pub use hooks::StartHooks;

/// What to become: the part of config.json that this step needs. It travels to the helper as JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Launch {
    /// The `process` object of config.json.
    pub process: Process,
    /// The session keyring to join, by runc's naming.
    pub keyring: String,
    /// The network namespace is new: its `lo` is still down.
    pub new_network: bool,
    /// The container's personality, which all of its processes have.
    pub personality: Option<LinuxPersonality>,
    /// The compiled seccomp filter.
    pub seccomp: Option<seccomp::Program>,
    /// The hooks to run before the program, for a container's first process.
    pub hooks: Option<StartHooks>,
}

/// A process that has only its privileges to lose and its program to execute.
#[derive(Debug, Clone)]
pub struct Ready {
    path: CString,
    args: Vec<CString>,
    env: Vec<CString>,
    sets: Sets,
    rlimits: Vec<PosixRlimit>,
    seccomp: Option<seccomp::Program>,
    hooks: Option<StartHooks>,
    no_new_privileges: bool,
}

impl Launch {
    /// Does all that may fail before the process is told to start.
    ///
    /// To be called in the container, as the process's user, with all capabilities in the permitted
    /// and effective sets.
    ///
    /// # Errors
    /// When the program can't be found or executed, or config.json asks for what can't be had.
    pub fn prepare(&self) -> Result<Ready, Failure> {
        let process = &self.process;
        if self.new_network {
            sys::bring_loopback_up().map_err(Failure::io("bring lo up"))?;
        }
        attributes::apply(process, self.personality.as_ref())?;
        give_stdio_to(process.user().uid())?;

        let sets = Sets::of(process.capabilities().as_ref());
        let env = environment::of(process);
        let args = process.args().as_deref().unwrap_or_default();
        let Some(name) = args.first() else {
            return Err(Failure::config("process.args: it is empty"));
        };
        // The program is looked up with the capabilities that it will be executed with.
        let found = sets.hold_while(|| lookup::find(name, environment::get(&env, "PATH")))?;
        let path = found.map_err(|e| Failure {
            kind: match e {
                lookup::LookupError::Forbidden | lookup::LookupError::Directory => {
                    FailureKind::ProgramForbidden
                }
                _ => FailureKind::ProgramMissing,
            },
            message: format!("exec: {name:?}: {e}"),
        })?;

        let strings = |field, list: &[String]| -> Result<Vec<CString>, Failure> {
            list.iter().map(|text| c_string(field, text)).collect()
        };
        Ok(Ready {
            path: c_string("process.args[0]", &path.to_string_lossy())?,
            args: strings("process.args", args)?,
            env: strings("process.env", &env)?,
            sets,
            rlimits: rlimits::of(process).to_vec(),
            seccomp: self.seccomp.clone(),
            hooks: self.hooks.clone(),
            no_new_privileges: process.no_new_privileges().unwrap_or(false),
        })
    }
}

impl Ready {
    /// Becomes the program; returns only if that fails.
    pub fn execute(self) -> Failure {
        if let Err(failure) = rlimits::apply(&self.rlimits) {
            return failure;
        }
        let ready = match &self.hooks {
            None => {
                sys::restore_signals();
                self.drop_privileges()
            }
            // As with runc they are no more privileged than the program. A hook that doesn't read what
            // it is told must not end this process by SIGPIPE, so that stays ignored meanwhile.
            Some(hooks) => self.drop_privileges().and_then(|()| {
                hooks.run(&self.env)?;
                sys::restore_signals();
                Ok(())
            }),
        };
        let Err(failure) = ready else {
            let error = sys::execve(&self.path, &self.args, &self.env);
            let path = PathBuf::from(self.path.to_string_lossy().into_owned());
            return Failure::other(format!("exec {}: {}", path.display(), Message(&error)));
        };
        failure
    }

    fn drop_privileges(&self) -> Result<(), Failure> {
        self.sets.drop_bounding()?;
        if self.no_new_privileges {
            self.sets.apply()?;
            set_no_new_privs(true).map_err(Failure::io("set no_new_privs"))?;
            return self.load_seccomp();
        }
        // Without no_new_privs only CAP_SYS_ADMIN may load a filter.
        self.load_seccomp()?;
        self.sets.apply()
    }

    fn load_seccomp(&self) -> Result<(), Failure> {
        match &self.seccomp {
            Some(program) => program.load().map_err(Failure::field("linux.seccomp")),
            None => Ok(()),
        }
    }
}

/// Makes the process's user the owner of its stdio, so that it can open /dev/stdout and its kind again.
fn give_stdio_to(uid: u32) -> Result<(), Failure> {
    let null = rustix::fs::stat("/dev/null").map(|s| s.st_rdev).ok();
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let fds: [BorrowedFd<'_>; 3] = [
        std::os::fd::AsFd::as_fd(&stdin),
        std::os::fd::AsFd::as_fd(&stdout),
        std::os::fd::AsFd::as_fd(&stderr),
    ];
    for fd in fds {
        let stat = fstat(fd).map_err(Failure::io("look at the process's stdio"))?;
        if stat.st_uid == uid || Some(stat.st_rdev) == null {
            continue;
        }
        let owner = Some(Uid::from_raw(uid));
        match fchown(fd, owner, Some(Gid::from_raw(stat.st_gid))) {
            // What can't be given away can still be used.
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::PERM) => {}
            Err(rustix::io::Errno::ROFS) => {}
            Err(e) => return Err(Failure::field("process.user: give it the stdio")(e)),
        }
    }
    Ok(())
}

fn c_string(field: &str, text: &str) -> Result<CString, Failure> {
    CString::new(text).map_err(|_| Failure::config(format!("{field}: {text:?} has a NUL in it")))
}
