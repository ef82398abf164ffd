//! bpf(2), as far as a cgroup's devices need it: a program is loaded and attached.
//!
//! Crates that wrap bpf(2) are loaders of ELF files, and many times the agent's size.
#![allow(unsafe_code)] // a bare system call

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Commands, and what is loaded and attached, of linux/bpf.h.
const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const CGROUP_DEVICE: u32 = 6;
/// Programs of cgroups below it have a say, too: a container's service manager has them.
const ALLOW_MULTI: u32 = 2;

/// `union bpf_attr` for loading, up to what is needed of it.
#[repr(C)]
struct Load {
    kind: u32,
    length: u32,
    instructions: u64,
    license: u64,
}

/// `union bpf_attr` for attaching, up to what is needed of it.
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// Loads a program that decides about devices. Each instruction is as `struct bpf_insn` lies in memory.
///
/// # Errors
/// When the kernel's verifier refuses it.
pub fn load(instructions: &[u64]) -> io::Result<OwnedFd> {
    let attributes = Load {
        kind: PROG_TYPE_CGROUP_DEVICE,
        length: u32::try_from(instructions.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        instructions: instructions.as_ptr().expose_provenance() as u64,
        license: c"".as_ptr().expose_provenance() as u64,
    };
    let program = bpf(PROG_LOAD, &attributes)?;
    // SAFETY: the kernel has just opened it, close-on-exec, for the caller alone.
    Ok(unsafe { OwnedFd::from_raw_fd(program) })
}

/// Has a program decide for a cgroup, which keeps it.
///
/// # Errors
/// When the cgroup is none.
pub fn attach(program: &OwnedFd, cgroup: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = Attach {
        target: cgroup.as_raw_fd().cast_unsigned(),
        program: program.as_raw_fd().cast_unsigned(),
        kind: CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    bpf(PROG_ATTACH, &attributes).map(drop)
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<RawFd> {
    let attributes: *const T = attributes;
    // SAFETY: the attributes and what they point at outlive the call, by which the kernel only reads; it
    // takes what lies beyond their size for zeroes.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    match RawFd::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}
