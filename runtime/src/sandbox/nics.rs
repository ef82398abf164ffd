//! An interface of a sandbox's network namespace on the host, and a network interface of its VM: the one becomes the
//! other.

use std::num::NonZeroU16;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};

use super::{AgentError, hand_nic};
use crate::chain::chain;
use crate::network::{self, Interface, Namespace, connect, disconnect};

/// The host's kernel, as a mover of packets.
pub(super) const VHOST_NET: &str = "/dev/vhost-net";

/// The pairs of queues of a VM's network interface.
const QUEUES: NonZeroU16 = NonZeroU16::MIN;

/// Why an interface isn't the VM's.
#[derive(Debug, thiserror::Error)]
pub enum NicError {
    /// The host's kernel can't connect it.
    #[error(transparent)]
    Network(#[from] network::Error),
    /// A tap without a queue, which isn't made.
    #[error("the host's kernel has made a tap without a queue")]
    NoQueue,
    /// The VM process doesn't take it.
    #[error(transparent)]
    Vmm(#[from] AgentError),
}

/// Connects an interface to the VM whose control socket this is; with `vhost` the host's kernel moves the packets,
/// where it can. Returns the slot that the VM has it in, which the agent is to be told. Who calls this has written down
/// before that the interface is to be disconnected one day.
///
/// # Errors
/// When the interface can't be connected, or the VM process has no empty slot.
pub fn connect_nic(
    socket: &Path,
    namespace: &Namespace,
    interface: &Interface,
    vhost: bool,
) -> Result<u8, NicError> {
    let vhost = vhost.then(open_vhost).flatten();
    let connection = connect(namespace, interface, QUEUES)?;
    let tap = connection.queues.first().ok_or(NicError::NoQueue)?;
    let vhost = vhost.as_ref().map(AsFd::as_fd);
    let (mac, mtu) = (interface.mac, interface.mtu);
    let slot = hand_nic(socket, mac, mtu, tap.as_fd(), vhost);
    // The tap goes, unless the VM process has it: while there is one, nothing would be disconnected.
    drop(connection);
    if slot.is_err()
        && let Err(e) = disconnect(namespace, interface.index)
    {
        log::warn!("{}", chain(&e));
    }
    Ok(slot?)
}

/// Where it isn't there, or may not be opened, the VM process moves the packets.
fn open_vhost() -> Option<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let opened = openat(CWD, VHOST_NET, flags, Mode::empty());
    opened.inspect_err(|e| log::debug!("{VHOST_NET}: {e}")).ok()
}
