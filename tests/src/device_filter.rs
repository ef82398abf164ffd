//! A cgroup of the host in which no device can be opened or made, as a program that is attached to it says.
#![allow(unsafe_code)] // bpf(2), which no library here wraps

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

/// Commands, program type and attach type of linux/bpf.h.
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;

/// `r0 = 0; exit`, as `struct bpf_insn`: every access is refused.
const REFUSE_ALL: [u64; 2] = [0xb7, 0x95];

/// A cgroup with such a program. Dropped, it is removed.
#[derive(Debug)]
pub struct DeviceFilter(PathBuf);

impl DeviceFilter {
    /// Makes it, below the mount of cgroup2.
    ///
    /// # Errors
    /// When the host refuses the program.
    pub fn make(path: &str) -> io::Result<Self> {
        let folder = Path::new("/sys/fs/cgroup").join(path);
        fs::create_dir(&folder)?;
        let filter = Self(folder);
        let (license, instructions) = (c"".as_ptr() as u64, REFUSE_ALL.as_ptr() as u64);
        // The kind and the number of instructions.
        let kind = u64::from(BPF_PROG_TYPE_CGROUP_DEVICE) | (REFUSE_ALL.len() as u64) << 32;
        let program = bpf(BPF_PROG_LOAD, &[kind, instructions, license])?;
        // SAFETY: the kernel has just opened it.
        let program = unsafe { OwnedFd::from_raw_fd(program) };
        let number = |fd: RawFd| u64::from(fd.cast_unsigned());
        let cgroup = File::open(&filter.0)?;
        let both = number(cgroup.as_raw_fd()) | number(program.as_raw_fd()) << 32;
        bpf(BPF_PROG_ATTACH, &[both, BPF_CGROUP_DEVICE.into(), 0])?;
        Ok(filter)
    }
}

impl Drop for DeviceFilter {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// `attributes` is a `union bpf_attr` up to the last field that is needed.
fn bpf(command: libc::c_int, attributes: &[u64; 3]) -> io::Result<RawFd> {
    let size = size_of_val(attributes);
    // SAFETY: the attributes and what they point at outlive the call, and the kernel only reads them.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size) };
    match RawFd::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}
