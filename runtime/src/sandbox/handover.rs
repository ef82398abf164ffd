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
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::fs::{CWD, MemfdFlags, Mode, OFlags, XattrFlags, fsetxattr, getxattr, openat};
use rustix::io::FdFlags;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::process::{ChildProcess, Start};
use super::search::ProcessIdentity;

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

/// In the maker: executes hull's program as a process of this identity, in this cgroup and in new namespaces of these
/// kinds, with this priority ([`ChildProcess::spawn`]). `document` makes what the process is told, in which each
/// descriptor that it is to inherit is a number: what its argument makes of it.
///
/// # Errors
/// When the document can't be written, or the process not be started.
pub fn execute<T: Serialize>(
    document: impl FnOnce(&mut dyn FnMut(OwnedFd) -> io::Result<RawFd>) -> io::Result<T>,
    identity: &ProcessIdentity,
    cgroup: Option<BorrowedFd<'_>>,
    namespaces: u64,
    start: Start,
) -> io::Result<ChildProcess> {
    let mut inherited = Vec::new();
    let document = document(&mut |fd| {
        let number = fd.as_raw_fd();
        inherited.push(fd);
        Ok(number)
    })?;
    let written = write(&document, &identity.to_bytes())?;
    let arguments = identity.arguments(written.as_raw_fd())?;
    let inherited = inherited.iter().map(AsFd::as_fd);
    let inherited: Vec<_> = inherited.chain([written.as_fd()]).collect();
    ChildProcess::spawn(&arguments, &inherited, None, cgroup, namespaces, start)
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

/// In a process of root's: what the memory file `fd` of a process says of whose process it is. Nobody but root of the
/// host can have written that.
///
/// Any other file isn't asked: a FUSE file system would be, and answer what its owner likes, or never.
///
/// # Errors
/// When there is no such process, or no such memory file, or the file doesn't say.
pub fn identity(pid: i32, fd: RawFd) -> io::Result<Vec<u8>> {
    // A descriptor of our own, so that what is looked at is what is asked. With O_PATH no file system takes part.
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let file = openat(CWD, format!("/proc/{pid}/fd/{fd}"), flags, Mode::empty())?;
    let memory = rustix::fs::memfd_create("hull-compare", MemfdFlags::CLOEXEC)?;
    if mount_id(&file)? != mount_id(&memory)? {
        return Err(io::Error::other("it is no memory file"));
    }
    let mut identity = vec![0; MAX_IDENTITY];
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let length = getxattr(path, IDENTITY, &mut identity[..])?;
    identity.truncate(length);
    Ok(identity)
}

/// Which mount a file is in, as the kernel itself tells (proc_pid_fdinfo(5)). That of memory files can't be had by
/// other means.
fn mount_id(file: &OwnedFd) -> io::Result<u32> {
    let about = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?;
    let id = about.lines().find_map(|line| line.strip_prefix("mnt_id:"));
    let id = id.and_then(|id| id.trim().parse().ok());
    id.ok_or_else(|| io::Error::other("the kernel doesn't tell which mount a file is in"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_memory_file_is_asked_whose_process_it_is() {
        let pid = std::process::id().cast_signed();
        let file = tempfile::tempfile().expect("a file");
        let refused = identity(pid, file.as_raw_fd()).expect_err("a file of a file system");
        assert_eq!(refused.to_string(), "it is no memory file");

        let memory = write(&"a document", b"somebody").expect("a memory file");
        match identity(pid, memory.as_raw_fd()) {
            Ok(said) => assert_eq!(said, b"somebody"),
            Err(e) => assert!(!rustix::process::geteuid().is_root(), "{e}"),
        }
    }
}
