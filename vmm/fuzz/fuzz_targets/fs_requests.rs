//! A hostile guest against virtio-fs: any FUSE requests, chains, ring indices and bytes in its memory,
//! on a small tree of files.
//!
//! It must not panic, wait, or reach a file outside of the tree, and the event loop must become
//! idle after each step. The device's thread has the tree as its root (which takes root) and a
//! limit on the size of files, so that a fault found here does no harm.

#![no_main]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, OnceLock};

use event_manager::{EventManager, SubscriberOps};
use hull_vmm::virtio::VirtioDevice;
use hull_vmm::virtio::fs::{CACHE_TIMEOUT, Fs, Options};
use hull_vmm_fuzz::{Descriptor, Driver, Input, activation, memory, put, run_until_idle};
use libfuzzer_sys::fuzz_target;
use vm_memory::GuestMemoryMmap;

const MEMORY: usize = 1 << 20;
/// Where the rings of the two queues lie: descriptors, then the rings.
const QUEUES: [u64; 2] = [0, 0x1_0000];
/// Where requests are put together, and where replies go.
const REQUEST: u64 = 0x2_0000;
const REPLY: u64 = 0x4_0000;
const REPLY_ROOM: u32 = 0x4000;
/// Turns of the loop within which it must become idle after one step.
const TURNS: usize = 100;
/// The largest file that there may be, in bytes.
const FILE_SIZE: u64 = 1 << 20;
/// Opcodes: FUSE's own end at 52, and one for all that are none.
const OPCODES: u8 = 54;

/// A small number mostly, sometimes one of an unnamed file, any number rarely.
fn number(input: &mut Input) -> u64 {
    match input.byte() {
        small @ 0..200 => small.into(),
        marked @ 200..240 => u64::from(marked - 200) | 1 << 63,
        _ => input.u64(),
    }
}

/// A guest's driver, the device, and the event loop that serves it.
struct Harness {
    memory: Arc<GuestMemoryMmap>,
    device: Arc<Mutex<Fs>>,
    events: EventManager<Arc<Mutex<Fs>>>,
    drivers: [Driver; 2],
}

impl Harness {
    fn new(proc_self_fd: &File) -> Self {
        let options = Options {
            tag: "fuzz".into(),
            root: "/".into(),
            fd_limit: 100,
            cache_timeout: CACHE_TIMEOUT,
            connections: None,
        };
        let mut device = Fs::new(options).expect("a device");
        let descriptors = proc_self_fd.try_clone().expect("dup");
        device.open(descriptors).expect("the tree");
        let device = Arc::new(Mutex::new(device));
        let mut events = EventManager::new().expect("epoll");
        events.add_subscriber(Arc::clone(&device));
        let mut harness = Self {
            memory: memory(MEMORY),
            device,
            events,
            drivers: QUEUES.map(Driver::new),
        };
        harness.start();
        harness
    }

    /// Activates the device and initialises FUSE.
    fn start(&mut self) {
        self.put(0, &[0; 0x2_0000]);
        let mut device = self.device.lock().expect("the device");
        let drivers = self.drivers.iter_mut().zip(device.queue_sizes());
        let queues = drivers.map(|(driver, size)| driver.start(*size)).collect();
        let activation = activation(&self.memory, device.features(), queues);
        device.activate(activation).expect("activation");
        drop(device);
        let mut init = [7_u32, 38, 0x1000, 0x7fff_ffff, 0xffff_ffff]
            .map(u32::to_le_bytes)
            .concat();
        init.resize(64, 0);
        self.request(1, 26, 0, &init);
        self.rest();
    }

    fn put(&self, address: u64, bytes: &[u8]) {
        put(&self.memory, address, bytes);
    }

    fn offer(&mut self, queue: usize, chain: &[Descriptor]) {
        self.drivers[queue].offer(&self.memory, chain);
    }

    fn request(&mut self, queue: usize, opcode: u32, node: u64, body: &[u8]) {
        let length = 40 + body.len() as u32;
        let mut bytes = length.to_le_bytes().to_vec();
        bytes.extend(opcode.to_le_bytes());
        bytes.extend(7_u64.to_le_bytes());
        bytes.extend(node.to_le_bytes());
        bytes.resize(40, 0);
        bytes.extend(body);
        self.put(REQUEST, &bytes);
        self.offer(queue, &[(REQUEST, length, 1, 1), (REPLY, REPLY_ROOM, 2, 0)]);
    }

    fn step(&mut self, input: &mut Input) {
        let kind = input.byte();
        let queue = usize::from(kind >> 7);
        match kind & 0x7f {
            0..96 => {
                let opcode = u32::from(input.byte() % OPCODES);
                let node = number(input);
                let length = usize::from(input.byte());
                let body = input.bytes(length).to_vec();
                self.request(1 - queue, opcode, node, &body);
            }
            96..112 => {
                let count = input.byte() % 5;
                let descriptor = |_| {
                    let address = input.u64();
                    let length = number(input) as u32;
                    let flags = u16::from(input.byte() % 8);
                    (
                        address % (2 * MEMORY as u64),
                        length,
                        flags,
                        u16::from(input.byte()),
                    )
                };
                let chain: Vec<_> = (0..count).map(descriptor).collect();
                self.offer(queue, &chain);
            }
            112..120 => {
                let address = input.u64();
                let length = usize::from(input.byte());
                let bytes = input.bytes(length).to_vec();
                self.put(address, &bytes);
            }
            120..124 => self.drivers[queue].kick(&self.memory, input.u64() as u16),
            _ => {
                self.device.lock().expect("the device").reset();
                self.start();
            }
        }
        self.rest();
    }

    fn rest(&mut self) {
        run_until_idle(&mut self.events, TURNS);
    }
}

/// Puts the tree into the state that every input starts from.
fn reset_tree(root: &Path) {
    for entry in fs::read_dir(root).expect("the tree") {
        let path = entry.expect("an entry").path();
        let is_directory = path.symlink_metadata().is_ok_and(|m| m.is_dir());
        let _ = if is_directory {
            fs::remove_dir_all(path)
        } else {
            fs::remove_file(path)
        };
    }
    fs::create_dir(root.join("d")).expect("a directory");
    fs::write(root.join("f"), "some text").expect("a file");
    std::os::unix::fs::symlink("../../f", root.join("l")).expect("a symlink");
}

/// Serves one input after the other, with the tree as root.
fn serve(tree: PathBuf, inputs: Receiver<Vec<u8>>, done: SyncSender<()>) {
    let proc_self_fd = File::open("/proc/self/fd").expect("/proc");
    // SAFETY: with CLONE_FS alone, the thread gets a root directory and a umask of its own.
    let unshared = unsafe { libc::unshare(libc::CLONE_FS) };
    assert_eq!(unshared, 0, "unshare");
    std::os::unix::fs::chroot(&tree).expect("chroot takes root");
    std::env::set_current_dir("/").expect("chdir");
    for input in inputs {
        reset_tree(Path::new("/"));
        let mut harness = Harness::new(&proc_self_fd);
        let mut input = Input(&input);
        while !input.is_empty() {
            harness.step(&mut input);
        }
        if done.send(()).is_err() {
            return;
        }
    }
}

/// The channels to the thread that serves: one sends it inputs, the other reports each one
/// finished.
fn server() -> &'static Mutex<(SyncSender<Vec<u8>>, Receiver<()>)> {
    static SERVER: OnceLock<Mutex<(SyncSender<Vec<u8>>, Receiver<()>)>> = OnceLock::new();
    SERVER.get_or_init(|| {
        let tree = std::env::temp_dir().join("hull-fuzz-fs-requests");
        fs::create_dir_all(&tree).expect("the tree");
        // SAFETY: both calls take values, and a pointer to a value that lives.
        unsafe {
            let limit = libc::rlimit {
                rlim_cur: FILE_SIZE,
                rlim_max: FILE_SIZE,
            };
            libc::setrlimit(libc::RLIMIT_FSIZE, &limit);
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        }
        let (inputs, taken) = sync_channel(0);
        let (done, finished) = sync_channel(0);
        std::thread::spawn(move || serve(tree, taken, done));
        Mutex::new((inputs, finished))
    })
}

fuzz_target!(|data: &[u8]| {
    let (inputs, finished) = &*server().lock().expect("the server");
    inputs.send(data.to_vec()).expect("the server lives");
    finished.recv().expect("the server lives");
});
