//! One pair of queues of an active device, with its queue of the tap, and what each direction waits for.

use std::io;
use std::sync::Arc;

use event_manager::EventSet;
use vm_memory::GuestMemoryMmap;

use super::buffers::ChainError;
use super::receive::{self, Receiver};
use super::tap::Tap;
use super::transmit::{self, SendError, Transmitter};
use crate::stop::StopFlag;
use crate::virtio::queue::DeviceQueue;

/// What went wrong in a turn, for the log.
#[derive(Debug, thiserror::Error)]
pub(super) enum Problem {
    #[error("cannot read the tap")]
    Read(#[source] io::Error),
    #[error("a receive buffer isn't used")]
    Buffer(#[source] ChainError),
    #[error("a frame of the guest is dropped")]
    Dropped(#[source] SendError),
}

/// Both directions of a pair.
pub(super) struct Pair {
    receiver: Receiver,
    transmitter: Transmitter,
    /// The driver must kick before the next frame can be received: it has made too few buffers
    /// available.
    awaits_buffers: bool,
    /// The tap must become writable before the next frame can be sent.
    awaits_tap: bool,
}

impl Pair {
    /// For a driver that has negotiated `features`.
    pub(super) fn new(memory: &Arc<GuestMemoryMmap>, features: u64) -> Self {
        Self {
            receiver: Receiver::new(Arc::clone(memory), features),
            transmitter: Transmitter::new(Arc::clone(memory)),
            awaits_buffers: false,
            awaits_tap: false,
        }
    }

    /// The driver has made receive buffers available.
    pub(super) fn on_buffers(&mut self) {
        self.awaits_buffers = false;
    }

    /// The tap takes frames, or will never take any again.
    pub(super) fn on_tap_writable(&mut self) {
        self.awaits_tap = false;
    }

    /// The events of the tap that can be handled now. Others would wake the loop again and again, since they are
    /// level-triggered.
    pub(super) fn wanted_events(&self) -> EventSet {
        let mut wanted = EventSet::empty();
        wanted.set(EventSet::IN, !self.awaits_buffers);
        wanted.set(EventSet::OUT, self.awaits_tap);
        wanted
    }

    /// Receives frames for one turn.
    pub(super) fn receive(
        &mut self,
        rx: &mut DeviceQueue,
        memory: &GuestMemoryMmap,
        tap: &Tap,
        stop: &StopFlag,
    ) -> [Option<Problem>; 2] {
        if self.awaits_buffers {
            return [None, None];
        }
        let progress = self.receiver.serve(rx, memory, tap, stop);
        self.awaits_buffers = match progress {
            Ok(receive::Progress::TapEmpty) => false,
            Ok(receive::Progress::NoBuffers) => true,
            Ok(receive::Progress::MoreToServe) => {
                rx.kick_self();
                false
            }
            // The tap isn't read again before the driver kicks: the error may be permanent.
            Err(_) => {
                rx.enable_kicks(memory);
                true
            }
        };
        let chain_error = self.receiver.take_chain_error();
        [
            progress.err().map(Problem::Read),
            chain_error.map(Problem::Buffer),
        ]
    }

    /// Sends frames for one turn.
    pub(super) fn transmit(
        &mut self,
        tx: &mut DeviceQueue,
        memory: &GuestMemoryMmap,
        tap: &Tap,
        stop: &StopFlag,
    ) -> Option<Problem> {
        if self.awaits_tap {
            return None;
        }
        let progress = self.transmitter.serve(tx, memory, tap, stop);
        self.awaits_tap = match progress {
            transmit::Progress::QueueEmpty => false,
            transmit::Progress::TapFull => true,
            transmit::Progress::MoreToServe => {
                tx.kick_self();
                false
            }
        };
        self.transmitter.take_send_error().map(Problem::Dropped)
    }

    /// Makes the receive buffers available again that were popped and not used.
    pub(super) fn undo_pops(&self, rx: &mut DeviceQueue) {
        rx.undo_pop(self.receiver.popped_chains());
    }
}
