//! The VM process's part: messages between the agent's stream and sockets that are connected to the resolver.
//!
//! `RESOLVER`, with the stream's end and then one socket or two in the same sendmsg(2), is answered by `OK`; earlier ones
//! are left. From then on each message of the agent's is a datagram to the resolver, and each of the resolver's a message
//! to the agent. Nothing is looked at, remembered or waited for here: who has asked what is the agent's business.
//!
//! A guest can do with it what a container of runc's can: send that resolver any datagrams, and get its answers. It is
//! bounded: [`BUDGET`] messages in a turn of the loop; one message each way in memory; while the agent takes no answers, none
//! are taken from the resolver, and the kernel keeps a bounded number.
//!
//! *When docker's resolver begins anew* (a dockerd that is restarted and left its containers running), it listens at another
//! port. The kernel redirects a socket's packets to the old one for as long as it knows their connection: 30 s after the
//! last packet, or 120 s if there were answers (nf_conntrack_udp_timeout, nf_conntrack_udp_timeout_stream). A process that
//! takes a new socket for each question doesn't notice; here the kernel's word that nobody listens (ECONNREFUSED) has the
//! other socket used, and leaves this one alone for that long.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use event_manager::{EventOps, Events, MutEventSubscriber};
use hull_vmm::event_loop::Subscriber;
use hull_vmm::virtio::vsock::OtherRequest;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::frame::Frame;

/// The word of a request.
pub const VERB: &str = "RESOLVER";

/// The most sockets that come with it.
pub const MOST_SOCKETS: usize = 2;

/// Messages that are passed on in one turn of the loop.
const BUDGET: usize = 16;

/// How long a socket is left alone, once nobody has listened where its packets go: longer than the kernel remembers.
const REST: Duration = Duration::from_secs(35);

/// The same of a socket that had answers.
const REST_AFTER_ANSWERS: Duration = Duration::from_secs(125);

/// The data of the events: a request has come, or the stream is ready; a socket's is its index.
const CAME: u32 = u32::MAX;
const AGENT: u32 = u32::MAX - 1;

/// What relays, once it is asked to.
pub struct Relay {
    came: EventFd,
    /// What has come, until the loop can watch it.
    new: Option<Ends>,
    current: Option<Ends>,
}

/// Both ends of what is relayed.
struct Ends {
    agent: OwnedFd,
    sockets: Sockets,
    question: Frame,
    answer: Frame,
    /// Whether the sockets are watched: not while there is an answer to be sent.
    watched: bool,
}

/// The agent has ended the stream.
struct Ended;

impl Relay {
    /// One that waits for a request.
    ///
    /// # Errors
    /// When there are too many open files.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            came: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            new: None,
            current: None,
        })
    }

    /// Takes a client's request, if it is for this.
    ///
    /// # Errors
    /// Is the request, if it is for somebody else.
    pub fn take(&mut self, request: OtherRequest) -> Result<(), OtherRequest> {
        if request.line != VERB {
            return Err(request);
        }
        let answer = match Ends::of(request.descriptors) {
            Some(ends) => {
                self.new = Some(ends);
                let _ = self.came.write(1); // a full eventfd is readable too
                "OK"
            }
            None => "ERROR expected a stream, and one socket or two",
        };
        request.client.answer(answer);
        Ok(())
    }

    /// Begins with what has come last.
    fn begin(&mut self, ops: &mut EventOps<'_>) {
        let _ = self.came.read();
        let Some(new) = self.new.take() else {
            return;
        };
        self.end(ops);
        let current = self.current.insert(new);
        let events = Events::with_data(&current.agent, AGENT, EventSet::IN);
        let added = ops.add(events).map_err(io::Error::other);
        if let Err(e) = added.and_then(|()| current.watch_sockets(true, ops)) {
            log::warn!("the resolver of the container's network can't be watched: {e}");
        }
    }

    /// Leaves what is relayed.
    fn end(&mut self, ops: &mut EventOps<'_>) {
        if let Some(mut ends) = self.current.take() {
            let _ = ends.watch_sockets(false, ops);
            let _ = ops.remove(Events::empty(&ends.agent));
        }
    }
}

impl Ends {
    fn of(descriptors: Vec<OwnedFd>) -> Option<Self> {
        let mut descriptors = descriptors.into_iter();
        let agent = descriptors.next()?;
        let sockets: Vec<_> = descriptors.map(Socket::new).collect();
        (1..=MOST_SOCKETS).contains(&sockets.len()).then(|| Self {
            agent,
            sockets: Sockets { sockets, used: 0 },
            question: Frame::new(),
            answer: Frame::new(),
            watched: false,
        })
    }

    /// Something has happened; `data` says where.
    fn on_event(&mut self, data: u32, set: EventSet, ops: &mut EventOps<'_>) -> Result<(), Ended> {
        if data == AGENT {
            if set.contains(EventSet::OUT) {
                self.send_answer()?;
            }
            if set != EventSet::OUT {
                self.pass_questions_on()?;
            }
        } else {
            self.pass_answers_on(data as usize)?;
        }
        self.watch(ops).map_err(|e| {
            log::warn!("the resolver of the container's network can't be watched: {e}");
            Ended
        })
    }

    fn pass_questions_on(&mut self) -> Result<(), Ended> {
        // Each takes two turns: its length, and what that announces.
        for _ in 0..2 * BUDGET {
            match recv(&self.agent, self.question.room(), RecvFlags::DONTWAIT) {
                Ok((0, _)) => return Err(Ended),
                Ok((count, _)) => self.question.came(count),
                Err(Errno::AGAIN | Errno::INTR) => break,
                Err(_) => return Err(Ended),
            }
            if let Some(question) = self.question.take() {
                self.sockets.send(question, Instant::now());
            }
        }
        Ok(())
    }

    fn pass_answers_on(&mut self, socket: usize) -> Result<(), Ended> {
        for _ in 0..BUDGET {
            if !self.answer.rest().is_empty() {
                break;
            }
            let message = self.answer.message();
            let Some(length) = self.sockets.receive(socket, message, Instant::now()) else {
                break;
            };
            self.answer.send(length);
            self.send_answer()?;
        }
        Ok(())
    }

    /// Sends what the agent takes of an answer.
    fn send_answer(&mut self) -> Result<(), Ended> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        while !self.answer.rest().is_empty() {
            match send(&self.agent, self.answer.rest(), flags) {
                Ok(count) => self.answer.went(count),
                Err(Errno::AGAIN | Errno::INTR) => break,
                Err(_) => return Err(Ended),
            }
        }
        Ok(())
    }

    /// Watches the stream for room while there is an answer, and the sockets while there is none.
    fn watch(&mut self, ops: &mut EventOps<'_>) -> io::Result<()> {
        let is_sent = self.answer.rest().is_empty();
        if is_sent == self.watched {
            return Ok(());
        }
        let interest = match is_sent {
            true => EventSet::IN,
            false => EventSet::IN | EventSet::OUT,
        };
        let events = Events::with_data(&self.agent, AGENT, interest);
        ops.modify(events).map_err(io::Error::other)?;
        self.watch_sockets(is_sent, ops)
    }

    fn watch_sockets(&mut self, watch: bool, ops: &mut EventOps<'_>) -> io::Result<()> {
        if watch == self.watched {
            return Ok(());
        }
        for (socket, data) in self.sockets.sockets.iter().zip(0..) {
            let events = Events::with_data(&socket.socket, data, EventSet::IN);
            let done = match watch {
                true => ops.add(events),
                false => ops.remove(events),
            };
            done.map_err(io::Error::other)?;
        }
        self.watched = watch;
        Ok(())
    }
}

/// Sockets that are connected to the resolver, of which one is used.
struct Sockets {
    sockets: Vec<Socket>,
    used: usize,
}

struct Socket {
    socket: OwnedFd,
    has_answered: bool,
    rests_until: Option<Instant>,
}

impl Socket {
    fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            has_answered: false,
            rests_until: None,
        }
    }

    fn rests(&self, now: Instant) -> bool {
        self.rests_until.is_some_and(|until| now < until)
    }

    /// Nobody listens where its packets go.
    fn refused(&mut self, now: Instant) {
        let rest = match self.has_answered {
            true => REST_AFTER_ANSWERS,
            false => REST,
        };
        self.rests_until = Some(now + rest);
        self.has_answered = false;
    }
}

impl Sockets {
    /// Sends a message. It is lost where the kernel doesn't take it, or all sockets rest, as a datagram can be.
    fn send(&mut self, message: &[u8], now: Instant) {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let count = self.sockets.len();
        for step in 0..count {
            let index = (self.used + step) % count;
            let Some(socket) = self.sockets.get_mut(index) else {
                return;
            };
            if socket.rests(now) {
                continue;
            }
            self.used = index;
            match send(&socket.socket, message, flags) {
                // It was not sent: this is about an earlier one.
                Err(Errno::CONNREFUSED) => socket.refused(now),
                Ok(_) | Err(_) => return,
            }
        }
    }

    /// Takes a message from that socket. Returns its length.
    fn receive(&mut self, index: usize, message: &mut [u8], now: Instant) -> Option<usize> {
        let socket = self.sockets.get_mut(index)?;
        match recv(&socket.socket, message, RecvFlags::DONTWAIT) {
            Ok((length, _)) => {
                socket.has_answered = true;
                Some(length)
            }
            Err(Errno::CONNREFUSED) => {
                socket.refused(now);
                None
            }
            Err(_) => None,
        }
    }
}

impl Subscriber for Relay {
    fn descriptors(&self) -> Vec<RawFd> {
        vec![self.came.as_raw_fd()]
    }
}

impl MutEventSubscriber for Relay {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let events = Events::with_data(&self.came, CAME, EventSet::IN);
        if let Err(e) = ops.add(events) {
            log::error!("requests for a resolver can't be watched: {e}");
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if events.data() == CAME {
            return self.begin(ops);
        }
        let ended = (self.current.as_mut())
            .map(|ends| ends.on_event(events.data(), events.event_set(), ops));
        if let Some(Err(Ended)) = ended {
            self.end(ops);
        }
    }
}

#[cfg(test)]
mod tests;
