//! A NIC as the backend that is plugged into a [slot](crate::virtio::slot). The line of the request
//! has its MAC address and its MTU; the descriptors are the queues of a tap, one for each pair of queues that the slot was
//! made for, and, if the host's kernel is to serve these, as many of vhost-net. A NIC can be removed, after which the
//! slot is as before it.

use std::io;
use std::num::NonZeroU8;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::vhost::{Vhost, VhostError, VhostNet};
use super::{ConfigError, MAX_PAIRS, MacAddress, Net, NicConfig, TapError, Taps, queue_sizes};
use crate::virtio::lifecycle::Lifecycle;
use crate::virtio::slot::{Backend, PluggedDevice, Slot, SlotError, SlotHandle};

/// A slot for a NIC. One thread may serve several.
pub type NetSlot = Slot<Nic>;

/// The end of a slot's socket pair by which a NIC is sent to its thread.
pub type NetSlotHandle = SlotHandle<Nic>;

/// The host's side of a NIC that is plugged in while the guest runs.
#[derive(Debug)]
pub struct Nic {
    config: NicConfig,
    taps: Taps,
    /// One for each queue of the tap, or none. If there are some, they move the frames.
    vhosts: Vec<Vhost>,
}

/// Why the properties or the descriptors can't be those of a NIC.
#[derive(Debug, thiserror::Error)]
pub enum NicError {
    /// The MAC address or the MTU is invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// They are too many descriptors, or too few.
    #[error(
        "a NIC here has {pairs} queues of a tap, and as many of vhost-net or none: {found} descriptors came"
    )]
    Count {
        /// The pairs of queues that the slot was made for.
        pairs: usize,
        /// The descriptors.
        found: usize,
    },
    /// The first descriptors can't be the queues of a NIC's tap.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// One of the others can't be used as vhost-net.
    #[error(transparent)]
    Vhost(#[from] VhostError),
}

/// A virtio-net device without a tap, for an empty slot: the part of it that has to exist before
/// the threads are confined.
#[derive(Debug)]
pub struct TaplessNet {
    /// How many pairs of queues each NIC has that is plugged in there.
    pairs: usize,
    /// Each NIC's that is plugged in there: the threads know it under this number.
    activation_eventfd: Arc<EventFd>,
}

impl TaplessNet {
    /// A device for any NIC with this many pairs of queues, at most [`MAX_PAIRS`].
    ///
    /// # Errors
    /// The process has too many files open.
    pub fn new(pairs: NonZeroU8) -> io::Result<Self> {
        let eventfd = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        Ok(Self {
            pairs: usize::from(pairs.get()).min(MAX_PAIRS),
            activation_eventfd: Arc::new(eventfd),
        })
    }

    /// How many queues the device has.
    pub fn queues(&self) -> usize {
        queue_sizes(self.pairs).len()
    }

    /// See [`VirtioDevice::activation_eventfd`](crate::virtio::VirtioDevice::activation_eventfd).
    pub fn activation_eventfd(&self) -> RawFd {
        self.activation_eventfd.as_raw_fd()
    }
}

impl NetSlotHandle {
    /// Sends a NIC to the slot's thread, which validates the descriptors and answers later: the queues of a tap as
    /// [`Taps::new`] needs them, one for each pair of queues, then as many times an open `/dev/vhost-net` if the host's
    /// kernel is to move the frames. Doesn't block.
    ///
    /// # Errors
    /// There is a NIC in the slot, its thread hasn't received the last one yet, or they are more descriptors than those of
    /// [`MAX_PAIRS`].
    pub fn send_nic(&self, config: NicConfig, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let line = format!("{} {}", config.mac(), config.mtu());
        self.send(&line, descriptors)
    }
}

impl Backend for Nic {
    type BareDevice = TaplessNet;

    const REQUEST: &'static str = "a NIC with its MAC address and MTU";

    /// A MAC address, a space, and an MTU of up to 5 digits.
    const LONGEST_LINE: usize = 17 + 1 + 5;

    fn activation_eventfd(bare: &TaplessNet) -> RawFd {
        bare.activation_eventfd()
    }

    fn from_request(
        bare: &TaplessNet,
        line: &str,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Self, SlotError> {
        let malformed = || SlotError::Malformed(Self::REQUEST);
        let (mac, mtu) = line.split_once(' ').ok_or_else(malformed)?;
        let mac = mac.parse().map_err(|_| malformed())?;
        let mtu = mtu.parse().map_err(|_| malformed())?;
        Ok(Self::new(mac, mtu, bare.pairs, descriptors)?)
    }

    fn insert_into(self, bare: TaplessNet) -> (PluggedDevice, Option<TaplessNet>) {
        let Self {
            config,
            taps,
            vhosts,
        } = self;
        let eventfd = Arc::clone(&bare.activation_eventfd);
        let plugged = if vhosts.is_empty() {
            let lifecycle = Lifecycle::with_eventfd(super::name(&config), eventfd);
            let net = Arc::new(Mutex::new(Net::with_lifecycle(config, taps, lifecycle)));
            PluggedDevice {
                device: net.clone(),
                subscriber: net,
            }
        } else {
            let (device, server) = VhostNet::with_eventfd(config, taps, vhosts, eventfd);
            PluggedDevice {
                device: Arc::new(Mutex::new(device)),
                subscriber: Arc::new(Mutex::new(server)),
            }
        };
        (plugged, Some(bare))
    }
}

impl Nic {
    fn new(
        mac: MacAddress,
        mtu: u16,
        pairs: usize,
        mut descriptors: Vec<OwnedFd>,
    ) -> Result<Self, NicError> {
        let found = descriptors.len();
        if found != pairs && found != 2 * pairs {
            return Err(NicError::Count { pairs, found });
        }
        let vhosts = descriptors.split_off(pairs).into_iter();
        Ok(Self {
            config: NicConfig::new(mac, mtu)?,
            taps: Taps::new(descriptors)?,
            vhosts: vhosts.map(Vhost::new).collect::<Result<_, _>>()?,
        })
    }
}
