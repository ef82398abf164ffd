//! The host's side of a pair of queues: an open tap, or one queue of it, whose frames have a virtio-net header (`IFF_VNET_HDR` of
//! linux/if_tun.h).
//!
//! Creating the interface, naming it and connecting it to a bridge is up to others: the tap is
//! already open.
#![allow(unsafe_code)] // ioctls of taps, which none of the libraries here has

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::fs::{OFlags, fcntl_getfl};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
};
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val};

use super::{HEADER_SIZE, MAX_PAIRS};

/// The flags that a tap must have: complete Ethernet frames, with the virtio-net header and no
/// other.
///
/// A missing `IFF_NO_PI` is only noticed if the tap has a filter: without one, Linux reports
/// `IFF_NOFILTER`, which is the same bit. The frames of a tap that lacks it are garbage to both
/// sides, which does no harm.
const REQUIRED_FLAGS: i32 = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
/// The flag of a tap that has several queues.
const MULTI_QUEUE: i32 = libc::IFF_MULTI_QUEUE;
/// The flags that a tap must not have: `IFF_NAPI_FRAGS` refuses what is written in many buffers.
const REFUSED_FLAGS: i32 = libc::IFF_NAPI_FRAGS;

/// The offloads that every tap has: checksums, and TCP segmentation.
const OFFLOADS: u32 = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
/// UDP segmentation offload, for IPv4 and IPv6.
const USO: u32 = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// The most frames dropped by [`Tap::drop_queued_frames`], more than Linux queues by default. They
/// take about a millisecond.
const MAX_DROPPED: usize = 1024;

/// Why a descriptor can't be the tap of a NIC.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// `TUNGETIFF` failed.
    #[error("the descriptor is not a tap, or has no interface")]
    NotATap(#[source] io::Error),
    /// The interface was created with other flags.
    #[error(
        "the tap must have IFF_TAP, IFF_NO_PI and IFF_VNET_HDR and not IFF_NAPI_FRAGS: its flags are {0:#06x}"
    )]
    Flags(u16),
    /// fcntl(2) with `F_GETFL` failed.
    #[error("cannot find out how the tap is open")]
    OpenFlags(#[source] io::Error),
    /// There are other queues, or none.
    #[error("a NIC has 1 to {MAX_PAIRS} queues of a tap: {0} descriptors came")]
    Count(usize),
    /// Several queues of what isn't a tap with several queues, or not of the same.
    #[error("several queues must be of one tap, with IFF_MULTI_QUEUE")]
    NotOneTap,
    /// Reading the tap would block the thread, which serves other NICs too.
    #[error("the tap must be open for reading and writing, and with O_NONBLOCK")]
    Access,
    /// `TUNSETVNETHDRSZ` failed.
    #[error("cannot set the size of the tap's headers to {HEADER_SIZE} bytes")]
    HeaderSize(#[source] io::Error),
    /// `TUNSETOFFLOAD` failed, with offloads that every tap has.
    #[error("cannot set the tap's offloads")]
    Offloads(#[source] io::Error),
}

/// A validated tap, or one of its queues.
#[derive(Debug)]
pub struct Tap {
    file: File,
    has_uso: bool,
    /// `None` for the socket of a test.
    interface: Option<Interface>,
}

/// What `TUNGETIFF` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Interface {
    name: [libc::c_char; libc::IFNAMSIZ],
    flags: u16,
}

impl Tap {
    /// Validates a descriptor, which may be of anything: it must be a tap (`IFF_TAP`, `IFF_NO_PI`,
    /// `IFF_VNET_HDR`) with an interface, and non-blocking. Sets the size of its headers to that of
    /// virtio 1.0 and later, and switches off all offloads until there is a driver.
    ///
    /// # Errors
    /// See [`TapError`].
    pub fn new(descriptor: OwnedFd) -> Result<Self, TapError> {
        let mut tap = Self::check(descriptor)?;
        set_header_size(&tap.file).map_err(TapError::HeaderSize)?;
        tap.has_uso = probe_uso(&tap.file).map_err(TapError::Offloads)?;
        set_offloads(&tap.file, 0).map_err(TapError::Offloads)?;
        Ok(tap)
    }

    /// Validates a descriptor that is to be a further queue of this tap, whose headers and offloads are those of all.
    pub(super) fn further_queue(&self, descriptor: OwnedFd) -> Result<Self, TapError> {
        let mut queue = Self::check(descriptor)?;
        let is_multi_queue =
            |of: Interface| i32::from(of.flags) & MULTI_QUEUE != 0 && queue.interface == Some(of);
        if !self.interface.is_some_and(is_multi_queue) {
            return Err(TapError::NotOneTap);
        }
        queue.has_uso = self.has_uso;
        Ok(queue)
    }

    fn check(descriptor: OwnedFd) -> Result<Self, TapError> {
        let file = File::from(descriptor);
        let interface = interface(&file).map_err(TapError::NotATap)?;
        let bits = i32::from(interface.flags);
        if bits & REQUIRED_FLAGS != REQUIRED_FLAGS || bits & REFUSED_FLAGS != 0 {
            return Err(TapError::Flags(interface.flags));
        }
        let open_flags = fcntl_getfl(&file).map_err(|errno| TapError::OpenFlags(errno.into()))?;
        if open_flags & OFlags::RWMODE != OFlags::RDWR || !open_flags.contains(OFlags::NONBLOCK) {
            return Err(TapError::Access);
        }
        Ok(Self {
            file,
            has_uso: false,
            interface: Some(interface),
        })
    }

    /// A substitute for a tap in tests and fuzzing: one end of a pair of `SOCK_SEQPACKET` sockets.
    /// Like a tap, it takes and returns one frame at a time, but it has no offloads.
    ///
    /// # Errors
    /// The socket can't be made non-blocking.
    pub fn from_test_socket(socket: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Self {
            file: File::from(socket),
            has_uso: false,
            interface: None,
        })
    }

    /// Whether the tap has UDP segmentation offload.
    pub(super) fn has_uso(&self) -> bool {
        self.has_uso
    }

    /// Switches on the offloads that a driver with these features accepts, and all others off: those of all queues of
    /// the tap (`set_offload` of Linux's drivers/net/tun.c).
    pub(super) fn set_offloads(&self, features: u64) -> io::Result<()> {
        self.unless_test(|file| set_offloads(file, offloads(features)))
    }

    /// Attaches this queue to its tap again, or detaches it: a queue that is detached is given no frames, and has lost
    /// those that were queued in it; what is written to it is sent all the same. The kernel detaches none of a tap that hasn't several.
    pub(super) fn attach(&self, is_attached: bool) -> io::Result<()> {
        self.unless_test(|file| attach(file, is_attached))
    }

    /// Whether this queue is attached: then it can't be attached again.
    #[cfg(test)]
    pub(super) fn is_attached(&self) -> bool {
        let is_attached = self.attach(true).is_err();
        if !is_attached {
            self.attach(false).expect("as before");
        }
        is_attached
    }

    fn unless_test(&self, request: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
        match self.interface {
            Some(_) => request(&self.file),
            None => Ok(()), // the socket of a test
        }
    }

    /// Drops the frames that are queued in the tap. To be called when a driver has activated the
    /// NIC, and [`Self::set_offloads`] was.
    ///
    /// The kernel queues frames also while there is no driver, and drops those beyond the
    /// interface's `tx_queue_len`, 1000 by default: so they are bounded, but may be of any age, and
    /// have offloads that the last driver accepted and this one doesn't. A NIC without a driver
    /// receives nothing. If even more are queued, the driver gets the rest, so that a flood of
    /// frames can't keep the thread here.
    pub(super) fn drop_queued_frames(&self) {
        let mut header = [0; HEADER_SIZE];
        for _ in 0..MAX_DROPPED {
            // The kernel drops the part of a frame that isn't read.
            match rustix::io::read(&self.file, &mut header) {
                Ok(1..) | Err(rustix::io::Errno::INTR) => {}
                Ok(0) | Err(_) => return, // no more, or an error that the next read reports
            }
        }
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// The offloads that a driver with these features accepts, in a combination that the kernel does.
/// Each takes `VIRTIO_NET_F_GUEST_CSUM`, and ECN takes TSO (virtio 1.3, 5.1.3.1). The kernel takes
/// USO for both IPv4 and IPv6 or for neither.
fn offloads(features: u64) -> u32 {
    let has = |feature: u32| features & (1 << feature) != 0;
    if !has(VIRTIO_NET_F_GUEST_CSUM) {
        return 0;
    }
    let mut offloads = libc::TUN_F_CSUM;
    for (feature, offload) in [
        (VIRTIO_NET_F_GUEST_TSO4, libc::TUN_F_TSO4),
        (VIRTIO_NET_F_GUEST_TSO6, libc::TUN_F_TSO6),
    ] {
        if has(feature) {
            offloads |= offload;
        }
    }
    if has(VIRTIO_NET_F_GUEST_ECN) && offloads != libc::TUN_F_CSUM {
        offloads |= libc::TUN_F_TSO_ECN;
    }
    if has(VIRTIO_NET_F_GUEST_USO4) && has(VIRTIO_NET_F_GUEST_USO6) {
        offloads |= USO;
    }
    offloads
}

/// `TUNGETIFF`: the name and the flags of the interface.
fn interface(file: &File) -> io::Result<Interface> {
    let mut request = no_request();
    // SAFETY: a tap writes a structure of this type, and what is no tap refuses this number.
    check(unsafe { ioctl_with_mut_ref(file, libc::TUNGETIFF, &mut request) })?;
    Ok(Interface {
        name: request.ifr_name,
        // SAFETY: the kernel has written the flags, and any bits are a valid integer.
        flags: unsafe { request.ifr_ifru.ifru_flags } as u16,
    })
}

/// `TUNSETQUEUE`.
fn attach(file: &File, is_attached: bool) -> io::Result<()> {
    let flag = match is_attached {
        true => libc::IFF_ATTACH_QUEUE,
        false => libc::IFF_DETACH_QUEUE,
    };
    let mut request = no_request();
    request.ifr_ifru.ifru_flags = flag as libc::c_short;
    // SAFETY: the kernel reads a structure of this type, which is borrowed for the call.
    check(unsafe { ioctl_with_ref(file, libc::TUNSETQUEUE, &request) })
}

fn no_request() -> libc::ifreq {
    // SAFETY: an ifreq is an array and a union of plain integers, which may be all zeroes.
    unsafe { std::mem::zeroed() }
}

/// `TUNSETVNETHDRSZ`: headers with `num_buffers`, as always since virtio 1.0.
fn set_header_size(file: &File) -> io::Result<()> {
    let size = HEADER_SIZE as libc::c_int;
    // SAFETY: the kernel reads an int, which is borrowed for the call.
    check(unsafe { ioctl_with_ref(file, libc::TUNSETVNETHDRSZ, &size) })
}

/// `TUNSETOFFLOAD`.
fn set_offloads(file: &File, offloads: u32) -> io::Result<()> {
    // SAFETY: the argument is no pointer.
    check(unsafe { ioctl_with_val(file, libc::TUNSETOFFLOAD, offloads.into()) })
}

/// Whether the tap has UDP segmentation offload, which Linux refuses before 6.2. Leaves all
/// offloads on if it has.
fn probe_uso(file: &File) -> io::Result<bool> {
    match set_offloads(file, OFFLOADS | USO) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(error),
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        ..0 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_offloads_that_the_kernel_takes_together_are_set() {
        let bits = |features: &[u32]| features.iter().fold(0, |bits, bit| bits | 1 << bit);
        let (csum, tso4, tso6) = (
            VIRTIO_NET_F_GUEST_CSUM,
            VIRTIO_NET_F_GUEST_TSO4,
            VIRTIO_NET_F_GUEST_TSO6,
        );
        let (ecn, uso4, uso6) = (
            VIRTIO_NET_F_GUEST_ECN,
            VIRTIO_NET_F_GUEST_USO4,
            VIRTIO_NET_F_GUEST_USO6,
        );
        for (features, expected) in [
            (bits(&[]), 0),
            (bits(&[tso4, tso6, ecn, uso4, uso6]), 0),
            (bits(&[csum]), 1),
            (bits(&[csum, ecn]), 1),
            (bits(&[csum, uso4]), 1),
            (bits(&[csum, tso4]), 3),
            (bits(&[csum, tso6, ecn]), 13),
            (bits(&[csum, uso4, uso6]), 0x61),
            (u64::MAX, 0x6f),
        ] {
            assert_eq!(offloads(features), expected, "{features:#x}");
        }
    }
}
