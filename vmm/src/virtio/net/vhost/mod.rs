//! A NIC whose queues the host's kernel serves: vhost-net.
//!
//! [`VhostNet`] is the device that the registers call, in vCPU threads. [`VhostServer`] has the
//! descriptors of vhost-net and of the tap, one of each for each pair of queues, in the thread of an
//! event loop. It makes all ioctls: a vCPU thread doesn't have these descriptors in its private table, and couldn't be given those of
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
//! The kernel serves all pairs that the driver has set up, whether they are in use or not: one whose queue of the tap is
//! detached receives nothing. The control queue is the server's.
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

mod commands;
mod kernel;

pub use kernel::{Vhost, VhostError};

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::time::Duration;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_queue::{Queue, QueueState, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use self::commands::ControlQueue;
use super::config::{self, CONFIG_SIZE, RING_FEATURES};
use super::control::Layout;
use super::tap::Tap;
use super::taps::Taps;
use super::{NicConfig, NicState, check_saved, queue_sizes};
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
/// That of the control queue's kick.
const COMMAND: u32 = FIRST_EVENT + 1;

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
    /// How many pairs of queues it has.
    pairs: usize,
    /// How many of them the driver uses, or the next one uses at first. The server changes it while the device is active,
    /// the device while it isn't.
    in_use: Arc<AtomicUsize>,
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
    /// See [`VhostNet`].
    in_use: Arc<AtomicUsize>,
    queues: Queues,
    /// The control queue's kick, which the loop watches.
    watched: Option<Arc<EventFd>>,
    warnings: RateLimit,
}

/// What the kernel moves frames by, closed in this order.
struct Kernel {
    /// One for each pair.
    vhosts: Vec<Vhost>,
    taps: Taps,
}

/// Who has the queues.
enum Queues {
    /// The device is inactive.
    Inactive,
    /// The kernel serves them.
    InKernel {
        memory: Arc<GuestMemoryMmap>,
        /// The pairs.
        queues: Vec<ActiveQueue>,
        /// This one isn't the kernel's.
        control: Option<Box<ControlQueue>>,
    },
    /// The machine has ended: they were taken back, in these states.
    TakenBack(Vec<QueueState>),
}

impl VhostNet {
    /// An inactive device, and its server. There must be one open `/dev/vhost-net` for each queue of the tap.
    ///
    /// # Errors
    /// There isn't, or the process has too many files open.
    pub fn new(
        config: NicConfig,
        taps: Taps,
        vhosts: Vec<Vhost>,
    ) -> io::Result<(Self, VhostServer)> {
        if vhosts.len() != taps.pairs() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let eventfd = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
        Ok(Self::with_eventfd(config, taps, vhosts, eventfd))
    }

    /// With `eventfd` as the activation eventfd.
    pub(super) fn with_eventfd(
        config: NicConfig,
        taps: Taps,
        vhosts: Vec<Vhost>,
        eventfd: Arc<EventFd>,
    ) -> (Self, VhostServer) {
        let (sender, commands) = mpsc::sync_channel(MAX_COMMANDS);
        let (pairs, in_use) = (taps.pairs(), Arc::new(AtomicUsize::new(1)));
        let of_all = |all, vhost: &Vhost| all & vhost.features();
        let device = Self {
            config,
            config_space: config.config_space(pairs),
            features: vhosts.iter().fold(RING_FEATURES, of_all) | config::features(&taps),
            pairs,
            in_use: Arc::clone(&in_use),
            commands: sender,
            eventfd: Arc::clone(&eventfd),
            is_active: false,
            end_announced: false,
        };
        let server = VhostServer {
            name: super::name(&config),
            kernel: Some(Kernel { vhosts, taps }),
            commands,
            eventfd,
            in_use,
            queues: Queues::Inactive,
            watched: None,
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
        queue_sizes(self.pairs)
    }

    fn queue_count(&self, features: u64) -> usize {
        Layout::of(features, self.pairs).queues()
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
            let queues = self.queue_sizes().iter().map(|size| Queue::new(*size));
            queues.flatten().map(|queue| broken_state(&queue)).collect()
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
        self.in_use.store(1, Ordering::SeqCst);
    }

    fn save(&self) -> Result<DeviceState, SaveError> {
        let in_use = self.in_use.load(Ordering::SeqCst);
        Ok(DeviceState::Net(NicState::new(self.config, in_use)))
    }

    fn restore(&mut self, state: DeviceState) -> Result<(), RestoreError> {
        let in_use = check_saved(&self.config, self.pairs, state)?;
        self.in_use.store(in_use, Ordering::SeqCst);
        Ok(())
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
            mut queues,
            interrupt,
            stop,
        } = activation;
        self.stop(); // an activation whose reply came too late
        let Some(Kernel { vhosts, taps }) = &mut self.kernel else {
            return Err(ActivateError::Stopped);
        };
        let layout = Layout::of(features, taps.pairs());
        layout.check(&queues)?;
        if stop.is_set() {
            return Err(ActivateError::Stopped);
        }
        taps.set_offloads(features)?;
        taps.use_first(self.in_use.load(Ordering::SeqCst).min(layout.pairs))?;
        taps.drop_queued_frames();
        let control = layout.control().and_then(|_| queues.pop());
        let control = control.map(|queue| {
            ControlQueue::new(queue, &memory, features, layout, &interrupt, &stop).map(Box::new)
        });
        let control = control.transpose()?;
        // Before the kernel raises the first interrupt.
        let irqfd = interrupt.irqfd_for_kernel();
        let pairs = queues.chunks(2).zip(vhosts).zip(taps.iter());
        let start = |((pair, vhost), tap): ((_, &mut Vhost), &Tap)| {
            vhost.start(&memory, features, pair, irqfd, tap.file())
        };
        let started = { pairs }.try_for_each(start);
        // The kernel, or the loop, reads what the driver made available before.
        let kicks = queues.iter().map(|queue| &queue.kick);
        let control_kick = control.iter().map(|control| control.kick());
        for kick in kicks.chain(control_kick) {
            let _ = kick.write(1); // a full eventfd is readable too
        }
        self.queues = Queues::InKernel {
            memory,
            queues,
            control,
        };
        if let Err(error) = started {
            self.warn(&error);
            self.stop();
            return Err(io::Error::other(error).into());
        }
        Ok(())
    }

    /// Takes the driver's commands.
    fn on_command(&mut self) {
        let Queues::InKernel {
            control: Some(control),
            ..
        } = &mut self.queues
        else {
            return;
        };
        let Some(Kernel { taps, .. }) = &mut self.kernel else {
            return;
        };
        let (in_use, mut failure) = (&self.in_use, None);
        control.serve(|pairs| match taps.use_first_by_command(pairs) {
            Ok(()) => {
                in_use.store(pairs, Ordering::SeqCst);
                true
            }
            Err(error) => {
                failure = Some(error);
                false
            }
        });
        if let Some(error) = failure {
            let what = format_args!("cannot attach or detach a queue of the tap: {error}");
            self.warnings.warn(&self.name, what);
        }
        if let Some(error) = control.take_failure() {
            let what = format_args!("the control queue is not served until a reset: {error}");
            self.warnings.warn(&self.name, what);
        }
    }

    /// Makes the loop watch the kick of the current control queue instead of a former one.
    fn watch_commands(&mut self, ops: &mut EventOps<'_>) {
        if let Some(kick) = self.watched.take() {
            let _ = ops.remove(Events::empty(&*kick)); // fails if it could not be added
        }
        if let Queues::InKernel {
            control: Some(control),
            ..
        } = &self.queues
        {
            let kick = Arc::clone(control.kick());
            let events = Events::with_data(&*kick, COMMAND, EventSet::IN);
            if let Err(error) = ops.add(events) {
                log::error!("{}: cannot watch for commands: {error:?}", self.name);
            }
            self.watched = Some(kick);
        }
    }

    /// Takes the queues back if the kernel has them, and returns their states.
    fn stop(&mut self) -> Vec<QueueState> {
        let (memory, queues, control) = match std::mem::replace(&mut self.queues, Queues::Inactive)
        {
            Queues::Inactive => return Vec::new(),
            Queues::TakenBack(states) => return states,
            Queues::InKernel {
                memory,
                queues,
                control,
            } => (memory, queues, control),
        };
        let mut states = Vec::with_capacity(queues.len() + 1);
        for (index, active) in queues.iter().enumerate() {
            let kernel = self.kernel.as_ref();
            let vhost = kernel.and_then(|kernel| kernel.vhosts.get(index / 2));
            let state = vhost.map(|vhost| vhost.take_back(&memory, index % 2, &active.queue));
            states.push(match state {
                Some(Ok(state)) => state,
                Some(Err(error)) => {
                    self.warn(&error);
                    broken_state(&active.queue)
                }
                None => broken_state(&active.queue),
            });
        }
        states.extend(control.map(|control| control.state()));
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
        let kernel = kernel.flat_map(|Kernel { vhosts, taps }| {
            let taps = taps.iter().map(AsRawFd::as_raw_fd);
            taps.chain(vhosts.iter().map(AsRawFd::as_raw_fd))
        });
        kernel.chain([self.eventfd.as_raw_fd()]).collect()
    }

    fn unwatch(&mut self, ops: &mut EventOps<'_>) {
        self.stop();
        self.watch_commands(ops);
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

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if events.data() == COMMAND {
            if let Some(kick) = &self.watched {
                let _ = kick.read();
            }
            return self.on_command();
        }
        let _ = self.eventfd.read();
        self.handle_commands();
        self.watch_commands(ops);
    }
}
