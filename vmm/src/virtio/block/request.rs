//! One request: a descriptor chain is validated, executed, and completed with a status (virtio 1.3,
//! 5.2.6).
//!
//! rust-vmm's parser for these requests was never published, so their few fields are parsed here;
//! the readers and writers of buffers are those of virtiofsd's library, as with virtio-fs.

use std::io::Write;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use virtio_queue::DescriptorChain;
use virtiofsd::descriptor_utils::{self, Reader, Writer};

use super::disk::{Disk, Failure, SECTOR, SERIAL_SIZE};
use crate::virtio::memory::LoggedMemory;

/// The most data segments in a request (`seg_max`).
pub(super) const MAX_SEGMENTS: u32 = super::QUEUE_SIZE as u32 - 2;
/// The most bytes in a segment (`size_max`).
pub(super) const MAX_SEGMENT: u32 = 32 << 10;
/// The most sectors in one discard or write of zeroes: 32 MiB.
pub(super) const MAX_RANGE: u32 = (32 << 20) / SECTOR as u32;

/// A header, the data segments, and the status.
const MAX_DESCRIPTORS: usize = MAX_SEGMENTS as usize + 2;
/// The most data in one request, 4 MiB less two segments.
const MAX_BYTES: usize = MAX_SEGMENTS as usize * MAX_SEGMENT as usize;

/// Why a request gets no status: its chain is returned with nothing written.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("the chain has more than {MAX_DESCRIPTORS} descriptors")]
    TooManyDescriptors,
    #[error("no room for a status")]
    NoStatus,
    #[error("a buffer lies outside of guest memory")]
    Buffer(#[from] descriptor_utils::Error),
    #[error("the status can't be written")]
    Status(#[source] std::io::Error),
}

/// Executes a request, and returns how many bytes of the chain were written.
///
/// With `write_through`, a write is flushed to stable storage before the request completes.
pub(super) fn serve(
    disk: &Disk,
    write_through: bool,
    memory: &LoggedMemory,
    chain: DescriptorChain<&LoggedMemory>,
) -> Result<usize, Error> {
    // The guest may make the chain longer after this check. It is read to its end then, at most
    // 65535 descriptors, and fails.
    if chain.clone().nth(MAX_DESCRIPTORS).is_some() {
        return Err(Error::TooManyDescriptors);
    }
    let readable = Reader::new(memory, chain.clone())?;
    let mut writable = Writer::new(memory, chain)?;
    let before_status = writable.available_bytes().checked_sub(1);
    let mut status = writable.split_at(before_status.ok_or(Error::NoStatus)?)?;
    let request = Request {
        disk,
        write_through,
        readable,
        writable: &mut writable,
    };
    let answer = match request.execute() {
        Ok(()) => VIRTIO_BLK_S_OK,
        Err(Failure::Unsupported) => VIRTIO_BLK_S_UNSUPP,
        Err(failure) => {
            log::debug!("virtio-blk: {}: {failure}", disk.serial());
            VIRTIO_BLK_S_IOERR
        }
    };
    status.write_all(&[answer as u8]).map_err(Error::Status)?;
    Ok(writable.bytes_written() + 1)
}

/// A request whose status byte has been set aside.
struct Request<'a, 'm> {
    disk: &'a Disk,
    write_through: bool,
    readable: Reader<'m>,
    writable: &'a mut Writer<'m>,
}

impl Request<'_, '_> {
    fn execute(mut self) -> Result<(), Failure> {
        let kind = self.le32()?;
        let _priority = self.le32()?;
        let sector = self.le64()?;
        if self
            .readable
            .available_bytes()
            .max(self.writable.available_bytes())
            > MAX_BYTES
        {
            return Err(Failure::Malformed);
        }
        match kind {
            VIRTIO_BLK_T_IN => self.disk.read(sector, self.writable),
            VIRTIO_BLK_T_OUT => {
                self.disk.write(sector, &mut self.readable)?;
                self.write_through()
            }
            VIRTIO_BLK_T_FLUSH => self.disk.flush(),
            VIRTIO_BLK_T_GET_ID => self.write_serial(),
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => {
                self.discard_or_zero(kind)?;
                self.write_through()
            }
            _ => Err(Failure::Unsupported),
        }
    }

    fn write_through(&self) -> Result<(), Failure> {
        if self.write_through {
            self.disk.flush()
        } else {
            Ok(())
        }
    }

    /// Writes the serial number, padded with NULs, as far as there is room.
    fn write_serial(&mut self) -> Result<(), Failure> {
        let mut text = [0; SERIAL_SIZE];
        let serial = self.disk.serial().as_bytes();
        text[..serial.len()].copy_from_slice(serial);
        let room = self.writable.available_bytes().min(SERIAL_SIZE);
        Ok(self.writable.write_all(&text[..room])?)
    }

    /// Executes a discard or a write-zeroes request. The configuration allows a single range in
    /// each.
    fn discard_or_zero(&mut self, kind: u32) -> Result<(), Failure> {
        let (sector, count, flags) = (self.le64()?, self.le32()?, self.le32()?);
        if self.readable.available_bytes() > 0 || count > MAX_RANGE {
            return Err(Failure::Malformed);
        }
        let length = u64::from(count) * SECTOR;
        match (kind, flags) {
            (VIRTIO_BLK_T_DISCARD, 0)
            | (VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP) => {
                self.disk.discard(sector, length)
            }
            (VIRTIO_BLK_T_WRITE_ZEROES, 0) => self.disk.write_zeroes(sector, length),
            _ => Err(Failure::Unsupported),
        }
    }

    fn le32(&mut self) -> Result<u32, Failure> {
        let bytes: [u8; 4] = self.readable.read_obj().map_err(|_| Failure::Malformed)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn le64(&mut self) -> Result<u64, Failure> {
        let bytes: [u8; 8] = self.readable.read_obj().map_err(|_| Failure::Malformed)?;
        Ok(u64::from_le_bytes(bytes))
    }
}
