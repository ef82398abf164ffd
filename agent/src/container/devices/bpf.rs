//! The part of bpf(2) that a cgroup's device rules need: loading a program and attaching it.
//!
//! Crates that wrap bpf(2) load ELF files, and are many times the agent's size.
#![allow(unsafe_code)] // a bare system call

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Commands, program type and attach type of linux/bpf.h.
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
/// Programs of cgroups below it are called as well: a service manager in the container attaches some.
const BPF_F_ALLOW_MULTI: u32 = 2;

/// `union bpf_attr` for loading, up to the last field that is needed.
#[repr(C)]
struct LoadAttributes {
    kind: u32,
    length: u32,
    instructions: u64,
    license: u64,
}

/// `union bpf_attr` for attaching, up to the last field that is needed.
#[repr(C)]
struct AttachAttributes {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// Loads a program that decides about device accesses. Each instruction has the memory layout of
/// `struct bpf_insn`.
///
/// # Errors
/// When the kernel's verifier refuses it.
pub fn load(instructions: &[u64]) -> io::Result<OwnedFd> {
    let attributes = LoadAttributes {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        length: u32::try_from(instructions.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        instructions: instructions.as_ptr().expose_provenance() as u64,
        license: c"".as_ptr().expose_provenance() as u64,
    };
    let program = bpf(BPF_PROG_LOAD, &attributes)?;
    // SAFETY: the kernel has just opened it, close-on-exec, for the caller alone.
    Ok(unsafe { OwnedFd::from_raw_fd(program) })
}

/// Attaches a program to a cgroup, which holds a reference to it.
///
/// # Errors
/// When `cgroup` is not a cgroup's directory.
pub fn attach(program: &OwnedFd, cgroup: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = AttachAttributes {
        target: cgroup.as_raw_fd().cast_unsigned(),
        program: program.as_raw_fd().cast_unsigned(),
        kind: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    bpf(BPF_PROG_ATTACH, &attributes).map(drop)
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<RawFd> {
    let attributes: *const T = attributes;
    // SAFETY: the attributes and what they point at outlive the call, and the kernel only reads them; it takes the
    // fields beyond their size as zeroes.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    match RawFd::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}
