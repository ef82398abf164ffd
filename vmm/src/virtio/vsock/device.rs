//! The device: its queues, and the events that make it work.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_memory::{GuestMemoryMmap, VolatileSlice};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::connection::Connection;
use super::control::Control;
use super::deadlines::Deadline;
use super::endpoint::Moved;
use super::muxer::{FIRST_RESERVED, Muxer, Waiter};
use super::packet::{HEADER_SIZE, PacketError, RxBuffer, TxPacket, truncate};
use super::queues::Ring;
use super::{Direction, Offered, Token, VsockError};
use crate::event_loop::Subscriber;
use crate::virtio::{ActivateError, Activation, Interrupt, VirtioDevice};

/// Receive, transmit, event. Linux fills the receive queue with buffers of 4 KiB: a megabyte of them.
const QUEUE_SIZES: [u16; 3] = [256, 256, 8];

/// Packets from the guest handled in one turn of the loop.
const TX_BUDGET: usize = 64;

/// Senders to the guest served in one turn of the loop, 64 KiB each.
const RX_BUDGET: usize = 16;

/// Buffers of the guest's filled by one read.
const RX_BATCH: usize = 32;

/// How long no client is accepted after it failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(250);

// What an event is about, where it isn't a stream or a client.
const WAKE: u32 = FIRST_RESERVED;
const TIMER: u32 = FIRST_RESERVED + 1;
const LISTENER: u32 = FIRST_RESERVED + 2;
const RX_KICK: u32 = FIRST_RESERVED + 3;
const TX_KICK: u32 = FIRST_RESERVED + 4;
const EVENT_KICK: u32 = FIRST_RESERVED + 5;

/// Streams on offer to the guest.
#[derive(Debug)]
pub struct Attached {
    /// Where the guest finds each stream, in the order they were given.
    pub streams: Vec<Offered>,
    /// Readable once every stream has ended and every byte was written. The process must not exit
    /// before, or output is lost.
    pub done: EventFd,
}

/// What the driver has set up.
#[derive(Debug)]
struct Active {
    memory: Arc<GuestMemoryMmap>,
    interrupt: Interrupt,
    rx: Ring,
    tx: Ring,
    /// Never used: the only event there is tells of a migration.
    event_kick: Arc<EventFd>,
    /// There may be packets in the transmit queue.
    tx_pending: bool,
    /// The guest has to make buffers available before it can be sent anything.
    rx_starved: bool,
}

/// The virtio-vsock device.
#[derive(Debug)]
pub struct Vsock {
    config: [u8; 8],
    muxer: Muxer,
    control: Control,
    /// Has the loop look at what another thread has changed, or at the rest of the work.
    wake: EventFd,
    active: Option<Active>,
    /// The device was activated or reset, and the loop hasn't seen to it yet.
    changed: bool,
    /// The kicks that the loop watches, maybe those of an activation that was reset.
    watched: Vec<Arc<EventFd>>,
}

impl Vsock {
    /// Makes the device. `guest_cid` is the guest's context id; ports from `first_port` on are handed
    /// out by the muxer; clients come to `listener`, which is made non-blocking.
    ///
    /// # Errors
    /// If the context id is reserved, or the process is out of descriptors.
    pub fn new(
        guest_cid: u64,
        first_port: u32,
        listener: UnixListener,
    ) -> Result<Self, VsockError> {
        if guest_cid <= super::HOST_CID || guest_cid >= u32::MAX.into() {
            return Err(VsockError::GuestCid(guest_cid));
        }
        let io_error = |action| move |source| VsockError::Io { action, source };
        Ok(Self {
            config: guest_cid.to_le_bytes(),
            muxer: Muxer::new(guest_cid, first_port).map_err(io_error("make a timer"))?,
            control: Control::new(listener).map_err(io_error("use the control socket"))?,
            wake: new_eventfd()?,
            active: None,
            changed: false,
            watched: Vec::new(),
        })
    }

    /// Offers descriptors to the guest on fresh ports; each serves the first connection that sends its
    /// token.
    ///
    /// # Errors
    /// If there are too many streams, or a descriptor can't be examined.
    pub fn attach(&mut self, streams: Vec<(Direction, OwnedFd)>) -> Result<Attached, VsockError> {
        let done = new_eventfd()?;
        let waiter = done.try_clone().map_err(|source| VsockError::Io {
            action: "duplicate an eventfd",
            source,
        })?;
        let (_, streams) = self.muxer.attach(streams, Waiter::EventFd(waiter))?;
        Ok(Attached { streams, done })
    }

    /// Offers a descriptor to the guest on a port below the `first_port` of [`Self::new`]. Returns the
    /// token that is to be sent first.
    ///
    /// # Errors
    /// If the port is taken, there are too many streams, or the descriptor can't be examined.
    pub fn attach_at(
        &mut self,
        port: u32,
        direction: Direction,
        fd: OwnedFd,
    ) -> Result<Token, VsockError> {
        self.muxer.attach_at(port, direction, fd)
    }

    /// The same without a token, for what is taken before the guest has anybody who isn't meant: the
    /// first connection that sends something gets it, and later ones nothing.
    ///
    /// # Errors
    /// As [`Self::attach_at`].
    pub fn attach_open(
        &mut self,
        port: u32,
        direction: Direction,
        fd: OwnedFd,
    ) -> Result<(), VsockError> {
        self.muxer.attach_open(port, direction, fd)
    }

    /// To be called once the machine has been told to stop: what the guest has sent is still written to its
    /// descriptors, and then the groups of streams end.
    pub fn guest_stopped(&mut self) {
        self.muxer.withdraw_all();
        self.reset();
    }

    fn wake(&self) {
        // A full eventfd is readable too.
        let _ = self.wake.write(1);
    }

    /// Catches up with what activation or reset have done in another thread.
    fn on_wake(&mut self, ops: &mut EventOps) {
        let _ = self.wake.read();
        if !std::mem::take(&mut self.changed) {
            return;
        }
        for kick in self.watched.drain(..) {
            let _ = ops.remove(Events::empty(&*kick));
        }
        self.muxer.settle_all(ops);
        let Some(active) = &mut self.active else {
            return;
        };
        for (kick, token) in [
            (&active.rx.kick, RX_KICK),
            (&active.tx.kick, TX_KICK),
            (&active.event_kick, EVENT_KICK),
        ] {
            match ops.add(Events::with_data(&**kick, token, EventSet::IN)) {
                Ok(()) => self.watched.push(Arc::clone(kick)),
                Err(error) => log::error!("vsock: cannot watch a queue: {error}"),
            }
        }
        // A kick may have come before anybody watched.
        active.tx_pending = true;
    }

    fn on_timer(&mut self, ops: &mut EventOps) {
        for deadline in self.muxer.deadlines.expired() {
            match deadline {
                Deadline::Line(client) => {
                    self.control.on_line_deadline(client, &mut self.muxer, ops);
                }
                Deadline::Accept => self.listen(ops),
                stream => self.muxer.on_deadline(stream, ops),
            }
        }
    }

    fn listen(&mut self, ops: &mut EventOps) {
        if let Err(error) = self.control.listen(LISTENER, ops) {
            log::error!("vsock: cannot watch the control socket: {error}");
        }
    }

    fn accept_clients(&mut self, ops: &mut EventOps) {
        if let Err(error) = self.control.accept(&mut self.muxer, ops) {
            log::warn!("vsock: no control clients are accepted for a moment: {error}");
            self.muxer.deadlines.set(Deadline::Accept, ACCEPT_PAUSE);
        }
    }

    /// Takes packets from the guest, a bounded number.
    fn receive_packets(&mut self, ops: &mut EventOps) {
        let Some(active) = &mut self.active else {
            return;
        };
        let memory = Arc::clone(&active.memory);
        active.tx.hush(&memory);
        for _ in 0..TX_BUDGET {
            let Some(chain) = active.tx.pop(&memory) else {
                if active.tx.wait_for_more(&memory) {
                    continue;
                }
                active.tx_pending = false;
                return;
            };
            let head = chain.head_index();
            match TxPacket::parse(&memory, chain) {
                Ok(packet) => self.muxer.receive(&packet.header, packet.payload, ops),
                Err(error) => self
                    .muxer
                    .warn(format_args!("a packet is dropped: {error}")),
            }
            active.tx.publish(&memory, head, 0);
        }
        active.tx_pending = true;
    }

    /// Sends packets to the guest, a bounded number, in turn of their senders.
    fn send_packets(&mut self, ops: &mut EventOps) {
        let Some(active) = &mut self.active else {
            return;
        };
        let memory = Arc::clone(&active.memory);
        for _ in 0..RX_BUDGET {
            if active.rx_starved {
                return;
            }
            let mut malformed = None;
            let warn = |error| malformed = Some(error);
            if let Some(header) = self.muxer.next_reply() {
                match active.rx.next_buffer(&memory, warn) {
                    Some(buffer) => {
                        buffer.write_header(header);
                        active.rx.publish(&memory, buffer.head, HEADER_SIZE as u32);
                        self.muxer.reply_sent();
                    }
                    None => active.rx_starved = true,
                }
            } else if let Some(connection) = self.muxer.next_sender() {
                match serve(connection, &mut active.rx, &memory, warn) {
                    Ok(()) => self.muxer.sender_served(ops),
                    Err(Starved) => active.rx_starved = true,
                }
            } else {
                return;
            }
            if let Some(error) = malformed {
                self.muxer
                    .warn(format_args!("a receive buffer is not used: {error}"));
            }
        }
    }

    /// What is to be done after every event.
    fn work(&mut self, ops: &mut EventOps) {
        if self.active.as_ref().is_some_and(|active| active.tx_pending) {
            self.receive_packets(ops);
        }
        self.send_packets(ops);
        if let Some(active) = &mut self.active {
            let rx = active.rx.take_interrupt(&active.memory);
            let tx = active.tx.take_interrupt(&active.memory);
            if rx || tx {
                active.interrupt.used_buffer();
            }
            let troubles = [active.rx.take_trouble(), active.tx.take_trouble()];
            for error in troubles.into_iter().flatten() {
                self.muxer
                    .warn(format_args!("a queue is not served any more: {error}"));
            }
            if active.tx_pending || (self.muxer.has_packets() && !active.rx_starved) {
                self.wake(); // others have their turn first
            }
        }
        for client in std::mem::take(&mut self.muxer.done_clients) {
            self.control.done(client, &mut self.muxer, ops);
        }
    }
}

/// The guest has no buffers left.
struct Starved;

/// Sends the guest what a connection has for it: a control packet that is due, and one read's worth of
/// data.
fn serve(
    connection: &mut Connection,
    rx: &mut Ring,
    memory: &GuestMemoryMmap,
    mut warn: impl FnMut(PacketError),
) -> Result<(), Starved> {
    if connection.owes_control() {
        let buffer = rx.next_buffer(memory, &mut warn).ok_or(Starved)?;
        if let Some(header) = connection.take_control() {
            buffer.write_header(&header);
            rx.publish(memory, buffer.head, HEADER_SIZE as u32);
        }
    }
    let wanted = connection.sendable();
    if wanted == 0 {
        return Ok(());
    }
    let first = rx.next_buffer(memory, &mut warn).ok_or(Starved)?;
    if first.room() == 0 {
        rx.publish(memory, first.head, 0);
        return Ok(());
    }
    let more = rx.more_buffers(memory, wanted.saturating_sub(first.room()), RX_BATCH - 1);
    let buffers: Vec<RxBuffer<'_>> = std::iter::once(first).chain(more).collect();
    let mut slices: Vec<VolatileSlice<'_>> = buffers
        .iter()
        .flat_map(|buffer| buffer.payload.iter().cloned())
        .collect();
    truncate(&mut slices, wanted);
    let Moved::Bytes(mut rest) = connection.read(&slices) else {
        rx.put_back(buffers.len());
        return Ok(());
    };
    let mut filled = 0;
    for buffer in &buffers {
        if rest == 0 {
            break;
        }
        let len = buffer.room().min(rest);
        rest -= len;
        buffer.write_header(&connection.data_header(len as u32));
        rx.publish(memory, buffer.head, (HEADER_SIZE + len) as u32);
        filled += 1;
    }
    rx.put_back(buffers.len() - filled);
    Ok(())
}

fn new_eventfd() -> Result<EventFd, VsockError> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(|source| VsockError::Io {
        action: "make an eventfd",
        source,
    })
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        // No VIRTIO_VSOCK_F_*: without them there are stream sockets only (virtio 1.3, 5.10.3).
        1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX
    }

    fn doorbell(&self) -> Option<RawFd> {
        Some(self.wake.as_raw_fd())
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let event_idx = activation.features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let found = activation.queues.len();
        let Ok([rx, tx, event]) = <[_; 3]>::try_from(activation.queues) else {
            let expected = QUEUE_SIZES.len();
            return Err(ActivateError::QueueCount { expected, found });
        };
        self.active = Some(Active {
            memory: activation.memory,
            interrupt: activation.interrupt,
            rx: Ring::new(rx, event_idx),
            tx: Ring::new(tx, event_idx),
            event_kick: event.kick,
            tx_pending: false,
            rx_starved: false,
        });
        self.changed = true;
        self.wake();
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
        self.muxer.forget_guest();
        self.changed = true;
        self.wake();
    }
}

impl Subscriber for Vsock {
    fn descriptors(&self) -> Vec<RawFd> {
        let own = [self.wake.as_raw_fd()].into_iter();
        own.chain(self.muxer.descriptors())
            .chain(self.control.descriptors())
            .collect()
    }
}

impl MutEventSubscriber for Vsock {
    fn init(&mut self, ops: &mut EventOps) {
        let own = [
            (self.wake.as_raw_fd(), WAKE),
            (self.muxer.deadlines.as_fd().as_raw_fd(), TIMER),
        ];
        for (fd, token) in own {
            if let Err(error) = ops.add(Events::with_data_raw(fd, token, EventSet::IN)) {
                log::error!("vsock: cannot watch the device's own events: {error}");
            }
        }
        self.listen(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            WAKE => self.on_wake(ops),
            TIMER => self.on_timer(ops),
            LISTENER => self.accept_clients(ops),
            kick @ (RX_KICK | TX_KICK | EVENT_KICK) => {
                if let Some(active) = &mut self.active {
                    match kick {
                        RX_KICK => {
                            let _ = active.rx.kick.read();
                            active.rx_starved = false;
                            active.rx.hush(&active.memory);
                        }
                        TX_KICK => {
                            let _ = active.tx.kick.read();
                            active.tx_pending = true;
                        }
                        _ => {
                            let _ = active.event_kick.read();
                        }
                    }
                }
            }
            number => {
                let set = events.event_set();
                if !self.muxer.on_event(number, set, ops) {
                    let connectable = self.active.is_some();
                    self.control
                        .on_event(number, set, connectable, &mut self.muxer, ops);
                }
            }
        }
        self.work(ops);
    }
}

/// What tests look at and change.
#[cfg(test)]
impl Vsock {
    pub(super) fn streams(&self) -> usize {
        self.muxer.streams()
    }

    pub(super) fn queued_replies(&self) -> usize {
        self.muxer.queued_replies()
    }

    pub(super) fn claims(&self) -> usize {
        self.muxer.claims()
    }

    /// The token of a port on offer.
    pub(super) fn token(&self, port: u32) -> Option<Token> {
        self.muxer.token(port)
    }

    pub(super) fn buffered(&self) -> usize {
        self.muxer.buffered()
    }

    pub(super) fn shorten_timeouts(&mut self) {
        self.muxer.timeouts = super::muxer::Timeouts {
            response: Duration::from_millis(20),
            shutdown: Duration::from_millis(20),
            token: Duration::from_millis(20),
            unclaimed: Duration::from_millis(20),
            line: Duration::from_millis(20),
        };
    }
}
