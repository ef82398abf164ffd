//! A slot for a disk: registers that the guest knows from its boot on, and a thread that waits for a disk to
//! put behind them.
//!
//! [`DiskSlot`] is what the thread serves. It gets one disk, from the one who holds the [`SlotHandle`], over a
//! pair of sockets that are theirs alone: a packet with a line and a descriptor, answered with a line. Once
//! there is a disk, the thread closes its end, and the slot is a virtio-blk device like any other, for good.

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

use super::{Block, Disk, DiskError, SERIAL_SIZE, Vacancy};
use crate::chain::chain;
use crate::event_loop::Subscriber;
use crate::virtio::transport::{FillError, MmioTransport};

/// The data of the event that something has been handed over: below those of a device.
const HANDED: u32 = 0;

/// The longest line with a disk: `rw`, a space, and the serial number.
const LONGEST_LINE: usize = 3 + SERIAL_SIZE;

/// The longest answer, in bytes.
const LONGEST_ANSWER: usize = 200;

/// The answer that the slot is filled; any other is the reason why it isn't.
const FILLED: &str = "OK";

/// Why a slot has no disk.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// It isn't what the other end sends.
    #[error("what came is not a disk and its serial number")]
    Malformed,
    /// The descriptor can't be a disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The registers don't take it.
    #[error(transparent)]
    Fill(#[from] FillError),
}

/// What a slot's thread says to what it was handed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The slot is filled, for good.
    Filled,
    /// It isn't, and why.
    Refused(String),
    /// The thread doesn't listen any more.
    Gone,
}

/// The end of a slot's sockets by which a disk is handed to its thread.
#[derive(Debug)]
pub struct SlotHandle(OwnedFd);

/// The slot: served by a thread of its own.
pub struct DiskSlot {
    registers: Arc<MmioTransport>,
    /// The device, until it has a disk.
    vacancy: Option<Vacancy>,
    /// Where the disk comes from.
    hands: Option<OwnedFd>,
    /// The device, once it has one.
    block: Option<Arc<Mutex<Block>>>,
}

impl SlotHandle {
    /// Hands a disk over; the answer comes later. It doesn't wait, and doesn't look at the descriptor.
    ///
    /// # Errors
    /// The slot is filled, or its thread hasn't read what was handed over before.
    pub fn hand(&self, device: BorrowedFd<'_>, serial: &str, read_only: bool) -> io::Result<()> {
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

    /// The thread's answer; nothing as long as it hasn't given one. To be called when this is readable.
    pub fn answer(&self) -> Option<Answer> {
        let mut text = [0; LONGEST_ANSWER];
        // A descriptor that came along would be closed by the kernel: there is no room for one.
        match recv(&self.0, &mut text, RecvFlags::DONTWAIT) {
            Err(Errno::AGAIN | Errno::INTR) => None,
            Ok((0, _)) | Err(_) => Some(Answer::Gone),
            Ok((length, _)) => {
                let text = text.get(..length).unwrap_or_default();
                let text = String::from_utf8_lossy(text).into_owned();
                Some(match text == FILLED {
                    true => Answer::Filled,
                    false => Answer::Refused(text),
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
    /// The slot with these registers, which were made for this device
    /// ([`Machine::attach_empty`](crate::Machine::attach_empty)), and the handle of it.
    ///
    /// # Errors
    /// The process has too many files open.
    pub fn new(vacancy: Vacancy, registers: Arc<MmioTransport>) -> io::Result<(Self, SlotHandle)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (own, others) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        let slot = Self {
            registers,
            vacancy: Some(vacancy),
            hands: Some(own),
            block: None,
        };
        Ok((slot, SlotHandle(others)))
    }

    /// Takes what was handed over, and answers.
    fn take(&mut self, ops: &mut EventOps<'_>) {
        let Some(socket) = &self.hands else { return };
        let filled = match receive(socket.as_fd()) {
            Ok(None) => return,
            Ok(Some((line, device))) => self.fill(&line, device, ops),
            Err(Received::Nonsense) => Err(SlotError::Malformed),
            Err(Received::End) => return self.close(ops),
        };
        let answer = match filled {
            Ok(()) => FILLED.to_owned(),
            Err(error) => reason(&error),
        };
        if let Some(socket) = &self.hands {
            tell(socket.as_fd(), &answer);
        }
        if self.vacancy.is_none() {
            self.close(ops);
        }
    }

    /// Puts a disk in.
    fn fill(
        &mut self,
        line: &[u8],
        device: OwnedFd,
        ops: &mut EventOps<'_>,
    ) -> Result<(), SlotError> {
        let (serial, read_only) = parse(line).ok_or(SlotError::Malformed)?;
        let disk = Disk::handed_over(device, serial, read_only)?;
        let vacancy = self.vacancy.take().ok_or(FillError::Filled)?;
        let block = Arc::new(Mutex::new(vacancy.fill(disk)));
        // Before the guest can see it: its driver may come at once.
        lock(&block).init(ops);
        self.block = Some(Arc::clone(&block));
        Ok(self.registers.fill(block)?)
    }

    /// Listens no more: nothing else is to be handed over.
    fn close(&mut self, ops: &mut EventOps<'_>) {
        if let Some(socket) = self.hands.take() {
            let _ = ops.remove(Events::empty(&socket));
        }
    }
}

/// Why there is no line and descriptor.
enum Received {
    /// The other end is closed.
    End,
    /// Something else came.
    Nonsense,
}

/// Takes a packet, if there is one.
fn receive(socket: BorrowedFd<'_>) -> Result<Option<(Vec<u8>, OwnedFd)>, Received> {
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
        Err(_) => return Err(Received::End),
    };
    let mut device = None;
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut rights) = part {
            device = rights.next();
        }
    }
    match (length, device) {
        (0, None) => Err(Received::End),
        (_, Some(device)) if !is_cut => {
            let line = line.get(..length).unwrap_or_default();
            Ok(Some((line.to_vec(), device)))
        }
        _ => Err(Received::Nonsense),
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

/// An error with its causes, as an answer.
fn reason(error: &SlotError) -> String {
    let mut text = chain(error);
    text.truncate(text.floor_char_boundary(LONGEST_ANSWER));
    text
}

fn tell(socket: BorrowedFd<'_>, answer: &str) {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    if let Err(error) = send(socket, answer.as_bytes(), flags) {
        log::warn!("virtio-blk: a slot can't answer: {error}");
    }
}

/// A poisoned lock is taken all the same: a panic ends the process, except in tests.
fn lock(block: &Mutex<Block>) -> std::sync::MutexGuard<'_, Block> {
    block.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Subscriber for DiskSlot {
    fn descriptors(&self) -> Vec<RawFd> {
        let doorbell = self.vacancy.iter().map(Vacancy::doorbell);
        let hands = self.hands.iter().map(AsRawFd::as_raw_fd);
        doorbell.chain(hands).collect()
    }
}

impl MutEventSubscriber for DiskSlot {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Some(socket) = &self.hands
            && let Err(error) = ops.add(Events::with_data(socket, HANDED, EventSet::IN))
        {
            log::error!("virtio-blk: a slot cannot wait for its disk: {error:?}");
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        match (events.data(), &self.block) {
            (HANDED, _) => self.take(ops),
            (_, Some(block)) => lock(block).process(events, ops),
            (_, None) => {}
        }
    }
}
