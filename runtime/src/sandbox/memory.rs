//! Memory that a VM gets and gives back while it runs: both ends of the control socket's verb for it.
//!
//! `MEMORY <MiB>` asks the guest to have as much memory beside that which it was booted with. The answer, once it has,
//! is `OK <MiB plugged> <MiB asked for>`, or `LATE` with the same numbers where it doesn't get on with it; then the
//! guest may do so later all the same. Who asks meanwhile has the earlier client answered `LATE`. `MEMORY` alone changes
//! nothing, and is answered at once. `ERROR <why>` says that there is no such memory.
//!
//! In the VM process, [`MemoryRequests`] lives in the main thread's loop, as the device does.

use std::io::{self, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use event_manager::{EventOps, Events, MutEventSubscriber};
use hull_vmm::deadlines::Deadlines;
use hull_vmm::event_loop::Subscriber;
use hull_vmm::virtio::mem::Mem;
use hull_vmm::virtio::vsock::{ControlClient, OtherRequest};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::AgentError;
use super::agent::printable;
use super::socket;
use crate::store::SandboxDir;

/// The word of a request.
const VERB: &str = "MEMORY";

/// The longest line that a VMM answers with, in bytes.
const LONGEST_ANSWER: usize = 300;

/// How long a guest may take, and be given up when it has plugged or unplugged nothing for a while. It may
/// never be able to unplug what it uses, and doesn't say so.
#[derive(Clone, Copy, Debug)]
struct Patience {
    to_plug: Duration,
    to_unplug: Duration,
    in_all: Duration,
}

const PATIENCE: Patience = Patience {
    to_plug: Duration::from_secs(30),
    to_unplug: Duration::from_secs(5),
    in_all: Duration::from_secs(120),
};

/// How long a client waits: longer than the VMM does.
const CLIENT_TIMEOUT: Duration = PATIENCE.in_all.saturating_add(Duration::from_secs(10));

/// How much memory a guest has beside that which it was booted with, in MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plugged {
    /// What it has.
    pub mib: u32,
    /// What it was asked to have.
    pub requested_mib: u32,
}

/// Has the guest of the sandbox whose files these are have `mib` MiB beside the memory that it was booted with, and
/// waits until it has that, or doesn't get on with it.
///
/// # Errors
/// When the VMM doesn't answer, or the guest can't have so much.
pub fn plug_memory(dir: &SandboxDir, mib: u32) -> Result<Plugged, AgentError> {
    ask(&dir.socket_path(), &format!("{VERB} {mib}\n"))
}

/// How much memory that guest has beside the memory that it was booted with.
///
/// # Errors
/// When the VMM doesn't answer, or there is no such memory.
pub fn plugged_memory(dir: &SandboxDir) -> Result<Plugged, AgentError> {
    ask(&dir.socket_path(), &format!("{VERB}\n"))
}

fn ask(socket: &Path, line: &str) -> Result<Plugged, AgentError> {
    let mut vmm = socket::dial(socket, socket::CALL_TIMEOUT)?;
    let failed = |what| socket::failed(what, CLIENT_TIMEOUT);
    vmm.write_all(line.as_bytes())
        .map_err(failed("take a request for memory"))?;
    let answer = socket::answer(
        &mut BufReader::new(vmm),
        LONGEST_ANSWER,
        Some(CLIENT_TIMEOUT),
    );
    let answer = answer.map_err(failed("change the guest's memory"))?;
    // It has ended meanwhile.
    let answer = parse_answer(&answer).ok_or(AgentError::NotServing)?;
    answer.map_err(|why| AgentError::NotTaken {
        what: "further memory",
        why,
    })
}

/// Answers a request to a VMM that has no memory to give.
pub(super) fn refuse(request: OtherRequest) -> Result<(), OtherRequest> {
    match request.line.split(' ').next() {
        Some(VERB) => {
            let client = request.client;
            client.answer(&format!("ERROR {}", Refusal::NotReserved));
            Ok(())
        }
        _ => Err(request),
    }
}

/// What is plugged, or why nothing can be; `None` where it is no answer.
fn parse_answer(line: &str) -> Option<Result<Plugged, String>> {
    let (word, rest) = line.trim_end().split_once(' ')?;
    if word == "ERROR" {
        return Some(Err(printable(rest, LONGEST_ANSWER)));
    }
    let (mib, requested_mib) = rest.split_once(' ')?;
    ["OK", "LATE"].contains(&word).then_some(Ok(Plugged {
        mib: mib.parse().ok()?,
        requested_mib: requested_mib.parse().ok()?,
    }))
}

/// Why a client gets no memory.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("expected {VERB} alone, or {VERB} and at most {0} MiB")]
    Malformed(u64),
    #[error("the guest has no driver for it")]
    NoDriver,
    #[error(
        "its process has reserved none (the host's vm.overcommit_memory or RLIMIT_AS may not have let it)"
    )]
    NotReserved,
}

/// The events' data: the plugged size has changed, or a time is over.
const PLUGGED: u32 = 0;
const TIMER: u32 = 1;

/// What can be over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Over {
    /// The time in which something should have changed.
    Progress,
    /// All of it.
    All,
}

/// What requests are passed on to: [`Mem`], but in tests. Sizes are in bytes.
pub(super) trait Growing {
    /// The most that can be plugged.
    fn most(&self) -> u64;
    /// See [`Mem::has_driver`].
    fn has_driver(&self) -> bool;
    /// See [`Mem::request_size`].
    fn request_size(&mut self, size: u64);
    /// See [`Mem::requested_size`].
    fn requested_size(&self) -> u64;
    /// See [`Mem::plugged_size`].
    fn plugged_size(&self) -> u64;
    /// See [`Mem::plugged_eventfd`].
    fn plugged_eventfd(&self) -> Arc<EventFd>;
}

impl Growing for Mem {
    fn most(&self) -> u64 {
        self.region().size
    }

    fn has_driver(&self) -> bool {
        self.has_driver()
    }

    fn request_size(&mut self, size: u64) {
        self.request_size(size);
    }

    fn requested_size(&self) -> u64 {
        self.requested_size()
    }

    fn plugged_size(&self) -> u64 {
        self.plugged_size()
    }

    fn plugged_eventfd(&self) -> Arc<EventFd> {
        self.plugged_eventfd()
    }
}

/// Who asks for memory, and waits for it.
pub(super) struct MemoryRequests<M = Mem> {
    device: Arc<Mutex<M>>,
    plugged: Arc<EventFd>,
    waiting: Option<Waiting>,
    deadlines: Deadlines<Over>,
    patience: Patience,
}

/// A client, and how long the guest may be at rest meanwhile.
struct Waiting {
    client: ControlClient,
    rest: Duration,
}

impl<M: Growing> MemoryRequests<M> {
    /// For that device, in the loop that serves it.
    ///
    /// # Errors
    /// When there are too many open files.
    pub(super) fn new(device: Arc<Mutex<M>>) -> io::Result<Self> {
        let plugged = lock(&device).plugged_eventfd();
        Ok(Self {
            device,
            plugged,
            waiting: None,
            deadlines: Deadlines::new()?,
            patience: PATIENCE,
        })
    }

    /// Takes a client's request, if it is for this; otherwise it is for somebody else.
    ///
    /// # Errors
    /// Is the request, then.
    pub(super) fn take(&mut self, request: OtherRequest) -> Result<(), OtherRequest> {
        let words = match request.line.strip_prefix(VERB) {
            Some("") => None,
            Some(words) if words.starts_with(' ') => Some(words.trim_start().to_owned()),
            _ => return Err(request),
        };
        let client = request.client;
        match words.map(|words| self.request_size(&words)) {
            None => client.answer(&self.outcome()),
            Some(Err(refusal)) => client.answer(&format!("ERROR {refusal}")),
            Some(Ok(rest)) => {
                self.answer_waiting();
                self.deadlines.set(Over::Progress, rest);
                self.deadlines.set(Over::All, self.patience.in_all);
                self.waiting = Some(Waiting { client, rest });
                if self.is_reached() {
                    self.answer_waiting();
                }
            }
        }
        Ok(())
    }

    /// Has the device ask the guest. Returns how long that may be at rest until it has what it is to have.
    fn request_size(&self, words: &str) -> Result<Duration, Refusal> {
        let mut device = lock(&self.device);
        let most = device.most() >> 20;
        let mib: Option<u64> = words.parse().ok().filter(|mib| *mib <= most);
        let size = mib.ok_or(Refusal::Malformed(most))? << 20;
        if !device.has_driver() {
            return Err(Refusal::NoDriver);
        }
        device.request_size(size);
        Ok(match size >= device.plugged_size() {
            true => self.patience.to_plug,
            false => self.patience.to_unplug,
        })
    }

    fn is_reached(&self) -> bool {
        let device = lock(&self.device);
        device.plugged_size() == device.requested_size()
    }

    fn outcome(&self) -> String {
        let device = lock(&self.device);
        let (plugged, requested) = (device.plugged_size(), device.requested_size());
        let word = if plugged == requested { "OK" } else { "LATE" };
        format!("{word} {} {}", plugged >> 20, requested >> 20)
    }

    /// Tells who waits how things are.
    fn answer_waiting(&mut self) {
        for over in [Over::Progress, Over::All] {
            self.deadlines.cancel(over);
        }
        if let Some(Waiting { client, .. }) = self.waiting.take() {
            client.answer(&self.outcome());
        }
    }

    fn on_progress(&mut self) {
        let _ = self.plugged.read();
        if self.is_reached() {
            self.answer_waiting();
        } else if let Some(Waiting { rest, .. }) = self.waiting {
            self.deadlines.set(Over::Progress, rest);
        }
    }
}

impl<M: Growing + Send> Subscriber for MemoryRequests<M> {
    fn descriptors(&self) -> Vec<RawFd> {
        vec![self.plugged.as_raw_fd(), self.deadlines.as_fd().as_raw_fd()]
    }
}

impl<M: Growing> MutEventSubscriber for MemoryRequests<M> {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let timer = self.deadlines.as_fd().as_raw_fd();
        for (fd, data) in [(self.plugged.as_raw_fd(), PLUGGED), (timer, TIMER)] {
            if let Err(error) = ops.add(Events::with_data_raw(fd, data, EventSet::IN)) {
                log::error!("the guest's memory can't be watched: {error}");
            }
        }
    }

    fn process(&mut self, events: Events, _: &mut EventOps<'_>) {
        match events.data() {
            TIMER if self.deadlines.expired().is_empty() => {}
            TIMER => self.answer_waiting(),
            _ => self.on_progress(),
        }
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    use hull_vmm::EventLoop;
    use hull_vmm::event_loop::StopHandle;
    use hull_vmm::virtio::vsock::Vsock;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    const SHORT: Duration = Duration::from_millis(50);

    /// A device whose guest plugs what the test says.
    struct Fake {
        has_driver: bool,
        /// Whether it does at once what it is asked to.
        obeys: bool,
        requested: u64,
        plugged: u64,
        eventfd: Arc<EventFd>,
    }

    impl Fake {
        fn plug(&mut self, mib: u64) {
            self.plugged = mib << 20;
            self.eventfd.write(1).expect("written");
        }
    }

    impl Growing for Fake {
        fn most(&self) -> u64 {
            1 << 30
        }

        fn has_driver(&self) -> bool {
            self.has_driver
        }

        fn request_size(&mut self, size: u64) {
            self.requested = size;
            if self.obeys {
                self.plug(size >> 20);
            }
        }

        fn requested_size(&self) -> u64 {
            self.requested
        }

        fn plugged_size(&self) -> u64 {
            self.plugged
        }

        fn plugged_eventfd(&self) -> Arc<EventFd> {
            Arc::clone(&self.eventfd)
        }
    }

    /// The main thread of a VM process, as far as memory is concerned.
    struct Vmm {
        folder: tempfile::TempDir,
        device: Arc<Mutex<Fake>>,
        stop: StopHandle,
    }

    impl Vmm {
        fn new(patience: Patience) -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let listener = UnixListener::bind(folder.path().join("socket")).expect("a socket");
            let mut vsock = Vsock::new(3, 0x1_0000, listener).expect("a device");
            let device = Arc::new(Mutex::new(Fake {
                has_driver: true,
                obeys: false,
                requested: 0,
                plugged: 0,
                eventfd: Arc::new(EventFd::new(EFD_NONBLOCK).expect("an eventfd")),
            }));
            let mut requests = MemoryRequests::new(Arc::clone(&device)).expect("a timer");
            requests.patience = patience;
            let requests = Arc::new(Mutex::new(requests));
            let mut events = EventLoop::new().expect("a loop");
            events.add(Arc::clone(&requests) as _);
            vsock.on_other_requests(move |request| {
                drop(requests.lock().expect("free").take(request));
            });
            events.add(Arc::new(Mutex::new(vsock)));
            let stop = events.stop_handle();
            events.spawn("main", |_| Ok(())).expect("a thread");
            Self {
                folder,
                device,
                stop,
            }
        }

        fn ask(&self, line: &str) -> Result<Plugged, String> {
            let socket = self.folder.path().join("socket");
            super::ask(&socket, line).map_err(|error| error.to_string())
        }

        fn device(&self) -> MutexGuard<'_, Fake> {
            self.device.lock().expect("free")
        }

        /// Waits until the guest is asked for so much.
        fn wait_for_request(&self, mib: u64) {
            while self.device().requested != mib << 20 {
                std::thread::yield_now();
            }
        }
    }

    impl Drop for Vmm {
        fn drop(&mut self) {
            self.stop.stop();
        }
    }

    fn plugged(mib: u32, requested_mib: u32) -> Result<Plugged, String> {
        Ok(Plugged { mib, requested_mib })
    }

    #[test]
    fn a_client_waits_until_the_guest_has_what_it_is_to_have() {
        let vmm = Vmm::new(PATIENCE);
        std::thread::scope(|scope| {
            let client = scope.spawn(|| vmm.ask("MEMORY 300\n"));
            vmm.wait_for_request(300);
            vmm.device().plug(100);
            assert_eq!(vmm.ask("MEMORY\n"), plugged(100, 300));
            assert!(!client.is_finished());
            vmm.device().plug(300);
            assert_eq!(client.join().expect("no panic"), plugged(300, 300));
        });
        vmm.device().obeys = true;
        assert_eq!(vmm.ask("MEMORY 0\n"), plugged(0, 0), "done at once");
    }

    #[test]
    fn a_guest_that_does_not_get_on_is_given_up() {
        let vmm = Vmm::new(Patience {
            to_plug: SHORT,
            to_unplug: SHORT,
            ..PATIENCE
        });
        assert_eq!(vmm.ask("MEMORY 300\n"), plugged(0, 300));
        vmm.device().plug(200);
        assert_eq!(vmm.ask("MEMORY 100\n"), plugged(200, 100));
    }

    #[test]
    fn a_guest_that_never_gets_there_is_given_up() {
        let vmm = Vmm::new(Patience {
            in_all: SHORT,
            ..PATIENCE
        });
        assert_eq!(vmm.ask("MEMORY 300\n"), plugged(0, 300));
    }

    #[test]
    fn who_asks_later_has_it_his_way() {
        let vmm = Vmm::new(PATIENCE);
        std::thread::scope(|scope| {
            let earlier = scope.spawn(|| vmm.ask("MEMORY 300\n"));
            vmm.wait_for_request(300);
            let later = scope.spawn(|| vmm.ask("MEMORY 200\n"));
            assert_eq!(earlier.join().expect("no panic"), plugged(0, 200));
            vmm.device().plug(200);
            assert_eq!(later.join().expect("no panic"), plugged(200, 200));
        });
    }

    #[test]
    fn what_cannot_be_is_refused_and_asked_of_no_guest() {
        let vmm = Vmm::new(PATIENCE);
        for line in ["MEMORY 1025\n", "MEMORY -1\n", "MEMORY x\n", "MEMORY \n"] {
            let refused = vmm.ask(line).expect_err(line);
            assert!(refused.contains("at most 1024 MiB"), "{refused}");
        }
        vmm.device().has_driver = false;
        let refused = vmm.ask("MEMORY 1\n").expect_err("no driver");
        assert!(refused.contains("no driver"), "{refused}");
        assert_eq!(vmm.device().requested, 0);
        let gone = vmm.ask("MEMORIES\n").expect_err("another verb");
        assert!(gone.contains("does not answer"), "{gone}");
    }

    #[test]
    fn an_answer_is_two_numbers() {
        for line in [
            "",
            "OK",
            "OK 1",
            "OK x 1",
            "OK 1 -1",
            "YES 1 1",
            "OK 99999999999 1",
        ] {
            assert!(parse_answer(line).is_none(), "{line:?}");
        }
    }
}
