//! The file system that the server calls: a wrapper around virtiofsd's passthrough, which adds what
//! that lacks.
//!
//! - Names are checked. The passthrough passes the guest's names to the host's kernel unchanged,
//!   which would resolve a hostile guest's `../x` or `link/x`: to another share of the tree, which
//!   the guest has access to anyway, but bypassing the modes and mounts that its own kernel
//!   enforces.
//! - A guest that lacks a FUSE feature which the device relies on gets an error at FUSE_INIT. The
//!   passthrough would continue without the feature, and write to standard error whenever the guest
//!   asks for it.
//! - Offsets that no file can have are refused: the library panics on them.
//! - Some extended attributes have other names on the host than in the guest.
//! - A file handle of one guest (name_to_handle_at(2)) is invalid in the next: see
//!   [`Share::to_guest_entry`].
//! - Requests on unnamed files are served by [`Unnamed`], recognised by their node ids.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use virtiofsd::filesystem::{
    Context, Entry, Extensions, FileSystem, FsOptions, GetxattrReply, ListxattrReply, OpenOptions,
    SetattrValid, SetxattrFlags, ZeroCopyReader, ZeroCopyWriter,
};
use virtiofsd::fuse::{ATTR_SUBMOUNT, Attr, SetattrIn};
use virtiofsd::oslib::{ReadvFlags, WritevFlags};
use virtiofsd::passthrough::PassthroughFs;
use virtiofsd::passthrough::credentials::drop_effective_cap;

use super::unnamed::{self, Creation, Target, Unnamed, is_unnamed};
use super::xattr;

/// The most that one request copies between files, in bytes: what a slow disk does in a moment.
const MAX_COPY: u64 = 4 << 20;

/// The FUSE features that the guest's kernel must have.
const NEEDED: FsOptions = FsOptions::SUBMOUNTS
    .union(FsOptions::HANDLE_KILLPRIV_V2)
    .union(FsOptions::POSIX_ACL)
    .union(FsOptions::DONT_MASK)
    .union(FsOptions::SETXATTR_EXT)
    .union(FsOptions::CREATE_SUPP_GROUP);

type Node = u64;
type Handle = u64;
type Opened = (Option<Handle>, OpenOptions);

/// The shared tree. Clones refer to the same state.
#[derive(Clone)]
pub(super) struct Share {
    inner: Arc<PassthroughFs>,
    unnamed: Arc<Unnamed>,
    xattr_names: Arc<xattr::NameMap>,
    /// See [`Share::to_guest_entry`].
    generation: u32,
    cache_timeout: Duration,
    mounted: Arc<AtomicBool>,
}

impl Share {
    pub(super) fn new(
        inner: PassthroughFs,
        unnamed: Unnamed,
        cache_timeout: Duration,
    ) -> io::Result<Self> {
        let mut generation = [0; 4];
        rustix::rand::getrandom(&mut generation, rustix::rand::GetRandomFlags::empty())?;
        Ok(Self {
            inner: Arc::new(inner),
            unnamed: Arc::new(unnamed),
            xattr_names: Arc::new(xattr::NameMap::new()?),
            generation: u32::from_le_bytes(generation),
            cache_timeout,
            mounted: Arc::default(),
        })
    }

    /// Whether there is a FUSE session, with inodes and open files of the guest.
    pub(super) fn is_mounted(&self) -> bool {
        self.mounted.load(Ordering::Relaxed)
    }

    /// FUSE_TMPFILE, which the server doesn't support.
    pub(super) fn create_unnamed(
        &self,
        ctx: Context,
        directory: Node,
        creation: Creation,
    ) -> io::Result<(Entry, Handle, OpenOptions)> {
        let create = |directory: &File| self.unnamed.create(directory, creation);
        let (node, attr, handle) = self.with_directory(ctx, directory, create)?;
        Ok((self.entry(node, attr), handle, OpenOptions::KEEP_CACHE))
    }

    fn entry(&self, node: Node, attr: Attr) -> Entry {
        Entry {
            inode: node,
            generation: self.generation.into(),
            attr,
            attr_timeout: self.cache_timeout,
            entry_timeout: self.cache_timeout,
        }
    }

    /// The passthrough's node, for requests that aren't possible on an unnamed file.
    fn named(&self, node: Node) -> io::Result<Node> {
        match self.unnamed.resolve(node)? {
            Target::Named(node) => Ok(node),
            Target::Unnamed(_) => Err(io::Error::from_raw_os_error(libc::EBADF)),
        }
    }

    /// Converts an entry that the passthrough has found for the guest: with the node id that the
    /// guest knows, and with this guest's generation.
    ///
    /// Node ids start from 1 again in each guest, and file handles consist of a node id and the
    /// generation. overlayfs stores file handles on disk: those of an earlier guest must not refer
    /// to another file.
    fn to_guest_entry(&self, ctx: Context, mut entry: Entry) -> Entry {
        if let Some(alias) = self.unnamed.look_up_alias(entry.inode) {
            self.inner.forget(ctx, entry.inode, 1);
            entry.inode = alias;
        }
        // The guest's kernel uses no generation for the root of a submount, and would take it for
        // another inode.
        if entry.attr.flags & ATTR_SUBMOUNT == 0 {
            entry.generation = self.generation.into();
        }
        entry
    }

    /// Links an unnamed file, which makes its node an alias of a node of the passthrough.
    fn link_unnamed(
        &self,
        ctx: Context,
        node: Node,
        file: &File,
        parent: Node,
        name: &CStr,
    ) -> io::Result<Entry> {
        let link = |directory: &File| self.unnamed.link(file, directory, name);
        self.with_directory(ctx, parent, link)?;
        let entry = self.inner.lookup(ctx, parent, name)?;
        self.unnamed.make_alias(node, entry.inode);
        // The alias holds one lookup of the passthrough's node; the guest's lookups are counted by
        // the alias.
        self.unnamed.look_up_alias(entry.inode);
        Ok(Entry {
            inode: node,
            generation: self.generation.into(),
            ..entry
        })
    }

    /// Calls `then` with the open directory of a node.
    pub(super) fn with_directory<T>(
        &self,
        ctx: Context,
        node: Node,
        then: impl FnOnce(&File) -> io::Result<T>,
    ) -> io::Result<T> {
        let (handle, _) = self.inner.opendir(ctx, node, 0)?;
        let handle = handle.unwrap_or_default();
        let result = self.with_file(ctx, node, handle, then);
        self.inner.releasedir(ctx, node, 0, handle)?;
        result
    }

    /// Calls `then` with the open file of a handle. The passthrough exposes that only to the writer
    /// that a read fills, so the call is made from there.
    fn with_file<T>(
        &self,
        ctx: Context,
        node: Node,
        handle: Handle,
        then: impl FnOnce(&File) -> io::Result<T>,
    ) -> io::Result<T> {
        if is_unnamed(handle) {
            return then(&*self.unnamed.open_file(node, handle)?);
        }
        let node = self.named(node)?;
        let mut action = FileAction::Pending(then);
        self.inner
            .read(ctx, node, handle, &mut action, 0, 0, None, 0)?;
        match action {
            FileAction::Done(result) => result,
            FileAction::Pending(_) | FileAction::Running => {
                Err(io::Error::from_raw_os_error(libc::EBADF))
            }
        }
    }
}

/// A [`ZeroCopyWriter`] that calls a closure with the file instead of reading from it.
enum FileAction<F, T> {
    Pending(F),
    Running,
    Done(io::Result<T>),
}

impl<F: FnOnce(&File) -> io::Result<T>, T> ZeroCopyWriter for FileAction<F, T> {
    fn read_from_file_at(
        &mut self,
        file: &File,
        _count: usize,
        _offset: u64,
        _flags: Option<ReadvFlags>,
    ) -> io::Result<usize> {
        if let FileAction::Pending(then) = std::mem::replace(self, FileAction::Running) {
            *self = FileAction::Done(then(file));
        }
        Ok(0)
    }
}

/// Refuses what is not a single name of a directory entry.
pub(super) fn check(name: &CStr) -> io::Result<()> {
    match name.to_bytes() {
        b"" | b"." | b".." => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        name if name.contains(&b'/') => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        _ => Ok(()),
    }
}

/// Refuses a range beyond the largest offset that a file can have, on which the library panics.
fn check_range(offset: u64, size: u32) -> io::Result<()> {
    match offset.checked_add(size.into()) {
        Some(end) if i64::try_from(end).is_ok() => Ok(()),
        _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
    }
}

/// Methods that are forwarded to the passthrough after their names are checked.
macro_rules! with_checked_names {
    ($($method:ident($($argument:ident: $type:ty),*; $($name:ident),+) -> $reply:ty;)*) => {
        $(fn $method(&self, $($argument: $type),*) -> io::Result<$reply> {
            $(check($name)?;)+
            self.inner.$method($($argument),*)
        })*
    };
}

/// Methods that create a directory entry, forwarded to the passthrough after the name is checked.
macro_rules! creating_an_entry {
    ($($method:ident($($argument:ident: $type:ty),*; $name:ident);)*) => {
        $(fn $method(&self, ctx: Context, $($argument: $type),*) -> io::Result<Entry> {
            check($name)?;
            let entry = self.inner.$method(ctx, $($argument),*)?;
            Ok(self.to_guest_entry(ctx, entry))
        })*
    };
}

/// Methods that are forwarded to the passthrough unchanged.
macro_rules! forwarded {
    ($($method:ident($($argument:ident: $type:ty),*) -> $reply:ty;)*) => {
        $(fn $method(&self, $($argument: $type),*) -> io::Result<$reply> {
            self.inner.$method($($argument),*)
        })*
    };
}

/// Methods on a node: forwarded to the passthrough, or served by the expression after `or` for an
/// unnamed file.
macro_rules! by_node {
    ($($method:ident($($argument:ident: $type:ty),*) -> $reply:ty, or $unnamed:expr;)*) => {
        $(fn $method(&self, ctx: Context, node: Node, $($argument: $type),*) -> io::Result<$reply> {
            match self.unnamed.resolve(node)? {
                Target::Named(node) => self.inner.$method(ctx, node, $($argument),*),
                Target::Unnamed(file) => {
                    let answer: &dyn Fn(&Self, Node, &File) -> io::Result<$reply> = &$unnamed;
                    answer(self, node, &file)
                }
            }
        })*
    };
}

/// Methods on a handle: forwarded to the passthrough, or served by the expression after `or` for
/// one of an unnamed file.
macro_rules! by_handle {
    ($($method:ident($($before:ident: $before_type:ty),*; handle $(, $argument:ident: $type:ty)*) -> $reply:ty, or $unnamed:expr;)*) => {
        $(fn $method(&self, ctx: Context, node: Node, $($before: $before_type,)* handle: Handle, $($argument: $type),*) -> io::Result<$reply> {
            if is_unnamed(handle) {
                let file = self.unnamed.open_file(node, handle)?;
                let answer: &dyn Fn(&File) -> io::Result<$reply> = &$unnamed;
                answer(&file)
            } else {
                self.inner.$method(ctx, self.named(node)?, $($before,)* handle, $($argument),*)
            }
        })*
    };
}

impl FileSystem for Share {
    type Inode = Node;
    type Handle = Handle;
    type DirIter = <PassthroughFs as FileSystem>::DirIter;

    fn init(&self, capable: FsOptions) -> io::Result<FsOptions> {
        if !capable.contains(NEEDED) {
            return Err(io::Error::from_raw_os_error(libc::EPROTO));
        }
        self.unnamed.clear();
        self.mounted.store(true, Ordering::Relaxed);
        self.inner.init(capable)
    }

    fn destroy(&self) {
        self.unnamed.clear();
        self.inner.destroy();
        self.mounted.store(false, Ordering::Relaxed);
    }

    fn lookup(&self, ctx: Context, parent: Node, name: &CStr) -> io::Result<Entry> {
        check(name)?;
        let entry = self.inner.lookup(ctx, parent, name)?;
        Ok(self.to_guest_entry(ctx, entry))
    }

    fn forget(&self, ctx: Context, node: Node, count: u64) {
        if is_unnamed(node) {
            if let Some(named) = self.unnamed.forget(node, count) {
                self.inner.forget(ctx, named, 1);
            }
        } else if !self.unnamed.has_alias(node) {
            self.inner.forget(ctx, node, count);
        }
    }

    fn batch_forget(&self, ctx: Context, nodes: Vec<(Node, u64)>) {
        for (node, count) in nodes {
            self.forget(ctx, node, count);
        }
    }

    fn link(&self, ctx: Context, node: Node, parent: Node, name: &CStr) -> io::Result<Entry> {
        check(name)?;
        match self.unnamed.resolve(node)? {
            Target::Named(node) => {
                let entry = self.inner.link(ctx, node, parent, name)?;
                Ok(self.to_guest_entry(ctx, entry))
            }
            Target::Unnamed(file) => self.link_unnamed(ctx, node, &file, parent, name),
        }
    }

    fn create(
        &self,
        ctx: Context,
        parent: Node,
        name: &CStr,
        mode: u32,
        kill_priv: bool,
        flags: u32,
        umask: u32,
        extensions: Extensions,
    ) -> io::Result<(Entry, Option<Handle>, OpenOptions)> {
        check(name)?;
        let (entry, handle, options) = self
            .inner
            .create(ctx, parent, name, mode, kill_priv, flags, umask, extensions)?;
        Ok((self.to_guest_entry(ctx, entry), handle, options))
    }

    fn read<W: ZeroCopyWriter>(
        &self,
        ctx: Context,
        node: Node,
        handle: Handle,
        mut to: W,
        size: u32,
        offset: u64,
        lock_owner: Option<u64>,
        flags: u32,
    ) -> io::Result<usize> {
        check_range(offset, size)?;
        if is_unnamed(handle) {
            let file = self.unnamed.open_file(node, handle)?;
            return to.read_from_file_at(&file, size as usize, offset, None);
        }
        let node = self.named(node)?;
        self.inner
            .read(ctx, node, handle, to, size, offset, lock_owner, flags)
    }

    fn write<R: ZeroCopyReader>(
        &self,
        ctx: Context,
        node: Node,
        handle: Handle,
        mut from: R,
        size: u32,
        offset: u64,
        lock_owner: Option<u64>,
        delayed: bool,
        kill_priv: bool,
        flags: u32,
    ) -> io::Result<usize> {
        check_range(offset, size)?;
        if is_unnamed(handle) {
            let file = self.unnamed.open_file(node, handle)?;
            let _without_fsetid = kill_priv
                .then(|| drop_effective_cap("FSETID"))
                .transpose()?;
            let appends = !delayed && flags & libc::O_APPEND as u32 != 0;
            let flags = appends.then_some(WritevFlags::RWF_APPEND);
            return from.write_to_file_at(&file, size as usize, offset, flags);
        }
        let node = self.named(node)?;
        self.inner.write(
            ctx, node, handle, from, size, offset, lock_owner, delayed, kill_priv, flags,
        )
    }

    fn copyfilerange(
        &self,
        ctx: Context,
        from: Node,
        from_handle: Handle,
        mut from_offset: u64,
        to: Node,
        to_handle: Handle,
        mut to_offset: u64,
        length: u64,
        _flags: u64,
    ) -> io::Result<usize> {
        self.with_file(ctx, from, from_handle, |from| {
            self.with_file(ctx, to, to_handle, |to| {
                let (from_offset, to_offset) = (&mut from_offset, &mut to_offset);
                // The thread serves all containers of the VM; the caller copies the rest by itself.
                let length = length.min(MAX_COPY) as usize;
                let copied = rustix::fs::copy_file_range(
                    from,
                    Some(from_offset),
                    to,
                    Some(to_offset),
                    length,
                )?;
                Ok(copied)
            })
        })
    }

    creating_an_entry! {
        mkdir(parent: Node, name: &CStr, mode: u32, umask: u32, extensions: Extensions; name);
        mknod(parent: Node, name: &CStr, mode: u32, rdev: u32, umask: u32, extensions: Extensions; name);
        symlink(target: &CStr, parent: Node, name: &CStr, extensions: Extensions; name);
    }

    with_checked_names! {
        unlink(ctx: Context, parent: Node, name: &CStr; name) -> ();
        rmdir(ctx: Context, parent: Node, name: &CStr; name) -> ();
        rename(ctx: Context, from: Node, old: &CStr, to: Node, new: &CStr, flags: u32; old, new) -> ();
    }

    forwarded! {
        readlink(ctx: Context, node: Node) -> Vec<u8>;
        opendir(ctx: Context, node: Node, flags: u32) -> Opened;
        readdir(ctx: Context, node: Node, handle: Handle, size: u32, offset: u64) -> Self::DirIter;
        fsyncdir(ctx: Context, node: Node, data_only: bool, handle: Handle) -> ();
        releasedir(ctx: Context, node: Node, flags: u32, handle: Handle) -> ();
        access(ctx: Context, node: Node, mask: u32) -> ();
    }

    fn syncfs(&self, ctx: Context, node: Node) -> io::Result<()> {
        // The guest has written all dirty data to the host before this request. That is all that
        // its PID 1 wants when it shuts down; a container's process wants the data to be on the
        // host's disk.
        if ctx.pid == 1 {
            return Ok(());
        }
        self.inner.syncfs(ctx, node)
    }

    fn setattr(
        &self,
        ctx: Context,
        node: Node,
        attr: SetattrIn,
        handle: Option<Handle>,
        valid: SetattrValid,
    ) -> io::Result<(Attr, Duration)> {
        match self.unnamed.resolve(node)? {
            Target::Named(node) => {
                // The passthrough doesn't know a handle from before the file had a name.
                let handle = handle.filter(|handle| !is_unnamed(*handle));
                self.inner.setattr(ctx, node, attr, handle, valid)
            }
            Target::Unnamed(file) => {
                unnamed::set_attributes(&file, &attr, valid)?;
                Ok((unnamed::attributes(&file)?, self.cache_timeout))
            }
        }
    }

    fn release(
        &self,
        ctx: Context,
        node: Node,
        flags: u32,
        handle: Handle,
        flush: bool,
        flock: bool,
        lock_owner: Option<u64>,
    ) -> io::Result<()> {
        if is_unnamed(handle) {
            return self.unnamed.release(node, handle);
        }
        let node = self.named(node)?;
        self.inner
            .release(ctx, node, flags, handle, flush, flock, lock_owner)
    }

    fn setxattr(
        &self,
        ctx: Context,
        node: Node,
        name: &CStr,
        value: &[u8],
        flags: u32,
        extra: SetxattrFlags,
    ) -> io::Result<()> {
        let name = &self.xattr_names.on_host(name)?;
        match self.unnamed.resolve(node)? {
            Target::Named(node) => self.inner.setxattr(ctx, node, name, value, flags, extra),
            Target::Unnamed(file) => {
                let clears_sgid = extra.contains(SetxattrFlags::SETXATTR_ACL_KILL_SGID);
                unnamed::set_xattr(&file, name, value, flags, clears_sgid)
            }
        }
    }

    fn getxattr(
        &self,
        ctx: Context,
        node: Node,
        name: &CStr,
        size: u32,
    ) -> io::Result<GetxattrReply> {
        let name = &self
            .xattr_names
            .on_host(name)
            .map_err(xattr::no_such_attribute)?;
        let value = match self.unnamed.resolve(node)? {
            Target::Named(node) => self.inner.getxattr(ctx, node, name, size),
            Target::Unnamed(file) => unnamed::get_xattr(&file, name, size),
        };
        value.map_err(|error| xattr::for_permission_check(name, error))
    }

    fn listxattr(&self, ctx: Context, node: Node, size: u32) -> io::Result<ListxattrReply> {
        let names = match self.unnamed.resolve(node)? {
            Target::Named(node) => self.inner.listxattr(ctx, node, size),
            Target::Unnamed(file) => unnamed::list_xattrs(&file, size),
        }?;
        match names {
            ListxattrReply::Names(names) => {
                let names = self.xattr_names.in_guest(names)?;
                Ok(ListxattrReply::Names(names))
            }
            // Names are longer on the host, so there is room enough.
            count => Ok(count),
        }
    }

    fn removexattr(&self, ctx: Context, node: Node, name: &CStr) -> io::Result<()> {
        let name = &self.xattr_names.on_host(name)?;
        match self.unnamed.resolve(node)? {
            Target::Named(node) => self.inner.removexattr(ctx, node, name),
            Target::Unnamed(file) => unnamed::remove_xattr(&file, name),
        }
    }

    by_node! {
        getattr(handle: Option<Handle>) -> (Attr, Duration), or |share, _, file| {
            Ok((unnamed::attributes(file)?, share.cache_timeout))
        };
        statfs() -> libc::statvfs64, or |_, _, file| unnamed::file_system(file);
        open(kill_priv: bool, flags: u32) -> Opened, or |share, node, file| {
            let _without_fsetid = kill_priv.then(|| drop_effective_cap("FSETID")).transpose()?;
            let handle = share.unnamed.open(node, file, flags)?;
            Ok((Some(handle), OpenOptions::KEEP_CACHE))
        };
    }

    by_handle! {
        flush(; handle, lock_owner: u64) -> (), or |_| Ok(());
        fsync(data_only: bool; handle) -> (), or |file| unnamed::sync(file, data_only);
        fallocate(; handle, mode: u32, offset: u64, length: u64) -> (), or |file| {
            unnamed::allocate(file, mode, offset, length)
        };
        lseek(; handle, offset: u64, whence: u32) -> u64, or |file| unnamed::seek(file, offset, whence);
    }
}
