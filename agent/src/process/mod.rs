//! The last steps of starting a process in a container: it is in the namespaces, with its user and its root, and
//! still has all capabilities. They are the same for a container's first process and for every later one.
//!
//! The order is runc's. The seccomp filter is loaded as late as possible, so that a profile need not allow what
//! only the runtime does: after that come only capset(2), prctl(2) and execve(2), or with `noNewPrivileges` only
//! execve(2).

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

use crate::error::{Failure, FailureKind, Strerror};
use crate::sys;
use capabilities::Sets;
pub use hooks::StartContainerHooks;

/// What to execute, and with which attributes: the part of config.json for these steps. The helper gets it as
/// JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Launch {
    /// The `process` object of config.json.
    pub process: Process,
    /// The name of the session keyring to join, as runc has it.
    pub keyring: String,
    /// Whether the network namespace is new, so that its `lo` is still down.
    pub new_network: bool,
    /// The container's personality, which all of its processes have.
    pub personality: Option<LinuxPersonality>,
    /// The compiled seccomp filter.
    pub seccomp: Option<seccomp::Program>,
    /// The hooks to run before the program, for a container's first process.
    pub hooks: Option<StartContainerHooks>,
}

/// What a prepared process needs to drop its privileges and execute its program.
#[derive(Debug, Clone)]
pub struct ReadyToExec {
    path: CString,
    args: Vec<CString>,
    env: Vec<CString>,
    sets: Sets,
    rlimits: Vec<PosixRlimit>,
    seccomp: Option<seccomp::Program>,
    hooks: Option<StartContainerHooks>,
    no_new_privileges: bool,
}

impl Launch {
    /// Does everything that may fail before the container is started.
    ///
    /// To be called in the container, as the process's user, with all capabilities in the permitted
    /// and effective sets.
    ///
    /// # Errors
    /// When the program can't be found or executed, or the kernel refuses what config.json asks for.
    pub fn prepare(&self) -> Result<ReadyToExec, Failure> {
        let process = &self.process;
        if self.new_network {
            sys::bring_loopback_up().map_err(Failure::io("bring lo up"))?;
        }
        attributes::apply(process, self.personality.as_ref())?;
        chown_stdio(process.user().uid())?;

        let sets = Sets::of(process.capabilities().as_ref());
        let env = environment::of(process);
        let args = process.args().as_deref().unwrap_or_default();
        let Some(name) = args.first() else {
            return Err(Failure::config("process.args: it is empty"));
        };
        // The program is looked up with the capabilities that it will be executed with.
        let found = sets.with_effective(|| lookup::find(name, environment::get(&env, "PATH")))?;
        let path = found.map_err(|e| Failure {
            kind: match e {
                lookup::LookupError::PermissionDenied | lookup::LookupError::IsDirectory => {
                    FailureKind::ProgramNotExecutable
                }
                _ => FailureKind::ProgramNotFound,
            },
            message: format!("exec: {name:?}: {e}"),
        })?;

        let strings = |field, list: &[String]| -> Result<Vec<CString>, Failure> {
            list.iter().map(|text| c_string(field, text)).collect()
        };
        Ok(ReadyToExec {
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

impl ReadyToExec {
    /// Drops privileges, runs the hooks and executes the program; returns only if that fails.
    pub fn execute(self) -> Failure {
        if let Err(failure) = rlimits::apply(&self.rlimits) {
            return failure;
        }
        let ready = match &self.hooks {
            None => {
                sys::restore_sigpipe();
                self.drop_privileges()
            }
            // As with runc, hooks have no more privileges than the program. SIGPIPE stays ignored while they
            // run: a hook that doesn't read its stdin must not kill this process.
            Some(hooks) => self.drop_privileges().and_then(|()| {
                hooks.run(&self.env)?;
                sys::restore_sigpipe();
                Ok(())
            }),
        };
        let Err(failure) = ready else {
            let error = sys::execve(&self.path, &self.args, &self.env);
            let path = PathBuf::from(self.path.to_string_lossy().into_owned());
            return Failure::other(format!("exec {}: {}", path.display(), Strerror(&error)));
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

/// Makes the process's user the owner of its stdio, so that it can open /dev/stdout and the like.
fn chown_stdio(uid: u32) -> Result<(), Failure> {
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
            // A file whose owner can't be changed can still be used.
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
