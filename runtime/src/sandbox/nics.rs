//! An interface of a sandbox's network namespace on the host, and a network interface of its VM: the one becomes the
//! other.

use std::num::NonZeroU8;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, openat};

use super::{AgentError, hand_nic};
use crate::chain::chain;
use crate::network::{self, Connection, Interface, Namespace, connect, disconnect};

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

/// An interface that is connected to a tap which no VM has yet: dropped, the tap goes.
#[derive(Debug)]
pub struct ConnectedNic {
    connection: Connection,
    /// What moves the packets of each pair of queues in the host's kernel, if that is to.
    vhosts: Option<Vec<OwnedFd>>,
    mac: [u8; 6],
    mtu: u32,
}

impl ConnectedNic {
    /// Connects an interface, whose NIC in the VM has that many pairs of queues; with `vhost` the host's kernel moves the
    /// packets, where it can. Who calls this has written down before that the interface is to be disconnected one day.
    ///
    /// # Errors
    /// When the interface can't be connected.
    pub fn connect(
        namespace: &Namespace,
        interface: &Interface,
        vhost: bool,
        pairs: NonZeroU8,
    ) -> Result<Self, NicError> {
        let vhosts = vhost.then(|| open_vhost(pairs)).flatten();
        Ok(Self {
            connection: connect(namespace, interface, pairs.into())?,
            vhosts,
            mac: interface.mac,
            mtu: interface.mtu,
        })
    }

    /// The interface's index.
    pub fn interface(&self) -> u32 {
        self.connection.interface
    }

    /// Gives it to the VM whose control socket this is. Returns the slot that the VM has it in, which the agent is to be
    /// told.
    ///
    /// # Errors
    /// When the VM process has no empty slot. Then the interface is disconnected.
    pub fn hand_over(self, socket: &Path, namespace: &Namespace) -> Result<u8, NicError> {
        let interface = self.interface();
        let vhosts = self.vhosts.iter().flatten();
        let descriptors: Vec<_> = self
            .connection
            .queues
            .iter()
            .chain(vhosts)
            .map(AsFd::as_fd)
            .collect();
        let slot = hand_nic(socket, self.mac, self.mtu, &descriptors);
        // The tap goes, unless the VM process has it: while there is one, nothing would be disconnected.
        drop(self);
        if slot.is_err()
            && let Err(e) = disconnect(namespace, interface)
        {
            log::warn!("{}", chain(&e));
        }
        Ok(slot?)
    }
}

/// Connects an interface to the VM whose control socket this is, as [`ConnectedNic::connect`] does, and gives it to the
/// VM at once.
///
/// # Errors
/// As with [`ConnectedNic::connect`] and [`ConnectedNic::hand_over`].
pub fn connect_nic(
    socket: &Path,
    namespace: &Namespace,
    interface: &Interface,
    vhost: bool,
    pairs: NonZeroU8,
) -> Result<u8, NicError> {
    ConnectedNic::connect(namespace, interface, vhost, pairs)?.hand_over(socket, namespace)
}

/// One for each pair of queues. Where it isn't there, or may not be opened, the VM process moves the packets.
fn open_vhost(pairs: NonZeroU8) -> Option<Vec<OwnedFd>> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let open = |_| openat(CWD, VHOST_NET, flags, Mode::empty());
    let opened = (0..pairs.get()).map(open).collect::<Result<_, _>>();
    opened.inspect_err(|e| log::debug!("{VHOST_NET}: {e}")).ok()
}
