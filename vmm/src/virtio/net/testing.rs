//! What the tests of virtio-net share: a driver of all queues, with pairs of sockets as a substitute for a tap,
//! and taps in network namespaces of their own.
#![allow(unsafe_code)] // ioctls of interfaces, and packet sockets

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, MutexGuard};

use event_manager::{EventManager, SubscriberOps};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::net::{recv, send, socketpair};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{HEADER_SIZE, MacAddress, Net, NicConfig, QUEUE_SIZE, TX, Taps};
use crate::jail::test_child::is_root;
use crate::stop::StopFlag;
use crate::virtio::{Activation, ActiveQueue, Interrupt, VirtioDevice};

pub(super) const WRITE: u16 = 2;
pub(super) const INDIRECT: u16 = 4;

pub(super) const VERSION_1: u64 = 1 << 32;
pub(super) const MRG_RXBUF: u64 = 1 << 15;
pub(super) const GUEST_CSUM: u64 = 1 << 1;

pub(super) const MEMORY: usize = 1 << 20;
/// Where buffers may lie.
pub(super) const DATA: u64 = 0x1_0000;

/// An Ethertype for experiments (IEEE 802), which no other frames have.
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];

/// A descriptor's address, length, and flags without VRING_DESC_F_NEXT.
pub(super) type Buffer = (u64, u32, u16);

pub(super) fn nic(last: u8, mtu: u16) -> NicConfig {
    NicConfig::new(MacAddress([0x52, 0x54, 0, 0, 0, last]), mtu).expect("a NIC")
}

/// A header of zeroes, and a frame with `size` bytes `byte` after its Ethernet header.
pub(super) fn frame(byte: u8, size: usize) -> Vec<u8> {
    let mut frame = vec![0; HEADER_SIZE];
    frame.extend([0xff; 6]);
    frame.extend([0x52, 0x54, 0, 0, 0, 9]);
    frame.extend(ETHERTYPE);
    frame.extend(vec![byte; size]);
    frame
}

pub(super) fn is_ours(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&ETHERTYPE)
}

/// A NIC in an event loop that the test runs, and its driver.
pub(super) struct Rig {
    pub(super) memory: Arc<GuestMemoryMmap>,
    pub(super) net: Arc<Mutex<Net>>,
    pub(super) kicks: Vec<Arc<EventFd>>,
    pub(super) irq: Arc<EventFd>,
    pub(super) stop: StopFlag,
    events: EventManager<Arc<Mutex<Net>>>,
    available: Vec<u16>,
    free: Vec<u16>,
}

impl Rig {
    /// With a tap, and a driver that has negotiated these features.
    pub(super) fn new(taps: impl Into<Taps>, features: u64) -> Self {
        let net = Net::new(nic(1, 1500), taps.into()).expect("a device");
        let queues = net.queue_sizes().len();
        let net = Arc::new(Mutex::new(net));
        let mut events = EventManager::new().expect("epoll");
        events.add_subscriber(Arc::clone(&net));
        let ranges = [(GuestAddress(0), MEMORY)];
        let eventfd = || Arc::new(EventFd::new(EFD_NONBLOCK).expect("an eventfd"));
        let mut rig = Self {
            memory: Arc::new(GuestMemoryMmap::from_ranges(&ranges).expect("memory")),
            net,
            kicks: (0..queues).map(|_| eventfd()).collect(),
            irq: eventfd(),
            stop: StopFlag::default(),
            events,
            available: Vec::new(),
            free: Vec::new(),
        };
        rig.start(features);
        rig
    }

    /// With one end of a pair of sockets as a substitute for a tap. Returns the other end too.
    pub(super) fn with_socket(features: u64) -> (Self, OwnedFd) {
        let (rig, hosts) = Self::with_sockets(features);
        let [host] = hosts;
        (rig, host)
    }

    /// The same for a NIC with as many pairs of queues.
    pub(super) fn with_sockets<const PAIRS: usize>(features: u64) -> (Self, [OwnedFd; PAIRS]) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let kind = SocketType::SEQPACKET;
        let pair = |_| socketpair(AddressFamily::UNIX, kind, flags, None).expect("sockets");
        let (own, hosts): (Vec<_>, Vec<_>) = (0..PAIRS).map(pair).unzip();
        let taps = Taps::from_test_sockets(own).expect("non-blocking");
        let hosts = hosts.try_into().expect("as many");
        (Self::new(taps, VERSION_1 | features), hosts)
    }

    /// Activates the device, with empty rings.
    pub(super) fn start(&mut self, features: u64) {
        let count = self.net().queue_count(features);
        (self.available, self.free) = (vec![0; count], vec![0; count]);
        self.put(0, &vec![0; 0x4000 * count]);
        let queues = (0..count).map(|queue| ActiveQueue {
            queue: self.queue(queue),
            kick: Arc::clone(&self.kicks[queue]),
        });
        let activation = Activation {
            memory: Arc::clone(&self.memory),
            features,
            queues: queues.collect(),
            interrupt: Interrupt::new(Arc::new(AtomicU32::new(0)), Arc::clone(&self.irq)),
            stop: self.stop.clone(),
        };
        self.net().activate(activation).expect("active");
        self.turn();
    }

    fn queue(&self, number: usize) -> Queue {
        let base = base(number) as u32;
        let mut queue = Queue::new(QUEUE_SIZE).expect("a power of two");
        queue.set_desc_table_address(Some(base), None);
        queue.set_avail_ring_address(Some(base + 0x1000), None);
        queue.set_used_ring_address(Some(base + 0x2000), None);
        queue.set_ready(true);
        queue
    }

    pub(super) fn net(&self) -> MutexGuard<'_, Net> {
        self.net.lock().expect("free")
    }

    /// Runs the loop until it has nothing to do.
    pub(super) fn turn(&mut self) {
        for _ in 0..1000 {
            if self.turn_once() == 0 {
                return;
            }
        }
        panic!("the loop does not come to rest");
    }

    /// Runs the loop once, and returns the number of events.
    pub(super) fn turn_once(&mut self) -> usize {
        self.events.run_with_timeout(0).expect("epoll")
    }

    pub(super) fn put(&self, address: u64, bytes: &[u8]) {
        let address = GuestAddress(address);
        self.memory.write_slice(bytes, address).expect("in memory");
    }

    pub(super) fn get(&self, address: u64, size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size];
        let address = GuestAddress(address);
        let read = self.memory.read_slice(&mut bytes, address);
        read.expect("in memory");
        bytes
    }

    /// Writes a chain to a table, from a descriptor on.
    pub(super) fn put_chain(&self, table: u64, first: u16, chain: &[Buffer]) {
        for (number, (address, length, flags)) in (0_u16..).zip(chain) {
            let next = u16::from(usize::from(number) + 1 < chain.len());
            let at = table + 16 * u64::from(first + number);
            self.put(at, &address.to_le_bytes());
            self.put(at + 8, &length.to_le_bytes());
            self.put(at + 12, &(flags | next).to_le_bytes());
            self.put(at + 14, &(first + number + 1).to_le_bytes());
        }
    }

    /// Makes a chain available, in descriptors that are still unused, and kicks. Returns its head.
    pub(super) fn offer(&mut self, queue: usize, chain: &[Buffer]) -> u16 {
        let head = match self.free[queue] {
            free if usize::from(free) + chain.len() > QUEUE_SIZE.into() => 0,
            free => free,
        };
        self.put_chain(base(queue), head, chain);
        self.free[queue] = head + chain.len() as u16;
        self.offer_head(queue, head);
        head
    }

    /// Makes the chain at a descriptor available, and kicks.
    pub(super) fn offer_head(&mut self, queue: usize, head: u16) {
        let slot = u64::from(self.available[queue] % QUEUE_SIZE);
        self.put(base(queue) + 0x1004 + 2 * slot, &head.to_le_bytes());
        self.available[queue] = self.available[queue].wrapping_add(1);
        self.set_available(queue, self.available[queue]);
    }

    /// Sets the available index, and kicks.
    pub(super) fn set_available(&self, queue: usize, available: u16) {
        self.put(base(queue) + 0x1002, &available.to_le_bytes());
        self.kicks[queue].write(1).expect("kicked");
    }

    /// Sends a frame from a single buffer.
    pub(super) fn transmit(&mut self, frame: &[u8]) {
        let at = DATA + 0x8_0000;
        self.put(at, frame);
        self.offer(TX, &[(at, frame.len() as u32, 0)]);
        self.turn();
    }

    /// The elements of the used ring, if it has not wrapped around: heads and lengths.
    pub(super) fn used(&self, queue: usize) -> Vec<(u16, u32)> {
        let count = self.get(base(queue) + 0x2002, 2);
        let count = u64::from(u16::from_le_bytes(count.try_into().expect("2 bytes")));
        let word = |at| u32::from_le_bytes(self.get(at, 4).try_into().expect("4 bytes"));
        let element = |number| {
            let at = base(queue) + 0x2004 + 8 * (number % u64::from(QUEUE_SIZE));
            (word(at) as u16, word(at + 4))
        };
        (0..count).map(element).collect()
    }
}

fn base(queue: usize) -> u64 {
    0x4000 * queue as u64
}

/// Sends the guest a frame with its header.
pub(super) fn host_sends(host: &OwnedFd, frame: &[u8]) {
    assert_eq!(send(host, frame, SendFlags::empty()), Ok(frame.len()));
}

/// The next frame that the guest has sent, with its header, if there is one.
pub(super) fn host_gets(host: &OwnedFd) -> Option<Vec<u8>> {
    let mut frame = vec![0; 0x2_0000];
    let (size, _) = recv(host, &mut frame, RecvFlags::DONTWAIT).ok()?;
    frame.truncate(size);
    Some(frame)
}

/// Runs a test in a thread with a network namespace of its own, if the user is root.
pub(super) fn in_network(test: impl FnOnce() + Send + 'static) {
    if !is_root() {
        return;
    }
    let thread = std::thread::spawn(|| {
        enter_network();
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Moves the calling thread to a network namespace of its own.
pub(super) fn enter_network() {
    // SAFETY: a network namespace is nothing that memory safety depends on.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.expect("a network namespace");
}

/// The flags of a tap that a NIC can use.
pub(super) const TAP_FLAGS: i32 = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

fn request(name: &str) -> libc::ifreq {
    // SAFETY: an ifreq is an array and a union of plain integers, which may be all zeroes.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

fn interface_ioctl(fd: &impl AsRawFd, number: libc::Ioctl, request: &mut libc::ifreq) {
    // SAFETY: the kernel reads and writes a structure of this type.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), number, std::ptr::from_mut(request)) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// Creates a tap and its interface with this name, which is down.
pub(super) fn make_tap(name: &str, flags: i32, blocking: bool) -> OwnedFd {
    let mode = if blocking { 0 } else { libc::O_NONBLOCK };
    let tap = open("/dev/net/tun", mode);
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = flags as i16;
    interface_ioctl(&tap, libc::TUNSETIFF, &mut request);
    tap
}

pub(super) fn open(path: &str, flags: i32) -> OwnedFd {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    options.read(true).write(true).custom_flags(flags);
    options.open(path).expect(path).into()
}

fn set_flags(socket: &OwnedFd, name: &str, flags: i32) {
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = flags as i16;
    interface_ioctl(socket, libc::SIOCSIFFLAGS, &mut request);
}

/// A packet socket for all frames of an interface, which is brought up.
pub(super) struct Wire(OwnedFd);

impl Wire {
    pub(super) fn new(name: &str) -> Self {
        let protocol = libc::c_int::from((libc::ETH_P_ALL as u16).to_be());
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: socket takes no pointers, and nobody else owns the new descriptor.
        let socket = unsafe { OwnedFd::from_raw_fd(libc::socket(libc::AF_PACKET, kind, protocol)) };
        // Before the socket is bound: otherwise it reports once that the interface was down.
        set_flags(&socket, name, libc::IFF_UP);
        let mut request = request(name);
        interface_ioctl(&socket, libc::SIOCGIFINDEX, &mut request);
        // SAFETY: the kernel has written the index.
        let index = unsafe { request.ifr_ifru.ifru_ifindex };
        // SAFETY: an address is made of plain integers, which may be all zeroes.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol as u16;
        address.sll_ifindex = index;
        // SAFETY: the kernel reads an address of this size, which is borrowed for the call.
        let bound = unsafe {
            let size = size_of_val(&address) as libc::socklen_t;
            libc::bind(
                socket.as_raw_fd(),
                std::ptr::from_ref(&address).cast(),
                size,
            )
        };
        assert_eq!(bound, 0, "{}", io::Error::last_os_error());
        Self(socket)
    }

    pub(super) fn set_down(&self, name: &str) {
        set_flags(&self.0, name, 0);
    }

    /// Sends the guest a frame without a header.
    pub(super) fn send(&self, frame: &[u8]) {
        assert_eq!(send(&self.0, frame, SendFlags::empty()), Ok(frame.len()));
    }

    /// The next frame with `ETHERTYPE`, without a header, if there is one.
    pub(super) fn next(&self) -> Option<Vec<u8>> {
        loop {
            let mut frame = vec![0; 0x2_0000];
            let (size, _) = recv(&self.0, &mut frame, RecvFlags::DONTWAIT).ok()?;
            frame.truncate(size);
            if is_ours(&frame) {
                return Some(frame);
            }
        }
    }
}

/// Gives an interface an IPv4 address with a 24-bit prefix.
pub(super) fn set_address(name: &str, address: [u8; 4]) {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("a socket");
    for (number, bytes) in [
        (libc::SIOCSIFADDR, address),
        (libc::SIOCSIFNETMASK, [255, 255, 255, 0]),
    ] {
        let mut request = request(name);
        // The bytes of a sockaddr_in: an unused port, and the address.
        // SAFETY: an address is made of plain integers, which may be all zeroes.
        let mut internet: libc::sockaddr = unsafe { std::mem::zeroed() };
        internet.sa_family = libc::AF_INET as u16;
        for (to, from) in internet.sa_data.iter_mut().skip(2).zip(bytes) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_addr = internet;
        interface_ioctl(&socket, number, &mut request);
    }
}
