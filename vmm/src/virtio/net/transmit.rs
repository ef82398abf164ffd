//! The transmit direction: from the guest to the tap. A chain is a frame with its header, which is
//! written to the tap unchanged.
//!
//! The kernel validates the header, as it does for any program that has a tap, and refuses a frame
//! whose header makes no sense. The driver isn't told that a frame was dropped (virtio 1.3,
//! 5.1.6.2).

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use virtio_queue::DescriptorChain;
use vm_memory::GuestMemoryMmap;

use super::buffers::{Access, Buffers, ChainError};
use super::tap::Tap;
use super::{BUDGET, HEADER_SIZE, MAX_FRAME};
use crate::stop::StopFlag;
use crate::virtio::queue::DeviceQueue;

/// The size of the smallest frame with its header: an Ethernet header.
const MIN_FRAME: usize = HEADER_SIZE + 14;

/// The state when a turn ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// The queue is empty; the driver will kick when it makes more available.
    QueueEmpty,
    /// The tap takes no frame; it becomes writable when it does.
    TapFull,
    /// There may be more frames, which are left for another turn.
    MoreToServe,
}

/// Why a frame was dropped.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error("a frame and its header are {0} bytes, and must be {MIN_FRAME} to {MAX_FRAME}")]
    Size(usize),
    #[error("the tap refuses it")]
    Tap(#[source] io::Error),
}

/// Moves frames from the guest to the tap.
pub(super) struct Transmitter {
    /// The buffers of the frame that is being sent.
    buffers: Buffers,
    /// Why a frame was dropped, until that has been logged.
    send_error: Option<SendError>,
}

impl Transmitter {
    /// For a driver that has activated the device.
    pub(super) fn new(memory: Arc<GuestMemoryMmap>) -> Self {
        Self {
            buffers: Buffers::new(memory),
            send_error: None,
        }
    }

    /// Why the last dropped frame was; returned once, for the log.
    pub(super) fn take_send_error(&mut self) -> Option<SendError> {
        self.send_error.take()
    }

    /// Moves frames for one turn.
    pub(super) fn serve(
        &mut self,
        tx: &mut DeviceQueue,
        memory: &GuestMemoryMmap,
        tap: &Tap,
        stop: &StopFlag,
    ) -> Progress {
        tx.disable_kicks(memory);
        for _ in 0..BUDGET {
            if stop.is_set() {
                return Progress::QueueEmpty;
            }
            let Some(chain) = tx.pop(memory) else {
                if !tx.enable_kicks(memory) {
                    return Progress::QueueEmpty;
                }
                tx.disable_kicks(memory);
                continue;
            };
            let head = chain.head_index();
            match self.send(chain, tap) {
                Err(SendError::Tap(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    tx.undo_pop(1);
                    return Progress::TapFull;
                }
                Err(SendError::Tap(error)) if error.kind() == io::ErrorKind::Interrupted => {
                    tx.undo_pop(1);
                    continue;
                }
                Err(error) => self.send_error = Some(error),
                Ok(()) => {}
            }
            tx.add_used(memory, head, 0);
        }
        Progress::MoreToServe
    }

    fn send(
        &mut self,
        chain: DescriptorChain<&GuestMemoryMmap>,
        tap: &Tap,
    ) -> Result<(), SendError> {
        self.buffers.clear();
        let (_, size) = self.buffers.push(chain, Access::DeviceReadable)?;
        if !(MIN_FRAME..=MAX_FRAME).contains(&size) {
            return Err(SendError::Size(size));
        }
        let written = self.buffers.write_to(tap.as_fd());
        written.map(drop).map_err(SendError::Tap)
    }
}
