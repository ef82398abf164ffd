//! A helper's task: to make a container, with libcontainer.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::{
    Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError,
};
use oci_spec::runtime::{PosixRlimit, PosixRlimitType, Process, Spec};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::stdio::stderr;
use rustix::thread::ThreadNameSpaceType;
use serde::{Deserialize, Serialize};

use super::devices::Nodes;
use super::inside::Inside;
use super::paths::Paths;
use super::sysctl::Sysctls;
use super::{STATE, mounts};
use crate::console;
use crate::error::{Failure, chain};
use crate::helper::{Report, Reporter};
use crate::idmap;
use crate::process::{Launch, Ready, cwd, keyring, rlimits};

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
    /// What its root has of the host's mounts, as options of a mount.
    pub root_options: Vec<String>,
    /// The last step.
    pub launch: Launch,
}

/// Makes the container and reports its first process.
///
/// # Errors
/// When there is none now.
pub fn run(mut task: Task, reporter: &Reporter) -> Result<(), Failure> {
    // Here, as what a user namespace's root may do is not enough. The container's process inherits them.
    rlimits::allow(&task.launch.process)?;
    if let Some(linux) = task.spec.linux() {
        idmap::provide(linux).map_err(Failure::io("make newuidmap and newgidmap"))?;
    }
    let mut mounts = mounts::prepare(&mut task.spec, task.root_options)?;
    let nodes = Nodes::prepare(&mut task.spec, mounts.of_dev(), &task.bundle)?;
    let sysctls = Sysctls::take(&mut task.spec)?;
    let paths = Paths::take(&mut task.spec);
    let json = serde_json::to_vec(&task.spec).map_err(|e| Failure::other(e.to_string()))?;
    fs::write(task.bundle.join("config.json"), json).map_err(Failure::io("write config.json"))?;
    let console = match task.launch.process.terminal() {
        Some(true) => Some(Console::listen(&task.bundle)?),
        _ => None,
    };
    let last_step = LastStep {
        locked_memory: locked_memory(&task.launch.process),
        launch: Rc::new(task.launch),
        reporter: Rc::new(
            reporter
                .duplicate()
                .map_err(Failure::io("duplicate a socket"))?,
        ),
        ready: Rc::default(),
    };
    listen(reporter, mounts.take_theirs());
    let container = ContainerBuilder::new(task.id, SyscallType::default())
        .with_executor(last_step)
        .with_console_socket(console.as_ref().map(|c| c.path.as_path()))
        .with_root_path(STATE)
        .map_err(|e| Failure::other(chain(&e)))?
        .as_init(&task.bundle)
        .with_systemd(false)
        .as_sibling(true)
        .build()
        .map_err(|e| Failure::library(&e))?;
    let Some(pid) = container.pid() else {
        return Err(Failure::other("the container's process has no pid"));
    };
    let others = sysctls
        .as_ref()
        .map_or(ThreadNameSpaceType::empty(), Sysctls::namespaces);
    let inside = Inside::enter(pid.as_raw(), others)?;
    nodes.make(inside.root())?;
    mounts.apply(&inside)?;
    if let Some(sysctls) = &sysctls {
        sysctls.write(&inside)?;
    }
    paths.apply(inside.root())?;
    mounts.propagate_root(inside.root())?;
    if let Some(master) = console.map(Console::accept).transpose()? {
        reporter
            .send(&Report::Terminal, Some(master.as_fd()))
            .map_err(Failure::io("report the terminal"))?;
    }
    reporter
        .send(&Report::Made(pid.as_raw()), None)
        .map_err(Failure::io("report the container's process"))
}

/// Has libcontainer's log explain its errors. Of a mount that it can't make, what it makes of that comes
/// too late.
fn listen(reporter: &Reporter, theirs: Vec<mounts::Theirs>) {
    let Ok(reporter) = reporter.duplicate() else {
        return;
    };
    console::listen(
        move |text| match theirs.iter().find_map(|mount| mount.failure(text)) {
            Some(failure) => reporter.fail(failure),
            None => reporter.trouble(text),
        },
    );
}

/// The limit of locked memory that a container's process starts with, if config.json sets none: the
/// library raises it to load a program of a cgroup, and leaves it so.
fn locked_memory(process: &Process) -> Option<Rlimit> {
    let set = |limit: &PosixRlimit| limit.typ() == PosixRlimitType::RlimitMemlock;
    let given = process.rlimits().iter().flatten().any(set);
    (!given).then(|| getrlimit(Resource::Memlock))
}

/// The last step, as libcontainer calls it in the container's first process.
#[derive(Clone)]
struct LastStep {
    launch: Rc<Launch>,
    reporter: Rc<Reporter>,
    ready: Rc<RefCell<Option<Ready>>>,
    locked_memory: Option<Rlimit>,
}

impl LastStep {
    fn prepare(&self) -> Result<Ready, Failure> {
        if let Some(limit) = self.locked_memory {
            setrlimit(Resource::Memlock, limit).map_err(Failure::io("limit locked memory"))?;
        }
        keyring::join(&self.launch.keyring)?;
        cwd::enter(&self.launch.process, cwd::Missing::Make)?;
        self.launch.prepare()
    }
}

impl Executor for LastStep {
    /// Before the container counts as created.
    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        match self.prepare() {
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
        let failure = match ready.look_again(&self.launch.process) {
            Ok(ready) => ready.execute(),
            Err(failure) => failure,
        };
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
        const NAME: &str = "console.sock";
        let listen = || -> io::Result<_> {
            let directory = fs::File::open(bundle)?;
            // The folder's own path may be longer than a socket's address can be.
            UnixListener::bind(format!("/proc/self/fd/{}/{NAME}", directory.as_raw_fd()))
        };
        Ok(Self {
            listener: listen().map_err(Failure::io("make the console's socket"))?,
            path: bundle.join(NAME),
        })
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
