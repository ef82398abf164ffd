//! A whole machine, put together from its parts: the main interface of this library.
//!
//! ```text
//! Machine ──▶ start_vcpu_threads ──▶ ReadyMachine ──▶ start_guest ──▶ RunningMachine ──▶ stop
//!   new: opens /dev/kvm, loads the kernel       each vCPU thread is confined     the guest runs
//!   attach: adds a device                       and waits
//! ```
//!
//! [`Machine::new`] does everything that needs the host's files. Once
//! [`Machine::start_vcpu_threads`] has returned, the vCPU threads are confined; the caller confines
//! its own thread before [`ReadyMachine::start_guest`].

use std::io;
use std::num::NonZeroU8;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use kvm_ioctls::VcpuFd;
use rustix::event::{EventfdFlags, eventfd};
use vm_memory::GuestMemoryMmap;

use crate::arch::{BootError, DeviceLocation, Platform, layout};
use crate::bus::{self, Bus};
use crate::console::Console;
use crate::image::Image;
use crate::initial_state::InitialState;
use crate::jail::PrivateFdTable;
use crate::kernel::KernelError;
use crate::kvm::{self, KvmError};
use crate::memory::{MemoryError, with_hotplug_region};
use crate::stop::{StopFlag, Stopper};
use crate::vcpu::{StopReason, Vcpu, install_kick_handler};
use crate::virtio::VirtioDevice;
use crate::virtio::mem::Region;
use crate::virtio::transport::MmioTransport;
use crate::vm::{Vm, VmError};

/// How long the vCPU threads may take to confine themselves, and later to end.
const THREADS_TIMEOUT: Duration = Duration::from_secs(10);

/// What a machine is made of.
#[derive(Clone, Copy, Debug)]
pub struct MachineConfig<'a> {
    /// The number of vCPUs, 1 to 64.
    pub vcpus: NonZeroU8,
    /// Memory in MiB, [`MIN_MIB`](crate::memory::MIN_MIB) to [`MAX_MIB`](crate::memory::MAX_MIB).
    pub memory_mib: u32,
    /// How much more it can be given while it runs, in MiB; 0 for nothing. Whole sections of 128 MiB count.
    pub hotplug_mib: u32,
    /// An uncompressed ELF image of a kernel. Used by [`Machine::new`] only.
    pub kernel: Image<'a>,
    /// Its initramfs; empty for none. Used by [`Machine::new`] only.
    pub initramfs: Image<'a>,
    /// The kernel's command line, to which the machine adds a word for each device.
    pub cmdline: &'a str,
}

/// Why a machine can't be created or started.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The host's KVM can't be used.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Guest memory can't be allocated.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The kernel can't be loaded.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The boot data can't be written.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// KVM refused something.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// There are no interrupt lines left.
    #[error("the machine has {MAX_DEVICES} devices already, and no more interrupt lines")]
    TooManyDevices,
    /// A file descriptor or a thread can't be created.
    #[error("cannot create {what}")]
    Resource {
        /// What was to be created.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A vCPU thread could not be confined; no guest code has run.
    #[error("cannot confine a vCPU thread")]
    Confine(#[source] io::Error),
    /// The vCPU threads did not confine themselves, or did not end, in time.
    #[error("waited {} s for the vCPU threads to {awaited}", THREADS_TIMEOUT.as_secs())]
    Timeout {
        /// What was awaited.
        awaited: &'static str,
    },
}

fn cannot_create(what: &'static str) -> impl FnOnce(io::Error) -> MachineError {
    move |source| MachineError::Resource { what, source }
}

/// A machine that has not been started.
#[derive(Debug)]
pub struct Machine {
    vcpus: Vec<VcpuFd>,
    vm: Arc<Vm>,
    bus: Bus,
    stop: StopFlag,
    initial_state: InitialState,
    hotplug_region: Option<Region>,
}

impl Machine {
    /// Creates the VM with its vCPUs, and loads the kernel and the initramfs.
    ///
    /// # Errors
    /// The host has no usable KVM or not enough memory, or the kernel can't be loaded.
    pub fn new(config: &MachineConfig<'_>) -> Result<Self, MachineError> {
        Self::with_kvm(kvm::open_device()?, config)
    }

    /// As [`Self::new`], with a /dev/kvm that is [open](kvm::open_device) already.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_kvm(kvm: OwnedFd, config: &MachineConfig<'_>) -> Result<Self, MachineError> {
        let vcpus = config.vcpus.get();
        let kvm = kvm::check(kvm, vcpus)?;
        let (mut initial_state, memory) = InitialState::load(&kvm, config)?;
        let (memory, hotplug_region) = with_hotplug_region(&memory, config.hotplug_mib);
        let vm = Vm::new(&kvm, Arc::new(memory))?;
        let create = |number| {
            let vcpu = vm.create_vcpu(number)?;
            initial_state.apply(&vcpu, number)?;
            Ok(vcpu)
        };
        let vcpus = (0..vcpus).map(create).collect::<Result<_, VmError>>()?;
        Ok(Self {
            vcpus,
            vm: Arc::new(vm),
            bus: Bus::default(),
            stop: StopFlag::default(),
            initial_state,
            hotplug_region,
        })
    }

    /// The region for memory that is plugged in while the guest runs, for a [`Mem`](crate::virtio::mem::Mem)
    /// to be attached; `None` if there is none, as the host has no room for it.
    pub fn hotplug_region(&self) -> Option<Region> {
        self.hotplug_region
    }

    /// The guest's memory.
    pub fn memory(&self) -> &Arc<GuestMemoryMmap> {
        self.vm.memory()
    }

    /// Adds a device to the machine; the guest finds devices in the order in which they were
    /// attached.
    ///
    /// The caller must add the device to an event loop. Returns the descriptors for queues and
    /// interrupts that the loop's thread needs.
    ///
    /// # Errors
    /// All interrupt lines are taken, or the process has too many files open.
    pub fn attach<D: VirtioDevice + 'static>(
        &mut self,
        device: Arc<Mutex<D>>,
    ) -> Result<Vec<RawFd>, MachineError> {
        let transport = MmioTransport::new(Arc::clone(self.memory()), device, self.stop.clone());
        let transport = transport.map_err(cannot_create("a device's eventfds"))?;
        let (_, registers) = self.connect(transport)?;
        Ok(registers.descriptors())
    }

    /// Adds a slot for a device that may be plugged in while the guest runs, and will have `queues`
    /// queues and this [activation eventfd](VirtioDevice::activation_eventfd). Returns the slot's
    /// number, which counts attached devices and slots alike from 0, and the slot's registers, into
    /// which the device is put by [`MmioTransport::fill`].
    ///
    /// # Errors
    /// As [`Self::attach`].
    pub fn attach_empty_slot(
        &mut self,
        queues: usize,
        activation_eventfd: RawFd,
    ) -> Result<(u8, Arc<MmioTransport>), MachineError> {
        let memory = Arc::clone(self.memory());
        let transport =
            MmioTransport::empty(memory, queues, Some(activation_eventfd), self.stop.clone());
        self.connect(transport.map_err(cannot_create("a slot's eventfds"))?)
    }

    /// Connects a device's registers to KVM, adds them to the bus, and returns the number of their
    /// slot.
    fn connect(
        &mut self,
        mut transport: MmioTransport,
    ) -> Result<(u8, Arc<MmioTransport>), MachineError> {
        let slot = self.bus.devices().len();
        transport.show_kick_port(bus::kick_port(slot));
        let gsi = gsi(slot).ok_or(MachineError::TooManyDevices)?;
        self.vm
            .connect(&transport, bus::slot_address(slot), gsi.into())?;
        let transport = Arc::new(transport);
        self.bus.add(Arc::clone(&transport));
        Ok((slot as u8, transport)) // fewer than there are interrupt lines
    }

    /// The locations of all devices, for the boot data.
    fn devices(&self) -> Vec<DeviceLocation> {
        let slots = 0..self.bus.devices().len();
        let place = |slot| {
            Some(DeviceLocation {
                address: bus::slot_address(slot),
                gsi: gsi(slot)?,
            })
        };
        slots.filter_map(place).collect()
    }

    /// Creates a thread for each vCPU, which calls `confine` with the descriptors that it needs,
    /// and then waits for [`ReadyMachine::start_guest`]. Returns once all are confined; if one
    /// can't be, all of them end.
    ///
    /// # Errors
    /// The command line is too long or not ASCII, a thread can't be created, or `confine` failed.
    pub fn start_vcpu_threads(
        self,
        console: Console,
        confine: impl Fn(&[RawFd]) -> io::Result<PrivateFdTable> + Send + Sync + 'static,
    ) -> Result<ReadyMachine, MachineError> {
        let (count, devices) = (self.vcpus.len() as u8, self.devices());
        let (console, bus) = (Arc::new(console), Arc::new(self.bus));
        let platform = Platform::new(Arc::clone(&console), Arc::clone(&self.vm), Arc::clone(&bus))?;
        let platform = Arc::new(platform);
        self.initial_state.write_boot_data(count, &devices)?;
        install_kick_handler().map_err(cannot_create("a signal handler"))?;

        let stopped = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)
            .map_err(|errno| cannot_create("an eventfd")(errno.into()))?;
        let shared = Arc::new(Shared {
            reason: OnceLock::new(),
            stopped,
            console,
            vm: self.vm,
        });
        let vcpu = |fd| Vcpu {
            fd,
            platform: Arc::clone(&platform),
            bus: Arc::clone(&bus),
            stop: self.stop.clone(),
        };
        let vcpus = self.vcpus.into_iter().map(vcpu).collect();
        let (alive, ended) = mpsc::channel();
        let mut running = RunningMachine {
            shared,
            stopper: Stopper::new(self.stop.clone()),
            ended,
        };
        // On an error, dropping `running` ends the threads that there are.
        let gates = running.spawn(vcpus, &bus, Arc::new(confine), alive)?;
        Ok(ReadyMachine { running, gates })
    }
}

/// The most devices that a machine can have: each has an interrupt line of its own.
pub const MAX_DEVICES: usize = (layout::GSI_LAST - layout::GSI_FIRST + 1) as usize;

/// The interrupt line of the device in a slot.
fn gsi(slot: usize) -> Option<u8> {
    let gsi = layout::GSI_FIRST.checked_add(u32::try_from(slot).ok()?)?;
    (gsi <= layout::GSI_LAST).then_some(gsi as u8)
}

/// Confines a thread that needs these descriptors, and returns its private descriptor table.
type Confine = dyn Fn(&[RawFd]) -> io::Result<PrivateFdTable> + Send + Sync;

/// What the vCPU threads share with the owner of the machine.
#[derive(Debug)]
struct Shared {
    reason: OnceLock<StopReason>,
    stopped: OwnedFd,
    console: Arc<Console>,
    vm: Arc<Vm>,
}

impl Shared {
    /// Called when a vCPU's run loop ends, which ends the machine. The reason of the first vCPU is
    /// kept.
    fn vcpu_ended(&self, reason: StopReason) {
        if self.reason.set(reason).is_ok() {
            self.console.flush();
            let _ = rustix::io::write(&self.stopped, &1u64.to_ne_bytes());
        }
    }
}

impl Shared {
    /// The descriptors that each vCPU thread needs besides the vCPU's own.
    fn descriptors(&self, bus: &Bus) -> Vec<RawFd> {
        let own = [
            self.stopped.as_raw_fd(),
            self.console.as_raw_fd(),
            self.vm.as_raw_fd(),
        ];
        let registers = bus.devices().iter();
        let registers = registers.flat_map(|device| device.register_descriptors());
        own.into_iter().chain(registers).collect()
    }
}

/// A machine whose vCPU threads are confined and wait to run the guest. Dropping it ends the
/// threads.
#[derive(Debug)]
pub struct ReadyMachine {
    running: RunningMachine,
    gates: Vec<Sender<()>>,
}

impl ReadyMachine {
    /// See [`RunningMachine::stopped`].
    pub fn stopped(&self) -> BorrowedFd<'_> {
        self.running.stopped()
    }

    /// See [`RunningMachine::stopper`].
    pub fn stopper(&self) -> Stopper {
        self.running.stopper()
    }

    /// Starts the guest. From here on it may try to take over the process, so all threads must be
    /// confined before.
    pub fn start_guest(self) -> RunningMachine {
        for gate in self.gates {
            let _ = gate.send(()); // fails for a thread that has ended, which has reported why
        }
        self.running
    }
}

/// A machine whose guest runs, or has run. Dropping it stops it.
#[derive(Debug)]
pub struct RunningMachine {
    shared: Arc<Shared>,
    stopper: Stopper,
    /// Disconnected when the last vCPU thread has ended.
    ended: Receiver<()>,
}

impl RunningMachine {
    /// An eventfd that becomes readable when the first vCPU has ended, and with it the machine. It
    /// stays readable; there is no need to read it.
    pub fn stopped(&self) -> BorrowedFd<'_> {
        self.shared.stopped.as_fd()
    }

    /// A handle that stops the machine without waiting for it. When one vCPU ends, the others keep
    /// running: whoever watches [`Self::stopped`] must stop them with this.
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Why the machine has ended; `None` while it runs.
    pub fn stop_reason(&self) -> Option<&StopReason> {
        self.shared.reason.get()
    }

    /// The guest's memory.
    pub fn memory(&self) -> &Arc<GuestMemoryMmap> {
        self.shared.vm.memory()
    }

    /// Stops the machine if it still runs, waits for its threads, and returns why it ended.
    ///
    /// # Errors
    /// A thread did not end in time.
    pub fn stop(mut self) -> Result<StopReason, MachineError> {
        self.join_threads()?;
        let reason = self.shared.reason.get().cloned();
        Ok(reason.unwrap_or(StopReason::Stopped))
    }

    fn join_threads(&mut self) -> Result<(), MachineError> {
        self.stopper.stop();
        if self.ended.recv_timeout(THREADS_TIMEOUT) == Err(RecvTimeoutError::Timeout) {
            return Err(MachineError::Timeout { awaited: "end" });
        }
        for thread in self.stopper.threads().drain(..) {
            let _ = thread.join(); // can't fail: a panic ends the process
        }
        Ok(())
    }

    fn spawn(
        &mut self,
        vcpus: Vec<Vcpu>,
        bus: &Bus,
        confine: Arc<Confine>,
        alive: Sender<()>,
    ) -> Result<Vec<Sender<()>>, MachineError> {
        let common = self.shared.descriptors(bus);
        let (report, reports) = mpsc::channel();
        let mut gates = Vec::with_capacity(vcpus.len());
        for (number, vcpu) in vcpus.into_iter().enumerate() {
            let mut descriptors = common.clone();
            descriptors.push(vcpu.fd.as_raw_fd());
            let (gate, opened) = mpsc::channel::<()>();
            gates.push(gate);
            let shared = Arc::clone(&self.shared);
            let (confine, report, alive) = (Arc::clone(&confine), report.clone(), alive.clone());
            let run = move || {
                let _alive = alive;
                let (table, confined) = match confine(&descriptors) {
                    Ok(table) => (table, Ok(())),
                    Err(error) => (PrivateFdTable::default(), Err(error)),
                };
                // Fails if the machine was dropped: then the gate isn't opened either.
                let _ = report.send(confined);
                if opened.recv().is_ok() {
                    shared.vcpu_ended(vcpu.run());
                    // The VM is destroyed when the last of these threads has closed its
                    // descriptors.
                    table.close();
                }
            };
            let thread = std::thread::Builder::new().name(format!("vcpu{number}"));
            let thread = thread.spawn(run).map_err(cannot_create("a vCPU thread"))?;
            self.stopper.threads().push(thread);
        }
        drop((report, alive));
        await_confined(&reports, gates.len())?;
        Ok(gates)
    }
}

impl Drop for RunningMachine {
    fn drop(&mut self) {
        if !self.stopper.threads().is_empty()
            && let Err(error) = self.join_threads()
        {
            log::error!("{error}");
        }
    }
}

/// Waits until `count` threads have reported that they are confined.
fn await_confined(reports: &Receiver<io::Result<()>>, count: usize) -> Result<(), MachineError> {
    let deadline = Instant::now() + THREADS_TIMEOUT;
    for _ in 0..count {
        let left = deadline.saturating_duration_since(Instant::now());
        reports
            .recv_timeout(left)
            .map_err(|_| MachineError::Timeout {
                awaited: "confine themselves",
            })?
            .map_err(MachineError::Confine)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interrupt_lines_end_with_the_io_apics_last_pin() {
        assert_eq!(gsi(0), Some(1));
        assert_eq!(gsi(31), Some(32));
        assert_eq!(gsi(32), None);
        assert_eq!(gsi(usize::MAX), None);
    }
}
