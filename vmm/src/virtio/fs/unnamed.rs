//! Unnamed files: `O_TMPFILE`.
//!
//! The passthrough looks up an inode by its name, so it can't represent one that never had a name.
//! Unnamed files are managed here, with node ids and handles of their own, from FUSE_TMPFILE until
//! the guest forgets them. One that is linked later gets a node in the passthrough too, of which
//! the guest's node id then is an alias, so that it stays the same inode for the guest.
#![allow(unsafe_code)] // fstatvfs64(2) into the library's reply type

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, FallocateFlags, Mode, OFlags, SeekFrom, Timestamps, linkat, openat};
use rustix::fs::{XattrFlags, fallocate, fgetxattr, flistxattr, fremovexattr, fsetxattr, futimens};
use virtiofsd::filesystem::{GetxattrReply, ListxattrReply, SetattrValid};
use virtiofsd::fuse::{Attr, SetattrIn};
use virtiofsd::oslib::ScopedUmask;
use virtiofsd::passthrough::credentials::drop_effective_cap;
use virtiofsd::soft_idmap::Id;

/// Marks the node ids and handles of unnamed files; the passthrough counts its own up from 0.
const UNNAMED_BIT: u64 = 1 << 63;

/// Whether a node id or a handle is that of an unnamed file, or was when it was created.
pub(super) fn is_unnamed(id: u64) -> bool {
    id & UNNAMED_BIT != 0
}

/// What a node id of the guest refers to.
#[derive(Debug)]
pub(super) enum Target {
    /// A node of the passthrough.
    Named(u64),
    /// A file without a name.
    Unnamed(Arc<File>),
}

/// The arguments of FUSE_TMPFILE.
#[derive(Clone, Copy, Debug)]
pub(super) struct Creation {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mode: u32,
    pub(super) umask: u32,
    /// As of open(2).
    pub(super) flags: u32,
}

/// The unnamed files that the guest knows.
#[derive(Debug)]
pub(super) struct Unnamed {
    /// The thread's `/proc/thread-self/fd`.
    proc_self_fd: File,
    /// The most unnamed files and handles of them together.
    limit: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    nodes: HashMap<u64, KnownNode>,
    /// Maps nodes of the passthrough to the aliases by which the guest knows them.
    aliases: HashMap<u64, u64>,
    handles: HashMap<u64, (u64, Arc<File>)>,
    last: u64,
}

/// A node that the guest knows, with its lookup count.
#[derive(Debug)]
struct KnownNode {
    kind: NodeKind,
    lookups: u64,
}

#[derive(Debug)]
enum NodeKind {
    Unnamed(Arc<File>),
    /// A node of the passthrough, of which the alias holds one lookup.
    Alias(u64),
}

impl Unnamed {
    pub(super) fn new(proc_self_fd: File, limit: u64) -> Self {
        Self {
            proc_self_fd,
            limit,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets everything.
    pub(super) fn clear(&self) {
        *self.state() = State::default();
    }

    /// Creates a file in `directory`, and returns its node id, attributes and handle.
    pub(super) fn create(
        &self,
        directory: &File,
        creation: Creation,
    ) -> io::Result<(u64, Attr, u64)> {
        let mut state = self.state();
        state.check_room(self.limit)?;
        let file = Arc::new(create_file(directory, creation)?);
        let attr = attributes(&file)?;
        let node = state.next_id();
        let known = KnownNode {
            kind: NodeKind::Unnamed(Arc::clone(&file)),
            lookups: 1,
        };
        state.nodes.insert(node, known);
        let handle = state.add_handle(node, file);
        Ok((node, attr, handle))
    }

    /// What `node` refers to.
    pub(super) fn resolve(&self, node: u64) -> io::Result<Target> {
        if !is_unnamed(node) {
            return Ok(Target::Named(node));
        }
        match self.state().nodes.get(&node).map(|known| &known.kind) {
            Some(NodeKind::Alias(named)) => Ok(Target::Named(*named)),
            Some(NodeKind::Unnamed(file)) => Ok(Target::Unnamed(Arc::clone(file))),
            None => Err(bad_file()),
        }
    }

    /// Gives a file a name.
    pub(super) fn link(&self, file: &File, directory: &File, name: &CStr) -> io::Result<()> {
        let own = file.as_raw_fd().to_string();
        let follow = AtFlags::SYMLINK_FOLLOW;
        Ok(linkat(&self.proc_self_fd, own, directory, name, follow)?)
    }

    /// Makes `node`, which has been linked, an alias of the passthrough's node `named`, of which
    /// the alias takes over one lookup.
    pub(super) fn make_alias(&self, node: u64, named: u64) {
        let mut state = self.state();
        if let Some(known) = state.nodes.get_mut(&node) {
            known.kind = NodeKind::Alias(named);
            state.aliases.insert(named, node);
        }
    }

    /// The alias by which the guest knows a node of the passthrough, if there is one. Increments
    /// its lookup count.
    pub(super) fn look_up_alias(&self, named: u64) -> Option<u64> {
        let mut state = self.state();
        let node = *state.aliases.get(&named)?;
        let known = state.nodes.get_mut(&node)?;
        known.lookups = known.lookups.saturating_add(1);
        Some(node)
    }

    /// Whether a node of the passthrough has an alias. The guest doesn't know such a node itself,
    /// and must not be able to forget it: otherwise it could create any number of aliases with a
    /// single open file.
    pub(super) fn has_alias(&self, named: u64) -> bool {
        self.state().aliases.contains_key(&named)
    }

    /// Decrements a node's lookup count by `count`, and removes it at zero. If it was an alias,
    /// returns the passthrough's node.
    pub(super) fn forget(&self, node: u64, count: u64) -> Option<u64> {
        let mut state = self.state();
        let known = state.nodes.get_mut(&node)?;
        known.lookups = known.lookups.saturating_sub(count);
        if known.lookups > 0 {
            return None;
        }
        match state.nodes.remove(&node)?.kind {
            NodeKind::Unnamed(_) => None,
            NodeKind::Alias(named) => {
                state.aliases.remove(&named);
                Some(named)
            }
        }
    }

    /// The open file of a handle, which must be one of `node`.
    pub(super) fn open_file(&self, node: u64, handle: u64) -> io::Result<Arc<File>> {
        match self.state().handles.get(&handle) {
            Some((of, file)) if *of == node => Ok(Arc::clone(file)),
            _ => Err(bad_file()),
        }
    }

    /// Opens a node's file again.
    pub(super) fn open(&self, node: u64, own: &File, flags: u32) -> io::Result<u64> {
        let mut state = self.state();
        state.check_room(self.limit)?;
        let access = flags & (libc::O_ACCMODE | libc::O_TRUNC) as u32;
        let flags = OFlags::from_bits_truncate(access) | OFlags::CLOEXEC;
        let name = own.as_raw_fd().to_string();
        let file = openat(&self.proc_self_fd, name, flags, Mode::empty())?;
        Ok(state.add_handle(node, Arc::new(file.into())))
    }

    /// Closes a handle, which must be one of `node`.
    pub(super) fn release(&self, node: u64, handle: u64) -> io::Result<()> {
        self.open_file(node, handle)?;
        self.state().handles.remove(&handle);
        Ok(())
    }
}

impl State {
    fn check_room(&self, limit: u64) -> io::Result<()> {
        // The number of aliases is bounded by the passthrough's nodes that they hold.
        let files = self.nodes.len() - self.aliases.len();
        if (files + self.handles.len()) as u64 >= limit {
            return Err(io::Error::from_raw_os_error(libc::ENFILE));
        }
        Ok(())
    }

    fn next_id(&mut self) -> u64 {
        self.last += 1;
        self.last | UNNAMED_BIT
    }

    fn add_handle(&mut self, node: u64, file: Arc<File>) -> u64 {
        let handle = self.next_id();
        self.handles.insert(handle, (node, file));
        handle
    }
}

/// Creates the file as root and then changes its owner, instead of creating it as its owner, who
/// may have write permission by a supplementary group that isn't known here. The guest's kernel has
/// checked the permission.
fn create_file(directory: &File, creation: Creation) -> io::Result<File> {
    let access = creation.flags & (libc::O_ACCMODE | libc::O_EXCL) as u32;
    let flags = OFlags::from_bits_truncate(access) | OFlags::TMPFILE | OFlags::CLOEXEC;
    let file: File = {
        let _umask = ScopedUmask::new(creation.umask & 0o777);
        let mode = Mode::from_bits_truncate(creation.mode & 0o777);
        openat(directory, c".", flags, mode)?.into()
    };
    let inherits_group = directory.metadata()?.mode() & libc::S_ISGID != 0;
    let group = (!inherits_group).then_some(creation.gid);
    fchown(&file, Some(creation.uid), group)?;
    // Set after the change of owner, which would clear them.
    let set_id = creation.mode & 0o7000;
    if set_id != 0 {
        let mode = file.metadata()?.mode() & 0o777 | set_id;
        file.set_permissions(PermissionsExt::from_mode(mode))?;
    }
    Ok(file)
}

/// A file's attributes in FUSE's format.
pub(super) fn attributes(file: &File) -> io::Result<Attr> {
    let metadata = file.metadata()?;
    Ok(Attr {
        ino: metadata.ino(),
        size: metadata.size(),
        blocks: metadata.blocks(),
        atime: metadata.atime() as u64,
        mtime: metadata.mtime() as u64,
        ctime: metadata.ctime() as u64,
        atimensec: metadata.atime_nsec() as u32,
        mtimensec: metadata.mtime_nsec() as u32,
        ctimensec: metadata.ctime_nsec() as u32,
        mode: metadata.mode(),
        nlink: metadata.nlink() as u32,
        uid: metadata.uid().into(),
        gid: metadata.gid().into(),
        rdev: 0,
        blksize: metadata.blksize() as u32,
        flags: 0,
    })
}

/// Changes a file's attributes to those of `attr` that are `valid`.
pub(super) fn set_attributes(file: &File, attr: &SetattrIn, valid: SetattrValid) -> io::Result<()> {
    if valid.contains(SetattrValid::MODE) {
        file.set_permissions(PermissionsExt::from_mode(attr.mode & 0o7777))?;
    }
    let uid = valid
        .contains(SetattrValid::UID)
        .then(|| attr.uid.into_inner());
    let gid = valid
        .contains(SetattrValid::GID)
        .then(|| attr.gid.into_inner());
    if uid.is_some() || gid.is_some() {
        fchown(file, uid, gid)?;
    }
    if valid.contains(SetattrValid::SIZE) {
        let kills = valid.contains(SetattrValid::KILL_SUIDGID);
        let _without_fsetid = kills.then(|| drop_effective_cap("FSETID")).transpose()?;
        rustix::fs::ftruncate(file, attr.size)?;
    }
    if valid.intersects(SetattrValid::ATIME | SetattrValid::MTIME) {
        let time = |set, now, seconds: u64, nanoseconds: u32| rustix::fs::Timespec {
            tv_sec: seconds as i64,
            tv_nsec: match (valid.contains(set), valid.contains(now)) {
                (_, true) => rustix::fs::UTIME_NOW,
                (true, _) => nanoseconds.into(),
                (false, false) => rustix::fs::UTIME_OMIT,
            },
        };
        let (atime, mtime) = (SetattrValid::ATIME, SetattrValid::MTIME);
        let times = Timestamps {
            last_access: time(atime, SetattrValid::ATIME_NOW, attr.atime, attr.atimensec),
            last_modification: time(mtime, SetattrValid::MTIME_NOW, attr.mtime, attr.mtimensec),
        };
        futimens(file, &times)?;
    }
    Ok(())
}

pub(super) fn allocate(file: &File, mode: u32, offset: u64, length: u64) -> io::Result<()> {
    Ok(fallocate(
        file,
        FallocateFlags::from_bits_retain(mode),
        offset,
        length,
    )?)
}

/// The guest's kernel sends SEEK_DATA and SEEK_HOLE only, and handles the others itself.
pub(super) fn seek(file: &File, offset: u64, whence: u32) -> io::Result<u64> {
    let from = match whence as i32 {
        libc::SEEK_DATA => SeekFrom::Data(offset),
        libc::SEEK_HOLE => SeekFrom::Hole(offset),
        _ => return Err(io::Error::from_raw_os_error(libc::EINVAL)),
    };
    Ok(rustix::fs::seek(file, from)?)
}

pub(super) fn sync(file: &File, data_only: bool) -> io::Result<()> {
    if data_only {
        file.sync_data()
    } else {
        file.sync_all()
    }
}

/// `clears_sgid`: the guest's kernel has found that setting this ACL must clear the set-group-id
/// bit.
pub(super) fn set_xattr(
    file: &File,
    name: &CStr,
    value: &[u8],
    flags: u32,
    clears_sgid: bool,
) -> io::Result<()> {
    if clears_sgid && name == c"system.posix_acl_access" {
        let mode = file.metadata()?.mode() & 0o7777 & !libc::S_ISGID;
        file.set_permissions(PermissionsExt::from_mode(mode))?;
    }
    Ok(fsetxattr(
        file,
        name,
        value,
        XattrFlags::from_bits_retain(flags),
    )?)
}

/// `size` is the room that the guest has for the value; the server has bounded it.
pub(super) fn get_xattr(file: &File, name: &CStr, size: u32) -> io::Result<GetxattrReply> {
    let mut value = vec![0; size as usize];
    let length = fgetxattr(file, name, &mut value[..])?;
    if size == 0 {
        return Ok(GetxattrReply::Count(length as u32));
    }
    value.truncate(length);
    Ok(GetxattrReply::Value(value))
}

/// `size` is the room that the guest has for the names; the server has bounded it.
pub(super) fn list_xattrs(file: &File, size: u32) -> io::Result<ListxattrReply> {
    let mut names = vec![0_u8; size as usize];
    let length = flistxattr(file, &mut names[..])?;
    if size == 0 {
        return Ok(ListxattrReply::Count(length as u32));
    }
    names.truncate(length);
    Ok(ListxattrReply::Names(names))
}

pub(super) fn remove_xattr(file: &File, name: &CStr) -> io::Result<()> {
    Ok(fremovexattr(file, name)?)
}

pub(super) fn file_system(file: &File) -> io::Result<libc::statvfs64> {
    let mut reply = std::mem::MaybeUninit::zeroed();
    // SAFETY: the pointer is to memory for the structure, which the call fills in.
    if unsafe { libc::fstatvfs64(file.as_raw_fd(), reply.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all zeroes is a value of it, and the call has succeeded.
    Ok(unsafe { reply.assume_init() })
}

fn bad_file() -> io::Error {
    io::Error::from_raw_os_error(libc::EBADF)
}
