//! Launching a sandbox, as `create` sees it: start the VMM process, wait for the agent, let go.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use hull_vmm::jail::userns;
use rustix::pipe::PipeFlags;

use super::config::Ends;
use super::lifeline::{Lifeline, Report};
use super::process::{NO_PROGRAM, Start};
use super::search::{ProcessIdentity, Purpose};
use super::{
    BlockingAgent, ChildProcess, SandboxError, Streams, VmConfig, VmmConfig, handover, namespaces,
    shares,
};
use crate::host::{NextLabel, wait_readable};
use crate::spec::UserNamespace;
use crate::store::SandboxDir;
use crate::types::ContainerId;
use hull_protocol::hello;

/// How many of the console's last lines an error shows.
const TAIL: usize = 12;

/// What a new sandbox is made of.
#[derive(Debug)]
pub struct Launch<'a> {
    /// Where the sandbox's files are.
    pub dir: &'a SandboxDir,
    /// The directory of the cgroup that the VMM process is born in; without one, this process's.
    pub cgroup: Option<File>,
    /// The VMM process's label, on a host with SELinux.
    pub selinux_label: Option<String>,
    /// The user namespace that the VMM process is to be root in.
    pub user_namespace: Option<UserNamespace>,
    /// The standard streams of a container without a terminal; without them, this process's.
    pub stdio: Option<[OwnedFd; 3]>,
    /// What the process is to run.
    pub vm: VmConfig,
}

/// A launched sandbox.
#[derive(Debug)]
pub struct Sandbox {
    /// Its VM process.
    pub lifeline: Lifeline,
    in_user_namespace: bool,
    ready: OwnedFd,
    started: Instant,
}

impl Launch<'_> {
    /// Starts the VMM process, whose standard streams are those of a container without a terminal.
    ///
    /// Returns as soon as the process runs; [`Sandbox::wait_up`] waits for what it reports.
    ///
    /// # Errors
    /// When a descriptor can't be made or the process not be started.
    pub fn spawn(self) -> Result<Sandbox, SandboxError> {
        let started = Instant::now();
        let (lifeline, ready, ends) = self.connect()?;
        let Self {
            dir,
            cgroup,
            selinux_label,
            stdio,
            vm,
            ..
        } = self;
        let config = VmmConfig { vm, ends };
        let identity = || {
            let own_cgroup = cgroup.is_some();
            let purpose = Purpose::Vmm { own_cgroup };
            Ok(ProcessIdentity::new(&purpose, dir.store_key()?, dir.id()))
        };
        let identity = identity().map_err(SandboxError::host("look at --root"))?;
        let written = handover::write(&config.numbers(), &identity.to_bytes())
            .map_err(SandboxError::host("write the VMM process's configuration"))?;
        let mut inherited: Vec<_> = config.descriptors().into_iter().map(AsFd::as_fd).collect();
        inherited.push(written.as_fd());
        let label = selinux_label.as_deref().map(NextLabel::set);
        let _label = label.transpose().map_err(SandboxError::SelinuxLabel)?;
        let in_user_namespace = config.ends.user_namespace.is_some();
        let own = namespaces::at_birth(&config.vm.network, in_user_namespace);
        let execute = || {
            let arguments = identity.arguments(written.as_raw_fd())?;
            let cgroup = cgroup.as_ref().map(AsFd::as_fd);
            let stdio = stdio.as_ref();
            ChildProcess::spawn(&arguments, &inherited, stdio, cgroup, own, Start::Usual)
        };
        let process = execute().map_err(SandboxError::host(
            "start the VMM process in namespaces of its own",
        ))?;
        Ok(Sandbox {
            lifeline: Lifeline::new(process, lifeline),
            in_user_namespace,
            ready,
            started,
        })
    }

    /// Makes the connections to the VMM process. Returns this side's ends of the lifeline and of the pipe
    /// on which the guest greets, and what the process gets.
    fn connect(&self) -> Result<(UnixStream, OwnedFd, Ends), SandboxError> {
        let (ours, theirs) =
            UnixStream::pair().map_err(SandboxError::host("make a socket pair"))?;
        let (ready, ready_writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)
            .map_err(|e| SandboxError::host("make a pipe")(e.into()))?;
        let listener = UnixListener::bind(self.dir.socket_path())
            .map_err(SandboxError::host("bind the control socket"))?;
        let console = self.dir.create_console_log().map_err(|e| {
            SandboxError::host("make the console log")(io::Error::other(crate::chain::chain(&e)))
        })?;
        let user_namespace = self
            .user_namespace
            .as_ref()
            .map(|ids| userns::create(&ids.uids, &ids.gids).map_err(SandboxError::UserNamespace));
        let ends = Ends {
            listener: listener.into(),
            lifeline: theirs.into(),
            ready: ready_writer,
            console: console.into(),
            kvm: hull_vmm::kvm::open_device()?,
            user_namespace: user_namespace.transpose()?,
        };
        Ok((ours, ready, ends))
    }
}

impl Sandbox {
    /// Whether the process ends in time: a guest can end its greeting by itself.
    fn has_ended_by(&mut self, deadline: Instant) -> bool {
        let process = self.lifeline.process().open();
        // One that can't be opened is gone.
        process.map_or(true, |process| {
            wait_readable(&process, deadline).unwrap_or(false)
        })
    }

    /// The process has ended, or has closed its connections as it is about to.
    fn died(&mut self, dir: &SandboxDir) -> SandboxError {
        let status = self.lifeline.process().wait();
        if matches!(&status, Ok(status) if status.code() == Some(NO_PROGRAM)) {
            return SandboxError::NotExecuted;
        }
        SandboxError::VmmDied {
            status: status.map_or_else(|e| e.to_string(), |status| status.to_string()),
            tail: dir.console_tail(TAIL),
        }
    }

    /// Waits until the VMM process has set up the machine and runs it. Returns what it has on offer for
    /// the guest's agent.
    ///
    /// # Errors
    /// When it reports a failure, dies, or takes longer than `timeout`.
    pub fn wait_up(
        &mut self,
        dir: &SandboxDir,
        timeout: Duration,
    ) -> Result<Streams, SandboxError> {
        match self.lifeline.report(timeout) {
            Ok(Some(Report::Up(streams))) => Ok(streams),
            Ok(Some(Report::Failed(why))) => Err(SandboxError::Vmm(why)),
            Ok(None) => Err(self.died(dir)),
            // A socket's time limit is over.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(SandboxError::SetupTimeout {
                seconds: timeout.as_secs(),
            }),
            Err(e) => Err(SandboxError::host("learn whether the VM process is up")(e)),
        }
    }

    /// Waits until the agent in the guest serves, and connects to it.
    ///
    /// # Errors
    /// When the guest does not come up in time, or is of another make.
    pub fn wait_ready(
        &mut self,
        dir: &SandboxDir,
        timeout: Duration,
    ) -> Result<BlockingAgent, SandboxError> {
        let deadline = self.started + timeout;
        let greeting = read_greeting(&self.ready, deadline);
        match greeting.map_err(SandboxError::host("wait for the guest"))? {
            Greeting::Whole(greeting) => hello::check(greeting)?,
            Greeting::Ended if self.has_ended_by(deadline) => return Err(self.died(dir)),
            Greeting::Ended | Greeting::Late => {
                return Err(SandboxError::BootTimeout {
                    seconds: timeout.as_secs(),
                    tail: dir.console_tail(TAIL),
                });
            }
        }
        log::debug!(
            "guest ready in {:.1} ms",
            self.started.elapsed().as_secs_f64() * 1e3
        );
        Ok(BlockingAgent::connect(dir)?)
    }

    /// Has the host refuse every change to the container's root from now on, as the guest's kernel does.
    ///
    /// Not before the container is made: mount points may have to be made in it.
    ///
    /// # Errors
    /// When the VMM process is gone.
    pub fn make_root_read_only(&mut self, id: &ContainerId) -> Result<(), SandboxError> {
        let process =
            (self.lifeline.process().open()).map_err(SandboxError::host("open the VMM process"))?;
        shares::seal_root(process.as_fd(), id.as_str(), self.in_user_namespace)
    }
}

/// What a guest says first.
#[derive(Debug, PartialEq, Eq)]
enum Greeting {
    Whole([u8; hello::LENGTH]),
    /// Its end comes first.
    Ended,
    /// Not all of it has come in time.
    Late,
}

fn read_greeting(ready: &OwnedFd, deadline: Instant) -> io::Result<Greeting> {
    let mut greeting = [0; hello::LENGTH];
    let mut read = 0;
    while read < greeting.len() {
        if !wait_readable(ready, deadline)? {
            return Ok(Greeting::Late);
        }
        match rustix::io::read(ready, &mut greeting[read..]) {
            Ok(0) => return Ok(Greeting::Ended),
            Ok(count) => read += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(Greeting::Whole(greeting))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(sent: &[u8], open: bool) -> Greeting {
        let (reader, writer) = rustix::pipe::pipe().expect("pipe");
        rustix::io::write(&writer, sent).expect("write");
        let _writer = open.then_some(writer);
        let deadline = Instant::now() + Duration::from_millis(20);
        read_greeting(&reader, deadline).expect("read")
    }

    #[test]
    fn a_greeting_is_not_waited_for_longer_than_for_the_guest() {
        let whole = [7; hello::LENGTH];
        assert_eq!(read(&whole, true), Greeting::Whole(whole));
        assert_eq!(read(&whole[1..], true), Greeting::Late);
        assert_eq!(read(&whole[1..], false), Greeting::Ended);
    }
}
