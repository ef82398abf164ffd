//! The system calls that each role may make, and why.

use libc::*;

/// `epoll_create1`: an event loop creates its epoll descriptor after its thread has been given a
/// private descriptor table.
const EPOLL_CREATE: AllowedCall = one_of(SYS_epoll_create1, 0, &[EPOLL_CLOEXEC as u32]);

use super::{AllowedCall, any, one_of, one_of_with, own_pid, without_bits};
use crate::arch::VCPU_IOCTLS;

/// What every thread needs for the runtimes of the C library and of Rust.
pub(super) const COMMON: &[AllowedCall] = &[
    // Memory for the allocator, which can't be executable, or taken from the host's pool of huge
    // pages.
    any(SYS_brk),
    without_bits(SYS_mmap, &[(2, PROT_EXEC as u32), (3, MAP_HUGETLB as u32)]),
    without_bits(SYS_mprotect, &[(2, PROT_EXEC as u32)]),
    any(SYS_mremap),
    any(SYS_munmap),
    any(SYS_madvise),
    // Locks, and waiting for other threads.
    any(SYS_futex),
    any(SYS_sched_yield),
    any(SYS_rseq),
    // Eventfds between threads; files and pipes that are open.
    any(SYS_read),
    any(SYS_write),
    any(SYS_close),
    // Time, where the vDSO can't read it; random seeds for hash maps.
    any(SYS_clock_gettime),
    any(SYS_getrandom),
    // Signals, by which vCPUs are kicked and the C library aborts; sent within this process only.
    any(SYS_rt_sigreturn),
    any(SYS_rt_sigprocmask),
    any(SYS_rt_sigaction),
    any(SYS_sigaltstack),
    own_pid(SYS_tgkill, 0),
    any(SYS_getpid),
    any(SYS_gettid),
    any(SYS_restart_syscall),
    // The end of a thread and of the process.
    any(SYS_exit),
    any(SYS_exit_group),
];

/// The main event loop: descriptors that are open already, and connections to the sandbox's control
/// socket.
pub(super) const MAIN: &[AllowedCall] = &[
    // The event loop.
    EPOLL_CREATE,
    any(SYS_epoll_ctl),
    any(SYS_epoll_pwait),
    any(SYS_eventfd2),
    any(SYS_timerfd_settime),
    // Clients of the control socket and the descriptors that they send. Without socket(2) and
    // connect(2), the thread can't connect to anything itself.
    one_of(
        SYS_accept4,
        3,
        &[(SOCK_NONBLOCK | SOCK_CLOEXEC) as u32, SOCK_CLOEXEC as u32],
    ),
    any(SYS_recvfrom),
    any(SYS_recvmsg),
    any(SYS_sendmsg),
    any(SYS_sendto),
    any(SYS_shutdown),
    // Standard streams of the container's processes, which may be files of the host: reading and
    // writing them, but not truncating them or changing the flags of a file description that others
    // share. Nor ignoring these: RWF_NOAPPEND would overwrite a log that is open for appending.
    any(SYS_preadv2),
    without_bits(SYS_pwritev2, &[(5, !(RWF_NOWAIT as u32))]),
    any(SYS_readv),
    any(SYS_writev),
    any(SYS_fstat),
    one_of(
        SYS_fcntl,
        1,
        &[
            F_GETFL as u32,
            F_GETFD as u32,
            F_SETFD as u32,
            F_DUPFD_CLOEXEC as u32,
        ],
    ),
    // Waiting for a few descriptors with a timeout.
    any(SYS_ppoll),
    // The thread's name, which shows on the host that the container has ended.
    one_of(SYS_prctl, 0, &[PR_SET_NAME as u32]),
    // FIONBIO is how Rust makes a socket non-blocking; TIOCGWINSZ reads the size of the container's
    // terminal.
    one_of(SYS_ioctl, 1, &[FIONBIO as u32, TIOCGWINSZ as u32]),
];

/// A vCPU: running the guest. Emulating device registers takes no system calls but those of
/// [`COMMON`].
pub(super) const VCPU: &[AllowedCall] = &[one_of(SYS_ioctl, 1, VCPU_IOCTLS)];

/// virtio-fs: file system calls within the shared tree.
pub(super) const FILESYSTEM: &[AllowedCall] = &[
    // The device's event loop.
    EPOLL_CREATE,
    any(SYS_epoll_ctl),
    any(SYS_epoll_pwait),
    // Names.
    any(SYS_openat),
    any(SYS_openat2),
    any(SYS_mkdirat),
    any(SYS_mknodat),
    any(SYS_symlinkat),
    any(SYS_linkat),
    any(SYS_unlinkat),
    any(SYS_renameat2),
    any(SYS_readlinkat),
    any(SYS_getdents64),
    // Attributes.
    any(SYS_statx),
    any(SYS_fstat),
    any(SYS_newfstatat),
    any(SYS_fstatfs),
    any(SYS_fchmod),
    any(SYS_fchmodat),
    any(SYS_fchown),
    any(SYS_fchownat),
    any(SYS_utimensat),
    any(SYS_fgetxattr),
    any(SYS_fsetxattr),
    any(SYS_flistxattr),
    any(SYS_fremovexattr),
    any(SYS_getxattr),
    any(SYS_setxattr),
    any(SYS_listxattr),
    any(SYS_removexattr),
    // Data.
    any(SYS_preadv2),
    any(SYS_pwritev2),
    any(SYS_lseek),
    any(SYS_ftruncate),
    any(SYS_fallocate),
    any(SYS_copy_file_range),
    any(SYS_fsync),
    any(SYS_fdatasync),
    any(SYS_syncfs),
    any(SYS_dup),
    one_of(
        SYS_fcntl,
        1,
        &[
            F_GETFL as u32,
            F_GETFD as u32,
            F_SETFD as u32,
            F_DUPFD_CLOEXEC as u32,
        ],
    ),
    // To create a file, the thread temporarily switches to the user that creates it in the guest,
    // and to the umask of that; for some xattr calls it changes its working directory to
    // /proc/self/fd.
    any(SYS_setresuid),
    any(SYS_setresgid),
    any(SYS_setgroups),
    any(SYS_geteuid),
    any(SYS_getegid),
    any(SYS_capget),
    any(SYS_capset),
    any(SYS_umask),
    any(SYS_fchdir),
];

/// What virtio-fs may call in addition to connect to UNIX sockets in its tree, and to give the connections to the main
/// thread.
pub(super) const VOLUME_SOCKETS: &[AllowedCall] = &[
    // Stream sockets alone: a datagram's receiver is in memory, where no filter looks.
    one_of_with(
        SYS_socket,
        0,
        &[AF_UNIX as u32],
        &[
            (1, (SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC) as u32),
            (2, 0),
        ],
    ),
    // An address is as long as the number of a descriptor, one to seven digits, with the family and a NUL. So no abstract
    // name of a longer one can be connected to, whosever network namespace it is.
    one_of(SYS_connect, 2, &[4, 5, 6, 7, 8, 9, 10]),
    any(SYS_sendmsg),
];

/// virtio-blk: reading, writing, flushing and allocating within one open file.
pub(super) const BLOCK: &[AllowedCall] = &[
    // The device's event loop.
    EPOLL_CREATE,
    any(SYS_epoll_ctl),
    any(SYS_epoll_pwait),
    // Data, flushing, discarding.
    any(SYS_preadv2),
    any(SYS_pwritev2),
    any(SYS_fdatasync),
    // To punch holes and to write zeroes, but not to insert or cut out a part of a file.
    one_of(
        SYS_fallocate,
        1,
        &[
            (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE) as u32,
            (FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE) as u32,
        ],
    ),
];

/// What a disk slot's thread may call in addition to virtio-blk's, to receive and check its disk.
pub(super) const DISK_SLOT: &[AllowedCall] = &[
    // The disk is received over a socket pair, on which the answer is sent too.
    any(SYS_recvmsg),
    any(SYS_sendto),
    // Checking it: its file type, how it is open (F_GETFD is Rust's check before closing in debug
    // builds), its size and its block size.
    any(SYS_fstat),
    one_of(SYS_fcntl, 1, &[F_GETFL as u32, F_GETFD as u32]),
    any(SYS_lseek),
    one_of(SYS_ioctl, 1, &[BLKSSZGET as u32]),
];

/// virtio-net: frames of taps that are open already.
pub(super) const NET: &[AllowedCall] = &[
    // The devices' event loop.
    EPOLL_CREATE,
    any(SYS_epoll_ctl),
    any(SYS_epoll_pwait),
    // Frames.
    any(SYS_readv),
    any(SYS_writev),
];

/// What a NIC requests of its tap and of vhost-net when a driver activates or resets it, or says how many
/// pairs of queues it uses. No such request names a file or an interface, other than by an open descriptor.
const NIC_REQUESTS: [u32; 12] = [
    TUNSETOFFLOAD as u32,
    TUNSETQUEUE as u32,
    VHOST_SET_OWNER,
    VHOST_SET_FEATURES,
    VHOST_SET_MEM_TABLE,
    VHOST_SET_VRING_NUM,
    VHOST_SET_VRING_ADDR,
    VHOST_SET_VRING_BASE,
    VHOST_GET_VRING_BASE,
    VHOST_SET_VRING_KICK,
    VHOST_SET_VRING_CALL,
    VHOST_NET_SET_BACKEND,
];

/// What checking a new NIC takes: that its descriptors are a tap and vhost-net; and the size of the
/// tap's headers is set.
const NIC_CHECKS: [u32; 3] = [TUNGETIFF as u32, TUNSETVNETHDRSZ as u32, VHOST_GET_FEATURES];

/// What a thread may call in addition to [`NET`], to serve NICs that were there before it.
pub(super) const NET_IOCTLS: &[AllowedCall] = &[one_of(SYS_ioctl, 1, &NIC_REQUESTS)];

/// What a NIC slot's thread may call in addition to [`NET`], to receive and check its NICs, and to serve
/// them.
pub(super) const NET_SLOT: &[AllowedCall] = &[
    // A NIC is received over a socket pair, on which the answer is sent too.
    any(SYS_recvmsg),
    any(SYS_sendto),
    // Checking how the tap is open (F_GETFD is Rust's check before closing in debug builds).
    one_of(SYS_fcntl, 1, &[F_GETFL as u32, F_GETFD as u32]),
    one_of(SYS_ioctl, 1, &NIC_SLOT_REQUESTS),
];

/// [`NIC_CHECKS`] and [`NIC_REQUESTS`]: a system call has one rule.
const NIC_SLOT_REQUESTS: [u32; NIC_CHECKS.len() + NIC_REQUESTS.len()] = {
    let mut all = [0; NIC_CHECKS.len() + NIC_REQUESTS.len()];
    let (checks, requests) = all.split_at_mut(NIC_CHECKS.len());
    checks.copy_from_slice(&NIC_CHECKS);
    requests.copy_from_slice(&NIC_REQUESTS);
    all
};

// ioctl numbers of linux/vhost.h. The vhost crate computes them in functions that aren't const.
const VHOST_GET_FEATURES: u32 = 0x8008_af00;
const VHOST_SET_FEATURES: u32 = 0x4008_af00;
const VHOST_SET_OWNER: u32 = 0xaf01;
const VHOST_SET_MEM_TABLE: u32 = 0x4008_af03;
const VHOST_SET_VRING_NUM: u32 = 0x4008_af10;
const VHOST_SET_VRING_ADDR: u32 = 0x4028_af11;
const VHOST_SET_VRING_BASE: u32 = 0x4008_af12;
const VHOST_GET_VRING_BASE: u32 = 0xc008_af12;
const VHOST_SET_VRING_KICK: u32 = 0x4008_af20;
const VHOST_SET_VRING_CALL: u32 = 0x4008_af21;
const VHOST_NET_SET_BACKEND: u32 = 0x4008_af30;

/// A process that isn't the VMM's, and speaks with the guest's agent on a connection that is open.
pub(super) const AGENTS_CLIENT: &[AllowedCall] = &[
    // tokio's event loop, and how it is woken by a signal.
    EPOLL_CREATE,
    any(SYS_epoll_ctl),
    any(SYS_epoll_pwait),
    any(SYS_eventfd2),
    one_of(SYS_socketpair, 0, &[AF_UNIX as u32]),
    any(SYS_recvfrom),
    any(SYS_sendto),
    any(SYS_readv),
    any(SYS_writev),
    any(SYS_shutdown),
    any(SYS_setsockopt),
    one_of(
        SYS_fcntl,
        1,
        &[
            F_GETFL as u32,
            F_SETFL as u32,
            F_GETFD as u32,
            F_SETFD as u32,
            F_DUPFD_CLOEXEC as u32,
        ],
    ),
    any(SYS_ppoll),
];

/// A container's stand-in: connections to the guest's agent and to the VMM, which are open already, and a
/// terminal of which it follows the size. Without socket(2) and connect(2), there are no other connections.
pub(super) const STAND_IN: &[AllowedCall] = &[
    // FIONBIO is how Rust makes a socket non-blocking; TIOCSCTTY makes the container's terminal tell of
    // its size, which TIOCGWINSZ reads.
    one_of(
        SYS_ioctl,
        1,
        &[FIONBIO as u32, TIOCSCTTY as u32, TIOCGWINSZ as u32],
    ),
    // The process's name, which shows on the host that the container has ended.
    one_of(SYS_prctl, 0, &[PR_SET_NAME as u32]),
];

/// What openat(2) is not told by who may not create or cut a file.
pub(super) const NEW_FILE: u32 = (O_CREAT | O_TRUNC) as u32;

/// A follower of the network: rtnetlink in its own network namespace, taps there, and the VMM's control
/// socket, which is the only one in its tree.
pub(super) const NETWORK_FOLLOWER: &[AllowedCall] = &[
    // rtnetlink, which is protocol 0, and the control socket. By other protocols of netlink the capability would reach
    // what is no network's (NETLINK_CRYPTO: the host's ciphers). Questions to the namespace's resolver.
    one_of_with(
        SYS_socket,
        0,
        &[AF_UNIX as u32, AF_NETLINK as u32, AF_INET as u32],
        &[(2, 0)],
    ),
    any(SYS_bind),
    any(SYS_connect),
    any(SYS_getsockname),
    any(SYS_recvmsg),
    any(SYS_sendmsg),
    // What is in its tree: sysctls to be read, /dev/net/tun and /dev/vhost-net.
    without_bits(SYS_openat, &[(2, NEW_FILE)]),
    // The list of connected interfaces.
    any(SYS_pwrite64),
    // Of the network namespace, where it takes turns with who else connects interfaces.
    any(SYS_flock),
    // A tap is made and prepared; FIONBIO is how Rust makes a socket non-blocking.
    one_of(
        SYS_ioctl,
        1,
        &[FIONBIO as u32, TUNSETIFF as u32, TUNSETVNETHDRSZ as u32],
    ),
];

/// A follower of no network: its connection to the guest's agent is open already. Without socket(2) and connect(2),
/// there are no others.
pub(super) const FOLLOWER: &[AllowedCall] = &[
    // How Rust makes a socket non-blocking.
    one_of(SYS_ioctl, 1, &[FIONBIO as u32]),
];

/// The out-of-memory reporter: a cgroup that it makes and removes, and two processes that die there.
pub(super) const OOM_REPORTER: &[AllowedCall] = &[
    // The cgroup, below a directory that is open. Its files are the kernel's.
    any(SYS_mkdirat),
    one_of(SYS_unlinkat, 2, &[AT_REMOVEDIR as u32]),
    without_bits(SYS_openat, &[(2, NEW_FILE)]),
    // Processes that have this one's program and rights: one by itself, and one that shares its memory.
    one_of(SYS_clone, 0, &[SIGCHLD as u32, (CLONE_VM | SIGCHLD) as u32]),
    any(SYS_wait4),
    // By which they end if they aren't killed.
    any(SYS_setitimer),
    // The pause before the next ones.
    any(SYS_clock_nanosleep),
    // What the kernel has no memory for.
    any(SYS_pipe2),
    // Rust's check before closing in debug builds.
    one_of(SYS_fcntl, 1, &[F_GETFD as u32]),
];

#[cfg(test)]
mod tests {
    use vhost::vhost_kern::vhost_binding as vhost;

    #[test]
    fn the_numbers_of_vhosts_ioctls_are_those_of_its_crate() {
        for (ours, theirs) in [
            (super::VHOST_GET_FEATURES, vhost::VHOST_GET_FEATURES()),
            (super::VHOST_SET_FEATURES, vhost::VHOST_SET_FEATURES()),
            (super::VHOST_SET_OWNER, vhost::VHOST_SET_OWNER()),
            (super::VHOST_SET_MEM_TABLE, vhost::VHOST_SET_MEM_TABLE()),
            (super::VHOST_SET_VRING_NUM, vhost::VHOST_SET_VRING_NUM()),
            (super::VHOST_SET_VRING_ADDR, vhost::VHOST_SET_VRING_ADDR()),
            (super::VHOST_SET_VRING_BASE, vhost::VHOST_SET_VRING_BASE()),
            (super::VHOST_GET_VRING_BASE, vhost::VHOST_GET_VRING_BASE()),
            (super::VHOST_SET_VRING_KICK, vhost::VHOST_SET_VRING_KICK()),
            (super::VHOST_SET_VRING_CALL, vhost::VHOST_SET_VRING_CALL()),
            (super::VHOST_NET_SET_BACKEND, vhost::VHOST_NET_SET_BACKEND()),
        ] {
            assert_eq!(u64::from(ours), theirs);
        }
    }
}
