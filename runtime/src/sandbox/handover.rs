//! What a process that executes hull's own program is told by its maker: a JSON document in an inherited memory file,
//! which has the numbers of the other descriptors that it inherits.
#![allow(unsafe_code)] // taking over inherited file descriptors

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use rustix::fs::MemfdFlags;
use rustix::io::FdFlags;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// In the maker: writes the document down.
///
/// # Errors
/// When there are too many open files, or there is too little memory.
pub fn write(document: &impl Serialize) -> io::Result<File> {
    let mut file = File::from(rustix::fs::memfd_create(
        "hull-config",
        MemfdFlags::CLOEXEC,
    )?);
    file.write_all(&serde_json::to_vec(document)?)?;
    file.rewind()?;
    Ok(file)
}

/// In the process: reads it, once.
///
/// # Errors
/// When it isn't there, or isn't one.
pub fn read<T: DeserializeOwned>(file: RawFd) -> io::Result<T> {
    let mut text = Vec::new();
    File::from(take(file)?).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
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
