//! Boots a kernel with its console on the terminal: `boot [-c VCPUS] [-m MIB] VMLINUX [INITRAMFS [CMDLINE]]`.
//!
//! The machine has an entropy device and nothing else. The guest's shutdown ends it, with status 0;
//! a guest that crashes, or a host that can't run it, with 1.

use std::error::Error;
use std::num::NonZeroU8;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use hull_vmm::jail::PrivateFdTable;
use hull_vmm::virtio::rng::Rng;
use hull_vmm::{Console, ConsoleLimits, EventLoop, Machine, MachineConfig};
use rustix::event::{PollFd, PollFlags, poll};

const USAGE: &str = "usage: boot [-c VCPUS] [-m MIB] VMLINUX [INITRAMFS [CMDLINE]]";
const CMDLINE: &str = "earlyprintk=ttyS0,keep console=ttynull reboot=t panic=-1 tsc=reliable";

struct Arguments {
    vcpus: NonZeroU8,
    memory_mib: u32,
    kernel: Vec<u8>,
    initramfs: Vec<u8>,
    cmdline: String,
}

fn arguments() -> Result<Arguments, Box<dyn Error>> {
    let mut vcpus = NonZeroU8::MIN;
    let mut memory_mib = 128;
    let mut arguments = std::env::args().skip(1).peekable();
    while let Some(option) = arguments.next_if(|argument| argument.starts_with('-')) {
        let value = arguments.next().ok_or(USAGE)?;
        match option.as_str() {
            "-c" => vcpus = value.parse()?,
            "-m" => memory_mib = value.parse()?,
            _ => return Err(USAGE.into()),
        }
    }
    let kernel = std::fs::read(arguments.next().ok_or(USAGE)?)?;
    let initramfs = arguments.next().map(std::fs::read).transpose()?;
    Ok(Arguments {
        vcpus,
        memory_mib,
        kernel,
        initramfs: initramfs.unwrap_or_default(),
        cmdline: arguments.next().unwrap_or(CMDLINE.to_owned()),
    })
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = arguments()?;
    let started = Instant::now();
    let mut machine = Machine::new(&MachineConfig {
        vcpus: arguments.vcpus,
        memory_mib: arguments.memory_mib,
        hotplug_mib: 0,
        kernel: arguments.kernel[..].into(),
        initramfs: arguments.initramfs[..].into(),
        cmdline: &arguments.cmdline,
    })?;
    let rng = Arc::new(Mutex::new(Rng::new()?));
    machine.attach(Arc::clone(&rng))?;
    let created = started.elapsed();

    let mut events = EventLoop::new()?;
    events.add(rng);
    let devices = events.stop_handle();
    let thread = events.spawn("devices", |_| Ok(()))?;

    let stdout = std::io::stdout().as_fd().try_clone_to_owned()?;
    let held = machine.start_vcpu_threads(Console::new(stdout, ConsoleLimits::NONE), |_| {
        Ok(PrivateFdTable::default())
    })?;
    let running = held.start_guest();
    poll(
        &mut [PollFd::from_borrowed_fd(running.stopped(), PollFlags::IN)],
        None,
    )?;
    let reason = running.stop()?;
    devices.stop();
    thread.join().expect("the thread doesn't panic");

    eprintln!(
        "boot: {reason}; created in {} ms, ran for {} ms",
        created.as_millis(),
        (started.elapsed() - created).as_millis()
    );
    if reason.is_orderly() {
        Ok(())
    } else {
        Err("the machine did not end by itself".into())
    }
}
