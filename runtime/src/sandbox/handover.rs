//! What a process that executes hull's own program is told by its maker: a JSON document in an inherited memory file,
//! which has the numbers of the other descriptors that it inherits.
//!
//! The file also says whose process it is, in an extended attribute that only root of the host can set (xattr(7),
//! `trusted.*`). The process keeps the file open for as long as it lives, so that root can tell it from one that is
//! merely executed with the same arguments.
#![allow(unsafe_code)] // taking over inherited file descriptors

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use rustix::fs::{MemfdFlags, XattrFlags, fsetxattr, getxattr};
use rustix::io::FdFlags;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The attribute that says whose process it is.
const IDENTITY: &CStr = c"trusted.hull";

/// The longest identity, in bytes.
const MAX_IDENTITY: usize = 2048;

/// In the maker: writes the document down, and whose process it is for.
///
/// # Errors
/// When there are too many open files, or there is too little memory.
pub fn write(document: &impl Serialize, identity: &[u8]) -> io::Result<File> {
    let mut file = File::from(rustix::fs::memfd_create(
        "hull-config",
        MemfdFlags::CLOEXEC,
    )?);
    // An ordinary user can't, and root of a user namespace can't: see `identity`.
    if let Err(e) = fsetxattr(&file, IDENTITY, identity, XattrFlags::CREATE) {
        log::debug!("the process's file can't say whose it is: {e}");
    }
    file.write_all(&serde_json::to_vec(document)?)?;
    file.rewind()?;
    Ok(file)
}

/// In the process: reads it, once. Returns the file as well, which is to stay open.
///
/// # Errors
/// When it isn't there, or isn't one.
pub fn read<T: DeserializeOwned>(file: RawFd) -> io::Result<(T, OwnedFd)> {
    let mut text = Vec::new();
    let mut file = File::from(take(file)?);
    file.read_to_end(&mut text)?;
    file.set_len(0)?; // gives its memory back
    Ok((serde_json::from_slice(&text)?, file.into()))
}

/// In a process of root's: what the file `fd` of a process says of whose process it is. Nobody but root of the host
/// can have written that.
///
/// # Errors
/// When there is no such process, or no such file, or the file doesn't say.
pub fn identity(pid: i32, fd: RawFd) -> io::Result<Vec<u8>> {
    let mut identity = vec![0; MAX_IDENTITY];
    let length = getxattr(format!("/proc/{pid}/fd/{fd}"), IDENTITY, &mut identity[..])?;
    identity.truncate(length);
    Ok(identity)
}

/// In the process: takes over an inherited descriptor, once.
///
/// # Errors
/// When there is none of that number.
pub fn take(fd: RawFd) -> io::Result<OwnedFd> {
    if fd <= 2 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a descriptor of create's",
        ));
    }
    // SAFETY: `create` has made this descriptor for this process alone, and each number is taken once.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    rustix::io::fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
    Ok(fd)
}
