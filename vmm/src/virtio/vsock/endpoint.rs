//! The host's end of a stream: a file descriptor of any kind, which is read into and written from
//! guest memory without ever blocking the event loop.
//!
//! The open file description may be shared with other processes (a shell's terminal, a pipe with
//! several writers), so O_NONBLOCK is never set on it. How transfers are kept from blocking depends
//! on the kind of descriptor: see [`Kind`].
//!
//! Events are edge-triggered: `readable` and `writable` store the readiness, which an event sets
//! and a transfer that would block clears. So a descriptor that is not in use needs no
//! epoll_ctl(2), and one that has hung up doesn't make the loop spin.
//!
//! Writing to a broken pipe raises SIGPIPE, which the process must ignore, as Rust's runtime does.

#![allow(unsafe_code)] // vectored transfers to guest memory, which no safe interface offers

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use event_manager::{EventOps, EventSet, Events};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use rustix::net::Shutdown;
use vm_memory::VolatileSlice;

use super::Direction;

/// What a blocking pipe takes without blocking once it is writable (PIPE_BUF; pipe(7)).
const PIPE_BUF: usize = 4096;

/// Segments of one transfer. A packet has at most a few; the rest waits for the next transfer.
const MAX_SEGMENTS: usize = 64;

/// How a transfer on a descriptor is kept from blocking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A socket: MSG_DONTWAIT.
    Socket,
    /// The file description is non-blocking already.
    NonBlocking,
    /// A blocking file description: RWF_NOWAIT on each transfer, if the file supports it (pipes do
    /// since Linux 6.4).
    NoWait,
    /// A blocking file description that doesn't support RWF_NOWAIT: poll(2), then a small transfer.
    /// It can still block if another process writes to the same pipe in between, or a terminal has
    /// less room than is written. Callers can avoid that by opening a non-blocking file description
    /// of their own (open(2) of /proc/self/fd/N).
    Polled,
    /// What epoll(7) refuses: a regular file, a directory, /dev/null. It is always ready, and never
    /// waits for another process.
    File,
}

/// The outcome of one transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transferred {
    /// Some bytes, at least one.
    Bytes(usize),
    /// It would block; an event will report when to try again.
    WouldBlock,
    /// Reading: the end of file. Writing: there is no reader any more.
    End,
}

/// The host's end of a stream.
#[derive(Debug)]
pub(super) struct Endpoint {
    fd: OwnedFd,
    kind: Kind,
    registered: bool,
    /// Reading may be possible.
    pub readable: bool,
    /// Writing may be possible.
    pub writable: bool,
    /// The peer has hung up; what it has sent can still be read.
    pub hung_up: bool,
}

impl Endpoint {
    /// The endpoint of a descriptor, whose kind is determined.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let file_type = FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode);
        let kind = match file_type {
            FileType::Socket => Kind::Socket,
            FileType::RegularFile | FileType::Directory | FileType::BlockDevice => Kind::File,
            _ if is_nonblocking(fd.as_fd())? => Kind::NonBlocking,
            _ => Kind::NoWait,
        };
        Ok(Self::of_kind(fd, kind))
    }

    /// The endpoint of a socket that the event loop watches already.
    pub fn registered_socket(fd: OwnedFd) -> Self {
        Self {
            registered: true,
            ..Self::of_kind(fd, Kind::Socket)
        }
    }

    fn of_kind(fd: OwnedFd, kind: Kind) -> Self {
        Self {
            fd,
            kind,
            registered: false,
            // Trying at once saves a turn of the loop. And a FIFO that is opened after its last
            // writer has closed it is at its end without any event (fifo(7)).
            readable: true,
            writable: true,
            hung_up: false,
        }
    }

    /// Makes the loop report this descriptor's events with `token` as the event data.
    pub fn register(
        &mut self,
        direction: Direction,
        token: u32,
        ops: &mut EventOps,
    ) -> io::Result<()> {
        if self.registered {
            return Ok(());
        }
        let interest = match direction {
            Direction::ToGuest => EventSet::IN,
            Direction::FromGuest => EventSet::OUT,
            Direction::Duplex => EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP,
        };
        let events = Events::with_data(&self.fd, token, interest | EventSet::EDGE_TRIGGERED);
        match ops.add(events) {
            Ok(()) => self.registered = true,
            Err(event_manager::Error::Epoll(errno)) if errno.errno() == libc::EPERM => {
                self.kind = Kind::File;
            }
            Err(error) => return Err(io::Error::other(error)),
        }
        Ok(())
    }

    /// Undoes [`Self::register`]. Must be called before the endpoint is dropped.
    pub fn unregister(&mut self, ops: &mut EventOps) {
        if std::mem::take(&mut self.registered) {
            let _ = ops.remove(Events::empty(&self.fd));
        }
    }

    /// Updates the readiness after an event.
    pub fn on_event(&mut self, set: EventSet) {
        let gone = set.intersects(EventSet::HANG_UP | EventSet::ERROR);
        self.hung_up |= gone;
        self.readable |= gone || set.intersects(EventSet::IN | EventSet::READ_HANG_UP);
        self.writable |= gone || set.contains(EventSet::OUT);
    }

    /// Sends a short message without blocking; fails unless it is sent as a whole.
    pub fn send(&self, message: &[u8]) -> io::Result<()> {
        super::request::send_line(self.fd.as_fd(), message)
    }

    /// Shuts down the write side of a socket.
    pub fn end_writing(&self) {
        if self.kind == Kind::Socket {
            let _ = rustix::net::shutdown(&self.fd, Shutdown::Write);
        }
    }

    /// Shuts down the read side of a socket.
    pub fn end_reading(&self) {
        if self.kind == Kind::Socket {
            let _ = rustix::net::shutdown(&self.fd, Shutdown::Read);
        }
    }

    /// Reads into `slices`, once.
    pub fn read(&mut self, slices: &[VolatileSlice<'_>]) -> Transferred {
        if !self.readable || !self.ready_when_polled(PollFlags::IN) {
            self.readable = false;
            return Transferred::WouldBlock;
        }
        match self.transfer(slices, Transfer::Read) {
            Ok(0) => Transferred::End,
            Ok(count) => Transferred::Bytes(count),
            Err(Errno::AGAIN) => {
                self.readable = false;
                Transferred::WouldBlock
            }
            Err(Errno::OPNOTSUPP) if self.kind == Kind::NoWait => {
                self.kind = Kind::Polled;
                self.read(slices)
            }
            Err(errno) => {
                // A terminal whose other side is closed returns EIO, a socket ECONNRESET.
                log::debug!("vsock: a stream's descriptor cannot be read any more: {errno}");
                Transferred::End
            }
        }
    }

    /// Writes from `slices`, once.
    pub fn write(&mut self, slices: &[VolatileSlice<'_>]) -> Transferred {
        if !self.writable || !self.ready_when_polled(PollFlags::OUT) {
            self.writable = false;
            return Transferred::WouldBlock;
        }
        match self.transfer(slices, Transfer::Write) {
            Ok(0) => Transferred::End,
            Ok(count) => Transferred::Bytes(count),
            Err(Errno::AGAIN) => {
                self.writable = false;
                Transferred::WouldBlock
            }
            Err(Errno::OPNOTSUPP) if self.kind == Kind::NoWait => {
                self.kind = Kind::Polled;
                self.write(slices)
            }
            Err(errno) => {
                log::debug!("vsock: a stream's descriptor cannot be written any more: {errno}");
                Transferred::End
            }
        }
    }

    /// For a descriptor of kind [`Kind::Polled`]: whether a transfer would not block.
    fn ready_when_polled(&self, flags: PollFlags) -> bool {
        if self.kind != Kind::Polled {
            return true;
        }
        let mut fds = [PollFd::new(&self.fd, flags)];
        let at_once = Timespec::default();
        matches!(poll(&mut fds, Some(&at_once)), Ok(1..))
    }

    /// One system call that moves bytes between the descriptor and `slices`.
    fn transfer(&self, slices: &[VolatileSlice<'_>], transfer: Transfer) -> Result<usize, Errno> {
        // The guards keep the memory mapped until after the call.
        let guards: Vec<_> = slices
            .iter()
            .take(MAX_SEGMENTS)
            .map(VolatileSlice::ptr_guard_mut)
            .collect();
        let mut room = match (self.kind, transfer) {
            (Kind::Polled, Transfer::Write) => PIPE_BUF,
            _ => usize::MAX,
        };
        let mut iovecs: Vec<_> = guards
            .iter()
            .map(|guard| {
                let iov_len = guard.len().min(room);
                room -= iov_len;
                libc::iovec {
                    iov_base: guard.as_ptr().cast(),
                    iov_len,
                }
            })
            .collect();
        let fd = self.fd.as_raw_fd();
        loop {
            // SAFETY: each iovec describes memory that its guard keeps mapped and that the guest, as
            // a device's driver, expects to change at any time; nothing refers to it as a slice.
            let result = unsafe {
                match self.kind {
                    Kind::Socket => transfer_message(fd, &mut iovecs, transfer),
                    Kind::NoWait => transfer_vector(fd, &iovecs, transfer, libc::RWF_NOWAIT),
                    _ => transfer_vector(fd, &iovecs, transfer, 0),
                }
            };
            match usize::try_from(result) {
                Ok(count) => return Ok(count),
                Err(_) => match Errno::from_io_error(&io::Error::last_os_error()) {
                    Some(Errno::INTR) => {}
                    errno => return Err(errno.unwrap_or(Errno::IO)),
                },
            }
        }
    }
}

impl AsRawFd for Endpoint {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transfer {
    /// From the descriptor to memory.
    Read,
    /// From memory to the descriptor.
    Write,
}

/// A transfer on a socket, which never blocks.
///
/// # Safety
/// The iovecs must describe mapped memory; for a read, memory that may be written.
unsafe fn transfer_message(fd: RawFd, iovecs: &mut [libc::iovec], transfer: Transfer) -> isize {
    // SAFETY: all zeroes is a valid msghdr: no address, no control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = iovecs.as_mut_ptr();
    message.msg_iovlen = iovecs.len();
    // SAFETY: the message describes the caller's iovecs and nothing else.
    unsafe {
        match transfer {
            Transfer::Read => libc::recvmsg(fd, &mut message, libc::MSG_DONTWAIT),
            Transfer::Write => libc::sendmsg(fd, &message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL),
        }
    }
}

/// A transfer at the current file offset.
///
/// # Safety
/// As for [`transfer_message`].
unsafe fn transfer_vector(
    fd: RawFd,
    iovecs: &[libc::iovec],
    transfer: Transfer,
    flags: libc::c_int,
) -> isize {
    let count = iovecs.len() as libc::c_int; // at most MAX_SEGMENTS
    // SAFETY: the caller's promise; an offset of -1 means the file's position.
    unsafe {
        match transfer {
            Transfer::Read => libc::preadv2(fd, iovecs.as_ptr(), count, -1, flags),
            Transfer::Write => libc::pwritev2(fd, iovecs.as_ptr(), count, -1, flags),
        }
    }
}

/// Whether the open file description has O_NONBLOCK.
fn is_nonblocking(fd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(rustix::fs::fcntl_getfl(fd)?.contains(OFlags::NONBLOCK))
}
