//! The part of bpf(2) that the agent needs: programs, and what they are attached to.
//!
//! Crates that wrap bpf(2) load ELF files, and are many times the agent's size.
#![allow(unsafe_code)] // a bare system call

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Commands of linux/bpf.h.
const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_LINK_CREATE: libc::c_int = 28;

const BPF_MAP_TYPE_SOCKMAP: u32 = 15;
/// Programs of cgroups below it are called as well: a service manager in the container attaches some.
const BPF_F_ALLOW_MULTI: u32 = 2;

/// What a program decides about.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Accesses to devices by a cgroup's processes.
    CgroupDevice,
    /// Which socket of a network namespace receives what comes for none that is connected.
    SocketLookup,
}

impl Kind {
    /// `BPF_PROG_TYPE_*`.
    fn program(self) -> u32 {
        match self {
            Self::CgroupDevice => 15,
            Self::SocketLookup => 30,
        }
    }

    /// `BPF_CGROUP_DEVICE` and `BPF_SK_LOOKUP`.
    fn attachment(self) -> u32 {
        match self {
            Self::CgroupDevice => 6,
            Self::SocketLookup => 36,
        }
    }
}

/// `union bpf_attr` for loading, up to the last field that is needed.
#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    kind: u32,
    length: u32,
    instructions: u64,
    license: u64,
    log: [u64; 2],
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attachment: u32,
}

/// `union bpf_attr` for attaching, up to the last field that is needed. Links have the program before the target.
#[repr(C)]
struct AttachAttributes {
    objects: [u32; 2],
    kind: u32,
    flags: u32,
}

/// `union bpf_attr` for a new map, up to the last field that is needed.
#[repr(C)]
struct MapAttributes {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

/// `union bpf_attr` for an element of a map.
#[repr(C)]
struct ElementAttributes {
    map: u32,
    _padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// An instruction, in the memory layout of `struct bpf_insn`: `offset` is that of the field to load or store, or the
/// number of instructions to skip.
pub fn instruction(code: u8, to: u8, from: u8, offset: i16, constant: u32) -> u64 {
    let [a, b, c, d] = constant.to_ne_bytes();
    let [low, high] = offset.to_ne_bytes();
    u64::from_ne_bytes([code, to | from << 4, low, high, a, b, c, d])
}

/// Loads a program.
///
/// # Errors
/// When the kernel's verifier refuses it.
pub fn load(kind: Kind, instructions: &[u64]) -> io::Result<OwnedFd> {
    let attributes = LoadAttributes {
        kind: kind.program(),
        length: u32::try_from(instructions.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        instructions: instructions.as_ptr().expose_provenance() as u64,
        license: c"".as_ptr().expose_provenance() as u64,
        attachment: kind.attachment(),
        ..LoadAttributes::default()
    };
    open(BPF_PROG_LOAD, &attributes)
}

/// Attaches a program about devices to a cgroup, which holds a reference to it.
///
/// # Errors
/// When `cgroup` is not a cgroup's directory.
pub fn attach(program: &OwnedFd, cgroup: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = AttachAttributes {
        objects: [number(cgroup), number(program)],
        kind: Kind::CgroupDevice.attachment(),
        flags: BPF_F_ALLOW_MULTI,
    };
    bpf(BPF_PROG_ATTACH, &attributes).map(drop)
}

/// Attaches a program about sockets to a network namespace, until the link that is returned is closed.
///
/// # Errors
/// When the kernel refuses.
pub fn link(program: &OwnedFd, namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let attributes = AttachAttributes {
        objects: [number(program), number(namespace)],
        kind: Kind::SocketLookup.attachment(),
        flags: 0,
    };
    open(BPF_LINK_CREATE, &attributes)
}

/// Makes a map from 0, 1 and so on to these sockets: bound ones of UDP, and listening ones of TCP.
///
/// # Errors
/// When the kernel refuses.
pub fn socket_map(sockets: &[BorrowedFd<'_>]) -> io::Result<OwnedFd> {
    let attributes = MapAttributes {
        kind: BPF_MAP_TYPE_SOCKMAP,
        key_size: 4,
        value_size: 8,
        max_entries: u32::try_from(sockets.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
    };
    let map = open(BPF_MAP_CREATE, &attributes)?;
    for (key, socket) in (0_u32..).zip(sockets) {
        let value = u64::from(number(socket));
        let attributes = ElementAttributes {
            map: number(&map),
            _padding: 0,
            key: (&raw const key).expose_provenance() as u64,
            value: (&raw const value).expose_provenance() as u64,
            flags: 0,
        };
        bpf(BPF_MAP_UPDATE_ELEM, &attributes)?;
    }
    Ok(map)
}

/// A descriptor, as instructions and attributes name it.
pub fn number(fd: impl AsFd) -> u32 {
    fd.as_fd().as_raw_fd().cast_unsigned()
}

/// Calls bpf(2) with a command that returns a new descriptor.
fn open<T>(command: libc::c_int, attributes: &T) -> io::Result<OwnedFd> {
    let fd = bpf(command, attributes)?;
    // SAFETY: the kernel has just opened it, close-on-exec, for the caller alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
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
