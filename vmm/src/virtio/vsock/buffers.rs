//! The receive buffers that the guest has made available for packets.

use vm_memory::GuestMemoryMmap;

use super::packet::{PacketError, RxBuffer};
use crate::virtio::queue::DeviceQueue;

/// Takes the next buffer for a packet to the guest; `None` if there is none, in which case the
/// driver will kick when there is one. Malformed chains are returned unused, and reported to
/// `warn`.
pub(super) fn next_buffer<'m>(
    rx: &mut DeviceQueue,
    memory: &'m GuestMemoryMmap,
    mut warn: impl FnMut(PacketError),
) -> Option<RxBuffer<'m>> {
    for _ in 0..rx.size() {
        let Some(chain) = rx.pop(memory) else {
            if rx.enable_kicks(memory) {
                continue;
            }
            return None;
        };
        let head = chain.head_index();
        match RxBuffer::parse(memory, chain) {
            Ok(buffer) => return Some(buffer),
            Err(error) => {
                warn(error);
                rx.add_used(memory, head, 0);
            }
        }
    }
    None
}

/// Takes buffers until they have room for `wanted` bytes of payload, or there are none left, but at
/// most `most`.
pub(super) fn more_buffers<'m>(
    rx: &mut DeviceQueue,
    memory: &'m GuestMemoryMmap,
    wanted: usize,
    most: usize,
) -> Vec<RxBuffer<'m>> {
    let mut buffers = Vec::new();
    let mut room = 0;
    while room < wanted && buffers.len() < most {
        let Some(chain) = rx.pop(memory) else { break };
        match RxBuffer::parse(memory, chain) {
            Ok(buffer) => {
                room += buffer.room();
                buffers.push(buffer);
            }
            Err(_) => {
                // It is left for `next_buffer`, which reports it.
                rx.undo_pop(1);
                break;
            }
        }
    }
    buffers
}
