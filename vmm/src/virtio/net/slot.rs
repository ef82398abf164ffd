//! A NIC as the backend that is plugged into a [slot](crate::virtio::slot). The line of the request
//! has its MAC address and its MTU; the descriptors are a tap and, if the host's kernel is to serve
//! the queues, vhost-net. A NIC can be removed, after which the slot is as before it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::vhost::{Vhost, VhostError, VhostNet};
use super::{ConfigError, MacAddress, Net, NicConfig, QUEUES, Tap, TapError};
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
    tap: Tap,
    /// If there is one, it moves the frames.
    vhost: Option<Vhost>,
}

/// Why the properties or the descriptors can't be those of a NIC.
#[derive(Debug, thiserror::Error)]
pub enum NicError {
    /// The MAC address or the MTU is invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The first descriptor can't be the tap of a NIC.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The second descriptor can't be used as vhost-net.
    #[error(transparent)]
    Vhost(#[from] VhostError),
}

/// A virtio-net device without a tap, for an empty slot: the part of it that has to exist before
/// the threads are confined.
#[derive(Debug)]
pub struct TaplessNet {
    /// Each NIC's that is plugged in there: the threads know it under this number.
    activation_eventfd: Arc<EventFd>,
}

impl TaplessNet {
    /// A device for any NIC.
    ///
    /// # Errors
    /// The process has too many files open.
    pub fn new() -> io::Result<Self> {
        let eventfd = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        Ok(Self {
            activation_eventfd: Arc::new(eventfd),
        })
    }

    /// How many queues the device has.
    pub fn queues(&self) -> usize {
        QUEUES
    }

    /// See [`VirtioDevice::activation_eventfd`](crate::virtio::VirtioDevice::activation_eventfd).
    pub fn activation_eventfd(&self) -> RawFd {
        self.activation_eventfd.as_raw_fd()
    }
}

impl NetSlotHandle {
    /// Sends a NIC to the slot's thread, which validates the descriptors and answers later: a tap
    /// as [`Tap::new`] needs it, and an open `/dev/vhost-net` if the host's kernel is to move the
    /// frames. Doesn't block.
    ///
    /// # Errors
    /// There is a NIC in the slot, or its thread hasn't received the last one yet.
    pub fn send_nic(
        &self,
        config: NicConfig,
        tap: BorrowedFd<'_>,
        vhost: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        let line = format!("{} {}", config.mac(), config.mtu());
        match vhost {
            None => self.send(&line, &[tap]),
            Some(vhost) => self.send(&line, &[tap, vhost]),
        }
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

    fn from_request(line: &str, descriptors: Vec<OwnedFd>) -> Result<Self, SlotError> {
        let malformed = || SlotError::Malformed(Self::REQUEST);
        let (mac, mtu) = line.split_once(' ').ok_or_else(malformed)?;
        let mac = mac.parse().map_err(|_| malformed())?;
        let mtu = mtu.parse().map_err(|_| malformed())?;
        let mut descriptors = descriptors.into_iter();
        match (descriptors.next(), descriptors.next(), descriptors.next()) {
            (Some(tap), vhost, None) => Ok(Self::new(mac, mtu, tap, vhost)?),
            _ => Err(malformed()),
        }
    }

    fn insert_into(self, bare: TaplessNet) -> (PluggedDevice, Option<TaplessNet>) {
        let Self { config, tap, vhost } = self;
        let eventfd = Arc::clone(&bare.activation_eventfd);
        let plugged = match vhost {
            None => {
                let lifecycle = Lifecycle::with_eventfd(super::name(&config), eventfd);
                let net = Arc::new(Mutex::new(Net::with_lifecycle(config, tap, lifecycle)));
                PluggedDevice {
                    device: net.clone(),
                    subscriber: net,
                }
            }
            Some(vhost) => {
                let (device, server) = VhostNet::with_eventfd(config, tap, vhost, eventfd);
                PluggedDevice {
                    device: Arc::new(Mutex::new(device)),
                    subscriber: Arc::new(Mutex::new(server)),
                }
            }
        };
        (plugged, Some(bare))
    }
}

impl Nic {
    fn new(
        mac: MacAddress,
        mtu: u16,
        tap: OwnedFd,
        vhost: Option<OwnedFd>,
    ) -> Result<Self, NicError> {
        Ok(Self {
            config: NicConfig::new(mac, mtu)?,
            tap: Tap::new(tap)?,
            vhost: vhost.map(Vhost::new).transpose()?,
        })
    }
}
