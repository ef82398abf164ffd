//! An interface of a sandbox's network namespace on the host, and a network interface of its VM: the one becomes the
//! other.

use std::num::NonZeroU8;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};

use super::{AgentError, hand_nic};
use crate::chain::chain;
use crate::network::{self, Interface, Namespace, connect, disconnect};

/// The host's kernel, as a mover of packets.
pub(super) const VHOST_NET: &str = "/dev/vhost-net";

/// Why an interface isn't the VM's.
#[derive(Debug, thiserror::Error)]
pub enum NicError {
    /// The host's kernel can't connect it.
    #[error(transparent)]
    Network(#[from] network::Error),
    /// The VM process doesn't take it.
    #[error(transparent)]
    Vmm(#[from] AgentError),
}

/// Connects an interface to the VM whose control socket this is, and whose network interfaces have that many pairs of
/// queues; with `vhost` the host's kernel moves the packets, where it can. Returns the slot that the VM has it in, which the agent is to be told. Who calls this has written down
/// before that the interface is to be disconnected one day.
///
/// # Errors
/// When the interface can't be connected, or the VM process has no empty slot.
pub fn connect_nic(
    socket: &Path,
    namespace: &Namespace,
    interface: &Interface,
    vhost: bool,
    pairs: NonZeroU8,
) -> Result<u8, NicError> {
    let vhosts = vhost.then(|| open_vhost(pairs)).flatten();
    let connection = connect(namespace, interface, pairs.into())?;
    let queues = connection.queues.iter().chain(vhosts.iter().flatten());
    let descriptors: Vec<_> = queues.map(AsFd::as_fd).collect();
    let slot = hand_nic(socket, interface.mac, interface.mtu, &descriptors);
    // The tap goes, unless the VM process has it: while there is one, nothing would be disconnected.
    drop(connection);
    if slot.is_err()
        && let Err(e) = disconnect(namespace, interface.index)
    {
        log::warn!("{}", chain(&e));
    }
    Ok(slot?)
}

/// One for each pair of queues. Where it isn't there, or may not be opened, the VM process moves the packets.
fn open_vhost(pairs: NonZeroU8) -> Option<Vec<OwnedFd>> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let open = |_| openat(CWD, VHOST_NET, flags, Mode::empty());
    let opened = (0..pairs.get()).map(open).collect::<Result<_, _>>();
    opened.inspect_err(|e| log::debug!("{VHOST_NET}: {e}")).ok()
}
