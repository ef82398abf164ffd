//! Disks that a VM process gets while it runs: both ends of the control socket's verb `DISK`.
//!
//! `DISK <serial> ro` or `DISK <serial> rw`, with one descriptor in the same sendmsg(2): a block device of the
//! host or a regular file, open for reading alone or for reading and writing. The serial number, by which the
//! guest finds the disk, has 1 to 20 letters, digits, `-`, `_` and `.`, the first a letter or a digit, and is
//! that of no other disk of the VM. The answer is `OK <slot>`, once the disk is in the slot of this number, or
//! `ERROR <why>`; then the socket is closed. The guest sees nothing of it before its agent is told
//! (`BlockDevice` of the agent's protocol), and a disk stays in its slot for as long as the VM lives, also that
//! of a client that has left before the answer.
//!
//! In the VM process, [`DiskSlots`] lives in the main thread's loop. It looks at the line alone, and passes the
//! descriptor on to the thread of an empty slot ([`hull_vmm::virtio::block::DiskSlot`]). Nothing in it waits; a
//! thread that hasn't answered in [`ANSWER_TIMEOUT`] has its client sent away, and its slot is used no more
//! unless it refuses the disk after all.

use std::io::{self, BufReader};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::Duration;

use event_manager::{EventOps, Events, MutEventSubscriber};
use hull_vmm::deadlines::Deadlines;
use hull_vmm::event_loop::Subscriber;
use hull_vmm::virtio::block::{SERIAL_SIZE, SlotAnswer, SlotHandle};
use hull_vmm::virtio::vsock::{ControlClient, OtherRequest};
use vmm_sys_util::epoll::EventSet;

use super::AgentError;
use super::agent::printable;
use super::socket::{self, CALL_TIMEOUT};
use crate::host::send_with_fds;
use crate::store::SandboxDir;

/// How long a slot's thread may take for its answer. It looks at a descriptor, and that is all.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest line that a VMM answers with, in bytes.
const LONGEST_ANSWER: usize = 300;

/// What is said of a VMM that closes the socket: it has no such verb.
const NO_ANSWER: &str =
    "its VM has no slots for disks (disk_slots of hull.toml, before it is created)";

/// The data of the timer's event; a slot's is its index.
const TIMER: u32 = u32::MAX;

/// Hands a block device of the host, or a regular file, to the VMM of the sandbox whose folder this is: open
/// for reading alone if `read_only`, else for reading and writing. Returns the number of the slot that it is in
/// from then on, which the agent has to be told.
///
/// # Errors
/// When the VMM doesn't answer, has no empty slot, or refuses the device.
pub fn hand_disk(
    dir: &SandboxDir,
    device: BorrowedFd<'_>,
    serial: &str,
    read_only: bool,
) -> Result<u8, AgentError> {
    hand_disk_at(&dir.socket_path(), device, serial, read_only)
}

fn hand_disk_at(
    socket: &Path,
    device: BorrowedFd<'_>,
    serial: &str,
    read_only: bool,
) -> Result<u8, AgentError> {
    let failed = |what| socket::failed(what, CALL_TIMEOUT);
    let mut vmm = socket::dial(socket, CALL_TIMEOUT)?;
    let mode = if read_only { "ro" } else { "rw" };
    let request = format!("DISK {serial} {mode}\n");
    send_with_fds(&mut vmm, request.as_bytes(), &[device]).map_err(failed("take a disk"))?;
    let timeout = Some(CALL_TIMEOUT);
    let line = socket::answer(&mut BufReader::new(vmm), LONGEST_ANSWER, timeout);
    let line = line.map_err(failed("put a disk into a slot"))?;
    match parse_answer(&line) {
        Some(Ok(slot)) => Ok(slot),
        Some(Err(why)) => Err(AgentError::NoDisk(why)),
        None => Err(AgentError::NoDisk(NO_ANSWER.to_owned())),
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

/// Why a client has its disk back.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("expected DISK, a serial number, and ro or rw")]
    Malformed,
    #[error(
        "a serial number has 1 to {SERIAL_SIZE} letters, digits, \"-\", \"_\" and \".\", the first a letter or a \
         digit"
    )]
    Serial,
    #[error("there is a disk {0} already")]
    SerialTaken(String),
    #[error("expected one descriptor, got {0}")]
    Descriptors(usize),
    #[error("no slot is empty")]
    Full,
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

/// The slots of a VM, and who waits for one to be filled.
pub struct DiskSlots {
    slots: Vec<Slot>,
    /// The serial numbers of the disks that were there from the start.
    serials: Vec<String>,
    /// Of each slot's thread that is to answer.
    deadlines: Deadlines<usize>,
    timeout: Duration,
}

struct Slot {
    number: u8,
    handle: SlotHandle,
    state: State,
}

enum State {
    Empty,
    /// A disk of this serial number was handed over, and not answered yet.
    Asked {
        serial: String,
        /// Nobody once its time is over.
        client: Option<ControlClient>,
    },
    /// There is a disk of this serial number.
    Filled(String),
    /// Its thread is gone.
    Lost,
}

impl Slot {
    /// The serial number that is taken by it.
    fn serial(&self) -> Option<&str> {
        match &self.state {
            State::Asked { serial, .. } | State::Filled(serial) => Some(serial),
            State::Empty | State::Lost => None,
        }
    }

    /// Follows what the thread has said. Returns the client, with the slot's number or a refusal for it.
    fn on_answer(&mut self, answer: SlotAnswer) -> Option<(ControlClient, Result<u8, Refusal>)> {
        let (state, outcome) = match answer {
            SlotAnswer::Filled => (
                State::Filled(self.serial().unwrap_or_default().to_owned()),
                Ok(self.number),
            ),
            SlotAnswer::Refused(why) => (State::Empty, Err(Refusal::Thread(why))),
            SlotAnswer::Closed => (State::Lost, Err(Refusal::Gone)),
        };
        match std::mem::replace(&mut self.state, state) {
            State::Asked { client, .. } => Some((client?, outcome)),
            _ => None,
        }
    }
}

impl DiskSlots {
    /// These slots, all of them empty, of a VM that has disks with these serial numbers.
    ///
    /// # Errors
    /// When there are too many open files.
    pub fn new(
        slots: impl IntoIterator<Item = (u8, SlotHandle)>,
        serials: Vec<String>,
    ) -> io::Result<Self> {
        let slots = slots.into_iter().map(|(number, handle)| Slot {
            number,
            handle,
            state: State::Empty,
        });
        Ok(Self {
            slots: slots.collect(),
            serials,
            deadlines: Deadlines::new()?,
            timeout: ANSWER_TIMEOUT,
        })
    }

    /// Takes a client's request that isn't about streams.
    pub fn take(&mut self, request: OtherRequest) {
        let OtherRequest {
            line,
            descriptors,
            client,
        } = request;
        match self.hand_on(&line, descriptors) {
            Err(refusal) => refusal.tell(client),
            Ok((index, serial)) => {
                self.deadlines.set(index, self.timeout);
                if let Some(slot) = self.slots.get_mut(index) {
                    let client = Some(client);
                    slot.state = State::Asked { serial, client };
                }
            }
        }
    }

    /// Hands a disk to an empty slot's thread. Returns the slot's index, and the disk's serial number.
    fn hand_on(&self, line: &str, descriptors: Vec<OwnedFd>) -> Result<(usize, String), Refusal> {
        let (serial, read_only) = parse_request(line)?;
        let [device] = &descriptors[..] else {
            return Err(Refusal::Descriptors(descriptors.len()));
        };
        let others = self.serials.iter().map(String::as_str);
        let mut taken = others.chain(self.slots.iter().filter_map(Slot::serial));
        if taken.any(|taken| taken == serial) {
            return Err(Refusal::SerialTaken(serial.to_owned()));
        }
        let mut slots = self.slots.iter().enumerate();
        let is_empty = |(_, slot): &(usize, &Slot)| matches!(slot.state, State::Empty);
        let (index, slot) = slots.find(is_empty).ok_or(Refusal::Full)?;
        (slot.handle)
            .send_disk(device.as_fd(), serial, read_only)
            .map_err(Refusal::Send)?;
        Ok((index, serial.to_owned()))
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
        if matches!(answer, SlotAnswer::Filled | SlotAnswer::Closed) {
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
            if let Some(Slot {
                state: State::Asked { client, .. },
                ..
            }) = self.slots.get_mut(index)
                && let Some(client) = client.take()
            {
                Refusal::Late.tell(client);
            }
        }
    }
}

/// The serial number, and whether the disk can only be read.
fn parse_request(line: &str) -> Result<(&str, bool), Refusal> {
    let words: Vec<_> = line.split(' ').collect();
    let (serial, read_only) = match words[..] {
        ["DISK", serial, "ro"] => (serial, true),
        ["DISK", serial, "rw"] => (serial, false),
        _ => return Err(Refusal::Malformed),
    };
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let begins_well = serial.starts_with(|first: char| first.is_ascii_alphanumeric());
    if !begins_well || serial.len() > SERIAL_SIZE || !serial.bytes().all(is_plain) {
        return Err(Refusal::Serial);
    }
    Ok((serial, read_only))
}

impl Subscriber for DiskSlots {
    fn descriptors(&self) -> Vec<RawFd> {
        let handles = self.slots.iter().map(|slot| slot.handle.as_raw_fd());
        let timer = self.deadlines.as_fd().as_raw_fd();
        handles.chain([timer]).collect()
    }
}

impl MutEventSubscriber for DiskSlots {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let handles = self.slots.iter().map(|slot| slot.handle.as_raw_fd());
        let timer = (self.deadlines.as_fd().as_raw_fd(), TIMER);
        for (fd, data) in handles.zip(0..).chain([timer]) {
            if let Err(error) = ops.add(Events::with_data_raw(fd, data, EventSet::IN)) {
                log::error!("a slot for disks can't be watched: {error}");
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::sync::{Arc, Mutex};

    use hull_vmm::EventLoop;
    use hull_vmm::event_loop::StopHandle;
    use hull_vmm::virtio::block::{DiskSlot, DisklessBlock};
    use hull_vmm::virtio::transport::MmioTransport;
    use hull_vmm::virtio::vsock::Vsock;

    /// The number of the first slot.
    const FIRST: u8 = 3;

    /// The main thread of a VM process, as far as disks are concerned.
    struct Vmm {
        folder: tempfile::TempDir,
        stop: StopHandle,
    }

    impl Vmm {
        /// With a disk `hull-0`, and these slots.
        fn new(handles: Vec<SlotHandle>, timeout: Duration) -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let listener = UnixListener::bind(folder.path().join("socket")).expect("a socket");
            let mut vsock = Vsock::new(3, 0x1_0000, listener).expect("a device");
            let mut events = EventLoop::new().expect("a loop");
            if !handles.is_empty() {
                let serials = vec!["hull-0".to_owned()];
                let slots = DiskSlots::new((FIRST..).zip(handles), serials);
                let mut slots = slots.expect("a timer");
                slots.timeout = timeout;
                let slots = Arc::new(Mutex::new(slots));
                events.add(Arc::clone(&slots) as _);
                vsock.on_other_requests(move |request| slots.lock().expect("free").take(request));
            }
            events.add(Arc::new(Mutex::new(vsock)));
            let stop = events.stop_handle();
            events.spawn("main", |_| Ok(())).expect("a thread");
            Self { folder, stop }
        }

        fn socket(&self) -> std::path::PathBuf {
            self.folder.path().join("socket")
        }

        fn hand(&self, device: impl AsFd, serial: &str) -> Result<u8, String> {
            let handed = hand_disk_at(&self.socket(), device.as_fd(), serial, false);
            handed.map_err(|error| error.to_string())
        }

        fn refuses(&self, device: impl AsFd, serial: &str, why: &str) {
            let refused = self.hand(device, serial).expect_err(why);
            assert!(refused.contains(why), "{refused}");
        }

        /// What is answered to a line without a descriptor.
        fn say(&self, line: &[u8]) -> String {
            let mut client = UnixStream::connect(self.socket()).expect("a connection");
            client.write_all(line).expect("sent");
            let mut answer = String::new();
            client.read_to_string(&mut answer).expect("an answer");
            answer
        }
    }

    impl Drop for Vmm {
        fn drop(&mut self) {
            self.stop.stop();
        }
    }

    fn slot() -> (DiskSlot, SlotHandle) {
        let diskless = DisklessBlock::new().expect("an eventfd");
        let (queues, activation_eventfd) = (diskless.queues(), Some(diskless.activation_eventfd()));
        let stop = Default::default();
        let registers = MmioTransport::empty(Arc::default(), queues, activation_eventfd, stop);
        DiskSlot::new(diskless, Arc::new(registers.expect("eventfds"))).expect("sockets")
    }

    /// Serves a slot in a thread of its own, which ends with the test's process.
    fn serve(slot: DiskSlot) {
        let mut events = EventLoop::new().expect("a loop");
        events.add(Arc::new(Mutex::new(slot)));
        events.spawn("slot", |_| Ok(())).expect("a thread");
    }

    fn disk() -> File {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(1 << 20).expect("sparse");
        file
    }

    #[test]
    fn disks_are_put_into_slots_until_none_is_empty() {
        let (slots, handles): (Vec<_>, Vec<_>) = [slot(), slot()].into_iter().unzip();
        slots.into_iter().for_each(serve);
        let vmm = Vmm::new(handles, ANSWER_TIMEOUT);
        let (pipe, _writer) = rustix::pipe::pipe().expect("a pipe");
        vmm.refuses(&pipe, "a", "neither a block device nor a regular file");
        assert_eq!(vmm.hand(disk(), "a"), Ok(FIRST));
        vmm.refuses(disk(), "a", "there is a disk a already");
        vmm.refuses(disk(), "hull-0", "there is a disk hull-0 already");
        for serial in ["", "..", "a/b", "-a", "123456789012345678901"] {
            vmm.refuses(disk(), serial, "a serial number has");
        }
        vmm.refuses(disk(), "a b", "expected DISK");
        assert_eq!(vmm.hand(disk(), "b"), Ok(FIRST + 1));
        vmm.refuses(disk(), "c", "no slot is empty");
    }

    #[test]
    fn a_line_alone_is_no_disk() {
        let (slot, handle) = slot();
        serve(slot);
        let vmm = Vmm::new(vec![handle], ANSWER_TIMEOUT);
        assert!(vmm.say(b"DISK a ro\n").contains("expected one descriptor"));
        for line in [&b"DISK\n"[..], b"DISK a\n", b"DISK a wo\n", b"HELLO\n"] {
            assert!(vmm.say(line).starts_with("ERROR expected DISK"));
        }
        assert_eq!(vmm.hand(disk(), "a"), Ok(FIRST));
    }

    #[test]
    fn a_thread_that_does_not_answer_is_not_waited_for() {
        let (late, handle) = slot();
        let vmm = Vmm::new(vec![handle], Duration::from_millis(20));
        vmm.refuses(disk(), "a", "did not answer");
        vmm.refuses(disk(), "b", "no slot is empty");
        serve(late);
        vmm.refuses(disk(), "a", "there is a disk a already");
    }

    #[test]
    fn a_thread_that_is_gone_is_asked_no_more() {
        let ((gone, handle), (slot, second)) = (slot(), slot());
        let vmm = Vmm::new(vec![handle, second], ANSWER_TIMEOUT);
        serve(slot);
        let folder = vmm.socket();
        let asking = std::thread::spawn(move || hand_disk_at(&folder, disk().as_fd(), "a", false));
        std::thread::sleep(Duration::from_millis(20));
        drop(gone);
        // Told so, or put into the other slot if it was seen to be gone before.
        match asking.join().expect("no panic") {
            Err(error) => {
                assert!(error.to_string().contains("is gone"), "{error}");
                assert_eq!(vmm.hand(disk(), "b"), Ok(FIRST + 1));
            }
            Ok(number) => assert_eq!(number, FIRST + 1),
        }
        vmm.refuses(disk(), "c", "no slot is empty");
    }

    #[test]
    fn a_vm_without_slots_takes_no_disk() {
        let vmm = Vmm::new(Vec::new(), ANSWER_TIMEOUT);
        vmm.refuses(disk(), "a", NO_ANSWER);
    }

    #[test]
    fn answers_are_told_from_each_other_and_can_be_shown() {
        assert_eq!(parse_answer("OK 3\n"), Some(Ok(3)));
        let refused = Some(Err("a? b".to_owned()));
        assert_eq!(parse_answer("ERROR a\x1b b\n"), refused);
        for bad in ["", "\n", "OK\n", "OK 256\n", "OK x\n", "DONE 3\n"] {
            assert_eq!(parse_answer(bad), None, "{bad:?}");
        }
    }
}
