//! The host's side of a disk: an open block device or regular file, and the operations on it.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::fs::{
    FallocateFlags, FileType, OFlags, fallocate, fcntl_getfl, fstat, ioctl_blksszget,
};
use virtio_bindings::virtio_blk::VIRTIO_BLK_ID_BYTES;
use virtiofsd::descriptor_utils::{Reader, Writer};

/// The unit of virtio-blk's sector numbers, whatever the disk's block size is (virtio 1.3, 5.2.6).
pub const SECTOR: u64 = 512;

/// The longest serial number, in bytes.
pub const SERIAL_SIZE: usize = VIRTIO_BLK_ID_BYTES as usize;

/// The block sizes that Linux's driver accepts: up to a page.
const BLOCK_SIZES: std::ops::RangeInclusive<u32> = 512..=4096;

/// Why a descriptor can't be used as a disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The serial number is empty, too long, or not printable.
    #[error("serial: {0:?} must have 1 to {SERIAL_SIZE} printable characters of ASCII")]
    Serial(String),
    /// The size can't be determined.
    #[error("cannot determine a disk's size")]
    Size(#[source] io::Error),
    /// fstat(2) or fcntl(2) failed on the received descriptor.
    #[error("cannot examine the received descriptor")]
    Inspect(#[source] io::Error),
    /// The received descriptor is not a disk's.
    #[error("the received descriptor is neither a block device nor a regular file")]
    NotADisk,
    /// The received descriptor has the wrong access mode.
    #[error("the received descriptor must be open for {0} and without O_APPEND")]
    AccessMode(&'static str),
}

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("the disk can't do this")]
    Unsupported,
    #[error("beyond the end of the disk, or not whole sectors")]
    Range,
    #[error("the disk is read-only")]
    ReadOnly,
    #[error("the request is malformed")]
    Malformed,
    #[error("the host's device failed")]
    Io(#[from] io::Error),
}

/// A disk. Its size is determined once: if the device grows, only the next VM sees that.
#[derive(Debug)]
pub struct Disk {
    file: File,
    /// Bytes, in whole sectors. At most 2^63, as of any file.
    size: u64,
    block_size: u32,
    read_only: bool,
    serial: String,
}

impl Disk {
    /// A disk backed by a block device or regular file, which must be open for writing unless
    /// `read_only`. The guest identifies it by `serial`.
    ///
    /// # Errors
    /// See [`DiskError`].
    pub fn new(mut file: File, serial: &str, read_only: bool) -> Result<Self, DiskError> {
        let printable = serial.bytes().all(|byte| byte.is_ascii_graphic());
        if serial.is_empty() || serial.len() > SERIAL_SIZE || !printable {
            return Err(DiskError::Serial(serial.to_owned()));
        }
        let end = file.seek(SeekFrom::End(0)).map_err(DiskError::Size)?;
        // A regular file has no block size.
        let block_size = ioctl_blksszget(&file).unwrap_or(*BLOCK_SIZES.start());
        Ok(Self {
            size: end - end % SECTOR,
            block_size: block_size.clamp(*BLOCK_SIZES.start(), *BLOCK_SIZES.end()),
            file,
            read_only,
            serial: serial.to_owned(),
        })
    }

    /// A disk backed by a descriptor received from another process, which is validated: it must be
    /// a block device's or a regular file's, open for reading only if `read_only`, and otherwise
    /// for reading and writing.
    ///
    /// # Errors
    /// See [`DiskError`].
    pub fn from_received_fd(
        device: OwnedFd,
        serial: &str,
        read_only: bool,
    ) -> Result<Self, DiskError> {
        let unknown = |errno: rustix::io::Errno| DiskError::Inspect(errno.into());
        let kind = FileType::from_raw_mode(fstat(&device).map_err(unknown)?.st_mode);
        if !matches!(kind, FileType::BlockDevice | FileType::RegularFile) {
            return Err(DiskError::NotADisk);
        }
        let (access, wanted) = match read_only {
            true => (OFlags::RDONLY, "reading alone"),
            false => (OFlags::RDWR, "reading and writing"),
        };
        let flags = fcntl_getfl(&device).map_err(unknown)?;
        // On a file opened with O_APPEND, pwrite(2) appends whatever the offset is (its "Bugs"
        // section).
        let unfit = OFlags::PATH | OFlags::APPEND;
        if flags & OFlags::RWMODE != access || flags.intersects(unfit) {
            return Err(DiskError::AccessMode(wanted));
        }
        Self::new(device.into(), serial, read_only)
    }

    pub(super) fn sectors(&self) -> u64 {
        self.size / SECTOR
    }

    pub(super) fn block_size(&self) -> u32 {
        self.block_size
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// The serial number.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// Reads from `sector` on until `buffers` are full.
    pub(super) fn read(&self, sector: u64, buffers: &mut Writer<'_>) -> Result<(), Failure> {
        let length = buffers.available_bytes();
        let offset = self.offset(sector, length as u64)?;
        transfer(offset, length, |offset, left| {
            buffers.read_from_file_at(&self.file, left, offset, None)
        })
    }

    /// Writes all of `buffers` from `sector` on.
    pub(super) fn write(&self, sector: u64, buffers: &mut Reader<'_>) -> Result<(), Failure> {
        let length = buffers.available_bytes();
        let offset = self.writable_offset(sector, length as u64)?;
        transfer(offset, length, |offset, left| {
            buffers.write_to_file_at(&self.file, left, offset, None)
        })
    }

    /// Flushes all writes to stable storage (fdatasync(2)).
    pub(super) fn flush(&self) -> Result<(), Failure> {
        if self.read_only {
            return Ok(());
        }
        Ok(self.file.sync_data()?)
    }

    /// Deallocates a range, which reads as zeroes afterwards.
    pub(super) fn discard(&self, sector: u64, length: u64) -> Result<(), Failure> {
        self.allocate(sector, length, FallocateFlags::PUNCH_HOLE)
    }

    /// Fills a range with zeroes, and keeps it allocated.
    pub(super) fn write_zeroes(&self, sector: u64, length: u64) -> Result<(), Failure> {
        self.allocate(sector, length, FallocateFlags::ZERO_RANGE)
    }

    fn allocate(&self, sector: u64, length: u64, how: FallocateFlags) -> Result<(), Failure> {
        let offset = self.writable_offset(sector, length)?;
        let done = fallocate(&self.file, how | FallocateFlags::KEEP_SIZE, offset, length);
        done.map_err(|errno| match errno {
            rustix::io::Errno::OPNOTSUPP => Failure::Unsupported,
            errno => Failure::Io(errno.into()),
        })
    }

    fn writable_offset(&self, sector: u64, length: u64) -> Result<u64, Failure> {
        if self.read_only {
            return Err(Failure::ReadOnly);
        }
        self.offset(sector, length)
    }

    /// The offset in the file of a range of whole sectors, if all of it is within the disk.
    fn offset(&self, sector: u64, length: u64) -> Result<u64, Failure> {
        let offset = sector.checked_mul(SECTOR).ok_or(Failure::Range)?;
        let end = offset.checked_add(length).ok_or(Failure::Range)?;
        if length.is_multiple_of(SECTOR) && end <= self.size {
            Ok(offset)
        } else {
            Err(Failure::Range)
        }
    }
}

impl AsRawFd for Disk {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Transfers `length` bytes in as many steps as it takes; `step` gets the offset and the number of
/// bytes left.
fn transfer(
    mut offset: u64,
    length: usize,
    mut step: impl FnMut(u64, usize) -> io::Result<usize>,
) -> Result<(), Failure> {
    let mut left = length;
    while left > 0 {
        match step(offset, left) {
            // The device has shrunk.
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(count) => {
                left = left.saturating_sub(count);
                offset += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
