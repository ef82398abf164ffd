//! Boots a kernel that is given a directory, in the jail: `share [-m MIB] VMLINUX INITRAMFS DIRECTORY`.
//!
//! The guest mounts the virtio-fs tag `hull` and finds DIRECTORY in it as `c1/rootfs`. This is also the
//! order in which a VMM process is put together: what needs the host's files, the tree, the devices,
//! and each thread confined before the guest runs. Needs root.

use std::error::Error;
use std::io;
use std::num::NonZeroU8;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};

use hull_vmm::jail::{self, Role, tree};
use hull_vmm::virtio::fs::{self, Fs};
use hull_vmm::virtio::rng::Rng;
use hull_vmm::{Console, ConsoleLimits, EventLoop, Machine, MachineConfig};
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
        kernel: kernel[..].into(),
        initramfs: initramfs[..].into(),
        cmdline: CMDLINE,
    })?;
    let tree = tree::enter(vec![tree::Share {
        name: "the directory".into(),
        source: tree::Source::Mounted(tree::Mounted::new(directory)),
        target: "c1/rootfs".into(),
    }])?;

    let device = Arc::new(Mutex::new(Fs::new(fs::Options {
        tag: "hull".into(),
        root: "/".into(),
        proc_self_fd: Some(tree.proc_self_fd),
        fd_limit: fs::fd_limit(u64::from(memory_mib) << 20, limits.nofile),
        cache_timeout: fs::CACHE_TIMEOUT,
    })?));
    let rng = Arc::new(Mutex::new(Rng::new()?));
    machine.attach(Arc::clone(&device))?;
    machine.attach(Arc::clone(&rng))?;

    let mut events = EventLoop::new()?;
    events.add(rng);
    events.spawn("devices", || {
        jail::confine(Role::Main).map_err(io::Error::other)
    })?;
    fs::spawn(device, || jail::confine(Role::Filesystem))?;
    let stdout = io::stdout().as_fd().try_clone_to_owned()?;
    let running = machine.start(Console::new(stdout, ConsoleLimits::NONE), || {
        jail::confine(Role::Vcpu).map_err(io::Error::other)
    })?;
    jail::confine(Role::Main)?;
    let stopped = running.stopped();
    poll(
        &mut [PollFd::from_borrowed_fd(stopped, PollFlags::IN)],
        None,
    )?;
    let reason = running.stop()?;
    eprintln!("share: {reason}");
    // The other threads end with the process.
    std::process::exit(i32::from(!reason.is_orderly()))
}
