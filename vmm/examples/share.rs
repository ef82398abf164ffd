//! Boots a kernel that is given a directory, in the jail: `share [-m MIB] VMLINUX INITRAMFS DIRECTORY`.
//!
//! The guest mounts the virtio-fs tag `hull` and finds DIRECTORY in it as `c1/rootfs`. This is also the
//! order in which a VMM process is put together: what needs the host's files, the tree, the devices,
//! and each thread confined before the guest runs. Needs root.

use std::error::Error;
use std::io;
use std::num::NonZeroU8;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Mutex};

use hull_vmm::jail::{self, Identity, Role, tree};
use hull_vmm::virtio::fs::{self, Fs};
use hull_vmm::virtio::rng::Rng;
use hull_vmm::{Console, ConsoleLimits, EventLoop, Machine, MachineConfig, StopReason};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags, open};

const USAGE: &str = "usage: share [-m MIB] VMLINUX INITRAMFS DIRECTORY";
const CMDLINE: &str =
    "quiet earlyprintk=ttyS0,keep console=ttynull printk.devkmsg=on reboot=t panic=-1";

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1).peekable();
    let mut memory_mib = 128;
    if arguments.next_if(|argument| argument == "-m").is_some() {
        memory_mib = arguments.next().ok_or(USAGE)?.parse()?;
    }
    let kernel = std::fs::read(arguments.next().ok_or(USAGE)?)?;
    let initramfs = std::fs::read(arguments.next().ok_or(USAGE)?)?;
    let directory = open(
        arguments.next().ok_or(USAGE)?,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let limits = jail::limits::apply()?;
    let mut machine = Machine::new(&MachineConfig {
        vcpus: NonZeroU8::MIN,
        memory_mib,
        hotplug_mib: 0,
        kernel: kernel[..].into(),
        initramfs: initramfs[..].into(),
        cmdline: CMDLINE,
    })?;
    let identity = Identity::unique_user()?;
    let tree = tree::enter(vec![tree::Share {
        name: "the directory".into(),
        source: tree::Source::Bind(tree::BindMount::new(directory)),
        target: "c1/rootfs".into(),
    }])?;

    let device = Arc::new(Mutex::new(Fs::new(fs::Options {
        tag: "hull".into(),
        root: "/".into(),
        fd_limit: fs::fd_limit(u64::from(memory_mib) << 20, limits.nofile),
        cache_timeout: fs::CACHE_TIMEOUT,
        connections: None,
    })?));
    let rng = Arc::new(Mutex::new(Rng::new()?));
    let eventfds = machine.attach(Arc::clone(&device))?;
    let rng_eventfds = machine.attach(Arc::clone(&rng))?;

    let mut events = EventLoop::new()?;
    events.add(rng);
    events.keep_open(rng_eventfds);
    events.spawn("devices", move |needed| {
        let own = jail::confine(Role::Main, identity, &needed);
        own.map(drop).map_err(io::Error::other)
    })?;
    fs::spawn(device, eventfds, |mut needed| {
        let own = tree.task_dir.open_thread_fds().map_err(io::Error::other)?;
        needed.push(own.as_raw_fd());
        jail::confine(Role::Filesystem, Identity::Unchanged, &needed).map_err(io::Error::other)?;
        Ok(own)
    })?;
    let stdout = io::stdout().as_fd().try_clone_to_owned()?;
    let held = machine
        .start_vcpu_threads(Console::new(stdout, ConsoleLimits::NONE), move |needed| {
            jail::confine(Role::Vcpu, identity, needed).map_err(io::Error::other)
        })?;
    jail::confine(Role::Main, identity, &[held.stopped().as_raw_fd()])?;
    let running = held.start_guest();
    let stopped = running.stopped();
    poll(
        &mut [PollFd::from_borrowed_fd(stopped, PollFlags::IN)],
        None,
    )?;
    let reason = running.stop_reason();
    if let Some(reason) = reason {
        eprintln!("share: {reason}");
    }
    // The other threads end with the process. What they have open isn't open in this one.
    let orderly = reason.is_some_and(StopReason::is_orderly);
    std::process::exit(i32::from(!orderly))
}
