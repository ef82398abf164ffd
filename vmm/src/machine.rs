//! A whole machine, from its parts: what a caller of this library sees.
//!
//! ```text
//! Machine::new ──▶ attach a device … ──▶ start ──▶ HeldMachine ──▶ let_go ──▶ RunningMachine ──▶ stop
//!   opens /dev/kvm, loads the kernel       vCPU threads, confined     the guest runs
//! ```
//!
//! [`Machine::new`] does all that needs the host's files. Once [`Machine::start`] has returned, all that is
//! unconfined is the caller's own thread, which follows suit before [`HeldMachine::let_go`].

use std::io;
use std::num::NonZeroU8;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use kvm_ioctls::VcpuFd;
use rustix::event::{EventfdFlags, eventfd};
use vm_memory::GuestMemoryMmap;

use crate::arch::{BootError, DeviceAt, Platform, layout};
use crate::bus::{self, Bus};
use crate::console::Console;
use crate::first_state::FirstState;
use crate::image::Image;
use crate::jail::OwnTable;
use crate::kernel::KernelError;
use crate::kvm::{self, KvmError};
use crate::memory::MemoryError;
use crate::stop::{StopFlag, Stopper};
use crate::vcpu::{StopReason, Vcpu, install_kick_handler};
use crate::virtio::VirtioDevice;
use crate::virtio::transport::MmioTransport;
use crate::vm::{Vm, VmError};

/// How long vCPU threads may take to confine themselves, and to end.
const THREADS_TIMEOUT: Duration = Duration::from_secs(10);

/// What a machine is made of.
#[derive(Clone, Copy, Debug)]
pub struct MachineConfig<'a> {
    /// Processors, 1 to 64.
    pub vcpus: NonZeroU8,
    /// Memory in MiB, [`MIN_MIB`](crate::memory::MIN_MIB) to [`MAX_MIB`](crate::memory::MAX_MIB).
    pub memory_mib: u32,
    /// An uncompressed ELF image of a kernel. Only read by [`Machine::new`].
    pub kernel: Image<'a>,
    /// Its initial file system; empty for none. Only read by [`Machine::new`].
    pub initramfs: Image<'a>,
    /// The kernel's command line, to which the machine adds a word for each device.
    pub cmdline: &'a str,
}

/// Why there is no machine.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The host's KVM can't be used.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The guest can't have its memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The kernel can't be loaded.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// What the kernel is told can't be written.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// KVM refused something.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// There are no interrupt lines left.
    #[error("the machine has {} devices already, and no more interrupt lines", layout::GSI_LAST - layout::GSI_FIRST + 1)]
    TooManyDevices,
    /// There can be no more files or threads.
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
    /// Threads did not do in time what they must.
    #[error("waited {} s for the vCPU threads to {awaited}", THREADS_TIMEOUT.as_secs())]
    Timeout {
        /// What was awaited.
        awaited: &'static str,
    },
}

fn no_resource(what: &'static str) -> impl FnOnce(io::Error) -> MachineError {
    move |source| MachineError::Resource { what, source }
}

/// A machine that has not been started.
#[derive(Debug)]
pub struct Machine {
    vcpus: Vec<VcpuFd>,
    vm: Arc<Vm>,
    bus: Bus,
    stop: StopFlag,
    first_state: FirstState,
}

impl Machine {
    /// Creates the VM with its vCPUs, and loads the kernel and the initramfs.
    ///
    /// # Errors
    /// The host has no usable KVM or not enough memory, or the kernel can't be loaded.
    pub fn new(config: &MachineConfig<'_>) -> Result<Self, MachineError> {
        let vcpus = config.vcpus.get();
        let kvm = kvm::open(vcpus)?;
        let (mut first_state, memory) = FirstState::load(&kvm, config)?;
        let vm = Vm::new(&kvm, Arc::new(memory))?;
        let create = |number| {
            let vcpu = vm.create_vcpu(number)?;
            first_state.apply(&vcpu, number)?;
            Ok(vcpu)
        };
        let vcpus = (0..vcpus).map(create).collect::<Result<_, VmError>>()?;
        Ok(Self {
            vcpus,
            vm: Arc::new(vm),
            bus: Bus::default(),
            stop: StopFlag::default(),
            first_state,
        })
    }

    /// The guest's memory.
    pub fn memory(&self) -> &Arc<GuestMemoryMmap> {
        self.vm.memory()
    }

    /// Gives the machine a device; the guest finds devices in the order in which they were attached.
    ///
    /// The caller lets an event loop serve it. Returns the descriptors that its thread needs for its queues
    /// and interrupts.
    ///
    /// # Errors
    /// All interrupt lines are taken, or the process has too many files open.
    pub fn attach<D: VirtioDevice + 'static>(
        &mut self,
        device: Arc<Mutex<D>>,
    ) -> Result<Vec<RawFd>, MachineError> {
        let transport = MmioTransport::new(Arc::clone(self.memory()), device, self.stop.clone());
        let transport = transport.map_err(no_resource("a device's eventfds"))?;
        let (_, registers) = self.connect(transport)?;
        Ok(registers.descriptors())
    }

    /// Gives the machine a slot for a device that comes while the guest runs, with so many queues and this
    /// doorbell, if it does. Returns the slot's number, which is its place in the order in which the guest
    /// finds devices, and its registers, to be [filled](MmioTransport::fill).
    ///
    /// # Errors
    /// As [`Self::attach`].
    pub fn attach_empty(
        &mut self,
        queues: usize,
        doorbell: RawFd,
    ) -> Result<(u8, Arc<MmioTransport>), MachineError> {
        let memory = Arc::clone(self.memory());
        let transport = MmioTransport::empty(memory, queues, Some(doorbell), self.stop.clone());
        self.connect(transport.map_err(no_resource("a slot's eventfds"))?)
    }

    /// Puts registers into the next slot, whose number is returned.
    fn connect(
        &mut self,
        transport: MmioTransport,
    ) -> Result<(u8, Arc<MmioTransport>), MachineError> {
        let slot = self.bus.devices().len();
        let gsi = gsi(slot).ok_or(MachineError::TooManyDevices)?;
        self.vm
            .connect(&transport, bus::slot_address(slot), gsi.into())?;
        let transport = Arc::new(transport);
        self.bus.add(Arc::clone(&transport));
        Ok((slot as u8, transport)) // fewer than there are interrupt lines
    }

    /// Where the guest is to find its devices.
    fn devices(&self) -> Vec<DeviceAt> {
        let slots = 0..self.bus.devices().len();
        let place = |slot| {
            Some(DeviceAt {
                address: bus::slot_address(slot),
                gsi: gsi(slot)?,
            })
        };
        slots.filter_map(place).collect()
    }

    /// Makes the vCPUs' threads, each of which runs `confine` with the descriptors that it needs, and waits.
    /// Once all are confined, they can be let go; if one can't be, there is no machine.
    ///
    /// # Errors
    /// The command line is not possible, there can be no more threads, or confining one failed.
    pub fn start(
        self,
        console: Console,
        confine: impl Fn(&[RawFd]) -> io::Result<OwnTable> + Send + Sync + 'static,
    ) -> Result<HeldMachine, MachineError> {
        let (count, devices) = (self.vcpus.len() as u8, self.devices());
        let (console, bus) = (Arc::new(console), Arc::new(self.bus));
        let platform = Platform::new(Arc::clone(&console), Arc::clone(&self.vm), Arc::clone(&bus))?;
        let platform = Arc::new(platform);
        self.first_state
            .complete(self.vm.memory(), count, &devices)?;
        install_kick_handler().map_err(no_resource("a signal handler"))?;

        let stopped = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)
            .map_err(|errno| no_resource("an eventfd")(errno.into()))?;
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
        Ok(HeldMachine { running, gates })
    }
}

/// The interrupt line of the device in a slot.
fn gsi(slot: usize) -> Option<u8> {
    let gsi = layout::GSI_FIRST.checked_add(u32::try_from(slot).ok()?)?;
    (gsi <= layout::GSI_LAST).then_some(gsi as u8)
}

/// Confines a thread that needs these descriptors, and returns the table of its own that it has them in.
type Confine = dyn Fn(&[RawFd]) -> io::Result<OwnTable> + Send + Sync;

/// What the vCPU threads and the machine's owner share.
#[derive(Debug)]
struct Shared {
    reason: OnceLock<StopReason>,
    stopped: OwnedFd,
    console: Arc<Console>,
    vm: Arc<Vm>,
}

impl Shared {
    /// A vCPU has ended, and with it the machine: the first one's reason counts.
    fn vcpu_ended(&self, reason: StopReason) {
        if self.reason.set(reason).is_ok() {
            self.console.flush();
            let _ = rustix::io::write(&self.stopped, &1u64.to_ne_bytes());
        }
    }
}

impl Shared {
    /// What each vCPU's thread needs beside the vCPU.
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

/// A machine whose vCPUs wait to be let go. Dropping it ends their threads.
#[derive(Debug)]
pub struct HeldMachine {
    running: RunningMachine,
    gates: Vec<Sender<()>>,
}

impl HeldMachine {
    /// See [`RunningMachine::stopped`].
    pub fn stopped(&self) -> BorrowedFd<'_> {
        self.running.stopped()
    }

    /// See [`RunningMachine::stopper`].
    pub fn stopper(&self) -> Stopper {
        self.running.stopper()
    }

    /// Lets the guest run. It may take over this process's threads, so all of them are to be confined.
    pub fn let_go(self) -> RunningMachine {
        for gate in self.gates {
            let _ = gate.send(()); // a thread that isn't there has reported so
        }
        self.running
    }
}

/// A machine whose guest runs, or has run. Dropping it stops it.
#[derive(Debug)]
pub struct RunningMachine {
    shared: Arc<Shared>,
    stopper: Stopper,
    /// Disconnected when the last thread has ended.
    ended: Receiver<()>,
}

impl RunningMachine {
    /// An eventfd, readable from when the machine does not run any more: one vCPU has ended, and with
    /// it the machine. It needs no reading.
    pub fn stopped(&self) -> BorrowedFd<'_> {
        self.shared.stopped.as_fd()
    }

    /// What stops it without waiting for it. One vCPU's end leaves the others running: whoever sees
    /// [`Self::stopped`] is to use this.
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Why the machine does not run any more; `None` while it runs.
    pub fn stop_reason(&self) -> Option<&StopReason> {
        self.shared.reason.get()
    }

    /// The guest's memory.
    pub fn memory(&self) -> &Arc<GuestMemoryMmap> {
        self.shared.vm.memory()
    }

    /// Stops the machine if it runs, waits for its threads, and says why it ended.
    ///
    /// # Errors
    /// A thread did not end in time.
    pub fn stop(mut self) -> Result<StopReason, MachineError> {
        self.end_threads()?;
        let reason = self.shared.reason.get().cloned();
        Ok(reason.unwrap_or(StopReason::Stopped))
    }

    fn end_threads(&mut self) -> Result<(), MachineError> {
        self.stopper.stop();
        if self.ended.recv_timeout(THREADS_TIMEOUT) == Err(RecvTimeoutError::Timeout) {
            return Err(MachineError::Timeout { awaited: "end" });
        }
        for thread in self.stopper.threads().drain(..) {
            let _ = thread.join(); // a panic has ended the process
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
                    Err(error) => (OwnTable::default(), Err(error)),
                };
                let _ = report.send(confined); // nobody listens any more: nor is the gate opened
                if opened.recv().is_ok() {
                    shared.vcpu_ended(vcpu.run());
                    // The last of these threads takes the VM down.
                    table.close();
                }
            };
            let thread = std::thread::Builder::new().name(format!("vcpu{number}"));
            let thread = thread.spawn(run).map_err(no_resource("a vCPU thread"))?;
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
            && let Err(error) = self.end_threads()
        {
            log::error!("{error}");
        }
    }
}

/// Waits until `count` threads have said that they are confined.
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
    fn lines_run_out_before_the_io_apic_has_none() {
        assert_eq!(gsi(0), Some(1));
        assert_eq!(gsi(31), Some(32));
        assert_eq!(gsi(32), None);
        assert_eq!(gsi(usize::MAX), None);
    }
}
