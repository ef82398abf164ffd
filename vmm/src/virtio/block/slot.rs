//! A slot for a disk: registers that the guest knows since its boot, and a thread that waits for a
//! disk to plug in there.
//!
//! [`DiskSlot`] is served by the thread. It receives one disk from the holder of the
//! [`SlotHandle`], over a socket pair: a packet with a line and a descriptor, answered by a line.
//! Once there is a disk, the thread closes its end of the socket pair, and the slot stays a
//! virtio-blk device like any other.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv, recvmsg,
    send, sendmsg, socketpair,
};

use super::{Block, Disk, DiskError, DisklessBlock, SERIAL_SIZE};
use crate::chain::chain;
use crate::event_loop::Subscriber;
use crate::virtio::transport::{FillError, MmioTransport};

/// The event data of the socket, below those of the device's own events.
const SOCKET_EVENT: u32 = 0;

/// The longest request line: `rw`, a space, and the serial number.
const LONGEST_LINE: usize = 3 + SERIAL_SIZE;

/// The longest answer, in bytes.
const LONGEST_ANSWER: usize = 200;

/// The answer that the disk is in the slot; any other answer is the reason why it isn't.
const FILLED: &str = "OK";

/// Why a slot refused a disk.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// The packet is not a line and a descriptor.
    #[error("the request is not a disk and its serial number")]
    Malformed,
    /// The descriptor can't be a disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The device can't be plugged into the slot.
    #[error(transparent)]
    Fill(#[from] FillError),
}

/// The answer of a slot's thread to a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlotAnswer {
    /// The disk is in the slot, and stays there.
    Filled,
    /// The disk was refused, with the reason.
    Refused(String),
    /// The thread has closed its socket.
    Closed,
}

/// The end of a slot's socket pair by which a disk is sent to its thread.
#[derive(Debug)]
pub struct SlotHandle(OwnedFd);

/// The slot, which a thread of its own serves.
pub struct DiskSlot {
    registers: Arc<MmioTransport>,
    /// The device, until there is a disk.
    diskless: Option<DisklessBlock>,
    /// Receives the disk; closed once there is one.
    socket: Option<OwnedFd>,
    /// The device, once there is a disk.
    block: Option<Arc<Mutex<Block>>>,
}

impl SlotHandle {
    /// Sends a disk to the slot's thread, which validates the descriptor and answers later. Doesn't
    /// block.
    ///
    /// # Errors
    /// There is a disk in the slot, or its thread hasn't received the last one yet.
    pub fn send_disk(
        &self,
        device: BorrowedFd<'_>,
        serial: &str,
        read_only: bool,
    ) -> io::Result<()> {
        let line = format!("{} {serial}", if read_only { "ro" } else { "rw" });
        let descriptors = [device];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        sendmsg(
            &self.0,
            &[IoSlice::new(line.as_bytes())],
            &mut control,
            flags,
        )?;
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
                Some(match text == FILLED {
                    true => SlotAnswer::Filled,
                    false => SlotAnswer::Refused(text),
                })
            }
        }
    }
}

/// Readable when there is an answer.
impl AsFd for SlotHandle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for SlotHandle {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl DiskSlot {
    /// The slot with these registers, which were created for this device by
    /// [`Machine::attach_empty_slot`](crate::Machine::attach_empty_slot), and its handle.
    ///
    /// # Errors
    /// The process has too many files open.
    pub fn new(
        diskless: DisklessBlock,
        registers: Arc<MmioTransport>,
    ) -> io::Result<(Self, SlotHandle)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (own, others) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        let slot = Self {
            registers,
            diskless: Some(diskless),
            socket: Some(own),
            block: None,
        };
        Ok((slot, SlotHandle(others)))
    }

    /// Receives a disk, plugs it in, and answers.
    fn receive_disk(&mut self, ops: &mut EventOps<'_>) {
        let Some(socket) = &self.socket else { return };
        let filled = match receive(socket.as_fd()) {
            Ok(None) => return,
            Ok(Some((line, device))) => self.fill(&line, device, ops),
            Err(ReceiveError::Malformed) => Err(SlotError::Malformed),
            Err(ReceiveError::Closed) => return self.close(ops),
        };
        let answer = match filled {
            Ok(()) => FILLED.to_owned(),
            Err(error) => answer_of(&error),
        };
        if let Some(socket) = &self.socket {
            send_answer(socket.as_fd(), &answer);
        }
        if self.diskless.is_none() {
            self.close(ops);
        }
    }

    /// Plugs a disk into the slot.
    fn fill(
        &mut self,
        line: &[u8],
        device: OwnedFd,
        ops: &mut EventOps<'_>,
    ) -> Result<(), SlotError> {
        let (serial, read_only) = parse(line).ok_or(SlotError::Malformed)?;
        let disk = Disk::from_received_fd(device, serial, read_only)?;
        let diskless = self.diskless.take().ok_or(FillError::Occupied)?;
        let block = Arc::new(Mutex::new(diskless.insert_disk(disk)));
        // Before the guest can see the device, since its driver may activate it at once.
        lock(&block).init(ops);
        self.block = Some(Arc::clone(&block));
        Ok(self.registers.fill(block)?)
    }

    /// Closes the socket: no other disk will be received.
    fn close(&mut self, ops: &mut EventOps<'_>) {
        if let Some(socket) = self.socket.take() {
            let _ = ops.remove(Events::empty(&socket));
        }
    }
}

/// Why no line and descriptor were received.
enum ReceiveError {
    /// The other end is closed.
    Closed,
    /// The packet contains something else.
    Malformed,
}

/// Receives a packet, if there is one.
fn receive(socket: BorrowedFd<'_>) -> Result<Option<(Vec<u8>, OwnedFd)>, ReceiveError> {
    let mut line = [0; LONGEST_LINE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let (length, is_cut) = match recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut line)],
        &mut control,
        flags,
    ) {
        Ok(message) => (message.bytes, message.flags.contains(ReturnFlags::TRUNC)),
        Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
        Err(_) => return Err(ReceiveError::Closed),
    };
    let mut device = None;
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut rights) = part {
            device = rights.next();
        }
    }
    match (length, device) {
        (0, None) => Err(ReceiveError::Closed),
        (_, Some(device)) if !is_cut => {
            let line = line.get(..length).unwrap_or_default();
            Ok(Some((line.to_vec(), device)))
        }
        _ => Err(ReceiveError::Malformed),
    }
}

/// The serial number, and whether the disk can only be read.
fn parse(line: &[u8]) -> Option<(&str, bool)> {
    let (mode, serial) = std::str::from_utf8(line).ok()?.split_once(' ')?;
    match mode {
        "ro" => Some((serial, true)),
        "rw" => Some((serial, false)),
        _ => None,
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
        log::warn!("virtio-blk: a slot cannot send its answer: {error}");
    }
}

/// A poisoned lock is taken all the same: a panic ends the process, except in tests.
fn lock(block: &Mutex<Block>) -> std::sync::MutexGuard<'_, Block> {
    block.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Subscriber for DiskSlot {
    fn descriptors(&self) -> Vec<RawFd> {
        let activation_eventfd = self.diskless.iter().map(DisklessBlock::activation_eventfd);
        let socket = self.socket.iter().map(AsRawFd::as_raw_fd);
        activation_eventfd.chain(socket).collect()
    }
}

impl MutEventSubscriber for DiskSlot {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Some(socket) = &self.socket
            && let Err(error) = ops.add(Events::with_data(socket, SOCKET_EVENT, EventSet::IN))
        {
            log::error!("virtio-blk: a slot cannot wait for its disk: {error:?}");
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        match (events.data(), &self.block) {
            (SOCKET_EVENT, _) => self.receive_disk(ops),
            (_, Some(block)) => lock(block).process(events, ops),
            (_, None) => {}
        }
    }
}
