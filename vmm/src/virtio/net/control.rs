//! The control queue (virtio 1.3, 5.1.6.5), by which the driver says how many pairs of queues it uses
//! (`VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET`, 5.1.6.5.6.1). That is the only command: the features of all others are not
//! offered, so they are answered with an error.

use std::io::{Read, Write};

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR, VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_MQ, VIRTIO_NET_OK,
};
use virtio_queue::DescriptorChain;
use virtiofsd::descriptor_utils::{Reader, Writer};

use crate::stop::StopFlag;
use crate::virtio::device::{ActivateError, ActiveQueue};
use crate::virtio::memory::LoggedMemory;
use crate::virtio::queue::{DeviceQueue, Turn};

/// Commands in one turn, before the event loop handles other devices: each may take the lock of the host's network
/// configuration.
const BUDGET: usize = 4;

/// The most descriptors of a command. Linux needs four.
const MAX_DESCRIPTORS: usize = 16;

/// The size of the command in bytes: its class, its number, and how many pairs.
const COMMAND_SIZE: usize = 4;

/// Which queues a driver has set up, by its features (virtio 1.3, 5.1.2): receive and transmit queue of each pair, then
/// the control queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// How many pairs.
    pub(super) pairs: usize,
    has_control: bool,
    /// `VIRTIO_NET_F_MQ`.
    is_multiqueue: bool,
}

impl Layout {
    /// That of a driver with these features, of a NIC with that many pairs.
    pub(super) fn of(features: u64, pairs: usize) -> Self {
        let has = |feature: u32| features & (1 << feature) != 0;
        Self {
            pairs: if has(VIRTIO_NET_F_MQ) { pairs } else { 1 },
            has_control: has(VIRTIO_NET_F_CTRL_VQ),
            is_multiqueue: has(VIRTIO_NET_F_MQ),
        }
    }

    /// How many queues.
    pub(super) fn queues(self) -> usize {
        2 * self.pairs + usize::from(self.has_control)
    }

    /// Whether these are as many queues.
    pub(super) fn check(self, queues: &[ActiveQueue]) -> Result<(), ActivateError> {
        match (self.queues(), queues.len()) {
            (expected, found) if expected == found => Ok(()),
            (expected, found) => Err(ActivateError::QueueCount { expected, found }),
        }
    }

    /// The index of the control queue, if there is one.
    pub(super) fn control(self) -> Option<usize> {
        self.has_control.then_some(2 * self.pairs)
    }
}

/// How many pairs a command says that the driver uses, which has set up its queues like this; `None` if it is no command
/// that it may give.
fn pairs_of(command: &[u8], layout: Layout) -> Option<usize> {
    let [class, number, low, high] = *<&[u8; COMMAND_SIZE]>::try_from(command).ok()?;
    let is_known = u32::from(class) == VIRTIO_NET_CTRL_MQ
        && u32::from(number) == VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET
        && layout.is_multiqueue;
    let pairs = usize::from(u16::from_le_bytes([low, high]));
    (is_known && (1..=layout.pairs).contains(&pairs)).then_some(pairs)
}

/// Takes the commands of one turn, and has `use_pairs` do each, which returns whether it has.
pub(super) fn serve(
    queue: &mut DeviceQueue,
    memory: &LoggedMemory,
    stop: &StopFlag,
    layout: Layout,
    mut use_pairs: impl FnMut(usize) -> bool,
) {
    let turn = Turn {
        budget: BUDGET,
        stop,
        interrupt_each: None,
    };
    queue.serve(memory, turn, |chain| {
        let written = serve_chain(memory, chain, layout, &mut use_pairs);
        Some(written.unwrap_or(0))
    });
}

/// Serves one command. Returns how many bytes were written; `None` if it isn't one, and was left alone.
fn serve_chain(
    memory: &LoggedMemory,
    chain: DescriptorChain<&LoggedMemory>,
    layout: Layout,
    use_pairs: &mut impl FnMut(usize) -> bool,
) -> Option<u32> {
    // The guest may make the chain longer after this check. It is read to its end then, at most 65535
    // descriptors.
    if chain.clone().nth(MAX_DESCRIPTORS).is_some() {
        return None;
    }
    let mut readable = Reader::new(memory, chain.clone()).ok()?;
    let mut writable = Writer::new(memory, chain).ok()?;
    if writable.available_bytes() == 0 {
        return None;
    }
    let mut command = Vec::with_capacity(COMMAND_SIZE + 1);
    let longest = COMMAND_SIZE as u64 + 1;
    (&mut readable)
        .take(longest)
        .read_to_end(&mut command)
        .ok()?;
    let is_done = pairs_of(&command, layout).is_some_and(use_pairs);
    let ack = if is_done {
        VIRTIO_NET_OK
    } else {
        VIRTIO_NET_ERR
    };
    writable.write_all(&[ack as u8]).ok()?;
    Some(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MQ: u64 = 1 << VIRTIO_NET_F_MQ;
    const CTRL_VQ: u64 = 1 << VIRTIO_NET_F_CTRL_VQ;

    #[test]
    fn the_features_decide_which_queues_there_are() {
        for (features, queues, control) in [
            (0, 2, None),
            (CTRL_VQ, 3, Some(2)),
            (MQ, 8, None),
            (MQ | CTRL_VQ, 9, Some(8)),
        ] {
            let layout = Layout::of(features, 4);
            assert_eq!((layout.queues(), layout.control()), (queues, control));
        }
    }

    proptest! {
        #[test]
        fn only_a_whole_command_of_a_driver_that_may_give_it_is_one(
            command in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..6),
                (0_u8..6).prop_map(|pairs| vec![4, 0, pairs, 0]),
            ],
            features in prop_oneof![Just(MQ | CTRL_VQ), Just(CTRL_VQ)],
            pairs in 1_usize..=4,
        ) {
            let all = (1..=pairs as u8).map(|count| vec![4, 0, count, 0]);
            let may = features & MQ != 0;
            let expected = all.filter(|_| may).position(|known| known == command);
            let layout = Layout::of(features, pairs);
            prop_assert_eq!(pairs_of(&command, layout), expected.map(|index| index + 1));
        }
    }
}
