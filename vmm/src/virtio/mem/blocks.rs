//! Which blocks of the device's region are plugged, and what a request does to them (virtio 1.3,
//! 5.15.6). A pure state machine over guest physical addresses: it touches no memory.

use serde::{Deserialize, Serialize};

use super::request::{Range, Request, Response, State};
use super::{BLOCK_SIZE, Region};

/// The bits of a word of the bitmap.
const WORD: u64 = u64::BITS as u64;

/// The blocks of a region.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Blocks {
    region: Region,
    /// A bit for each block, set while it is plugged. Its size is that of the region and never changes.
    plugged: Vec<u64>,
    /// The number of bits that are set.
    count: u64,
    /// How many blocks the guest is asked to have plugged.
    requested: u64,
}

/// What has to be done besides the response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing: no block has changed.
    None,
    /// Blocks were plugged.
    Plugged,
    /// These blocks were unplugged, or some of them: what they hold goes back to the host.
    Unplugged(Region),
}

impl Blocks {
    /// All blocks of a region, whose size is a multiple of [`BLOCK_SIZE`]; none is plugged.
    pub(super) fn new(region: Region) -> Self {
        let words = (region.size / BLOCK_SIZE).div_ceil(WORD);
        Self {
            region,
            plugged: vec![0; words as usize],
            count: 0,
            requested: 0,
        }
    }

    pub(super) fn region(&self) -> Region {
        self.region
    }

    /// How much is plugged, in bytes.
    pub(super) fn plugged_size(&self) -> u64 {
        self.count * BLOCK_SIZE
    }

    /// How much the guest is asked to have plugged, in bytes.
    pub(super) fn requested_size(&self) -> u64 {
        self.requested * BLOCK_SIZE
    }

    /// Asks the guest to have `size` bytes plugged, rounded up to whole blocks; at most the region's.
    pub(super) fn request_size(&mut self, size: u64) {
        self.requested = size.min(self.region.size).div_ceil(BLOCK_SIZE);
    }

    /// Serves a request of the guest's.
    pub(super) fn serve(&mut self, request: Request) -> (Response, Effect) {
        match request {
            Request::Plug(range) => self.plug(range),
            Request::Unplug(range) => self.unplug(range),
            Request::UnplugAll => {
                self.plugged.fill(0);
                self.count = 0;
                (Response::Ack, Effect::Unplugged(self.region))
            }
            Request::State(range) => match self.indexes(range) {
                Some(blocks) => (Response::State(self.state(blocks)), Effect::None),
                None => (Response::Error, Effect::None),
            },
            Request::Unknown => (Response::Error, Effect::None),
        }
    }

    fn plug(&mut self, range: Range) -> (Response, Effect) {
        let Some(blocks) = self.indexes(range) else {
            return (Response::Error, Effect::None);
        };
        if self.state(blocks) != State::Unplugged {
            return (Response::Error, Effect::None);
        }
        if self.count + u64::from(range.blocks) > self.requested {
            return (Response::Nack, Effect::None);
        }
        self.set(blocks, true);
        (Response::Ack, Effect::Plugged)
    }

    fn unplug(&mut self, range: Range) -> (Response, Effect) {
        let Some(blocks) = self.indexes(range) else {
            return (Response::Error, Effect::None);
        };
        if self.state(blocks) != State::Plugged {
            return (Response::Error, Effect::None);
        }
        self.set(blocks, false);
        let unplugged = Region {
            start: range.address,
            size: u64::from(range.blocks) * BLOCK_SIZE,
        };
        (Response::Ack, Effect::Unplugged(unplugged))
    }

    /// The indexes of a range's blocks: the first, and the one behind the last. `None` if they aren't
    /// whole blocks of the region, or there is none of them.
    fn indexes(&self, range: Range) -> Option<(u64, u64)> {
        let offset = range.address.checked_sub(self.region.start)?;
        let count = u64::from(range.blocks);
        if count == 0 || !offset.is_multiple_of(BLOCK_SIZE) {
            return None;
        }
        let first = offset / BLOCK_SIZE;
        let end = first.checked_add(count)?;
        (end <= self.region.size / BLOCK_SIZE).then_some((first, end))
    }

    fn state(&self, (first, end): (u64, u64)) -> State {
        let plugged = |index: u64| {
            let word = self.plugged.get((index / WORD) as usize);
            word.is_some_and(|word| word & 1 << (index % WORD) != 0)
        };
        let count = (first..end).filter(|index| plugged(*index)).count() as u64;
        match count {
            0 => State::Unplugged,
            all if all == end - first => State::Plugged,
            _ => State::Mixed,
        }
    }

    /// Sets the bits of blocks all of which are in the other state.
    fn set(&mut self, (first, end): (u64, u64), plugged: bool) {
        for index in first..end {
            if let Some(word) = self.plugged.get_mut((index / WORD) as usize) {
                *word ^= 1 << (index % WORD);
            }
        }
        match plugged {
            true => self.count += end - first,
            false => self.count -= end - first,
        }
    }

    /// Whether a guest's requests can lead to this state, in a region that is this one's.
    pub(super) fn is_possible_in(&self, region: Region) -> bool {
        let all = region.size / BLOCK_SIZE;
        let bits = self.plugged.iter().map(|word| u64::from(word.count_ones()));
        let beyond = self.plugged.last().is_some_and(|word| {
            let used = all % WORD;
            used != 0 && word >> used != 0
        });
        self.region == region
            && self.plugged.len() as u64 == all.div_ceil(WORD)
            && bits.sum::<u64>() == self.count
            && self.requested <= all
            && !beyond
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// 100 blocks from 4 GiB on: the bitmap's last word isn't full.
    const REGION: Region = Region {
        start: 4 << 30,
        size: 100 * BLOCK_SIZE,
    };

    fn at(block: u64, blocks: u16) -> Range {
        Range {
            address: REGION.start + block * BLOCK_SIZE,
            blocks,
        }
    }

    fn answer(blocks: &mut Blocks, request: Request) -> Response {
        blocks.serve(request).0
    }

    #[test]
    fn no_more_is_plugged_than_was_requested() {
        let mut blocks = Blocks::new(REGION);
        assert_eq!(answer(&mut blocks, Request::Plug(at(0, 1))), Response::Nack);
        blocks.request_size(3 * BLOCK_SIZE - 1);
        assert_eq!(blocks.requested_size(), 3 * BLOCK_SIZE);
        let plugged = blocks.serve(Request::Plug(at(63, 2)));
        assert_eq!(plugged, (Response::Ack, Effect::Plugged));
        assert_eq!(answer(&mut blocks, Request::Plug(at(0, 2))), Response::Nack);
        assert_eq!(answer(&mut blocks, Request::Plug(at(0, 1))), Response::Ack);
        assert_eq!(blocks.plugged_size(), 3 * BLOCK_SIZE);
        blocks.request_size(u64::MAX);
        assert_eq!(blocks.requested_size(), REGION.size);
    }

    #[test]
    fn a_block_is_plugged_and_unplugged_once() {
        let mut blocks = Blocks::new(REGION);
        blocks.request_size(REGION.size);
        assert_eq!(
            answer(&mut blocks, Request::Unplug(at(5, 1))),
            Response::Error
        );
        assert_eq!(answer(&mut blocks, Request::Plug(at(5, 2))), Response::Ack);
        assert_eq!(
            answer(&mut blocks, Request::Plug(at(6, 2))),
            Response::Error
        );
        assert_eq!(
            answer(&mut blocks, Request::Unplug(at(4, 2))),
            Response::Error
        );
        let state = |blocks: &mut Blocks, range| answer(blocks, Request::State(range));
        assert_eq!(
            state(&mut blocks, at(5, 2)),
            Response::State(State::Plugged)
        );
        assert_eq!(state(&mut blocks, at(5, 3)), Response::State(State::Mixed));
        assert_eq!(
            state(&mut blocks, at(7, 93)),
            Response::State(State::Unplugged)
        );
        let given_back = Region {
            start: at(6, 1).address,
            size: BLOCK_SIZE,
        };
        assert_eq!(
            blocks.serve(Request::Unplug(at(6, 1))),
            (Response::Ack, Effect::Unplugged(given_back))
        );
        assert_eq!(
            blocks.serve(Request::UnplugAll),
            (Response::Ack, Effect::Unplugged(REGION))
        );
        assert_eq!(blocks.plugged_size(), 0);
    }

    #[test]
    fn what_is_no_block_of_the_region_is_an_error() {
        let mut blocks = Blocks::new(REGION);
        blocks.request_size(REGION.size);
        let ranges = [
            at(0, 0),
            at(100, 1),
            at(99, 2),
            at(0, u16::MAX),
            Range {
                address: REGION.start + 1,
                blocks: 1,
            },
            Range {
                address: REGION.start - BLOCK_SIZE,
                blocks: 1,
            },
            Range {
                address: !(BLOCK_SIZE - 1),
                blocks: u16::MAX,
            },
            Range {
                address: 0,
                blocks: 1,
            },
        ];
        for range in ranges {
            for request in [Request::Plug, Request::Unplug, Request::State] {
                let request = request(range);
                let served = blocks.serve(request);
                assert_eq!(served, (Response::Error, Effect::None), "{request:?}");
            }
        }
        let unknown = blocks.serve(Request::Unknown);
        assert_eq!(unknown, (Response::Error, Effect::None));
        assert_eq!(blocks, {
            let mut fresh = Blocks::new(REGION);
            fresh.request_size(REGION.size);
            fresh
        });
    }

    #[test]
    fn a_state_that_no_guest_brings_about_is_told() {
        let mut blocks = Blocks::new(REGION);
        blocks.request_size(REGION.size);
        assert_eq!(answer(&mut blocks, Request::Plug(at(3, 4))), Response::Ack);
        assert!(blocks.is_possible_in(REGION));
        let larger = Region {
            size: REGION.size + BLOCK_SIZE,
            ..REGION
        };
        assert!(!blocks.is_possible_in(larger));
        for spoil in [
            |blocks: &mut Blocks| blocks.count = 5,
            |blocks: &mut Blocks| blocks.requested = 101,
            |blocks: &mut Blocks| blocks.plugged.push(0),
            |blocks: &mut Blocks| {
                blocks.plugged[1] = 1 << 36;
                blocks.count = 5;
            },
        ] {
            let mut spoilt = blocks.clone();
            spoil(&mut spoilt);
            assert!(!spoilt.is_possible_in(REGION), "{spoilt:?}");
        }
    }

    /// A request, mostly about blocks of the region.
    fn request() -> impl Strategy<Value = Request> {
        let address = prop_oneof![
            8 => (0u64..110).prop_map(|block| REGION.start + block * BLOCK_SIZE),
            1 => any::<u64>(),
        ];
        let range = (address, prop_oneof![8 => 0u16..12, 1 => any::<u16>()])
            .prop_map(|(address, blocks)| Range { address, blocks });
        (0..20u8, range).prop_map(|(kind, range)| match kind {
            0..10 => Request::Plug(range),
            10..17 => Request::Unplug(range),
            17 => Request::State(range),
            18 => Request::UnplugAll,
            _ => Request::Unknown,
        })
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_list_of_blocks(
            steps in proptest::collection::vec((request(), 0u64..110), 0..60)
        ) {
            let mut blocks = Blocks::new(REGION);
            let mut model = [false; 100];
            for (request, requested) in steps {
                if requested % 5 == 0 {
                    blocks.request_size(requested * BLOCK_SIZE);
                }
                let before = model;
                let (response, effect) = blocks.serve(request);
                if let (Response::Ack, Request::Plug(range) | Request::Unplug(range)) = (response, request) {
                    let plugs = matches!(request, Request::Plug(_));
                    let first = ((range.address - REGION.start) / BLOCK_SIZE) as usize;
                    for block in &mut model[first..first + usize::from(range.blocks)] {
                        prop_assert_eq!(*block, !plugs);
                        *block = plugs;
                    }
                }
                if request == Request::UnplugAll {
                    model = [false; 100];
                }
                let count = model.iter().filter(|plugged| **plugged).count() as u64;
                prop_assert_eq!(blocks.plugged_size(), count * BLOCK_SIZE);
                if effect == Effect::Plugged {
                    prop_assert!(blocks.plugged_size() <= blocks.requested_size());
                }
                prop_assert!(effect != Effect::None || before == model);
                prop_assert!(blocks.is_possible_in(REGION));
            }
        }
    }
}
