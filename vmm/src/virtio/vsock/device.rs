//! The device: its queues and its events.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::QueueState;
use vm_memory::{Bytes, GuestMemoryMmap, VolatileSlice};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::buffers::{more_buffers, next_buffer};
use super::connection::Connection;
use super::control::Control;
use super::deadlines::Deadline;
use super::endpoint::Transferred;
use super::given::{self, Taker};
use super::muxer::{Muxer, Waiter};
use super::packet::{HEADER_SIZE, PacketError, RxBuffer, TxPacket, op, truncate};
use super::{Direction, Offered, OtherRequest, Token, VsockError};
use crate::event_loop::Subscriber;
use crate::virtio::lifecycle::{Active, DeviceEvent, Lifecycle};
use crate::virtio::queue::{DeviceQueue, Turn};
use crate::virtio::{
    ActivateError, Activation, DeviceState, RestoreError, SaveError, VirtioDevice,
};

/// Receive, transmit, event. Linux fills the receive queue with buffers of 4 KiB: a megabyte of them.
const QUEUE_SIZES: [u16; 3] = [256, 256, 8];

/// Packets from the guest handled in one turn of the event loop.
const TX_BUDGET: usize = 64;

/// Connections served in one turn of the event loop, with up to 64 KiB each for the guest.
const RX_BUDGET: usize = 16;

/// The most receive buffers filled by one read.
const RX_BATCH: usize = 32;

/// How long no client is accepted after accepting one has failed, for lack of descriptors or
/// memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(250);

/// The indices of the queues.
pub(super) const RX: usize = 0;
pub(super) const TX: usize = 1;
pub(super) const EVENT: usize = 2;

// The event data of the timer, the listening socket and the taker's; that of streams and clients is below
// `lifecycle::FIRST_EVENT`.
const TIMER: u32 = u32::MAX;
const LISTENER: u32 = u32::MAX - 1;
const GIVEN: u32 = u32::MAX - 2;

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET` (virtio 1.3, 5.10.6.7): all of the guest's connections are gone.
const TRANSPORT_RESET: u32 = 0;

/// Streams that are offered to the guest.
#[derive(Debug)]
pub struct Attached {
    /// The port and the token of each stream, in the order of the descriptors.
    pub streams: Vec<Offered>,
    /// Readable once every stream has ended and every byte has been written. If the process exits
    /// before, output is lost.
    pub done: EventFd,
}

/// The virtio-vsock device.
#[derive(Debug)]
pub struct Vsock {
    config: [u8; 8],
    muxer: Muxer,
    control: Control,
    /// Where another thread gives streams.
    taker: Option<Taker>,
    lifecycle: Lifecycle<[DeviceQueue; QUEUE_SIZES.len()]>,
    /// There are no receive buffers: nothing can be sent to the guest until it makes some
    /// available.
    rx_starved: bool,
    /// A transport reset event has to be sent to the guest.
    transport_reset_pending: bool,
}

/// The saved state of the device, which doesn't include connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockState {
    /// The next port to be allocated. Those below aren't used again: the guest may still send
    /// packets to them.
    next_port: u32,
}

impl Vsock {
    /// Creates the device. `guest_cid` is the guest's context id; the muxer allocates ports from
    /// `first_port` on; `listener` is the control socket, which is made non-blocking.
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
            lifecycle: Lifecycle::new("vsock".to_owned()).map_err(io_error("make an eventfd"))?,
            taker: None,
            rx_starved: false,
            transport_reset_pending: false,
        })
    }

    /// Offers descriptors to the guest on newly allocated ports. Each is joined to the first
    /// connection that sends its token.
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

    /// Offers a descriptor to the guest on a fixed port, below the `first_port` of [`Self::new`].
    /// Returns the token that must be sent first.
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

    /// As [`Self::attach_at`] without a token, for ports that are connected before any untrusted
    /// process runs in the guest: the descriptor is joined to the first connection that sends data,
    /// and later ones are reset.
    ///
    /// # Errors
    /// As [`Self::attach_at`].
    pub fn attach_without_token(
        &mut self,
        port: u32,
        direction: Direction,
        fd: OwnedFd,
    ) -> Result<(), VsockError> {
        self.muxer.attach_without_token(port, direction, fd)
    }

    /// Offers to the guest what another thread gives, from when the device is in its event loop.
    pub fn take_from(&mut self, taker: Taker) {
        self.taker = Some(taker);
    }

    /// Sets the handler of the control socket's requests that aren't about streams. It is called by
    /// the device's event loop, and must not block.
    pub fn on_other_requests(&mut self, handler: impl FnMut(OtherRequest) + Send + 'static) {
        self.control.set_other_handler(Box::new(handler));
    }

    /// To be called once the machine is being stopped: data that the guest has sent is still
    /// written to the descriptors, and then the groups of streams end.
    pub fn guest_stopped(&mut self) {
        self.muxer.withdraw_all();
        self.reset();
    }

    /// Handles an activation or a reset, which has happened on another thread.
    fn on_change(&mut self, ops: &mut EventOps) {
        self.muxer.settle_all(ops);
        self.rx_starved = false;
        self.receive_packets(ops);
        self.send_transport_reset();
    }

    fn on_timer(&mut self, ops: &mut EventOps) {
        for deadline in self.muxer.deadlines.expired() {
            match deadline {
                Deadline::RequestLine(client) => {
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

    /// Handles a bounded number of packets from the guest.
    fn receive_packets(&mut self, ops: &mut EventOps) {
        let Some(active) = self.lifecycle.active() else {
            return;
        };
        let memory = active.memory.guest();
        let turn = Turn {
            budget: TX_BUDGET,
            stop: &active.stop,
            interrupt_each: None,
        };
        let (muxer, taker) = (&mut self.muxer, &self.taker);
        active.queues[TX].serve(memory, turn, |chain| {
            match TxPacket::parse(memory, chain) {
                Ok(packet) => {
                    let TxPacket { header, payload } = packet;
                    let for_given =
                        header.op == op::REQUEST && header.dst_port >= given::FIRST_PORT;
                    if let Some(taker) = taker.as_ref().filter(|_| for_given) {
                        taker.take_all(muxer);
                    }
                    muxer.receive(&header, payload, ops);
                }
                Err(error) => muxer.warn(format_args!("a packet is dropped: {error}")),
            }
            Some(0)
        });
    }

    /// Sends a bounded number of packets to the guest, taking turns between the connections.
    fn send_packets(&mut self, ops: &mut EventOps) {
        let Some(Active { memory, queues, .. }) = self.lifecycle.active() else {
            return;
        };
        let (memory, rx) = (memory.guest(), &mut queues[RX]);
        for _ in 0..RX_BUDGET {
            if self.rx_starved {
                return;
            }
            let mut malformed = None;
            let warn = |error| malformed = Some(error);
            if let Some(header) = self.muxer.next_reply() {
                match next_buffer(rx, memory, warn) {
                    Some(buffer) => {
                        buffer.write_header(header);
                        rx.add_used(memory, buffer.head, HEADER_SIZE as u32);
                        self.muxer.reply_sent();
                    }
                    None => self.rx_starved = true,
                }
            } else if let Some(connection) = self.muxer.next_sender() {
                match serve(connection, rx, memory, warn) {
                    Ok(()) => self.muxer.sender_served(ops),
                    Err(Starved) => self.rx_starved = true,
                }
            } else {
                return;
            }
            if let Some(error) = malformed {
                self.muxer
                    .warn(format_args!("a receive buffer is not used: {error}"));
            }
        }
        if self.muxer.has_packets() && !self.rx_starved {
            rx.kick_self(); // other subscribers are served first
        }
    }

    /// Sends a transport reset event, once the guest has made a buffer for it available.
    fn send_transport_reset(&mut self) {
        let Some(active) = self
            .lifecycle
            .active()
            .filter(|_| self.transport_reset_pending)
        else {
            return;
        };
        let memory = active.memory.guest();
        let turn = Turn {
            budget: 1,
            stop: &active.stop,
            interrupt_each: None,
        };
        active.queues[EVENT].serve(memory, turn, |chain| {
            self.transport_reset_pending = false;
            let event = TRANSPORT_RESET.to_le_bytes();
            let buffer = chain.writable().next()?;
            let written = buffer.len() as usize >= event.len()
                && memory.write_slice(&event, buffer.addr()).is_ok();
            Some(if written { event.len() as u32 } else { 0 })
        });
    }

    /// Done after every event: sends packets, interrupts the guest, and completes control clients.
    fn work(&mut self, ops: &mut EventOps) {
        self.send_packets(ops);
        self.lifecycle.end_turn();
        for client in std::mem::take(&mut self.muxer.done_clients) {
            self.control.finish(client, &mut self.muxer, ops);
        }
    }
}

/// The guest has no receive buffers left.
struct Starved;

/// Sends what a connection has for the guest: a control packet, and the data of one read.
fn serve(
    connection: &mut Connection,
    rx: &mut DeviceQueue,
    memory: &GuestMemoryMmap,
    mut warn: impl FnMut(PacketError),
) -> Result<(), Starved> {
    if connection.has_control() {
        let buffer = next_buffer(rx, memory, &mut warn).ok_or(Starved)?;
        if let Some(header) = connection.take_control() {
            buffer.write_header(&header);
            rx.add_used(memory, buffer.head, HEADER_SIZE as u32);
        }
    }
    let wanted = connection.sendable();
    if wanted == 0 {
        return Ok(());
    }
    let first = next_buffer(rx, memory, &mut warn).ok_or(Starved)?;
    if first.room() == 0 {
        rx.add_used(memory, first.head, 0);
        return Ok(());
    }
    let more = more_buffers(
        rx,
        memory,
        wanted.saturating_sub(first.room()),
        RX_BATCH - 1,
    );
    let buffers: Vec<RxBuffer<'_>> = std::iter::once(first).chain(more).collect();
    let mut slices: Vec<VolatileSlice<'_>> = buffers
        .iter()
        .flat_map(|buffer| buffer.payload.iter().cloned())
        .collect();
    truncate(&mut slices, wanted);
    let Transferred::Bytes(mut rest) = connection.read(&slices) else {
        rx.undo_pop(buffers.len());
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
        rx.add_used(memory, buffer.head, (HEADER_SIZE + len) as u32);
        filled += 1;
    }
    rx.undo_pop(buffers.len() - filled);
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

    fn activation_eventfd(&self) -> Option<RawFd> {
        Some(self.lifecycle.activation_eventfd())
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.lifecycle.activate(activation)
    }

    fn stop(&mut self) -> Vec<QueueState> {
        self.lifecycle.stop()
    }

    fn reset(&mut self) {
        self.transport_reset_pending = false;
        self.muxer.reset_all();
        self.lifecycle.stop();
    }

    fn save(&self) -> Result<DeviceState, SaveError> {
        let next_port = self.muxer.next_port();
        Ok(DeviceState::Vsock(VsockState { next_port }))
    }

    fn restore(&mut self, state: DeviceState) -> Result<(), RestoreError> {
        let DeviceState::Vsock(VsockState { next_port }) = state else {
            return Err(RestoreError::Differs { what: "type" });
        };
        self.muxer.skip_ports(next_port);
        self.muxer.reset_all();
        self.transport_reset_pending = true;
        Ok(())
    }
}

impl Subscriber for Vsock {
    fn descriptors(&self) -> Vec<RawFd> {
        let own = [self.lifecycle.activation_eventfd()].into_iter();
        let taker = self.taker.iter().map(AsRawFd::as_raw_fd);
        own.chain(taker)
            .chain(self.muxer.descriptors())
            .chain(self.control.descriptors())
            .collect()
    }
}

impl MutEventSubscriber for Vsock {
    fn init(&mut self, ops: &mut EventOps) {
        self.lifecycle.init(ops);
        let timer = self.muxer.deadlines.as_fd().as_raw_fd();
        if let Err(error) = ops.add(Events::with_data_raw(timer, TIMER, EventSet::IN)) {
            log::error!("vsock: cannot watch the device's timer: {error}");
        }
        if let Some(taker) = &self.taker
            && let Err(error) = ops.add(Events::with_data(
                taker,
                GIVEN,
                EventSet::IN | EventSet::EDGE_TRIGGERED,
            ))
        {
            log::error!("vsock: cannot watch for streams of another thread: {error}");
        }
        self.listen(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match self.lifecycle.on_event(&events, ops) {
            DeviceEvent::ActivationChanged => self.on_change(ops),
            DeviceEvent::QueueKick(RX) => {
                self.rx_starved = false;
                if let Some(Active { memory, queues, .. }) = self.lifecycle.active() {
                    queues[RX].disable_kicks(memory.guest());
                }
            }
            DeviceEvent::QueueKick(TX) => self.receive_packets(ops),
            DeviceEvent::QueueKick(_) => self.send_transport_reset(),
            DeviceEvent::Other(TIMER) => self.on_timer(ops),
            DeviceEvent::Other(LISTENER) => self.accept_clients(ops),
            DeviceEvent::Other(GIVEN) => {
                if let Some(taker) = &self.taker {
                    taker.take_all(&mut self.muxer);
                }
            }
            DeviceEvent::Other(number) => {
                let set = events.event_set();
                if !self.muxer.on_event(number, set, ops) {
                    let connectable = self.lifecycle.is_active();
                    self.control
                        .on_event(number, set, connectable, &mut self.muxer, ops);
                }
            }
        }
        self.work(ops);
    }
}

/// For tests.
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
        self.muxer.timeouts = super::deadlines::Timeouts {
            response: Duration::from_millis(20),
            shutdown: Duration::from_millis(20),
            token: Duration::from_millis(20),
            unclaimed: Duration::from_millis(20),
            request_line: Duration::from_millis(20),
        };
    }
}
