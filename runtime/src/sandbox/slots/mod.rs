//! Devices that a VM process gets while it runs: both ends of the control socket's verbs for them.
//!
//! A verb, what is to be known of the device, and in the same sendmsg(2) its descriptors: `disks` and `nics` have the
//! two that there are. The answer is `OK <slot>`, once the device is in the slot of this number, or `ERROR <why>`; then
//! the socket is closed. The guest sees nothing of it before its agent is told. A disk stays in its slot for as long as
//! the VM lives, also that of a client that has left before the answer; a network interface until somebody removes it.
//!
//! In the VM process, [`Slots`] lives in the main thread's loop. It looks at the line alone, and passes the
//! descriptors on to the thread of an empty slot ([`hull_vmm::virtio::slot::Slot`]). Nothing in it waits; a
//! thread that hasn't answered in [`ANSWER_TIMEOUT`] has its client sent away, and its slot is used no more
//! unless it refuses the device after all.

mod disks;
mod nics;
#[cfg(test)]
mod tests;

use std::io::{self, BufReader};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use event_manager::{EventOps, Events, MutEventSubscriber};
use hull_vmm::deadlines::Deadlines;
use hull_vmm::event_loop::Subscriber;
use hull_vmm::virtio::slot::{SlotAnswer, SlotHandle};
use hull_vmm::virtio::vsock::{ControlClient, OtherRequest};
use vmm_sys_util::epoll::EventSet;

use super::AgentError;
use super::agent::printable;
use super::socket::{self, CALL_TIMEOUT};
use crate::host::send_with_fds;

pub use disks::{DiskLine, hand_disk};
pub use nics::{NicLine, hand_nic, remove_nic};

/// How long a slot's thread may take for its answer. It looks at a descriptor, and that is all.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest line that a VMM answers with, in bytes.
const LONGEST_ANSWER: usize = 300;

/// The data of the timer's event; a slot's is its index.
const TIMER: u32 = u32::MAX;

/// What a line says of a device that is handed over.
pub trait DeviceLine: Sized {
    /// What a slot for it waits for.
    type Backend;

    /// The line's first word.
    const VERB: &'static str;

    /// What it is, for messages: "disk".
    const WHAT: &'static str;

    /// The most descriptors that come with it; there is one at least.
    const MOST_DESCRIPTORS: usize;

    /// The first word of a line by which such a device is removed from its slot, if it can be. The slot's number
    /// follows, and is the answer's.
    const REMOVAL: Option<&'static str>;

    /// What is said of a VMM that closes the socket: it has no such verb.
    const NO_SLOTS: &'static str;

    /// Reads what comes after the verb.
    ///
    /// # Errors
    /// What should be there instead.
    fn parse(words: &str) -> Result<Self, &'static str>;

    /// What no other one of the VM's may have.
    fn name(&self) -> String;

    /// Sends it to the thread of a slot, and doesn't wait.
    ///
    /// # Errors
    /// When the thread is gone.
    fn send(&self, slot: &SlotHandle<Self::Backend>, descriptors: &[OwnedFd]) -> io::Result<()>;
}

/// Hands a device to the VMM at that control socket. Returns the number of the slot that it is in from then on, which
/// the agent has to be told.
fn hand<D: DeviceLine>(
    socket: &Path,
    words: &str,
    descriptors: &[BorrowedFd<'_>],
) -> Result<u8, AgentError> {
    let failed = |what| socket::failed(what, CALL_TIMEOUT);
    let mut vmm = socket::dial(socket, CALL_TIMEOUT)?;
    let request = format!("{} {words}\n", D::VERB);
    send_with_fds(&mut vmm, request.as_bytes(), descriptors).map_err(failed("take a device"))?;
    read_answer::<D>(vmm, "put a device into a slot")
}

/// Waits for what the VMM answers.
fn read_answer<D: DeviceLine>(vmm: UnixStream, what: &'static str) -> Result<u8, AgentError> {
    let refused = |why| AgentError::NotTaken { what: D::WHAT, why };
    let timeout = Some(CALL_TIMEOUT);
    let line = socket::answer(&mut BufReader::new(vmm), LONGEST_ANSWER, timeout);
    let line = line.map_err(socket::failed(what, CALL_TIMEOUT))?;
    match parse_answer(&line) {
        Some(Ok(slot)) => Ok(slot),
        Some(Err(why)) => Err(refused(why)),
        None => Err(refused(D::NO_SLOTS.to_owned())),
    }
}

/// The slot's number, or why there is none; `None` where it is no answer.
fn parse_answer(line: &str) -> Option<Result<u8, String>> {
    match line.trim_end().split_once(' ')? {
        ("OK", slot) => Some(Ok(slot.parse().ok()?)),
        ("ERROR", why) => Some(Err(printable(why, LONGEST_ANSWER))),
        _ => None,
    }
}

/// Why a client has its device back.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("{0}")]
    Malformed(&'static str),
    #[error("there is a {what} {name} already")]
    Taken { what: &'static str, name: String },
    #[error("expected {most} descriptors at most, and at least one; got {got}")]
    Descriptors { most: usize, got: usize },
    #[error("no slot is empty")]
    Full,
    #[error("there is no {what} in a slot {slot:?} that could be removed")]
    Missing { what: &'static str, slot: String },
    #[error("the slot's thread takes nothing: {0}")]
    Send(io::Error),
    #[error("the slot's thread did not answer in {} s", ANSWER_TIMEOUT.as_secs())]
    Late,
    #[error("the slot's thread is gone")]
    Gone,
    #[error("{0}")]
    Thread(String),
}

impl Refusal {
    fn tell(&self, client: ControlClient) {
        client.answer(&format!("ERROR {self}"));
    }
}

/// The slots of a VM for devices of one kind, and who waits for one to be filled.
pub struct Slots<D: DeviceLine> {
    slots: Vec<Slot<D>>,
    /// The names of those devices that were there from the start.
    names: Vec<String>,
    /// Of each slot's thread that is to answer.
    deadlines: Deadlines<usize>,
    timeout: Duration,
}

struct Slot<D: DeviceLine> {
    number: u8,
    handle: SlotHandle<D::Backend>,
    state: State,
}

enum State {
    Empty,
    /// A device of this name was handed over, and not answered yet.
    Asked {
        name: String,
        /// Nobody once its time is over.
        client: Option<ControlClient>,
    },
    /// There is a device of this name.
    Filled(String),
    /// The device of this name is to be removed, which wasn't answered yet.
    Leaving {
        name: String,
        /// Nobody once its time is over.
        client: Option<ControlClient>,
    },
    /// Its thread is gone.
    Lost,
}

impl<D: DeviceLine> Slot<D> {
    /// The name that is taken by it.
    fn name(&self) -> Option<&str> {
        match &self.state {
            State::Asked { name, .. } | State::Filled(name) | State::Leaving { name, .. } => {
                Some(name)
            }
            State::Empty | State::Lost => None,
        }
    }

    /// Follows what the thread has said. Returns the client, with the slot's number or a refusal for it.
    fn on_answer(&mut self, answer: SlotAnswer) -> Option<(ControlClient, Result<u8, Refusal>)> {
        let (state, outcome) = match answer {
            SlotAnswer::Filled => (
                State::Filled(self.name().unwrap_or_default().to_owned()),
                Ok(self.number),
            ),
            SlotAnswer::Removed => (State::Empty, Ok(self.number)),
            SlotAnswer::Refused(why) => (State::Empty, Err(Refusal::Thread(why))),
            SlotAnswer::Closed => (State::Lost, Err(Refusal::Gone)),
        };
        match std::mem::replace(&mut self.state, state) {
            State::Asked { client, .. } | State::Leaving { client, .. } => Some((client?, outcome)),
            _ => None,
        }
    }
}

impl<D: DeviceLine> Slots<D> {
    /// These slots, all of them empty, of a VM that has devices with these names.
    ///
    /// # Errors
    /// When there are too many open files.
    pub fn new(
        slots: impl IntoIterator<Item = (u8, SlotHandle<D::Backend>)>,
        names: Vec<String>,
    ) -> io::Result<Self> {
        let slots = slots.into_iter().map(|(number, handle)| Slot {
            number,
            handle,
            state: State::Empty,
        });
        Ok(Self {
            slots: slots.collect(),
            names,
            deadlines: Deadlines::new()?,
            timeout: ANSWER_TIMEOUT,
        })
    }

    /// Takes a client's request, if it is for such a device; otherwise it is for somebody else.
    ///
    /// # Errors
    /// Is the request, then.
    pub fn take(&mut self, request: OtherRequest) -> Result<(), OtherRequest> {
        let (verb, words) = request.line.split_once(' ').unwrap_or((&request.line, ""));
        let is_removal = D::REMOVAL == Some(verb);
        if !(verb == D::VERB || is_removal) || self.slots.is_empty() {
            return Err(request);
        }
        let words = words.to_owned();
        let asked = match is_removal {
            true => self.ask_to_remove(&words),
            false => self.hand_on(&words, request.descriptors),
        };
        match asked {
            Err(refusal) => refusal.tell(request.client),
            Ok((index, name)) => {
                self.deadlines.set(index, self.timeout);
                if let Some(slot) = self.slots.get_mut(index) {
                    let client = Some(request.client);
                    slot.state = match is_removal {
                        true => State::Leaving { name, client },
                        false => State::Asked { name, client },
                    };
                }
            }
        }
        Ok(())
    }

    /// Has a slot's thread remove the device. Returns the slot's index, and the device's name.
    fn ask_to_remove(&self, words: &str) -> Result<(usize, String), Refusal> {
        let number = words.parse::<u8>().ok();
        let mut slots = self.slots.iter().enumerate();
        let found = slots.find_map(|(index, slot)| match &slot.state {
            State::Filled(name) if Some(slot.number) == number => Some((index, slot, name)),
            _ => None,
        });
        let (index, slot, name) = found.ok_or_else(|| Refusal::Missing {
            what: D::WHAT,
            slot: words.to_owned(),
        })?;
        slot.handle.send_removal().map_err(Refusal::Send)?;
        Ok((index, name.clone()))
    }

    /// Hands a device to an empty slot's thread. Returns the slot's index, and the device's name.
    fn hand_on(&self, words: &str, descriptors: Vec<OwnedFd>) -> Result<(usize, String), Refusal> {
        let device = D::parse(words).map_err(Refusal::Malformed)?;
        let (most, got) = (D::MOST_DESCRIPTORS, descriptors.len());
        if !(1..=most).contains(&got) {
            return Err(Refusal::Descriptors { most, got });
        }
        let name = device.name();
        let others = self.names.iter().map(String::as_str);
        let mut taken = others.chain(self.slots.iter().filter_map(Slot::name));
        if taken.any(|taken| taken == name) {
            let what = D::WHAT;
            return Err(Refusal::Taken { what, name });
        }
        let mut slots = self.slots.iter().enumerate();
        let is_empty = |(_, slot): &(usize, &Slot<D>)| matches!(slot.state, State::Empty);
        let (index, slot) = slots.find(is_empty).ok_or(Refusal::Full)?;
        device
            .send(&slot.handle, &descriptors)
            .map_err(Refusal::Send)?;
        Ok((index, name))
    }

    /// A slot's thread has said something, or is gone.
    fn on_answer(&mut self, index: usize, ops: &mut EventOps<'_>) {
        let Some(slot) = self.slots.get_mut(index) else {
            return;
        };
        let Some(answer) = slot.handle.receive_answer() else {
            return;
        };
        self.deadlines.cancel(index);
        let stays = D::REMOVAL.is_none() && answer == SlotAnswer::Filled;
        if stays || answer == SlotAnswer::Closed {
            // It has no more to say.
            let _ = ops.remove(Events::empty(&slot.handle));
        }
        match slot.on_answer(answer) {
            Some((client, Ok(number))) => client.answer(&format!("OK {number}")),
            Some((client, Err(refusal))) => refusal.tell(client),
            None => {}
        }
    }

    fn on_timer(&mut self) {
        for index in self.deadlines.expired() {
            if let Some(State::Asked { client, .. } | State::Leaving { client, .. }) =
                self.slots.get_mut(index).map(|slot| &mut slot.state)
                && let Some(client) = client.take()
            {
                Refusal::Late.tell(client);
            }
        }
    }
}

impl<D: DeviceLine> Subscriber for Slots<D> {
    fn descriptors(&self) -> Vec<RawFd> {
        let handles = self.slots.iter().map(|slot| slot.handle.as_raw_fd());
        let timer = self.deadlines.as_fd().as_raw_fd();
        handles.chain([timer]).collect()
    }
}

impl<D: DeviceLine> MutEventSubscriber for Slots<D> {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let handles = self.slots.iter().map(|slot| slot.handle.as_raw_fd());
        let timer = (self.deadlines.as_fd().as_raw_fd(), TIMER);
        for (fd, data) in handles.zip(0..).chain([timer]) {
            if let Err(error) = ops.add(Events::with_data_raw(fd, data, EventSet::IN)) {
                log::error!("a slot for a {} can't be watched: {error}", D::WHAT);
            }
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        match events.data() {
            TIMER => self.on_timer(),
            index => self.on_answer(index as usize, ops),
        }
    }
}
