//! The disks and network interfaces of a VM, its slots for further ones, and its memory for later: attached to the machine,
//! each with the loop that serves it.

use std::fs::File;
use std::io;
use std::num::NonZeroU8;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hull_vmm::event_loop::Subscriber;
use hull_vmm::jail::{self, Identity, Role};
use hull_vmm::virtio::block::{Block, Disk, DisklessBlock};
use hull_vmm::virtio::mem::Mem;
use hull_vmm::virtio::net::{Nic, TaplessNet, pairs_for};
use hull_vmm::virtio::slot::{Backend, Slot, SlotHandle};
use hull_vmm::virtio::vsock::Vsock;
use hull_vmm::{EventLoop, MAX_DEVICES, Machine};

use super::VmmDisk;
use super::memory::{self, MemoryRequests};
use super::resolver::relay::Relay;
use super::slots::{DiskLine, NicLine, Slots};
use super::vmm::{VmmError, io_error};

/// The devices that every VM has, virtio-fs, virtio-vsock and virtio-rng, and virtio-mem, which one has that can grow.
const ALWAYS: usize = 4;

/// How many further devices a VM with that many can have.
pub fn room_beside(devices: usize) -> usize {
    MAX_DEVICES.saturating_sub(ALWAYS + devices)
}

/// A loop that serves devices, and the name of its thread.
pub(super) type NamedLoop = (EventLoop, String);

/// By its number, how a slot is filled.
pub(super) type Handles<B> = Vec<(u8, SlotHandle<B>)>;

/// Gives the machine its disks. Returns the loops that are to serve them, each with a name: a disk that
/// hangs must not hold up another.
pub(super) fn attach_disks(
    disks: Vec<VmmDisk>,
    machine: &mut Machine,
) -> Result<Vec<NamedLoop>, VmmError> {
    let attach = |disk: VmmDisk| {
        let disk = Disk::new(File::from(disk.device), &disk.serial, disk.read_only)?;
        let name = disk.serial().to_owned();
        let block = Block::new(disk).map_err(io_error("make virtio-blk"))?;
        let block = Arc::new(Mutex::new(block));
        let mut events = EventLoop::new().map_err(io_error("make a disk's event loop"))?;
        events.keep_open(machine.attach(Arc::clone(&block))?);
        events.add(block);
        Ok((events, name))
    };
    disks.into_iter().map(attach).collect()
}

/// Gives the machine slots for disks that are handed over while it runs. Returns the loops that serve them, each with a
/// name.
pub(super) fn attach_disk_slots(
    count: u8,
    machine: &mut Machine,
) -> Result<(Vec<NamedLoop>, Handles<Disk>), VmmError> {
    let attach = |_| {
        let mut events = EventLoop::new().map_err(io_error("make a slot's event loop"))?;
        let diskless = DisklessBlock::new().map_err(io_error("make a slot for a disk"))?;
        let queues = diskless.queues();
        let slot = attach_slot::<Disk>(diskless, queues, machine, &mut events)?;
        Ok(((events, format!("slot-{}", slot.0)), slot))
    };
    let slots = (0..count).map(attach).collect::<Result<Vec<_>, VmmError>>();
    Ok(slots?.into_iter().unzip())
}

/// Gives the machine slots for network interfaces that are handed over while it runs, each with as many pairs of queues
/// as go with its vCPUs. Returns the loop that serves all of
/// them, if there are any: frames come from where the container's own processes could send them too, so that none has
/// more to fear from another than from those.
pub(super) fn attach_nic_slots(
    count: u8,
    vcpus: NonZeroU8,
    machine: &mut Machine,
) -> Result<(Option<NamedLoop>, Handles<Nic>), VmmError> {
    if count == 0 {
        return Ok((None, Vec::new()));
    }
    let mut events = EventLoop::new().map_err(io_error("make the network's event loop"))?;
    let attach = |_| {
        let tapless =
            TaplessNet::new(pairs_for(vcpus)).map_err(io_error("make a slot for a NIC"))?;
        let queues = tapless.queues();
        attach_slot::<Nic>(tapless, queues, machine, &mut events)
    };
    let handles = (0..count).map(attach).collect::<Result<_, VmmError>>()?;
    Ok((Some((events, "virtio-net".to_owned())), handles))
}

/// Gives the machine a slot for such a device, which that loop is to serve.
fn attach_slot<B: Backend>(
    bare: B::BareDevice,
    queues: usize,
    machine: &mut Machine,
    events: &mut EventLoop,
) -> Result<(u8, SlotHandle<B>), VmmError>
where
    Slot<B>: Subscriber + 'static,
{
    let (number, registers) = machine.attach_empty_slot(queues, B::activation_eventfd(&bare))?;
    events.keep_open(registers.descriptors());
    let (slot, handle) = Slot::new(bare, registers).map_err(io_error("make a slot's sockets"))?;
    events.add(Arc::new(Mutex::new(slot)));
    Ok((number, handle))
}

/// Gives the machine its memory for later, if it has room for some, served by that loop.
pub(super) fn attach_memory(
    machine: &mut Machine,
    events: &mut EventLoop,
) -> Result<Option<Arc<Mutex<Mem>>>, VmmError> {
    let Some(region) = machine.hotplug_region() else {
        return Ok(None);
    };
    let device = Mem::new(Arc::clone(machine.memory()), region)?;
    let device = Arc::new(Mutex::new(device));
    events.keep_open(machine.attach(Arc::clone(&device))?);
    events.add(Arc::clone(&device) as _);
    Ok(Some(device))
}

/// What requests on the control socket, other than those about streams, are for.
pub(super) struct Requests {
    /// Slots for disks.
    pub(super) disks: Handles<Disk>,
    /// The serial numbers of the VM's disks.
    pub(super) serials: Vec<String>,
    /// Slots for network interfaces.
    pub(super) nics: Handles<Nic>,
    /// Memory that can be plugged in.
    pub(super) memory: Option<Arc<Mutex<Mem>>>,
}

impl Requests {
    /// Has such requests served by that loop, and a resolver's sockets relayed to.
    pub(super) fn take(self, vsock: &Mutex<Vsock>, events: &mut EventLoop) -> Result<(), VmmError> {
        let timer = || io_error("make a timer");
        let relay = Relay::new().map_err(io_error("make an eventfd"))?;
        let relay = Arc::new(Mutex::new(relay));
        events.add(Arc::clone(&relay) as _);
        let mut slots = None;
        if !self.disks.is_empty() || !self.nics.is_empty() {
            let disks = Slots::<DiskLine>::new(self.disks, self.serials).map_err(timer())?;
            let nics = Slots::<NicLine>::new(self.nics, Vec::new()).map_err(timer())?;
            let (disks, nics) = (Arc::new(Mutex::new(disks)), Arc::new(Mutex::new(nics)));
            events.add(Arc::clone(&disks) as _);
            events.add(Arc::clone(&nics) as _);
            slots = Some((disks, nics));
        }
        let memory = self.memory.map(|device| {
            let requests = MemoryRequests::new(device).map_err(timer())?;
            let requests = Arc::new(Mutex::new(requests));
            events.add(Arc::clone(&requests) as _);
            Ok::<_, VmmError>(requests)
        });
        let memory = memory.transpose()?;
        lock(vsock).on_other_requests(move |request| {
            let mut request = lock(&relay).take(request);
            if let Some((disks, nics)) = &slots {
                request = request.or_else(|request| lock(disks).take(request));
                request = request.or_else(|request| lock(nics).take(request));
            }
            request = request.or_else(|request| match &memory {
                Some(memory) => lock(memory).take(request),
                None => memory::refuse(request),
            });
            // Nobody's: the connection is closed.
            drop(request);
        });
        Ok(())
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts a confined thread for each loop of devices or slots.
pub(super) fn start_loops(
    loops: impl IntoIterator<Item = NamedLoop>,
    role: Role,
    identity: Identity,
) -> Result<(), VmmError> {
    for (events, name) in loops {
        let confine = move |needed: Vec<_>| {
            let own = jail::confine(role, identity, &needed);
            own.map(drop).map_err(io::Error::other)
        };
        events
            .spawn(&name, confine)
            .map_err(io_error("start a device's thread"))?;
    }
    Ok(())
}
