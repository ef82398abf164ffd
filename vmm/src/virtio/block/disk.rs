//! The host's side of a disk: an open block device or file, and what can be done with it.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::fs::{
    FallocateFlags, FileType, OFlags, fallocate, fcntl_getfl, fstat, ioctl_blksszget,
};
use virtio_bindings::virtio_blk::VIRTIO_BLK_ID_BYTES;
use virtiofsd::descriptor_utils::{Reader, Writer};

/// What virtio-blk counts in, whatever the disk's own blocks are (virtio 1.3, 5.2.6).
pub const SECTOR: u64 = 512;

/// The longest serial number, in bytes.
pub const SERIAL_SIZE: usize = VIRTIO_BLK_ID_BYTES as usize;

/// The sizes of a block that Linux's driver takes: up to a page.
const BLOCK_SIZES: std::ops::RangeInclusive<u32> = 512..=4096;

/// Why there is no disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The serial number doesn't fit.
    #[error("serial: {0:?} must have 1 to {SERIAL_SIZE} printable characters of ASCII")]
    Serial(String),
    /// The size can't be learnt.
    #[error("cannot learn a disk's size")]
    Size(#[source] io::Error),
    /// What was handed over can't be looked at.
    #[error("cannot look at what was handed over")]
    Unknown(#[source] io::Error),
    /// It is no disk.
    #[error("what was handed over is neither a block device nor a regular file")]
    Kind,
    /// It isn't open in the way that it is to be used.
    #[error("what was handed over must be open for {0} and without O_APPEND")]
    Access(&'static str),
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

/// A disk. Its size is what it was when it was opened: a device that grows is seen so by the next VM.
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
    /// A disk of an open block device or file, which must be open for writing unless `read_only`.
    /// The guest finds it by `serial`.
    ///
    /// # Errors
    /// See [`DiskError`].
    pub fn new(mut file: File, serial: &str, read_only: bool) -> Result<Self, DiskError> {
        let printable = serial.bytes().all(|byte| byte.is_ascii_graphic());
        if serial.is_empty() || serial.len() > SERIAL_SIZE || !printable {
            return Err(DiskError::Serial(serial.to_owned()));
        }
        let end = file.seek(SeekFrom::End(0)).map_err(DiskError::Size)?;
        // A file has no blocks of its own.
        let block_size = ioctl_blksszget(&file).unwrap_or(*BLOCK_SIZES.start());
        Ok(Self {
            size: end - end % SECTOR,
            block_size: block_size.clamp(*BLOCK_SIZES.start(), *BLOCK_SIZES.end()),
            file,
            read_only,
            serial: serial.to_owned(),
        })
    }

    /// The same of a descriptor that somebody has handed over, which may be of anything: it must be a block
    /// device's or a regular file's, and open for reading, and for writing just if the disk is to be written.
    ///
    /// # Errors
    /// See [`DiskError`].
    pub fn handed_over(device: OwnedFd, serial: &str, read_only: bool) -> Result<Self, DiskError> {
        let unknown = |errno: rustix::io::Errno| DiskError::Unknown(errno.into());
        let kind = FileType::from_raw_mode(fstat(&device).map_err(unknown)?.st_mode);
        if !matches!(kind, FileType::BlockDevice | FileType::RegularFile) {
            return Err(DiskError::Kind);
        }
        let (access, wanted) = match read_only {
            true => (OFlags::RDONLY, "reading alone"),
            false => (OFlags::RDWR, "reading and writing"),
        };
        let flags = fcntl_getfl(&device).map_err(unknown)?;
        // Linux appends what is written to a place of such a file (pwrite(2), "Bugs").
        let unfit = OFlags::PATH | OFlags::APPEND;
        if flags & OFlags::RWMODE != access || flags.intersects(unfit) {
            return Err(DiskError::Access(wanted));
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

    /// Fills `buffers` from a sector on.
    pub(super) fn read(&self, sector: u64, buffers: &mut Writer<'_>) -> Result<(), Failure> {
        let length = buffers.available_bytes();
        let offset = self.offset(sector, length as u64)?;
        transfer(offset, length, |offset, left| {
            buffers.read_from_file_at(&self.file, left, offset, None)
        })
    }

    /// Writes all of `buffers` from a sector on.
    pub(super) fn write(&self, sector: u64, buffers: &mut Reader<'_>) -> Result<(), Failure> {
        let length = buffers.available_bytes();
        let offset = self.writable(sector, length as u64)?;
        transfer(offset, length, |offset, left| {
            buffers.write_to_file_at(&self.file, left, offset, None)
        })
    }

    /// Returns once all that was written would outlive a power cut.
    pub(super) fn flush(&self) -> Result<(), Failure> {
        if self.read_only {
            return Ok(());
        }
        Ok(self.file.sync_data()?)
    }

    /// Gives sectors back to the device; they read as zeroes then.
    pub(super) fn discard(&self, sector: u64, length: u64) -> Result<(), Failure> {
        self.allocate(sector, length, FallocateFlags::PUNCH_HOLE)
    }

    /// Writes zeroes, and keeps the space.
    pub(super) fn write_zeroes(&self, sector: u64, length: u64) -> Result<(), Failure> {
        self.allocate(sector, length, FallocateFlags::ZERO_RANGE)
    }

    fn allocate(&self, sector: u64, length: u64, how: FallocateFlags) -> Result<(), Failure> {
        let offset = self.writable(sector, length)?;
        let done = fallocate(&self.file, how | FallocateFlags::KEEP_SIZE, offset, length);
        done.map_err(|errno| match errno {
            rustix::io::Errno::OPNOTSUPP => Failure::Unsupported,
            errno => Failure::Io(errno.into()),
        })
    }

    fn writable(&self, sector: u64, length: u64) -> Result<u64, Failure> {
        if self.read_only {
            return Err(Failure::ReadOnly);
        }
        self.offset(sector, length)
    }

    /// Where a range of the guest's lies in the file, if it lies there as a whole.
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

/// Moves `length` bytes, in as many steps as it takes; `step` gets the offset and what is left.
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
