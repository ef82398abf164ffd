//! Connecting to UNIX sockets of the host that lie in the share, in the name of the guest's processes.
//!
//! A socket file is of one kernel: what the guest's kernel finds by it, if anybody, listens in the guest. With a patch of
//! it (guest-kernel/patches/volume-sockets.patch) it then asks here, by a request of its own beside FUSE's: who connects, and
//! to which file of which folder. The socket that comes of it is given to the vsock device, and the answer is where the
//! guest finds that.
//!
//! The guest's kernel has checked the permissions, as it does for all files. The host's server sees the user and the
//! groups of the guest's process, and the pid of the VM process.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use rustix::process::{Gid, Uid};
use rustix::process::{fchdir, getegid, geteuid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::share::check;
use crate::virtio::vsock::{Giver, Offered};

/// The request's opcode, which is none of FUSE's: "hull".
pub(super) const OPCODE: u32 = 0x6875_6c6c;

/// The most groups of a process that are told.
const MOST_GROUPS: usize = 32;

/// The length of what is between the header and the name (`struct fuse_connect_in` of the patch), in bytes.
pub(super) const FIXED: usize = 8 + 4 + 4 * MOST_GROUPS + 4;

/// The longest request without its header, in bytes: a name has 255 at most, and a NUL.
pub(super) const LONGEST: usize = FIXED + 256;

/// What is asked, beside the folder.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The inode's number on the host, as the guest knows it.
    inode: u64,
    /// The groups of the guest's process.
    groups: Vec<u32>,
    /// The name in the folder.
    name: CString,
}

/// Whose process of the guest asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asker {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Wanted {
    /// Reads what follows the header; none if it is malformed, or the name is no single one.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (fixed, name) = bytes.split_at_checked(FIXED)?;
        let (inode, rest) = fixed.split_first_chunk()?;
        let (count, groups) = rest.split_first_chunk()?;
        let count = usize::try_from(u32::from_le_bytes(*count)).ok()?;
        let (groups, _) = groups.as_chunks();
        let groups = groups.get(..count).filter(|_| count <= MOST_GROUPS)?;
        let name = CString::from_vec_with_nul(name.to_vec()).ok()?;
        check(&name).ok()?;
        Some(Self {
            inode: u64::from_le_bytes(*inode),
            groups: groups.iter().map(|id| u32::from_le_bytes(*id)).collect(),
            name,
        })
    }
}

/// Makes the connections.
#[derive(Debug)]
pub(super) struct Connector {
    /// The thread's `/proc/thread-self/fd`.
    proc_self_fd: File,
    /// The thread's working directory at other times.
    usual: OwnedFd,
    giver: Giver,
}

impl Connector {
    pub(super) fn new(proc_self_fd: File, giver: Giver) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            proc_self_fd,
            usual: openat(CWD, ".", flags, Mode::empty())?,
            giver,
        })
    }

    /// Connects to the socket that is wanted in that folder. Doesn't block.
    ///
    /// # Errors
    /// As connect(2); `EAGAIN` too where the guest has as many connections as it may have, and `ESTALE` where another
    /// file has the name by now.
    pub(super) fn connect(
        &self,
        folder: &File,
        wanted: &Wanted,
        asker: Asker,
    ) -> io::Result<Offered> {
        if self.giver.is_full() {
            return Err(Errno::AGAIN.into());
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(folder, &wanted.name, flags, Mode::empty())?;
        let about = fstat(&file)?;
        if about.st_ino != wanted.inode {
            return Err(Errno::STALE.into());
        }
        // What isn't a socket isn't to be opened by connect(2) either: a link would be followed.
        if FileType::from_raw_mode(about.st_mode) != FileType::Socket {
            return Err(Errno::CONNREFUSED.into());
        }
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        let address = SocketAddrUnix::new(file.as_raw_fd().to_string())?;
        {
            let _user = Assumed::of(asker, &wanted.groups)?;
            fchdir(&self.proc_self_fd)?;
            let connected = connect(&socket, &address);
            fchdir(&self.usual)?;
            connected?;
        }
        self.giver.give(socket)
    }
}

/// While it lives, the thread's effective user and groups are those of a process of the guest's.
struct Assumed {
    uid: Uid,
    gid: Gid,
}

impl Assumed {
    fn of(asker: Asker, groups: &[u32]) -> io::Result<Self> {
        let id = |id: u32| (id != u32::MAX).then_some(id).ok_or(Errno::PERM);
        let (uid, gid) = (id(asker.uid)?, id(asker.gid)?);
        let groups: Vec<_> = groups.iter().copied().map(id).collect::<Result<_, _>>()?;
        let groups: Vec<_> = groups.into_iter().map(Gid::from_raw).collect();
        let own = Self {
            uid: geteuid(),
            gid: getegid(),
        };
        match set_thread_groups(&groups) {
            // A user namespace of an ordinary user's may have to keep those of its maker (user_namespaces(7)).
            Err(Errno::PERM) => {}
            set => set?,
        }
        // From here on its end takes it all back.
        set_thread_res_gid(None::<Gid>, Gid::from_raw(gid), None)?;
        set_thread_res_uid(None, Uid::from_raw(uid), None)?;
        Ok(own)
    }
}

impl Drop for Assumed {
    fn drop(&mut self) {
        let _ = set_thread_res_uid(None, self.uid, None);
        let _ = set_thread_res_gid(None, self.gid, None);
        let _ = set_thread_groups(&[]);
    }
}

#[cfg(test)]
impl Wanted {
    pub(super) fn parts(&self) -> (u64, &[u32], &[u8]) {
        (self.inode, &self.groups, self.name.as_bytes())
    }
}
