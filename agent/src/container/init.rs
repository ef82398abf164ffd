//! A helper's task: to make a container, with libcontainer.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use hull_protocol::paths::SHARE;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::{
    Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError,
};
use oci_spec::runtime::{LinuxSeccomp, Spec};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::stdio::stderr;
use rustix::thread::ThreadNameSpaceType;
use serde::{Deserialize, Serialize};

use super::devices::Nodes;
use super::inside::Inside;
use super::sysctl::Sysctls;
use super::{SECCOMP_FILE, STATE, mounts};
use crate::error::{Failure, chain};
use crate::helper::{Report, Reporter};
use crate::process::{Launch, Ready, seccomp};

/// runc's exit status when a container's program turns out not to be one after it was started.
const NOT_A_PROGRAM: i32 = 255;

/// What to make.
#[derive(Debug, Serialize, Deserialize)]
pub struct Task {
    /// The container's id.
    pub id: String,
    /// Its directory, where libcontainer is to find config.json.
    pub bundle: PathBuf,
    /// libcontainer's part of config.json.
    pub spec: Box<Spec>,
    /// The last step.
    pub launch: Launch,
    /// The seccomp profile.
    pub seccomp: Option<LinuxSeccomp>,
}

/// Makes the container and reports its first process.
///
/// # Errors
/// When there is none now.
pub fn run(mut task: Task, reporter: &Reporter) -> Result<(), Failure> {
    if let Some(profile) = &task.seccomp {
        let program = seccomp::Program::compile(profile).map_err(|e| Failure::config(chain(&e)))?;
        // Further processes of the container load the same.
        let json = serde_json::to_vec(&program).map_err(|e| Failure::other(e.to_string()))?;
        fs::write(task.bundle.join(SECCOMP_FILE), json)
            .map_err(Failure::io("keep the seccomp filter"))?;
        task.launch.seccomp = Some(program);
    }
    let mounts = mounts::prepare(&mut task.spec)?;
    let nodes = Nodes::prepare(&mut task.spec, mounts.of_dev(), &task.bundle)?;
    let sysctls = Sysctls::take(&mut task.spec)?;
    let json = serde_json::to_vec(&task.spec).map_err(|e| Failure::other(e.to_string()))?;
    fs::write(task.bundle.join("config.json"), json).map_err(Failure::io("write config.json"))?;
    let console = match task.launch.process.terminal() {
        Some(true) => Some(Console::listen(&task.bundle)?),
        _ => None,
    };
    let cwd = task.launch.process.cwd().clone();
    let root = Path::new(SHARE).join(&task.id).join("rootfs");
    let last_step = LastStep {
        launch: Rc::new(task.launch),
        reporter: Rc::new(
            reporter
                .duplicate()
                .map_err(Failure::io("duplicate a socket"))?,
        ),
        ready: Rc::default(),
    };
    let container = ContainerBuilder::new(task.id, SyscallType::default())
        .with_executor(last_step)
        .with_console_socket(console.as_ref().map(|c| c.path.as_path()))
        .with_root_path(STATE)
        .map_err(|e| Failure::other(chain(&e)))?
        .as_init(&task.bundle)
        .with_systemd(false)
        .as_sibling(true)
        .build()
        .map_err(|e| not_a_folder(&root, &cwd).unwrap_or_else(|| Failure::library(&e)))?;
    let Some(pid) = container.pid() else {
        return Err(Failure::other("the container's process has no pid"));
    };
    if !nodes.is_empty() || !mounts.is_empty() || sysctls.is_some() {
        let others = sysctls
            .as_ref()
            .map_or(ThreadNameSpaceType::empty(), Sysctls::namespaces);
        let inside = Inside::enter(pid.as_raw(), others)?;
        nodes.make(inside.root())?;
        mounts.apply(&inside)?;
        if let Some(sysctls) = &sysctls {
            sysctls.write(&inside)?;
        }
    }
    if let Some(master) = console.map(Console::accept).transpose()? {
        reporter
            .send(&Report::Terminal, Some(master.as_fd()))
            .map_err(Failure::io("report the terminal"))?;
    }
    reporter
        .send(&Report::Made(pid.as_raw()), None)
        .map_err(Failure::io("report the container's process"))
}

/// The library goes to the working folder by itself, and does not say so when it can't. A folder that
/// isn't there it makes.
fn not_a_folder(root: &Path, cwd: &Path) -> Option<Failure> {
    let root = openat(CWD, root, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match openat2(&root, cwd, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
        Err(Errno::NOTDIR) => Some(Failure::config(format!(
            "process.cwd: {} is not a folder",
            cwd.display()
        ))),
        _ => None,
    }
}

/// The last step, as libcontainer calls it in the container's first process.
#[derive(Clone)]
struct LastStep {
    launch: Rc<Launch>,
    reporter: Rc<Reporter>,
    ready: Rc<RefCell<Option<Ready>>>,
}

impl Executor for LastStep {
    /// Before the container counts as created.
    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        match self.launch.prepare() {
            Ok(ready) => {
                *self.ready.borrow_mut() = Some(ready);
                Ok(())
            }
            Err(failure) => {
                // Heard before what libcontainer makes of it.
                let message = failure.message.clone();
                self.reporter.fail(failure);
                Err(ExecutorValidationError::ArgValidationError(message))
            }
        }
    }

    /// The environment is part of [`Launch::prepare`].
    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        Ok(())
    }

    /// Once it was told to start. Nobody waits for an error any more: as with runc, it goes to the
    /// container's stderr.
    fn exec(&self, _: &Spec) -> Result<(), ExecutorError> {
        let Some(ready) = self.ready.borrow_mut().take() else {
            return Err(ExecutorError::InvalidArg);
        };
        let failure = ready.execute();
        let _ = rustix::io::write(stderr(), format!("{failure}\n").as_bytes());
        std::process::exit(NOT_A_PROGRAM);
    }
}

/// The socket on which libcontainer hands out the terminal's master.
struct Console {
    path: PathBuf,
    listener: UnixListener,
}

impl Console {
    fn listen(bundle: &Path) -> Result<Self, Failure> {
        let path = bundle.join("console.sock");
        let listener =
            UnixListener::bind(&path).map_err(Failure::io("make the console's socket"))?;
        Ok(Self { path, listener })
    }

    /// The master, which was sent before the container counted as created.
    fn accept(self) -> Result<OwnedFd, Failure> {
        let (stream, _) = self
            .listener
            .accept()
            .map_err(Failure::io("accept the console"))?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut name = [0; 64];
        recvmsg(
            &stream,
            &mut [IoSliceMut::new(&mut name)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
        .map_err(|e| Failure::io("receive the console")(io::Error::from(e)))?;
        let master = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        master.ok_or_else(|| Failure::other("the console came without its terminal"))
    }
}
