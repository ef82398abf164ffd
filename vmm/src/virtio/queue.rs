//! One turn at a queue of requests: they are served one after the other, up to a bound.
//!
//! It is for devices that serve a request where it stands. What the requests mean is theirs.

use virtio_queue::{DescriptorChain, Error, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemory;

use super::Interrupt;
use crate::stop::StopFlag;

/// How far a turn came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Done {
    /// The queue is empty; a kick will tell of more.
    All,
    /// There may be more, for another turn.
    Some,
}

/// Looks at a queue up to `budget` times, and has `request` serve each chain that is there and say how
/// many bytes it has written to it.
///
/// A machine that has been stopped has no more requests.
///
/// A look that finds nothing counts as well. The guest says whether there is anything, and nothing keeps
/// it from saying so to one question and not to the next.
///
/// # Errors
/// The driver has written nonsense to the rings.
pub(super) fn serve<'m, M: GuestMemory>(
    queue: &mut Queue,
    memory: &'m M,
    interrupt: &Interrupt,
    stop: &StopFlag,
    budget: usize,
    mut request: impl FnMut(DescriptorChain<&'m M>) -> u32,
) -> Result<Done, Error> {
    queue.disable_notification(memory)?;
    for _ in 0..budget {
        if stop.is_set() {
            return Ok(Done::All);
        }
        let Some(chain) = queue.iter(memory)?.next() else {
            if !queue.enable_notification(memory)? {
                return Ok(Done::All);
            }
            queue.disable_notification(memory)?;
            continue;
        };
        let head = chain.head_index();
        let written = request(chain);
        queue.add_used(memory, head, written)?;
        if queue.needs_notification(memory)? {
            interrupt.used_buffer();
        }
    }
    Ok(Done::Some)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vmm_sys_util::eventfd::EventFd;

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

    fn serve_it(stop: &StopFlag) -> (Option<Done>, u32) {
        let memory = testing::memory();
        let eventfd = Arc::new(EventFd::new(0).expect("an eventfd"));
        let interrupt = Interrupt::new(Arc::default(), eventfd);
        let mut served = 0;
        let mut queue = always_more();
        let done = serve(&mut queue, &*memory, &interrupt, stop, 100, |_| {
            served += 1;
            0
        });
        (done.ok(), served)
    }

    #[test]
    fn a_guest_that_always_has_more_to_show_gets_one_turn() {
        assert_eq!(serve_it(&StopFlag::default()), (Some(Done::Some), 1));
    }

    #[test]
    fn a_machine_that_was_stopped_has_no_more_requests() {
        let stop = StopFlag::default();
        stop.set();
        assert_eq!(serve_it(&stop), (Some(Done::All), 0));
    }
}
