//! Packet headers, and the guest memory that a packet's descriptor chain describes.
//!
//! The virtio-vsock crate parses packets too, but only those whose header and payload are one
//! descriptor each. Linux sends a payload made of page fragments as several, and the specification
//! leaves the arrangement to the driver (virtio 1.3, 2.7.4), so chains are gathered here.

use virtio_queue::DescriptorChain;
use vm_memory::{GuestMemory, GuestMemoryMmap, VolatileSlice};

/// The size of a header in bytes (`struct virtio_vsock_hdr`; virtio 1.3, 5.10.6).
pub(super) const HEADER_SIZE: usize = 44;

/// The largest payload of one packet, in bytes: what Linux calls `VIRTIO_VSOCK_MAX_PKT_BUF_SIZE`.
pub(super) const MAX_PAYLOAD: usize = 64 * 1024;

/// The most descriptors in one chain. Linux needs at most 19: a header, and 64 KiB in unaligned
/// pages.
const MAX_DESCRIPTORS: usize = 64;

/// `VIRTIO_VSOCK_TYPE_STREAM`, the only socket type served.
pub(super) const TYPE_STREAM: u16 = 1;

/// The sender of a `SHUTDOWN` will receive no more (`VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE`).
pub(super) const SHUTDOWN_RECEIVE: u32 = 1 << 0;
/// The sender of a `SHUTDOWN` will send no more (`VIRTIO_VSOCK_SHUTDOWN_F_SEND`).
pub(super) const SHUTDOWN_SEND: u32 = 1 << 1;
/// Both directions.
pub(super) const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// What a packet is for: `VIRTIO_VSOCK_OP_*` (virtio 1.3, 5.10.6).
pub(super) mod op {
    pub(in crate::virtio::vsock) const REQUEST: u16 = 1;
    pub(in crate::virtio::vsock) const RESPONSE: u16 = 2;
    pub(in crate::virtio::vsock) const RST: u16 = 3;
    pub(in crate::virtio::vsock) const SHUTDOWN: u16 = 4;
    pub(in crate::virtio::vsock) const RW: u16 = 5;
    pub(in crate::virtio::vsock) const CREDIT_UPDATE: u16 = 6;
    pub(in crate::virtio::vsock) const CREDIT_REQUEST: u16 = 7;
}

/// Why a descriptor chain is malformed, which happens with a broken or hostile driver only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum PacketError {
    #[error("a descriptor chain of the wrong direction")]
    Direction,
    #[error("a descriptor chain of more than {MAX_DESCRIPTORS} descriptors")]
    TooManyDescriptors,
    #[error("a descriptor outside the guest's memory")]
    Unmapped,
    #[error("a descriptor chain too short for a header")]
    NoHeader,
    #[error("a payload of {0} bytes, more than its descriptors hold or than {MAX_PAYLOAD}")]
    PayloadLength(u32),
}

/// A packet's header, in the order of the specification.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    /// Bytes of payload.
    pub len: u32,
    pub type_: u16,
    pub op: u16,
    pub flags: u32,
    /// The size of the sender's receive buffer in bytes.
    pub buf_alloc: u32,
    /// The bytes that have left the sender's receive buffer so far, modulo 2^32.
    pub fwd_cnt: u32,
}

impl Header {
    /// Reads the little-endian wire format.
    pub fn decode(bytes: &[u8; HEADER_SIZE]) -> Self {
        fn field<const N: usize>(bytes: &[u8; HEADER_SIZE], at: usize) -> [u8; N] {
            std::array::from_fn(|i| bytes[at + i])
        }
        Self {
            src_cid: u64::from_le_bytes(field(bytes, 0)),
            dst_cid: u64::from_le_bytes(field(bytes, 8)),
            src_port: u32::from_le_bytes(field(bytes, 16)),
            dst_port: u32::from_le_bytes(field(bytes, 20)),
            len: u32::from_le_bytes(field(bytes, 24)),
            type_: u16::from_le_bytes(field(bytes, 28)),
            op: u16::from_le_bytes(field(bytes, 30)),
            flags: u32::from_le_bytes(field(bytes, 32)),
            buf_alloc: u32::from_le_bytes(field(bytes, 36)),
            fwd_cnt: u32::from_le_bytes(field(bytes, 40)),
        }
    }

    /// Writes the little-endian wire format.
    pub fn encode(&self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        bytes[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.type_.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// The `RST` that answers this packet.
    pub fn reset(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            type_: self.type_,
            op: op::RST,
            ..Self::default()
        }
    }
}

/// A packet from the guest. The header is a copy, which the guest can't change any more.
#[derive(Debug)]
pub(super) struct TxPacket<'m> {
    pub header: Header,
    /// `header.len` bytes.
    pub payload: Vec<VolatileSlice<'m>>,
}

impl<'m> TxPacket<'m> {
    /// Reads a chain of the transmit queue.
    pub fn parse(
        memory: &'m GuestMemoryMmap,
        chain: DescriptorChain<&'m GuestMemoryMmap>,
    ) -> Result<Self, PacketError> {
        let mut payload = gather(memory, chain, false)?;
        let mut bytes = [0; HEADER_SIZE];
        let mut filled = 0;
        for slice in &payload {
            filled += slice.copy_to(&mut bytes[filled..]);
        }
        if filled < HEADER_SIZE {
            return Err(PacketError::NoHeader);
        }
        let header = Header::decode(&bytes);
        advance(&mut payload, HEADER_SIZE);
        let len = header.len as usize;
        if len > MAX_PAYLOAD || len > total_len(&payload) {
            return Err(PacketError::PayloadLength(header.len));
        }
        truncate(&mut payload, len);
        Ok(Self { header, payload })
    }
}

/// An empty buffer that the guest has made available for a packet to it.
#[derive(Debug)]
pub(super) struct RxBuffer<'m> {
    /// The chain's head, as the used ring names it.
    pub head: u16,
    header: Vec<VolatileSlice<'m>>,
    /// The memory for the payload; may be empty, at most [`MAX_PAYLOAD`] bytes.
    pub payload: Vec<VolatileSlice<'m>>,
}

impl<'m> RxBuffer<'m> {
    /// Reads a chain of the receive queue.
    pub fn parse(
        memory: &'m GuestMemoryMmap,
        chain: DescriptorChain<&'m GuestMemoryMmap>,
    ) -> Result<Self, PacketError> {
        let head = chain.head_index();
        let mut payload = gather(memory, chain, true)?;
        let mut header = payload.clone();
        if total_len(&header) < HEADER_SIZE {
            return Err(PacketError::NoHeader);
        }
        truncate(&mut header, HEADER_SIZE);
        advance(&mut payload, HEADER_SIZE);
        truncate(&mut payload, MAX_PAYLOAD);
        Ok(Self {
            head,
            header,
            payload,
        })
    }

    /// The number of bytes of payload that fit.
    pub fn room(&self) -> usize {
        total_len(&self.payload)
    }

    /// Writes the header. To be called after the payload was written.
    pub fn write_header(&self, header: &Header) {
        let bytes = header.encode();
        let mut written = 0;
        for slice in &self.header {
            slice.copy_from(&bytes[written..]);
            written += slice.len();
        }
    }
}

/// The memory of a chain whose descriptors must all be writable, or all readable.
fn gather<'m>(
    memory: &'m GuestMemoryMmap,
    chain: DescriptorChain<&'m GuestMemoryMmap>,
    writable: bool,
) -> Result<Vec<VolatileSlice<'m>>, PacketError> {
    let mut slices = Vec::new();
    for (count, descriptor) in chain.enumerate() {
        if count == MAX_DESCRIPTORS {
            return Err(PacketError::TooManyDescriptors);
        }
        if descriptor.is_write_only() != writable {
            return Err(PacketError::Direction);
        }
        for slice in memory.get_slices(descriptor.addr(), descriptor.len() as usize) {
            slices.push(slice.map_err(|_| PacketError::Unmapped)?);
        }
    }
    Ok(slices)
}

/// The bytes in `slices`.
pub(super) fn total_len(slices: &[VolatileSlice<'_>]) -> usize {
    slices.iter().map(VolatileSlice::len).sum()
}

/// Drops the first `count` bytes, or all.
pub(super) fn advance(slices: &mut Vec<VolatileSlice<'_>>, mut count: usize) {
    let whole = slices
        .iter()
        .take_while(|slice| {
            let fits = slice.len() <= count;
            if fits {
                count -= slice.len();
            }
            fits
        })
        .count();
    slices.drain(..whole);
    if let Some(first) = slices.first_mut()
        && let Ok(rest) = first.offset(count)
    {
        *first = rest;
    }
}

/// Keeps the first `count` bytes, or all.
pub(super) fn truncate(slices: &mut Vec<VolatileSlice<'_>>, mut count: usize) {
    let mut kept = 0;
    for slice in slices.iter_mut() {
        if count == 0 {
            break;
        }
        if let Ok(part) = slice.subslice(0, slice.len().min(count)) {
            count -= part.len();
            *slice = part;
        }
        kept += 1;
    }
    slices.truncate(kept);
}
