//! A queue as a device serves it: the one loop that takes requests, gives back what was used, and finds
//! out whether the driver is to be interrupted. Nothing in it is left to the guest's goodwill.
//!
//! What the requests mean is the device's.

use std::sync::Arc;

use virtio_queue::{DescriptorChain, Error, Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::GuestMemory;
use vmm_sys_util::eventfd::EventFd;

use super::Interrupt;
use super::device::ActiveQueue;
use crate::stop::StopFlag;

/// How far a turn came.
enum Done {
    /// The queue is empty; a kick will tell of more.
    All,
    /// There may be more, for another turn.
    Some,
}

/// What a device may do to a queue before the others of its loop have their turn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn<'a> {
    /// Looks at the queue, at most.
    pub(super) budget: usize,
    /// A machine that has been stopped has no more requests.
    pub(super) stop: &'a StopFlag,
    /// By which the driver hears of each request as it is done, where one may take long. Otherwise it
    /// hears of all of them at [`Life::end_turn`](super::life::Life::end_turn).
    pub(super) tell_each: Option<&'a Interrupt>,
}

/// A queue, and what has happened to it since the driver was last interrupted.
#[derive(Debug)]
pub(super) struct DeviceQueue {
    /// Ready, unless its rings have turned out to make no sense: then it isn't served until a reset.
    queue: Queue,
    kick: Arc<EventFd>,
    /// Why the queue isn't served any more, until that is logged.
    trouble: Option<Error>,
    /// Buffers were used since the last [`Self::take_interrupt`].
    used: bool,
}

impl DeviceQueue {
    pub(super) fn new(active: ActiveQueue, event_idx: bool) -> Self {
        let mut queue = active.queue;
        queue.set_event_idx(event_idx);
        Self {
            queue,
            kick: active.kick,
            trouble: None,
            used: false,
        }
    }

    /// How far device and driver have come. Not ready if the queue is out of order.
    pub(super) fn state(&self) -> QueueState {
        self.queue.state()
    }

    pub(super) fn kick(&self) -> &Arc<EventFd> {
        &self.kick
    }

    /// Has the loop come back to this queue, as after a kick.
    pub(super) fn come_back(&self) {
        let _ = self.kick.write(1); // a full eventfd is readable too
    }

    /// Looks at the queue as often as the turn allows, and has `request` serve each chain that is there
    /// and say how many bytes it has written to it, or `None` if the chain is to wait for the next turn.
    /// What is left brings the loop back.
    ///
    /// A look that finds nothing counts as well. The guest says whether there is anything, and nothing
    /// keeps it from saying so to one question and not to the next.
    pub(super) fn serve<'m, M: GuestMemory>(
        &mut self,
        memory: &'m M,
        turn: Turn<'_>,
        request: impl FnMut(DescriptorChain<&'m M>) -> Option<u32>,
    ) {
        match self.try_serve(memory, turn, request) {
            Ok(Done::All) => {}
            Ok(Done::Some) => self.come_back(),
            Err(error) => self.give_up(error),
        }
    }

    fn try_serve<'m, M: GuestMemory>(
        &mut self,
        memory: &'m M,
        turn: Turn<'_>,
        mut request: impl FnMut(DescriptorChain<&'m M>) -> Option<u32>,
    ) -> Result<Done, Error> {
        if !self.queue.ready() {
            return Ok(Done::All);
        }
        self.queue.disable_notification(memory)?;
        for _ in 0..turn.budget {
            if turn.stop.is_set() {
                return Ok(Done::All);
            }
            let Some(chain) = self.pop(memory)? else {
                if !self.queue.enable_notification(memory)? {
                    return Ok(Done::All);
                }
                self.queue.disable_notification(memory)?;
                continue;
            };
            let head = chain.head_index();
            let Some(written) = request(chain) else {
                self.put_back(1);
                return Ok(Done::Some);
            };
            self.queue.add_used(memory, head, written)?;
            self.used = true;
            if let Some(interrupt) = turn.tell_each
                && self.take_interrupt(memory)
            {
                interrupt.used_buffer();
            }
        }
        Ok(Done::Some)
    }

    fn pop<'m, M: GuestMemory>(
        &mut self,
        memory: &'m M,
    ) -> Result<Option<DescriptorChain<&'m M>>, Error> {
        let Some(chain) = self.queue.iter(memory)?.next() else {
            return Ok(None);
        };
        // A head outside the table has no chain, and no place in the used ring.
        if chain.head_index() >= self.queue.size() {
            return Err(Error::InvalidDescriptorIndex);
        }
        Ok(Some(chain))
    }

    /// Takes the next chain, for a device that has something to put into it.
    pub(super) fn take<'m, M: GuestMemory>(
        &mut self,
        memory: &'m M,
    ) -> Option<DescriptorChain<&'m M>> {
        if !self.queue.ready() {
            return None;
        }
        self.pop(memory).unwrap_or_else(|error| {
            self.give_up(error);
            None
        })
    }

    /// Puts the last `count` chains that were taken back.
    pub(super) fn put_back(&mut self, count: usize) {
        let next = self.queue.next_avail().wrapping_sub(count as u16);
        self.queue.set_next_avail(next);
    }

    /// Gives a chain that was taken back to the driver, with `written` bytes written to it.
    pub(super) fn give_back<M: GuestMemory>(&mut self, memory: &M, head: u16, written: u32) {
        match self.queue.add_used(memory, head, written) {
            Ok(()) => self.used = true,
            Err(error) => self.give_up(error),
        }
    }

    fn give_up(&mut self, error: Error) {
        self.queue.set_ready(false);
        self.trouble = Some(error);
    }

    /// Why the queue isn't served any more, once.
    pub(super) fn take_trouble(&mut self) -> Option<Error> {
        self.trouble.take()
    }

    /// The most chains that can be available at once.
    pub(super) fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Asks the driver for a kick when it makes more available. Returns whether it has already.
    pub(super) fn wait_for_more<M: GuestMemory>(&mut self, memory: &M) -> bool {
        self.queue.ready() && self.queue.enable_notification(memory).unwrap_or(false)
    }

    /// Asks the driver not to kick, because the queue is being looked at.
    pub(super) fn hush<M: GuestMemory>(&mut self, memory: &M) {
        if self.queue.ready() {
            let _ = self.queue.disable_notification(memory);
        }
    }

    /// Whether the driver wants to be interrupted for what was used.
    pub(super) fn take_interrupt<M: GuestMemory>(&mut self, memory: &M) -> bool {
        std::mem::take(&mut self.used) && self.queue.needs_notification(memory).unwrap_or(true)
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::super::testing;
    use super::*;

    /// A queue whose available index lies where the device says whether it wants kicks: each of its words
    /// changes the guest's, and shows one more request.
    fn always_more() -> Queue {
        let mut queue = Queue::new(16).expect("a queue");
        queue.set_size(16);
        queue.set_desc_table_address(Some(0x1000), Some(0));
        queue.set_avail_ring_address(Some(0x2002), Some(0));
        queue.set_used_ring_address(Some(0x2004), Some(0));
        queue.set_ready(true);
        queue
    }

    /// Serves it for one turn. Returns how many requests there were, and whether the loop is to come back.
    fn serve_it(stop: &StopFlag) -> (u32, bool) {
        let memory = testing::memory();
        let kick = Arc::new(EventFd::new(EFD_NONBLOCK).expect("an eventfd"));
        let active = ActiveQueue {
            queue: always_more(),
            kick: Arc::clone(&kick),
        };
        let turn = Turn {
            budget: 100,
            stop,
            tell_each: None,
        };
        let mut served = 0;
        let mut queue = DeviceQueue::new(active, false);
        queue.serve(&*memory, turn, |_| {
            served += 1;
            Some(0)
        });
        assert!(queue.take_trouble().is_none());
        (served, kick.read().is_ok())
    }

    #[test]
    fn a_guest_that_always_has_more_to_show_gets_one_turn() {
        assert_eq!(serve_it(&StopFlag::default()), (1, true));
    }

    #[test]
    fn a_machine_that_was_stopped_has_no_more_requests() {
        let stop = StopFlag::default();
        stop.set();
        assert_eq!(serve_it(&stop), (0, false));
    }
}
