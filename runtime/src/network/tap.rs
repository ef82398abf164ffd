//! Taps (Documentation/networking/tuntap.rst of Linux): interfaces whose other end is a descriptor.
//!
//! A tap lives as long as its descriptors, so a VM process that dies leaves none. It has a virtio-net header of 12
//! bytes (VIRTIO 1.2, 5.1.6) before each frame, by which segments of up to 64 KiB and checksums that are still to be
//! made pass in one piece. Towards the VM that begins when the device says, by TUNSETOFFLOAD, what the guest's driver
//! has agreed to: until then the kernel segments what a veth hands over. Which offloads the interface itself has
//! doesn't matter: what it can't take from the VM, the kernel segments.
#![allow(unsafe_code)] // two ioctls that no library of hull's wraps

use std::ffi::{c_int, c_short};
use std::io;
use std::num::NonZeroU16;
use std::os::fd::OwnedFd;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::ioctl::{self, Setter};

/// The file that makes them.
const TUN: &str = "/dev/net/tun";

/// The bytes before each frame: `struct virtio_net_hdr_v1` of linux/virtio_net.h.
pub const HEADER_LENGTH: usize = 12;

const TUNSETIFF: u32 = libc::TUNSETIFF as u32;
const TUNSETVNETHDRSZ: u32 = libc::TUNSETVNETHDRSZ as u32;

/// The name of the tap beside the interface of this index. An index has up to ten digits, a name up to 15 bytes.
pub(super) fn name(index: u32) -> String {
    format!("hull-{index}")
}

/// Makes a tap in the calling thread's network namespace, and opens that many queues of it. The descriptors don't
/// block, and aren't inherited.
///
/// # Errors
/// With EBUSY when there is one of that name: it isn't joined, whoever made it.
pub(super) fn open(name: &str, queues: NonZeroU16) -> io::Result<Vec<OwnedFd>> {
    let several = match queues.get() {
        1 => 0,
        _ => libc::IFF_MULTI_QUEUE,
    };
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | several;
    let mut all = Vec::with_capacity(queues.get().into());
    all.push(queue(name, flags | libc::IFF_TUN_EXCL)?);
    for _ in 1..queues.get() {
        all.push(queue(name, flags)?);
    }
    Ok(all)
}

/// Opens one queue.
fn queue(name: &str, flags: c_int) -> io::Result<OwnedFd> {
    let tap = openat(
        CWD,
        TUN,
        OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    // SAFETY: ifreq is plain old data for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays 0: `name` gives no longer ones.
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = flags as c_short;
    // SAFETY: TUNSETIFF reads an ifreq.
    unsafe { ioctl::ioctl(&tap, Setter::<TUNSETIFF, _>::new(request)) }?;
    let length = HEADER_LENGTH as c_int;
    // SAFETY: TUNSETVNETHDRSZ reads an int.
    unsafe { ioctl::ioctl(&tap, Setter::<TUNSETVNETHDRSZ, _>::new(length)) }?;
    Ok(tap)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_name_fits() {
        assert_eq!(name(3), "hull-3");
        assert!(name(i32::MAX as u32).len() < libc::IFNAMSIZ);
        assert!(name(u32::MAX).len() < libc::IFNAMSIZ);
    }
}
