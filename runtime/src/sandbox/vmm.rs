//! The VMM process: puts the machine together, jails itself, runs the guest, exits as the container did.
//!
//! This is the part of `hull` that lives beside hostile code. It parses nothing of the guest's itself
//! but eight bytes of greeting, which it passes on unread, and one byte of exit status.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use hull_protocol::ports;
use hull_vmm::jail::{self, Identity, Role, tree, userns};
use hull_vmm::virtio::block::DiskError;
use hull_vmm::virtio::fs::{self, Fs};
use hull_vmm::virtio::mem::MemError;
use hull_vmm::virtio::rng::Rng;
use hull_vmm::virtio::vsock::{self, Attached, Direction, Giver, Vsock, VsockError};
use hull_vmm::{Console, ConsoleLimits, EventLoop, Machine, MachineConfig, ReadyMachine};
use rustix::pipe::PipeFlags;
use vmm_sys_util::eventfd::EventFd;

use super::assets::{self, Program};
use super::clock::ClockWatch;
use super::devices::{
    Requests, attach_disk_slots, attach_disks, attach_memory, attach_nic_slots, start_loops,
};
use super::lifeline::{self, Report};
use super::messages::Messages;
use super::notices::Notices;
use super::signals::{self, Signals};
use super::supervisor::{End, Supervisor, Watched};
use super::{
    HostStream, HostTerminal, Offer, Sizes, Streams, VmConfig, VmmConfig, handover, namespaces,
    stdio,
};
use crate::chain::chain;
use crate::host::Privilege;
use crate::spec::Network;

/// The guest's context id: any above the reserved ones, for each VM has a muxer of its own.
const GUEST_CID: u64 = 3;

/// What the process is called on the host, until its container has ended ([`crate::host::ENDED`]).
const NAME: &CStr = c"hull-vmm";

/// What the process exits with if the guest ended without an exit status.
const CRASHED: u8 = 255;

/// Why there is no running guest.
#[derive(Debug, thiserror::Error)]
pub(super) enum VmmError {
    #[error("the VM process's configuration")]
    Config(#[source] io::Error),
    #[error("{what}")]
    Io {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Namespaces(#[from] namespaces::Error),
    #[error("config.json: process.oomScoreAdj: the host's kernel refuses it for the VM process")]
    OomScore(#[source] io::Error),
    #[error("config.json: linux.memoryPolicy: the host's kernel refuses it")]
    MemoryPolicy(#[source] io::Error),
    #[error(transparent)]
    Machine(#[from] hull_vmm::MachineError),
    #[error(transparent)]
    Jail(#[from] jail::Error),
    #[error(transparent)]
    CoreScheduling(#[from] jail::core_scheduling::Unsupported),
    #[error(transparent)]
    UserNamespace(#[from] userns::Error),
    #[error(transparent)]
    Tree(#[from] tree::Error),
    #[error("virtio-fs")]
    Fs(#[from] fs::Error),
    #[error("virtio-blk")]
    Disk(#[from] DiskError),
    #[error("virtio-mem")]
    Memory(#[from] MemError),
    #[error(transparent)]
    Limits(#[from] jail::limits::Error),
    #[error(transparent)]
    Vsock(#[from] VsockError),
}

pub(super) fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> VmmError {
    move |source| VmmError::Io { what, source }
}

/// Runs the VM that the configuration in the memory file `config_fd` describes.
pub fn run(config_fd: RawFd) -> ExitCode {
    // Its program's is `exe`.
    let _ = rustix::thread::set_name(NAME);
    let (config, config_file) = match read_config(config_fd) {
        Ok(read) => read,
        Err(e) => {
            eprintln!("hull vmm: {}", chain(&e));
            return ExitCode::FAILURE;
        }
    };
    let report_to = match config.ends.lifeline.try_clone() {
        Ok(lifeline) => UnixStream::from(lifeline),
        Err(_) => return ExitCode::FAILURE,
    };
    if config.vm.held && lifeline::wait_to_begin(&report_to).is_err() {
        return ExitCode::FAILURE;
    }
    let run = |vm: Vm| vm.report_and_run(&report_to);
    match assemble(config, config_file, &report_to).and_then(run) {
        Ok(end) => end,
        Err(e) => {
            let _ = lifeline::send(&report_to, &Report::<Streams>::Failed(chain(&e)));
            ExitCode::FAILURE
        }
    }
}

/// What `create` has left to this process, taken over once, with the file that says whose process it is.
fn read_config(config_fd: RawFd) -> Result<(VmmConfig, OwnedFd), VmmError> {
    let (config, file): (VmmConfig<RawFd>, _) =
        handover::read(config_fd).map_err(VmmError::Config)?;
    let config = config.with(|fd| handover::take(*fd));
    Ok((config.map_err(VmmError::Config)?, file))
}

/// A machine that waits to be let go, and what its end depends on.
struct Vm {
    config_file: OwnedFd,
    events: EventLoop,
    machine: ReadyMachine,
    identity: Identity,
    supervisor: Arc<Mutex<Supervisor>>,
    messages: Arc<Mutex<Messages>>,
    streams: Streams,
}

/// From a configuration to a machine that waits to be let go. The order matters: what needs the host's
/// files comes before the tree, the tree before any thread, what threads have in common before any of them
/// is confined, and all of them are before the guest runs.
fn assemble(
    config: VmmConfig,
    config_file: OwnedFd,
    report_to: &UnixStream,
) -> Result<Vm, VmmError> {
    let open_files = settle(&config, [report_to.as_fd(), config_file.as_fd()])?;
    let VmmConfig { mut vm, ends } = config;
    let stdio = ContainerStdio::take(&mut vm)?;
    let is_terminal = stdio.is_terminal;

    let (console, messages) =
        hear(&vm, ends.console).map_err(io_error("replace standard error"))?;
    let mut machine = load_machine(&vm, ends.kvm)?;
    // Elsewhere there is no id that nobody else has.
    let identity = match Privilege::own() {
        Privilege::HostRoot => Identity::unique_user()?,
        Privilege::NamespaceRoot | Privilege::User => Identity::Unchanged,
    };
    let (giver, taker) = match vm.volume_sockets {
        true => vsock::giver().map(|(giver, taker)| (Some(giver), Some(taker))),
        false => Ok((None, None)),
    }
    .map_err(io_error("make a pair of sockets"))?;
    let SharedFiles {
        device: fs,
        task_dir,
        processes,
    } = share(&mut vm, ends.user_namespace, giver, open_files)?;
    let fs = Arc::new(Mutex::new(fs));
    let rng = Arc::new(Mutex::new(Rng::new().map_err(io_error("make virtio-rng"))?));
    let Connections {
        vsock,
        stdio,
        output_done,
        clock,
        signals,
        exit_status,
        exit_stream,
    } = Connections::make(ends.listener, ends.ready, stdio)?;

    if let (Some(taker), Ok(mut vsock)) = (taker, vsock.lock()) {
        vsock.take_from(taker);
    }

    let mut events = EventLoop::new().map_err(io_error("make the event loop"))?;
    let fs_eventfds = machine.attach(Arc::clone(&fs))?;
    events.keep_open(machine.attach(Arc::clone(&vsock))?);
    events.keep_open(machine.attach(Arc::clone(&rng))?);
    let serials = vm.disks.iter().map(|disk| disk.serial.clone()).collect();
    let disks = attach_disks(vm.disks, &mut machine)?;
    let (slots, disk_handles) = attach_disk_slots(vm.disk_slots, &mut machine)?;
    let (nics, nic_handles) = attach_nic_slots(vm.nic_slots, vm.vcpus, &mut machine)?;
    let requests = Requests {
        disks: disk_handles,
        serials,
        nics: nic_handles,
        memory: attach_memory(&mut machine, &mut events)?,
    };
    requests.take(&vsock, &mut events)?;
    events.add(Arc::clone(&vsock) as _);
    events.add(rng);
    events.add(Arc::new(Mutex::new(clock)));
    events.add(Arc::clone(&messages) as _);
    let files_role = match vm.volume_sockets {
        true => Role::FilesystemAndSockets,
        false => Role::Filesystem,
    };
    fs::spawn(fs, fs_eventfds, move |needed| {
        confine_files(files_role, task_dir, needed)
    })
    .map_err(io_error("start the virtio-fs thread"))?;
    start_loops(disks, Role::Block, identity)?;
    start_loops(slots, Role::DiskSlot, identity)?;
    start_loops(nics, Role::NetSlot, identity)?;
    let machine = machine.start_vcpu_threads(console, move |needed| {
        jail::confine(Role::Vcpu, identity, needed).map_err(io::Error::other)
    })?;

    let (stopped, stopper) = (machine.stopped().try_clone_to_owned(), machine.stopper());
    let supervisor = Supervisor::new(Watched {
        exit_status,
        stop_guest: Box::new(move || {
            stopper.stop();
            if let Ok(mut vsock) = vsock.lock() {
                vsock.guest_stopped();
            }
        }),
        output_done,
        stopped: stopped.map_err(io_error("duplicate an eventfd"))?,
        lifeline: ends.lifeline.into(),
        signals,
        main_loop: events.stop_handle(),
    });
    let supervisor = Arc::new(Mutex::new(supervisor));
    events.add(Arc::clone(&supervisor) as _);
    let streams = Streams {
        stdio: Offer::of(is_terminal, stdio),
        exit_status: exit_stream,
    };
    // All other threads stay in the tree.
    vm.view.show(processes)?;
    Ok(Vm {
        config_file,
        events,
        machine,
        identity,
        supervisor,
        messages,
        streams,
    })
}

/// Makes this process one of its own: its place on the host, no descriptors but those that it was left, its
/// limits. Before any thread, and any memory of the guest's. Returns how many files it may have open.
fn settle(config: &VmmConfig, others: [BorrowedFd<'_>; 2]) -> Result<u64, VmmError> {
    signals::hold().map_err(io_error("hold signals back"))?;
    join(config)?;
    let mut keep: Vec<_> = config.descriptors().into_iter().map(AsFd::as_fd).collect();
    keep.extend(others);
    jail::close_other_fds(&keep)?;
    let limits = jail::limits::apply()?;
    if config.vm.core_scheduling {
        jail::core_scheduling::enable()?;
    }
    // The container's terminal and its signals are not this process's.
    let _ = rustix::process::setsid();
    Ok(limits.nofile)
}

/// The host's side of the container's stdio.
struct ContainerStdio {
    streams: Vec<(Direction, OwnedFd)>,
    is_terminal: bool,
    /// Where following the terminal's size is this process's business.
    sizes: Option<Sizes>,
}

impl ContainerStdio {
    /// Takes it over: this process's standard streams, or the terminal in their place.
    fn take(vm: &mut VmConfig) -> Result<Self, VmmError> {
        let streams = take_stdio().map_err(io_error("take over the standard streams"))?;
        match vm.terminal.take() {
            None => Ok(Self {
                streams,
                is_terminal: false,
                sizes: None,
            }),
            Some(terminal) => {
                Self::of_terminal(terminal).map_err(io_error("take over the terminal"))
            }
        }
    }

    fn of_terminal(terminal: HostTerminal) -> io::Result<Self> {
        let (streams, sizes) = match terminal {
            HostTerminal::Pty(slave) => {
                let (sizes, streams) = Sizes::with_text(slave)?;
                (streams, Some(sizes))
            }
            HostTerminal::Relayed(streams) => (streams, None),
        };
        Ok(Self {
            streams: vec![
                (Direction::Duplex, streams.text),
                (Direction::ToGuest, streams.sizes),
            ],
            is_terminal: true,
            sizes,
        })
    }
}

/// The vsock device, and what this process has at its ports.
struct Connections {
    vsock: Arc<Mutex<Vsock>>,
    /// Where the agent finds the container's stdio.
    stdio: [Option<HostStream>; 3],
    /// Tells when all of the container's output is written.
    output_done: EventFd,
    clock: ClockWatch,
    signals: Signals,
    /// Where the exit status arrives.
    exit_status: OwnedFd,
    /// Where the agent sends it.
    exit_stream: HostStream,
}

impl Connections {
    fn make(
        listener: OwnedFd,
        ready: OwnedFd,
        container: ContainerStdio,
    ) -> Result<Self, VmmError> {
        let mut vsock = Vsock::new(GUEST_CID, ports::FIRST_STREAM, listener.into())?;
        let Attached { streams, done } = vsock.attach(container.streams)?;
        let (notices, guests_end) = Notices::new().map_err(io_error("make a pair of sockets"))?;
        let notices = Arc::new(notices);
        let clock = ClockWatch::new(Arc::clone(&notices)).map_err(io_error("watch the clock"))?;
        let signals = Signals::new(notices, container.sizes).map_err(io_error("watch signals"))?;
        let (exit_status, exit_stream) = offer_fixed_ports(&mut vsock, guests_end, ready)?;
        Ok(Self {
            vsock: Arc::new(Mutex::new(vsock)),
            stdio: [0, 1, 2].map(|n| streams.get(n).copied().map(HostStream::from)),
            output_done: done,
            clock,
            signals,
            exit_status,
            exit_stream,
        })
    }
}

/// Makes the log of what the guest writes to its serial port, and of what this process has to say.
fn hear(vm: &VmConfig, log: OwnedFd) -> io::Result<(Console, Arc<Mutex<Messages>>)> {
    let limits = ConsoleLimits {
        total: vm.console_log_size,
        ..ConsoleLimits::default()
    };
    let console = Console::new(log.try_clone()?, limits);
    let messages = Messages::hear(&console, log)?;
    Ok((console, Arc::new(Mutex::new(messages))))
}

/// Takes the places on the host that config.json names: namespaces, and what the host's memory is to be for it.
fn join(VmmConfig { vm, ends }: &VmmConfig) -> Result<(), VmmError> {
    if let Network::Named(namespace) = &vm.network {
        namespaces::join(namespace)?;
    }
    if ends.user_namespace.is_none() {
        namespaces::complete(&vm.network, false)?;
    }
    if let Some(score) = vm.oom_score_adj {
        match std::fs::write("/proc/self/oom_score_adj", score.to_string()) {
            // Nobody but the host's root may lower it.
            Err(e) if !Privilege::own().is_host_root() => log::debug!("oom_score_adj: {e}"),
            other => other.map_err(VmmError::OomScore)?,
        }
    }
    match &vm.memory_policy {
        Some(policy) => policy.apply().map_err(VmmError::MemoryPolicy),
        None => Ok(()),
    }
}

/// Confines the virtio-fs thread. Returns the directory through which it opens inodes.
fn confine_files(role: Role, task_dir: tree::TaskDir, mut needed: Vec<RawFd>) -> io::Result<File> {
    let own = task_dir.open_thread_fds().map_err(io::Error::other)?;
    needed.push(own.as_raw_fd());
    jail::confine(role, Identity::Unchanged, &needed).map_err(io::Error::other)?;
    Ok(own)
}

/// What this process has of the host's files once it has entered the tree.
struct SharedFiles {
    /// The device that serves the tree.
    device: Fs,
    /// Where its thread finds its own descriptors.
    task_dir: tree::TaskDir,
    /// This process's pid namespace, if it has one of its own.
    processes: Option<tree::Processes>,
}

/// Enters the tree of the shares, for an ordinary user in a user namespace, and makes the device that
/// serves it.
fn share(
    vm: &mut VmConfig,
    user_namespace: Option<OwnedFd>,
    connections: Option<Giver>,
    nofile: u64,
) -> Result<SharedFiles, VmmError> {
    let mut shares = std::mem::take(&mut vm.shares);
    // An ordinary user's process has no pid namespace of its own.
    let processes = match user_namespace {
        Some(_) => None,
        None => tree::Processes::mount(),
    };
    if let Some(namespace) = user_namespace {
        userns::enter(namespace.as_fd())?;
        namespaces::complete(&vm.network, true)?;
        shares.iter_mut().try_for_each(tree::Share::reopen)?;
    }
    let tree = tree::enter(shares)?;
    let memory_bytes = u64::from(vm.memory_mib) << 20;
    let fd_limit = fs::fd_limit(memory_bytes, nofile);
    jail::limits::lower_nofile(nofile.min(fd_limit + fs::RESERVED_FDS))?;
    let device = Fs::new(fs::Options {
        tag: ports::SHARE_TAG.to_owned(),
        root: "/".into(),
        fd_limit,
        cache_timeout: fs::CACHE_TIMEOUT,
        connections,
    })?;
    Ok(SharedFiles {
        device,
        task_dir: tree.task_dir,
        processes,
    })
}

/// Creates the VM, with kernel and initramfs in its memory.
fn load_machine(vm: &VmConfig, kvm: OwnedFd) -> Result<Machine, VmmError> {
    let read = |fd: &OwnedFd| -> Result<Vec<u8>, VmmError> {
        let mut bytes = Vec::new();
        let file = fd
            .try_clone()
            .map_err(io_error("duplicate a file descriptor"))?;
        File::from(file)
            .read_to_end(&mut bytes)
            .map_err(io_error("read the guest's files"))?;
        Ok(bytes)
    };
    let kernel = vm.kernel.as_ref().map(read).transpose()?;
    let initramfs = vm.initramfs.as_ref().map(read).transpose()?;
    let cmdline = format!("{} {}", assets::cmdline(), vm.cmdline);
    let program = Program::open().map_err(io_error("open this program's file"))?;
    let config = MachineConfig {
        vcpus: vm.vcpus,
        memory_mib: vm.memory_mib,
        hotplug_mib: vm.growth_mib,
        kernel: program.image_or(kernel.as_deref(), assets::kernel()),
        initramfs: program.image_or(initramfs.as_deref(), assets::initramfs()),
        cmdline: &cmdline,
    };
    Ok(Machine::with_kvm(kvm, &config)?)
}

/// The ports with fixed numbers. The notices' and that of the agent's greeting have no token: the
/// agent takes them, in this order, before there is a container. Returns where the exit status arrives, and
/// where the agent sends it.
fn offer_fixed_ports(
    vsock: &mut Vsock,
    notices: OwnedFd,
    ready: OwnedFd,
) -> Result<(OwnedFd, HostStream), VmmError> {
    let (exit_status, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)
        .map_err(|e| io_error("make a pipe")(e.into()))?;
    vsock.attach_without_token(ports::NOTICES, Direction::Duplex, notices)?;
    vsock.attach_without_token(ports::READY, Direction::FromGuest, ready)?;
    let port = ports::EXIT_STATUS;
    let token = vsock.attach_at(port, Direction::FromGuest, writer)?;
    Ok((exit_status, HostStream { port, token }))
}

/// Takes the container's streams, and leaves what is nobody's in their place.
fn take_stdio() -> io::Result<Vec<(Direction, OwnedFd)>> {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let mut streams = Vec::new();
    for (fd, direction) in [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()]
        .into_iter()
        .zip(stdio::DIRECTIONS)
    {
        streams.push((direction, stdio::private_description(fd)?));
    }
    jail::descriptors::replace_standard_streams()?;
    Ok(streams)
}

impl Vm {
    /// Confines this thread as well, lets the guest run, tells `create`, and serves until the end.
    fn report_and_run(self, lifeline: &UnixStream) -> Result<ExitCode, VmmError> {
        let Self {
            config_file,
            events,
            machine,
            identity,
            supervisor,
            messages,
            streams,
        } = self;
        let mut needed = events.descriptors();
        needed.extend([lifeline.as_raw_fd(), config_file.as_raw_fd()]);
        jail::confine(Role::Main, identity, &needed)?;
        let machine = machine.start_guest();
        lifeline::send(lifeline, &Report::Up(streams)).map_err(io_error("report to create"))?;
        events.run().map_err(io_error("wait for events"))?;
        let end = supervisor
            .lock()
            .ok()
            .and_then(|supervisor| supervisor.end());
        let status = match end {
            Some(End::Exited(status)) => status,
            Some(End::Abandoned) => CRASHED,
            Some(End::Stopped) | None => {
                if let Some(reason) = machine.stop_reason() {
                    log::error!("the guest ended by itself: {reason}");
                }
                CRASHED
            }
        };
        if let Ok(messages) = messages.lock() {
            messages.pass_on();
        }
        // The kernel takes down the VM and this process's namespaces, and each holds up the other where both are
        // taken down at once.
        if let Err(error) = machine.stop() {
            log::debug!("{error}");
        }
        // No destructor has anything to do that the kernel doesn't do faster.
        std::process::exit(status.into())
    }
}
