//! The buffers that the guest has made available for packets to it.

use vm_memory::GuestMemoryMmap;

use super::packet::{PacketError, RxBuffer};
use crate::virtio::queue::DeviceQueue;

/// Takes the next buffer for a packet to the guest; `None` if there is none, in which case a kick
/// will tell of more. Chains that are no buffers go back unused, and are told to `warn`.
pub(super) fn next_buffer<'m>(
    rx: &mut DeviceQueue,
    memory: &'m GuestMemoryMmap,
    mut warn: impl FnMut(PacketError),
) -> Option<RxBuffer<'m>> {
    for _ in 0..rx.size() {
        let Some(chain) = rx.take(memory) else {
            if rx.wait_for_more(memory) {
                continue;
            }
            return None;
        };
        let head = chain.head_index();
        match RxBuffer::parse(memory, chain) {
            Ok(buffer) => return Some(buffer),
            Err(error) => {
                warn(error);
                rx.give_back(memory, head, 0);
            }
        }
    }
    None
}

/// Takes buffers with room for at least `wanted` bytes of payload, or as many as there are, but
/// at most `most`.
pub(super) fn more_buffers<'m>(
    rx: &mut DeviceQueue,
    memory: &'m GuestMemoryMmap,
    wanted: usize,
    most: usize,
) -> Vec<RxBuffer<'m>> {
    let mut buffers = Vec::new();
    let mut room = 0;
    while room < wanted && buffers.len() < most {
        let Some(chain) = rx.take(memory) else { break };
        match RxBuffer::parse(memory, chain) {
            Ok(buffer) => {
                room += buffer.room();
                buffers.push(buffer);
            }
            Err(_) => {
                // Its turn comes when it is the next one.
                rx.put_back(1);
                break;
            }
        }
    }
    buffers
}
