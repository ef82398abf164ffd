//! What each role may call, and why.

use libc::*;

/// `epoll_create1`: a loop makes its own descriptor of events once its thread has a table of its own.
const EVENTS: Allowed = one_of(SYS_epoll_create1, 0, &[EPOLL_CLOEXEC as u32]);

use super::{Allowed, any, one_of, own_pid, without};
use crate::arch::VCPU_IOCTLS;

/// What every thread needs to live: the C library's and Rust's runtime.
pub(super) const COMMON: &[Allowed] = &[
    // Memory for the allocator. Nothing becomes executable, and the host's pool of huge pages is others'.
    any(SYS_brk),
    without(SYS_mmap, &[(2, PROT_EXEC as u32), (3, MAP_HUGETLB as u32)]),
    without(SYS_mprotect, &[(2, PROT_EXEC as u32)]),
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
    // Time, where the vDSO can't tell it; hash maps' random seeds.
    any(SYS_clock_gettime),
    any(SYS_getrandom),
    // Signals: how vCPUs are interrupted, and how the C library aborts. Within this process alone.
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

/// The event loop: what is open already, and connections to the sandbox's own listening socket.
pub(super) const MAIN: &[Allowed] = &[
    // The loop itself.
    EVENTS,
    any(SYS_epoll_ctl),
    any(SYS_epoll_pwait),
    any(SYS_eventfd2),
    any(SYS_timerfd_settime),
    // Clients of the sandbox's socket and the descriptors that they hand over. There is no socket(2)
    // and no connect(2): nobody can be called from here.
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
    // Stdio of the container's processes, which may be files of the host: their bytes, and nothing that
    // cuts them or changes what others who have them open see of it.
    any(SYS_preadv2),
    any(SYS_pwritev2),
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
    // A pollfd or two, for a wait with a time limit.
    any(SYS_ppoll),
    // Its own name, by which it shows that the container has ended.
    one_of(SYS_prctl, 0, &[PR_SET_NAME as u32]),
    // FIONBIO is how Rust makes a socket non-blocking; TIOCGWINSZ reads the container's terminal's size.
    one_of(SYS_ioctl, 1, &[FIONBIO as u32, TIOCGWINSZ as u32]),
];

/// A virtual CPU: the guest, and the registers of the devices.
pub(super) const VCPU: &[Allowed] = &[one_of(SYS_ioctl, 1, VCPU_IOCTLS)];

/// virtio-fs: file system calls within the shared tree.
pub(super) const FILESYSTEM: &[Allowed] = &[
    // The device's event loop.
    EVENTS,
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
    // Files are created as the user that creates them in the guest: for a moment the thread is that
    // user, with its umask, and has its working directory in /proc/self/fd for some xattr calls.
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

/// virtio-blk: one open file, its bytes and its space.
pub(super) const BLOCK: &[Allowed] = &[
    // The device's event loop.
    EVENTS,
    any(SYS_epoll_ctl),
    any(SYS_epoll_pwait),
    // Data, flushing, discarding.
    any(SYS_preadv2),
    any(SYS_pwritev2),
    any(SYS_fdatasync),
    any(SYS_fallocate),
];

/// What a slot's thread may call beside virtio-blk's, to get its disk.
pub(super) const HANDED_OVER: &[Allowed] = &[
    // The disk comes over a pair of sockets, and is answered there.
    any(SYS_recvmsg),
    any(SYS_sendto),
    // What it is: its kind, how it is open (and once more before it is closed, in debug builds), its size and
    // its blocks'.
    any(SYS_fstat),
    one_of(SYS_fcntl, 1, &[F_GETFL as u32, F_GETFD as u32]),
    any(SYS_lseek),
    one_of(SYS_ioctl, 1, &[BLKSSZGET as u32]),
];
