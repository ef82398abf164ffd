//! A NIC whose queues the host's kernel serves: vhost-net.
//!
//! [`VhostNet`] is the device that the registers call, in vCPU threads. [`VhostServer`] has the
//! descriptors of vhost-net and of the tap, in the thread of an event loop. It makes all ioctls: a
//! vCPU thread doesn't have these descriptors in its private table, and couldn't be given those of
//! a NIC that is plugged in while the guest runs; its filter doesn't need these ioctls; and the
//! kernel's worker, which the first of them creates, is as confined as the thread that makes it
//! (since Linux 6.4, the worker is a thread of this process, with the user, the capabilities and
//! the filter of its creator).
//!
//! ```text
//! vCPU ── DRIVER_OK, reset ──▶ VhostNet ── command, eventfd ──▶ VhostServer ── ioctl ──▶ vhost-net
//!                                 ▲                                 │                   │ kicks,
//!                                 └───────────── reply ─────────────┘                   │ interrupts,
//!                                                                                       ▼ frames
//!                                                                           KVM, guest memory, tap
//! ```
//!
//! The driver may free its rings as soon as it has written a reset, and must know if the device
//! can't be activated. So the vCPU waits for the reply, while it holds the lock of `VhostNet`. That
//! is why the server is a separate object: it needs no lock to handle a command.
//!
//! # Interrupts
//! The kernel receives kicks directly from KVM, and interrupts the guest directly through KVM: the
//! eventfd that vhost signals (`VHOST_SET_VRING_CALL`) is the transport's irqfd. On virtio-mmio, a
//! driver reads in `InterruptStatus` what an interrupt is for (that of the guest kernel that hull brings
//! doesn't), but nobody here could set the bit: a
//! thread that did, on a second eventfd, would be woken for each interrupt, which vhost is there to
//! avoid. So while the kernel serves the queues, the bit of a used buffer notification always reads
//! as set ([`Interrupt::irqfd_for_kernel`](crate::virtio::Interrupt)). A driver then checks its
//! queues, and has to handle that there is no used buffer (virtio 1.3, 2.7.7.1). Linux's
//! `vm_interrupt` reads the register once for each interrupt and asks each queue whether there is
//! more. A driver that reads it until it is 0 loops for ever, but on its own vCPU.
//!
//! An interrupt that was lost while it was masked is raised again when it is unmasked, as for any
//! device; here also if it was not lost, since nobody knows whether it was acknowledged.
//!
//! # The end of the machine
//! The kernel doesn't check the machine's [`StopFlag`](crate::stop::StopFlag) before each frame. So
//! a vCPU thread that ends commands the server to take the queues back
//! ([`VirtioDevice::machine_ended`]): a moment after that, no frame is moved any more. The server also closes
//! vhost-net and the tap then: for each of the two the kernel waits until all CPUs have taken notice, tens of
//! milliseconds in all. The end of the process would wait for them one after the other, once it has waited for KVM;
//! so it all goes on at once.

mod kernel;

pub use kernel::{Vhost, VhostError};

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::time::Duration;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_queue::{Queue, QueueState, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::config::{self, CONFIG_SIZE};
use super::tap::Tap;
use super::{NicConfig, QUEUE_SIZES, QUEUES, check_saved};
use crate::chain::chain;
use crate::event_loop::Subscriber;
use crate::rate_limit::RateLimit;
use crate::virtio::device::{
    ActivateError, Activation, ActiveQueue, DeviceState, RestoreError, SaveError, VirtioDevice,
};
use crate::virtio::lifecycle::FIRST_EVENT;

/// How long a vCPU waits for the reply to a command. The server's thread may serve other NICs, but
/// never blocks for long.
const REPLY_TIMEOUT: Duration = Duration::from_secs(5);

/// The most commands that are queued: to activate, whose sender has given up; that the machine has
/// ended; and to stop.
const MAX_COMMANDS: usize = 3;

/// The event data of the activation eventfd, as for devices with a
/// [`Lifecycle`](crate::virtio::lifecycle::Lifecycle).
const ACTIVATION_CHANGED: u32 = FIRST_EVENT;

/// What the device commands the server to do, with the sender of the reply.
enum Command {
    Activate(Box<Activation>, SyncSender<Result<(), ActivateError>>),
    Stop(SyncSender<Vec<QueueState>>),
    /// The machine has ended: the kernel must not serve the queues any more.
    MachineEnded,
}

/// The device that the registers call.
#[derive(Debug)]
pub struct VhostNet {
    config: NicConfig,
    config_space: [u8; CONFIG_SIZE],
    features: u64,
    commands: SyncSender<Command>,
    /// Notifies the server of a command.
    eventfd: Arc<EventFd>,
    is_active: bool,
    /// The server was told, since the last activation, that the machine has ended.
    end_announced: bool,
}

/// What has the descriptors, and is served by an event loop.
pub struct VhostServer {
    /// The NIC's name, for messages.
    name: String,
    /// None once the machine has ended.
    kernel: Option<Kernel>,
    commands: Receiver<Command>,
    eventfd: Arc<EventFd>,
    queues: Queues,
    warnings: RateLimit,
}

/// What the kernel moves frames by, closed in this order.
struct Kernel {
    vhost: Vhost,
    tap: Tap,
}

/// Who has the queues.
enum Queues {
    /// The device is inactive.
    Inactive,
    /// The kernel serves them.
    InKernel {
        memory: Arc<GuestMemoryMmap>,
        queues: Vec<ActiveQueue>,
    },
    /// The machine has ended: they were taken back, in these states.
    TakenBack(Vec<QueueState>),
}

impl VhostNet {
    /// An inactive device, and its server.
    ///
    /// # Errors
    /// The process has too many files open.
    pub fn new(config: NicConfig, tap: Tap, vhost: Vhost) -> io::Result<(Self, VhostServer)> {
        let eventfd = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        Ok(Self::with_eventfd(config, tap, vhost, eventfd))
    }

    /// With `eventfd` as the activation eventfd.
    pub(super) fn with_eventfd(
        config: NicConfig,
        tap: Tap,
        vhost: Vhost,
        eventfd: Arc<EventFd>,
    ) -> (Self, VhostServer) {
        let (sender, commands) = mpsc::sync_channel(MAX_COMMANDS);
        let device = Self {
            config,
            config_space: config.config_space(),
            features: vhost.features() | config::features(tap.has_uso()),
            commands: sender,
            eventfd: Arc::clone(&eventfd),
            is_active: false,
            end_announced: false,
        };
        let server = VhostServer {
            name: super::name(&config),
            kernel: Some(Kernel { vhost, tap }),
            commands,
            eventfd,
            queues: Queues::Inactive,
            warnings: RateLimit::default(),
        };
        (device, server)
    }

    /// Sends a command without waiting.
    fn send(&self, command: Command) -> io::Result<()> {
        self.commands.try_send(command).map_err(|_| not_served())?;
        let _ = self.eventfd.write(1); // a full eventfd is readable too
        Ok(())
    }

    /// Sends a command, and waits for the reply.
    fn call<T>(&self, command: impl FnOnce(SyncSender<T>) -> Command) -> io::Result<T> {
        let (sender, reply) = mpsc::sync_channel(1);
        self.send(command(sender))?;
        reply
            .recv_timeout(REPLY_TIMEOUT)
            .map_err(|error| match error {
                mpsc::RecvTimeoutError::Disconnected => not_served(),
                mpsc::RecvTimeoutError::Timeout => {
                    let seconds = REPLY_TIMEOUT.as_secs();
                    io::Error::other(format!(
                        "the thread that serves the NIC did not reply in {seconds} s"
                    ))
                }
            })
    }
}

fn not_served() -> io::Error {
    io::Error::other("no thread serves the NIC any more")
}

impl VirtioDevice for VhostNet {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn activation_eventfd(&self) -> Option<RawFd> {
        Some(self.eventfd.as_raw_fd())
    }

    fn config(&self) -> &[u8] {
        &self.config_space
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let activation = Box::new(activation);
        self.call(|reply| Command::Activate(activation, reply))??;
        self.is_active = true;
        self.end_announced = false;
        Ok(())
    }

    fn stop(&mut self) -> Vec<QueueState> {
        if !std::mem::take(&mut self.is_active) {
            return Vec::new();
        }
        self.call(Command::Stop).unwrap_or_else(|error| {
            log::error!("{}: {error}", super::name(&self.config));
            let queues = QUEUE_SIZES.map(|size| Queue::new(size).ok());
            queues.iter().flatten().map(broken_state).collect()
        })
    }

    fn machine_ended(&mut self) {
        if self.is_active && !self.end_announced {
            // Fails if there is no server, which takes the queues back when it is dropped.
            self.end_announced = self.send(Command::MachineEnded).is_ok();
        }
    }

    fn reset(&mut self) {
        self.stop();
    }

    fn save(&self) -> Result<DeviceState, SaveError> {
        Ok(DeviceState::Net(self.config))
    }

    fn restore(&mut self, state: DeviceState) -> Result<(), RestoreError> {
        check_saved(&self.config, state)
    }
}

/// The state of a queue that isn't served until a reset.
fn broken_state(queue: &Queue) -> QueueState {
    QueueState {
        ready: false,
        ..queue.state()
    }
}

impl VhostServer {
    fn handle_commands(&mut self) {
        for _ in 0..MAX_COMMANDS {
            match self.commands.try_recv() {
                Ok(Command::Activate(activation, reply)) => {
                    let activated = self.activate(*activation);
                    // A device that doesn't wait any more takes its activation for failed.
                    if reply.send(activated).is_err() {
                        self.stop();
                    }
                }
                Ok(Command::Stop(reply)) => {
                    let _ = reply.send(self.stop());
                }
                Ok(Command::MachineEnded) => {
                    self.queues = Queues::TakenBack(self.stop());
                    self.kernel = None;
                }
                Err(_) => return,
            }
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let Activation {
            memory,
            features,
            queues,
            interrupt,
            stop,
        } = activation;
        let (expected, found) = (QUEUES, queues.len());
        if found != expected {
            return Err(ActivateError::QueueCount { expected, found });
        }
        if stop.is_set() {
            return Err(ActivateError::Stopped);
        }
        self.stop(); // an activation whose reply came too late
        let Some(Kernel { vhost, tap }) = &mut self.kernel else {
            return Err(ActivateError::Stopped);
        };
        tap.set_offloads(features)?;
        tap.drop_queued_frames();
        // Before the kernel raises the first interrupt.
        let irqfd = interrupt.irqfd_for_kernel();
        let started = vhost.start(&memory, features, &queues, irqfd, tap.file());
        // The kernel reads what the driver made available before.
        for queue in &queues {
            let _ = queue.kick.write(1); // a full eventfd is readable too
        }
        self.queues = Queues::InKernel { memory, queues };
        if let Err(error) = started {
            self.warn(&error);
            self.stop();
            return Err(io::Error::other(error).into());
        }
        Ok(())
    }

    /// Takes the queues back if the kernel has them, and returns their states.
    fn stop(&mut self) -> Vec<QueueState> {
        let (memory, queues) = match std::mem::replace(&mut self.queues, Queues::Inactive) {
            Queues::Inactive => return Vec::new(),
            Queues::TakenBack(states) => return states,
            Queues::InKernel { memory, queues } => (memory, queues),
        };
        let mut states = Vec::with_capacity(queues.len());
        for (index, active) in queues.iter().enumerate() {
            let kernel = self.kernel.as_ref();
            let state = kernel.map(|kernel| kernel.vhost.take_back(&memory, index, &active.queue));
            states.push(match state {
                Some(Ok(state)) => state,
                Some(Err(error)) => {
                    self.warn(&error);
                    broken_state(&active.queue)
                }
                None => broken_state(&active.queue),
            });
        }
        states
    }

    /// Logs an error that the guest can cause, by activating the device again and again.
    fn warn(&mut self, error: &VhostError) {
        self.warnings
            .warn(&self.name, format_args!("{}", chain(error)));
    }
}

/// The kernel must not use guest memory any more when that is unmapped.
impl Drop for VhostServer {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Subscriber for VhostServer {
    fn descriptors(&self) -> Vec<RawFd> {
        let kernel = self.kernel.iter();
        let kernel = kernel.flat_map(|kernel| [kernel.tap.as_raw_fd(), kernel.vhost.as_raw_fd()]);
        kernel.chain([self.eventfd.as_raw_fd()]).collect()
    }

    fn unwatch(&mut self, ops: &mut EventOps<'_>) {
        self.stop();
        let _ = ops.remove(Events::empty(&*self.eventfd)); // fails if it never was added
    }
}

impl MutEventSubscriber for VhostServer {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let commands = Events::with_data(&*self.eventfd, ACTIVATION_CHANGED, EventSet::IN);
        if let Err(error) = ops.add(commands) {
            log::error!("{}: cannot watch for its activation: {error:?}", self.name);
        }
    }

    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        let _ = self.eventfd.read();
        self.handle_commands();
    }
}
