//! A slot for a device: registers that the guest knows since its boot, and a thread that waits for
//! the backend of a device to plug in there.
//!
//! [`Slot`] is served by the thread, alone or together with other slots. It receives one
//! [`Backend`], a disk or a NIC, from the holder of the [`SlotHandle`], over a socket pair: a packet
//! with a line and descriptors, answered by a line. From then on it is a virtio device like any other.
//! A disk stays: the slot closes its end of the socket pair. A NIC can be removed, by a packet that
//! asks for it, and then another one be plugged in.

use std::io::{self, IoSlice, IoSliceMut};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv, recvmsg,
    send, sendmsg, socketpair,
};

use super::VirtioDevice;
use super::block::DiskError;
use super::net::{MAX_PAIRS, NicError};
use super::transport::{FillError, MmioTransport};
use crate::chain::chain;
use crate::event_loop::Subscriber;

/// The event data of the socket. The subscribers of [`PluggedDevice`] use none that is this low.
const SOCKET_EVENT: u32 = 0;

/// The most descriptors of one request: those of a NIC, two for each pair of its queues.
const MAX_DESCRIPTORS: usize = 2 * MAX_PAIRS;

/// The longest answer, in bytes.
const LONGEST_ANSWER: usize = 200;

/// The answer that the device is in the slot; any other answer is the reason why it isn't.
const FILLED: &str = "OK";

/// The request to remove the device, which comes without a descriptor.
const REMOVE: &[u8] = b"-";

/// The answer that there is no device in the slot any more.
const REMOVED: &str = "REMOVED";

/// Why a slot refused a backend.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// The packet is not a request for such a slot. Contains [`Backend::REQUEST`].
    #[error("the request is not {0}")]
    Malformed(&'static str),
    /// The descriptor can't be a disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The properties or the descriptors can't be those of a NIC.
    #[error(transparent)]
    Nic(#[from] NicError),
    /// The device can't be plugged into the slot.
    #[error(transparent)]
    Fill(#[from] FillError),
}

/// The answer of a slot's thread to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlotAnswer {
    /// The device is in the slot.
    Filled,
    /// There is no device in the slot any more.
    Removed,
    /// The backend was refused, with the reason.
    Refused(String),
    /// The thread has closed its socket.
    Closed,
}

/// The host's side of a device that can be plugged into a slot: a disk or a NIC.
pub trait Backend: Sized {
    /// The device without its backend: the part of it that has to exist before the threads are
    /// confined.
    type BareDevice: Send;

    /// What a request consists of, for messages: "a disk and its serial number".
    const REQUEST: &'static str;

    /// The longest line of a request, in bytes.
    const LONGEST_LINE: usize;

    /// See [`VirtioDevice::activation_eventfd`].
    fn activation_eventfd(bare: &Self::BareDevice) -> RawFd;

    /// The backend for this device that a request describes, by a line and a few descriptors, which may be of anything.
    ///
    /// # Errors
    /// The line is malformed, or the descriptors can't be such a backend.
    fn from_request(
        bare: &Self::BareDevice,
        line: &str,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Self, SlotError>;

    /// The inactive device with this backend. If it can be removed, also what the next one is to be
    /// inserted into.
    fn insert_into(self, bare: Self::BareDevice) -> (PluggedDevice, Option<Self::BareDevice>);
}

/// A device with its backend.
pub struct PluggedDevice {
    /// The device that the registers call.
    pub device: Arc<Mutex<dyn VirtioDevice>>,
    /// What handles its events, in the slot's thread. May be the same object.
    pub subscriber: Arc<Mutex<dyn Subscriber>>,
}

/// The end of a slot's socket pair by which a backend is sent to its thread.
#[derive(Debug)]
pub struct SlotHandle<B>(OwnedFd, PhantomData<fn(B)>);

/// The slot, which an event loop serves.
pub struct Slot<B: Backend> {
    registers: Arc<MmioTransport>,
    /// What the next backend is inserted into, if there can be one.
    bare: Option<B::BareDevice>,
    /// Receives backends, as long as there can be another one.
    socket: Option<OwnedFd>,
    /// Handles the device's events, while there is a backend.
    subscriber: Option<Arc<Mutex<dyn Subscriber>>>,
}

impl<B> SlotHandle<B> {
    /// Sends a request to the slot's thread. Doesn't block.
    pub(super) fn send(&self, line: &str, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let line = [IoSlice::new(line.as_bytes())];
        sendmsg(&self.0, &line, &mut control, flags)?;
        Ok(())
    }

    /// Asks the slot's thread to remove the device. Doesn't block.
    ///
    /// # Errors
    /// The thread is gone, or the device is one that stays.
    pub fn send_removal(&self) -> io::Result<()> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        send(&self.0, REMOVE, flags)?;
        Ok(())
    }

    /// The thread's answer; `None` if there is none yet. To be called when this is readable.
    pub fn receive_answer(&self) -> Option<SlotAnswer> {
        let mut text = [0; LONGEST_ANSWER];
        // Without a buffer for control messages, the kernel drops any descriptor that is sent.
        match recv(&self.0, &mut text, RecvFlags::DONTWAIT) {
            Err(Errno::AGAIN | Errno::INTR) => None,
            Ok((0, _)) | Err(_) => Some(SlotAnswer::Closed),
            Ok((length, _)) => {
                let text = text.get(..length).unwrap_or_default();
                let text = String::from_utf8_lossy(text).into_owned();
                Some(match &*text {
                    FILLED => SlotAnswer::Filled,
                    REMOVED => SlotAnswer::Removed,
                    _ => SlotAnswer::Refused(text),
                })
            }
        }
    }
}

/// Readable when there is an answer.
impl<B> AsFd for SlotHandle<B> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl<B> AsRawFd for SlotHandle<B> {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl<B: Backend> Slot<B> {
    /// The slot with these registers, which were created for this device by
    /// [`Machine::attach_empty_slot`](crate::Machine::attach_empty_slot), and its handle.
    ///
    /// # Errors
    /// The process has too many files open.
    pub fn new(
        bare: B::BareDevice,
        registers: Arc<MmioTransport>,
    ) -> io::Result<(Self, SlotHandle<B>)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (own, others) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        let slot = Self {
            registers,
            bare: Some(bare),
            socket: Some(own),
            subscriber: None,
        };
        Ok((slot, SlotHandle(others, PhantomData)))
    }

    /// Receives a request, plugs the device in, and answers.
    fn receive_request(&mut self, ops: &mut EventOps<'_>) {
        let Some(socket) = &self.socket else { return };
        let done = match receive(socket.as_fd(), B::LONGEST_LINE) {
            Ok(None) => return,
            Ok(Some(packet)) if packet.is_removal() => {
                self.remove(ops);
                Ok(REMOVED)
            }
            Ok(Some(packet)) => self.fill(packet, ops).map(|()| FILLED),
            Err(ReceiveError::Malformed) => Err(SlotError::Malformed(B::REQUEST)),
            Err(ReceiveError::Closed) => return self.close(ops),
        };
        let answer = done.map_or_else(|error| answer_of(&error), str::to_owned);
        if let Some(socket) = &self.socket {
            send_answer(socket.as_fd(), &answer);
        }
        if self.bare.is_none() {
            self.close(ops);
        }
    }

    /// Plugs the device with the backend of a request into the slot.
    fn fill(&mut self, packet: Packet, ops: &mut EventOps<'_>) -> Result<(), SlotError> {
        let malformed = |_| SlotError::Malformed(B::REQUEST);
        let line = std::str::from_utf8(&packet.line).map_err(malformed)?;
        let bare = self.bare.as_ref().filter(|_| self.subscriber.is_none());
        let backend = B::from_request(bare.ok_or(FillError::Occupied)?, line, packet.descriptors)?;
        let bare = self.bare.take().ok_or(FillError::Occupied)?;
        let (plugged, bare) = backend.insert_into(bare);
        self.bare = bare;
        let PluggedDevice { device, subscriber } = plugged;
        // Before the guest can see the device, since its driver may activate it at once.
        lock(&subscriber).init(ops);
        self.subscriber = Some(subscriber);
        Ok(self.registers.fill(device)?)
    }

    /// Removes the device, if there is one, and with it its backend's descriptors: nobody else has
    /// them, whatever the driver does.
    fn remove(&mut self, ops: &mut EventOps<'_>) {
        let Some(subscriber) = self.subscriber.take() else {
            return;
        };
        lock(&subscriber).unwatch(ops);
        // With what serves the device, whatever a vCPU waits for is over.
        drop(subscriber);
        self.registers.empty_slot();
    }

    /// Closes the socket: no other backend will be received.
    fn close(&mut self, ops: &mut EventOps<'_>) {
        if let Some(socket) = self.socket.take() {
            let _ = ops.remove(Events::empty(&socket));
        }
    }
}

/// A request.
struct Packet {
    line: Vec<u8>,
    descriptors: Vec<OwnedFd>,
}

impl Packet {
    fn is_removal(&self) -> bool {
        self.line == REMOVE && self.descriptors.is_empty()
    }
}

/// Why no request was received.
enum ReceiveError {
    /// The other end is closed.
    Closed,
    /// The packet has too many descriptors, or too long a line.
    Malformed,
}

/// Receives a packet, if there is one.
fn receive(socket: BorrowedFd<'_>, longest_line: usize) -> Result<Option<Packet>, ReceiveError> {
    let mut line = vec![0; longest_line];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let (length, is_cut) = match recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut line)],
        &mut control,
        flags,
    ) {
        Ok(message) => (
            message.bytes,
            (message.flags).intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC),
        ),
        Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
        Err(_) => return Err(ReceiveError::Closed),
    };
    let mut descriptors = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            descriptors.extend(rights);
        }
    }
    line.truncate(length);
    match length {
        0 if descriptors.is_empty() => Err(ReceiveError::Closed),
        _ if is_cut => Err(ReceiveError::Malformed),
        _ => Ok(Some(Packet { line, descriptors })),
    }
}

/// The answer for an error: its text with its causes.
fn answer_of(error: &SlotError) -> String {
    let mut text = chain(error);
    text.truncate(text.floor_char_boundary(LONGEST_ANSWER));
    text
}

fn send_answer(socket: BorrowedFd<'_>, answer: &str) {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    if let Err(error) = send(socket, answer.as_bytes(), flags) {
        log::warn!("virtio: a slot cannot send its answer: {error}");
    }
}

/// A poisoned lock is taken all the same: a panic ends the process, except in tests.
fn lock<T: ?Sized>(subscriber: &Mutex<T>) -> MutexGuard<'_, T> {
    subscriber.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<B: Backend> Subscriber for Slot<B> {
    fn descriptors(&self) -> Vec<RawFd> {
        let activation_eventfd = self.bare.iter().map(B::activation_eventfd);
        let socket = self.socket.iter().map(AsRawFd::as_raw_fd);
        activation_eventfd.chain(socket).collect()
    }
}

impl<B: Backend> MutEventSubscriber for Slot<B> {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Some(socket) = &self.socket
            && let Err(error) = ops.add(Events::with_data(socket, SOCKET_EVENT, EventSet::IN))
        {
            let request = B::REQUEST;
            log::error!("virtio: a slot cannot wait for {request}: {error:?}");
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        match (events.data(), &self.subscriber) {
            (SOCKET_EVENT, _) => self.receive_request(ops),
            (_, Some(subscriber)) => lock(subscriber).process(events, ops),
            (_, None) => {}
        }
    }
}
