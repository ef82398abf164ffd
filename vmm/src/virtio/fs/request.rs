//! One FUSE request: a descriptor chain, validated before it is passed to the library.
//!
//! The library assumes that a chain has room for a reply, and a bounded length; chains of a hostile
//! guest that don't are refused here. The guest can change descriptors and request at any time, so
//! a check only holds for what has been read already and isn't read again.

use std::fs::File;
use std::io::{self, Read, Write};

use virtio_queue::DescriptorChain;
use virtiofsd::descriptor_utils::{self, Reader, Writer};
use virtiofsd::filesystem::{Context, FileSystem};
use virtiofsd::fuse::{BatchForgetIn, CreateIn, EntryOut, ForgetIn, ForgetOne};
use virtiofsd::fuse::{InHeader, Opcode, OpenOut, OutHeader};
use virtiofsd::passthrough::PassthroughFs;
use virtiofsd::server::Server;
use virtiofsd::soft_idmap::Id;
use vm_memory::ByteValued;

use super::connect::{self, Asker, Connector, Wanted};
use super::options::{self, Options};
use super::share::Share;
use super::unnamed::{Creation, Unnamed};
use crate::virtio::memory::LoggedMemory;

/// The most data in one request or reply: the library's `MAX_BUFFER_SIZE` (1 MiB, which it announces
/// as `max_write` and `max_pages`) and a page for headers and names.
const MAX_BYTES: usize = (1 << 20) + 4096;

/// The most descriptors in one request: 256 pages, of which unaligned data needs one more, and the
/// headers and arguments around them.
const MAX_DESCRIPTORS: usize = 272;

/// Why a request was not served: its chain is returned with nothing written.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("the chain has more than {MAX_DESCRIPTORS} descriptors")]
    TooManyDescriptors,
    #[error("the chain holds more than {MAX_BYTES} bytes to read or to write")]
    TooLong,
    #[error("a descriptor to read follows one to write")]
    Order,
    #[error("no room for a reply")]
    NoRoomForReply,
    #[error("a buffer lies outside of guest memory")]
    Buffer(#[from] descriptor_utils::Error),
    #[error("no request header, or no arguments")]
    Header(#[source] io::Error),
    #[error("the reply doesn't fit")]
    Reply(#[source] io::Error),
    #[error("the request can't be decoded")]
    Message(#[from] virtiofsd::Error),
}

/// Serves requests, by virtiofsd's server.
pub(super) struct Service {
    server: Server<Share>,
    /// The server's file system, for requests that the server doesn't support.
    share: Share,
    /// Connects to sockets in the tree, if the guest may.
    connector: Option<Connector>,
}

impl Service {
    /// Opens what is needed to serve the tree of `options`; see [`Fs::open`](super::Fs::open).
    pub(super) fn new(mut options: Options, proc_self_fd: File) -> io::Result<Self> {
        let connector = match options.connections.take() {
            Some(giver) => Some(Connector::new(proc_self_fd.try_clone()?, giver)?),
            None => None,
        };
        let unnamed = Unnamed::new(proc_self_fd.try_clone()?, options.unnamed_limit());
        let cache_timeout = options.cache_timeout;
        let passthrough = PassthroughFs::new(options::config(options, proc_self_fd))?;
        let share = Share::new(passthrough, unnamed, cache_timeout)?;
        Ok(Self {
            server: Server::new(share.clone()),
            share,
            connector,
        })
    }

    /// Whether the guest has mounted the share.
    pub(super) fn is_mounted(&self) -> bool {
        self.share.is_mounted()
    }

    /// Ends the guest's FUSE session: closes all of its files, and forgets its inodes.
    pub(super) fn end_session(&self) {
        self.server.destroy();
    }

    /// Serves one request and returns how many bytes of reply were written.
    pub(super) fn serve(
        &self,
        memory: &LoggedMemory,
        chain: DescriptorChain<&LoggedMemory>,
    ) -> Result<usize, Error> {
        let (reader, writer) = open(memory, chain)?;
        let header: InHeader = reader.clone().read_obj().map_err(Error::Header)?;
        if writer.available_bytes() < size_of::<OutHeader>() {
            return self.serve_without_reply(reader);
        }
        if header.opcode == Opcode::TmpFile as u32 {
            return self.create_unnamed(reader, writer);
        }
        if header.opcode == connect::OPCODE
            && let Some(connector) = &self.connector
        {
            return self.connect(connector, reader, writer);
        }
        Ok(self
            .server
            .handle_message(reader, writer, None::<&mut ()>)?)
    }

    /// Serves a request whose chain has no room for a reply, which only FORGET and BATCH_FORGET may
    /// have. The library isn't used: it would read the header again, which the guest may have
    /// changed to another request.
    fn serve_without_reply(&self, mut reader: Reader<'_>) -> Result<usize, Error> {
        let header: InHeader = reader.read_obj().map_err(Error::Header)?;
        let context = Context::from(header);
        match Opcode::try_from(header.opcode) {
            Ok(Opcode::Forget) => {
                let forget: ForgetIn = reader.read_obj().map_err(Error::Header)?;
                self.share.forget(context, header.nodeid, forget.nlookup);
            }
            Ok(Opcode::BatchForget) => {
                let batch: BatchForgetIn = reader.read_obj().map_err(Error::Header)?;
                // Whatever the count is, the chain's length bounds the number.
                for _ in 0..batch.count {
                    let forget: ForgetOne = reader.read_obj().map_err(Error::Header)?;
                    self.share.forget(context, forget.nodeid, forget.nlookup);
                }
            }
            _ => return Err(Error::NoRoomForReply),
        }
        Ok(0)
    }

    /// A connection to a socket of the host.
    fn connect(
        &self,
        connector: &Connector,
        mut reader: Reader<'_>,
        writer: Writer<'_>,
    ) -> Result<usize, Error> {
        let header: InHeader = reader.read_obj().map_err(Error::Header)?;
        let asker = Asker {
            uid: header.uid.into_inner(),
            gid: header.gid.into_inner(),
        };
        let mut bytes = Vec::new();
        let mut rest = reader.take(connect::LONGEST as u64);
        rest.read_to_end(&mut bytes).map_err(Error::Header)?;
        let made = match Wanted::decode(&bytes) {
            Some(wanted) => {
                let connect = |folder: &File| connector.connect(folder, &wanted, asker);
                let context = Context::from(header);
                (self.share).with_directory(context, header.nodeid, connect)
            }
            None => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        };
        match made {
            Ok(offered) => reply(writer, header.unique, 0, &[&offered.encode()]),
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                reply(writer, header.unique, -errno, &[])
            }
        }
    }

    /// FUSE_TMPFILE. What follows its arguments, a dummy name and supplementary groups, is ignored.
    fn create_unnamed(&self, mut reader: Reader<'_>, writer: Writer<'_>) -> Result<usize, Error> {
        let header: InHeader = reader.read_obj().map_err(Error::Header)?;
        let arguments: CreateIn = reader.read_obj().map_err(Error::Header)?;
        let creation = Creation {
            uid: header.uid.into_inner(),
            gid: header.gid.into_inner(),
            mode: arguments.mode,
            umask: arguments.umask,
            flags: arguments.flags,
        };
        let context = Context::from(header);
        match self.share.create_unnamed(context, header.nodeid, creation) {
            Ok((entry, handle, options)) => {
                let opened = OpenOut {
                    fh: handle,
                    open_flags: options.bits(),
                    ..OpenOut::default()
                };
                let entry = EntryOut::from(entry);
                reply(
                    writer,
                    header.unique,
                    0,
                    &[entry.as_slice(), opened.as_slice()],
                )
            }
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                reply(writer, header.unique, -errno, &[])
            }
        }
    }
}

/// Writes a reply and returns its length.
fn reply(mut writer: Writer<'_>, unique: u64, error: i32, parts: &[&[u8]]) -> Result<usize, Error> {
    let length = size_of::<OutHeader>() + parts.iter().map(|part| part.len()).sum::<usize>();
    let header = OutHeader {
        len: length as u32,
        error,
        unique,
    };
    let mut reply = header.as_slice().to_vec();
    reply.extend(parts.concat());
    writer.write_all(&reply).map_err(Error::Reply)?;
    Ok(length)
}

/// Creates the reader and the writer of a chain, and checks their lengths.
///
/// Both hold the buffers that they found when they were created, so the lengths that are checked
/// here are those that are used, even if the guest changes the descriptors later.
fn open<'m>(
    memory: &'m LoggedMemory,
    chain: DescriptorChain<&LoggedMemory>,
) -> Result<(Reader<'m>, Writer<'m>), Error> {
    check_shape(chain.clone())?;
    let reader = Reader::new(memory, chain.clone())?;
    let writer = Writer::new(memory, chain)?;
    let longer = reader.available_bytes().max(writer.available_bytes());
    if longer > MAX_BYTES {
        return Err(Error::TooLong);
    }
    Ok((reader, writer))
}

/// Refuses chains that no well-behaved driver makes. If the guest changes one after this check, it
/// is served all the same: it can't have more descriptors than its table, which are at most 2^16,
/// and reader and writer select their own.
fn check_shape(chain: DescriptorChain<&LoggedMemory>) -> Result<(), Error> {
    let mut replies = false;
    for (index, descriptor) in chain.enumerate() {
        if index == MAX_DESCRIPTORS {
            return Err(Error::TooManyDescriptors);
        }
        if replies && !descriptor.is_write_only() {
            return Err(Error::Order);
        }
        replies |= descriptor.is_write_only() && descriptor.len() > 0;
    }
    Ok(())
}
