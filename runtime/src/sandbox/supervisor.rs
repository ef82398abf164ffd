//! What the VMM process's main loop waits for besides its devices: the container's exit status, its
//! output written out, the machine's end, signals, and the death of `create` before the container was created.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use event_manager::{EventOps, Events, MutEventSubscriber};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use hull_vmm::event_loop::{StopHandle, Subscriber};

use super::lifeline::COMMIT;
use super::signals::Signals;
use crate::host::ENDED;

/// How the VM came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The container has ended with this status, and its output has been written.
    Exited(u8),
    /// The machine stopped without an exit status; what it had sent has been written.
    Stopped,
    /// `create` died before the container was created.
    Abandoned,
}

/// What the main loop watches.
pub struct Watched {
    /// The agent's exit status arrives here.
    pub exit_status: OwnedFd,
    /// Readable once the container's streams have come to their end and were written out.
    pub output_done: EventFd,
    /// Readable once the vCPUs have stopped.
    pub stopped: OwnedFd,
    /// Called then, and when the container has ended: the guest runs no more, nothing is taken from it, what
    /// it has sent is written out, and after that `output_done` is readable.
    pub stop_guest: Box<dyn Fn() + Send>,
    /// The connection to `create`.
    pub lifeline: UnixStream,
    /// Passed on once the container is created.
    pub signals: Signals,
    /// Ends the main loop.
    pub main_loop: StopHandle,
}

/// Watches them, and says when the process is to end.
pub struct Supervisor {
    watched: Watched,
    status: Option<u8>,
    stopped: bool,
    output_done: bool,
    created: bool,
    end: Option<End>,
}

const EXIT_STATUS: u32 = 0;
const OUTPUT_DONE: u32 = 1;
const STOPPED: u32 = 2;
const LIFELINE: u32 = 3;
const SIGNALS: u32 = 4;

impl Supervisor {
    /// Not yet at an end.
    pub fn new(watched: Watched) -> Self {
        Self {
            watched,
            status: None,
            stopped: false,
            output_done: false,
            created: false,
            end: None,
        }
    }

    /// How it ended, once it has.
    pub fn end(&self) -> Option<End> {
        self.end
    }

    fn fds(&self) -> [(RawFd, u32); 5] {
        [
            (self.watched.exit_status.as_raw_fd(), EXIT_STATUS),
            (self.watched.output_done.as_raw_fd(), OUTPUT_DONE),
            (self.watched.stopped.as_raw_fd(), STOPPED),
            (self.watched.lifeline.as_raw_fd(), LIFELINE),
            (self.watched.signals.as_raw_fd(), SIGNALS),
        ]
    }

    fn happened(&mut self, what: u32) {
        match what {
            EXIT_STATUS => {
                if let Some(status) = self.read_status() {
                    self.container_ended(status);
                }
            }
            OUTPUT_DONE => self.output_done = true,
            STOPPED => {
                self.stopped = true;
                (self.watched.stop_guest)();
            }
            LIFELINE => {
                let mut byte = [0];
                let read = (&self.watched.lifeline).read(&mut byte);
                self.created = matches!(read, Ok(1)) && byte[0] == COMMIT;
                match self.created {
                    true => self.watched.signals.pass_on(),
                    false => self.end = self.end.or(Some(End::Abandoned)),
                }
            }
            SIGNALS if self.created => self.watched.signals.pass_on(),
            _ => {}
        }
        if self.output_done {
            let exited = self.status.map(End::Exited);
            let stopped = self.stopped.then_some(End::Stopped);
            self.end = self.end.or(exited).or(stopped);
        }
    }

    /// The agent has sent all output before the status, and written all files back: the guest has nothing
    /// left to do, and may do nothing more in the shares while somebody takes long to read the output. Who
    /// still holds an output of the container's open holds nobody up, as when it is the guest that claims so.
    fn container_ended(&mut self, status: u8) {
        self.status = Some(status);
        if let Err(e) = rustix::thread::set_name(ENDED) {
            log::debug!("the container's end shows with this process's: {e}");
        }
        (self.watched.stop_guest)();
    }

    fn read_status(&self) -> Option<u8> {
        // One byte, and nothing else, is a status.
        let mut bytes = [0; 2];
        let mut file = File::from(self.watched.exit_status.try_clone().ok()?);
        matches!(file.read(&mut bytes), Ok(1)).then_some(bytes[0])
    }
}

impl Subscriber for Supervisor {
    fn descriptors(&self) -> Vec<RawFd> {
        let watched = self.fds().map(|(fd, _)| fd).into_iter();
        watched.chain(self.watched.signals.terminal()).collect()
    }
}

impl MutEventSubscriber for Supervisor {
    fn init(&mut self, ops: &mut EventOps) {
        for (fd, what) in self.fds() {
            let how_often = match what {
                // Each that comes wakes once, also while they wait for the container.
                SIGNALS => EventSet::EDGE_TRIGGERED,
                // Each says what it has to say once.
                _ => EventSet::ONE_SHOT,
            };
            let events = Events::with_data_raw(fd, what, EventSet::IN | how_often);
            if let Err(e) = ops.add(events) {
                log::error!(
                    "cannot watch for the machine's end: {}",
                    io::Error::other(e)
                );
                self.end = Some(End::Stopped);
            }
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        self.happened(events.data());
        if self.end.is_some() {
            self.watched.main_loop.stop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::notices::Notices;
    use crate::sandbox::signals;
    use hull_protocol::notices::Notice;
    use hull_vmm::EventLoop;
    use nix::sys::signal::{Signal, raise};
    use std::io::Write;
    use std::sync::Arc;

    struct Outside {
        exit_status: File,
        create: UnixStream,
        guest: UnixStream,
    }

    fn supervisor() -> (Supervisor, Outside) {
        supervisor_with(Box::new(|| ()))
    }

    fn supervisor_with(stop_guest: Box<dyn Fn() + Send>) -> (Supervisor, Outside) {
        let (reader, writer) = rustix::pipe::pipe().expect("pipe");
        let (create, lifeline) = UnixStream::pair().expect("pair");
        let (notices, guest) = Notices::new().expect("pair");
        signals::hold().expect("signals");
        let watched = Watched {
            exit_status: reader,
            output_done: EventFd::new(0).expect("eventfd"),
            stopped: OwnedFd::from(File::open("/dev/null").expect("open")),
            stop_guest,
            lifeline,
            signals: Signals::new(Arc::new(notices), None).expect("signalfd"),
            main_loop: EventLoop::new().expect("event loop").stop_handle(),
        };
        (
            Supervisor::new(watched),
            Outside {
                exit_status: writer.into(),
                create,
                guest: guest.into(),
            },
        )
    }

    #[test]
    fn the_exit_waits_for_the_output() {
        let (mut supervisor, mut outside) = supervisor();
        outside.exit_status.write_all(&[7]).expect("write");
        supervisor.happened(EXIT_STATUS);
        assert_eq!(supervisor.end(), None);
        supervisor.happened(OUTPUT_DONE);
        assert_eq!(supervisor.end(), Some(End::Exited(7)));
    }

    #[test]
    fn nothing_more_is_taken_from_the_guest_once_its_container_has_ended() {
        let (told, tells) = std::sync::mpsc::channel();
        let (mut supervisor, mut outside) = supervisor_with(Box::new(move || {
            let _ = told.send(());
        }));
        supervisor.happened(OUTPUT_DONE);
        assert!(tells.try_recv().is_err());
        outside.exit_status.write_all(&[0]).expect("write");
        supervisor.happened(EXIT_STATUS);
        assert!(tells.try_recv().is_ok());
        let this = rustix::thread::name().expect("the thread's name");
        assert_eq!(this.as_c_str(), ENDED);
    }

    #[test]
    fn more_than_a_byte_is_no_status() {
        let (mut supervisor, mut outside) = supervisor();
        outside.exit_status.write_all(&[7, 7]).expect("write");
        supervisor.happened(EXIT_STATUS);
        supervisor.happened(OUTPUT_DONE);
        assert_eq!(supervisor.end(), None);
    }

    #[test]
    fn a_dead_create_takes_the_vm_along_until_it_has_committed() {
        let (mut supervisor, outside) = supervisor();
        drop(outside.create);
        supervisor.happened(LIFELINE);
        assert_eq!(supervisor.end(), Some(End::Abandoned));

        let (mut supervisor, mut outside) = self::supervisor();
        outside.create.write_all(&[COMMIT]).expect("write");
        drop(outside.create);
        supervisor.happened(LIFELINE);
        assert_eq!(supervisor.end(), None);
    }

    #[test]
    fn signals_wait_until_the_container_is_created() {
        let (mut supervisor, mut outside) = supervisor();
        outside.guest.set_nonblocking(true).expect("no waiting");
        let mut told = || {
            let mut record = [0; hull_protocol::notices::LENGTH];
            let read = outside.guest.read_exact(&mut record);
            read.ok().map(|()| Notice::decode(record))
        };
        raise(Signal::SIGTERM).expect("a signal");
        supervisor.happened(SIGNALS);
        assert_eq!(told(), None);

        outside.create.write_all(&[COMMIT]).expect("write");
        supervisor.happened(LIFELINE);
        assert_eq!(told(), Some(Notice::Signal(libc::SIGTERM)));

        raise(Signal::SIGUSR1).expect("a signal");
        supervisor.happened(SIGNALS);
        assert_eq!(told(), Some(Notice::Signal(libc::SIGUSR1)));
        assert_eq!(told(), None);
    }

    #[test]
    fn a_machine_that_stops_by_itself_ends_it_after_its_output() {
        let (mut supervisor, _outside) = supervisor();
        supervisor.happened(STOPPED);
        assert_eq!(supervisor.end(), None);
        supervisor.happened(OUTPUT_DONE);
        assert_eq!(supervisor.end(), Some(End::Stopped));
    }
}
