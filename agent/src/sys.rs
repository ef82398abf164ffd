//! System calls that no crate wraps safely, one thin function for each.
#![allow(unsafe_code)] // bare system calls

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::time::Duration;

use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Turns the -1 of a failed system call into the error in errno.
fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// Removes the handlers by which Rust's runtime reports a stack overflow. The kernel drops signals to PID 1 unless
/// it has a handler for them: with these, any process that may signal it could kill it by sending two in a row.
/// A fault of PID 1 itself still kills it.
pub fn reset_fault_handlers() {
    for fault in [libc::SIGSEGV, libc::SIGBUS] {
        // SAFETY: the default action runs no code of this program.
        unsafe { libc::signal(fault, libc::SIG_DFL) };
    }
}

/// Sends a signal by its number, which may be a real-time signal's; a negative pid is a process group.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: kill takes no pointers.
    check(libc::c_long::from(unsafe { libc::kill(pid, signal) })).map(drop)
}

/// Blocks SIGCHLD for the calling thread, so that it can wait for it. Dropping this restores the signal mask.
#[derive(Debug)]
pub struct BlockedSigchld {
    before: SigSet,
}

impl BlockedSigchld {
    /// Blocks it from now on.
    pub fn block() -> io::Result<Self> {
        let mut chld = SigSet::empty();
        chld.add(Signal::SIGCHLD);
        let before = chld.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        Ok(Self { before })
    }

    /// Waits for a SIGCHLD for no longer than `limit`. Returns whether one may have come.
    pub fn wait(&self, limit: Duration) -> io::Result<bool> {
        let mut chld = SigSet::empty();
        chld.add(Signal::SIGCHLD);
        let limit = libc::timespec {
            tv_sec: limit.as_secs().try_into().unwrap_or(libc::time_t::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        };
        // SAFETY: the set and the limit outlive the call, and nothing is written.
        let signal =
            unsafe { libc::sigtimedwait(chld.as_ref(), ptr::null_mut(), &raw const limit) };
        match check(signal.into()) {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => Ok(false),
            Err(e) => Err(e),
        }
    }
}

impl Drop for BlockedSigchld {
    fn drop(&mut self) {
        let _ = self.before.thread_set_mask();
    }
}

/// Has the kernel run the wall clock 500 ppm faster or slower until it has gained, or lost if negative, so many
/// microseconds (adjtimex(2)).
pub fn slew_clock(microseconds: i64) -> io::Result<()> {
    // SAFETY: all zeroes is a valid timex.
    let mut change: libc::timex = unsafe { std::mem::zeroed() };
    change.modes = libc::ADJ_OFFSET_SINGLESHOT;
    change.offset = microseconds;
    // SAFETY: the pointer is to a timex, which the kernel reads and writes during the call.
    check(libc::c_long::from(unsafe {
        libc::adjtimex(&raw mut change)
    }))
    .map(drop)
}

/// CLONE_INTO_CGROUP of linux/sched.h; libc's constant is an int, which this doesn't fit into.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// Forks a child whose parent is the caller's parent, born in new namespaces (`CLONE_NEW*`) and, if one is given,
/// in another cgroup. Returns `None` in the child.
///
/// Only for a process with one thread: in the child of another only async-signal-safe functions may be called.
pub fn fork_sibling(namespaces: u32, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Option<i32>> {
    // SAFETY: all zeroes is a valid clone_args: it asks for fork(), without a signal at the end.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = u64::from(namespaces | libc::CLONE_PARENT.cast_unsigned());
    if let Some(cgroup) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = u64::from(cgroup.as_raw_fd().cast_unsigned());
    }
    let size = size_of_val(&arguments);
    // SAFETY: without CLONE_VM and with a null stack this is fork(); with one thread in the process no
    // lock can be left held in the child. The exit signal is the caller's own, as CLONE_PARENT has it. The
    // kernel reads the arguments, which are of this size.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size) })?;
    Ok(i32::try_from(pid).ok().filter(|pid| *pid != 0))
}

/// Moves the caller into new namespaces, `CLONE_NEW*`.
pub fn unshare(namespaces: u32) -> io::Result<()> {
    // SAFETY: these flags unshare nothing that memory safety depends on; the process has one thread.
    check(libc::c_long::from(unsafe {
        libc::unshare(namespaces.cast_signed())
    }))
    .map(drop)
}

/// Loads a compiled seccomp program, with the `SECCOMP_FILTER_FLAG_*` in `flags`. Each instruction has the
/// memory layout of `struct sock_filter`.
pub fn load_seccomp(program: &[u64], flags: u64) -> io::Result<()> {
    let filters: Vec<libc::sock_filter> = program
        .iter()
        .map(|instruction| {
            let [a, b, jt, jf, k @ ..] = instruction.to_ne_bytes();
            let (code, k) = (u16::from_ne_bytes([a, b]), u32::from_ne_bytes(k));
            libc::sock_filter { code, jt, jf, k }
        })
        .collect();
    let len = u16::try_from(filters.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog {
        len,
        filter: filters.as_ptr().cast_mut(),
    };
    let operation = libc::SECCOMP_SET_MODE_FILTER;
    // SAFETY: the program and its instructions live until the call returns; the kernel copies them.
    check(unsafe { libc::syscall(libc::SYS_seccomp, operation, flags, &raw const program) })
        .map(drop)
}

/// Joins the session keyring of this name, which is made if there is none, so that the caller doesn't share its
/// parent's. Returns the keyring's serial number.
pub fn join_session_keyring(name: &CStr) -> io::Result<libc::c_long> {
    let operation = libc::KEYCTL_JOIN_SESSION_KEYRING;
    // SAFETY: the name is a NUL-terminated string that outlives the call.
    check(unsafe { libc::syscall(libc::SYS_keyctl, operation, name.as_ptr()) })
}

/// Makes root the owner of a keyring, and adds permissions (`KEY_USR_*`) to those that a new one has.
pub fn give_keyring_to_root(keyring: libc::c_long, more: u32) -> io::Result<()> {
    // The permissions of a new keyring's possessor and owner (keyctl_setperm(3)).
    const NEW: u32 = 0x3f13_0000;
    // SAFETY: neither call takes a pointer.
    unsafe {
        check(libc::syscall(
            libc::SYS_keyctl,
            libc::KEYCTL_CHOWN,
            keyring,
            0,
            0,
        ))?;
        let permissions = NEW | more;
        check(libc::syscall(
            libc::SYS_keyctl,
            libc::KEYCTL_SETPERM,
            keyring,
            permissions,
        ))
        .map(drop)
    }
}

/// Sets the caller's fsuid and fsgid; the kernel clears the capabilities about files when the fsuid changes from
/// root's, and restores them when it changes back.
pub fn set_fsuid_and_fsgid(uid: u32, gid: u32) {
    // SAFETY: neither call takes a pointer. They report no errors.
    unsafe {
        libc::setfsgid(gid);
        libc::setfsuid(uid);
    }
}

/// Marks every file descriptor above stderr close-on-exec.
pub fn set_cloexec_above_stderr() -> io::Result<()> {
    let flags = libc::CLOSE_RANGE_CLOEXEC;
    // SAFETY: nothing is closed before execve; the call takes no pointers.
    check(unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, flags) }).map(drop)
}

/// Sets the calling thread's scheduler, sched_setattr(2).
pub fn set_scheduler(attributes: &libc::sched_attr) -> io::Result<()> {
    let attributes: *const libc::sched_attr = attributes;
    // SAFETY: the attributes contain their size, and outlive the call.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, attributes, 0) }).map(drop)
}

/// Sets the calling thread's I/O priority, ioprio_set(2).
pub fn set_io_priority(priority: u32) -> io::Result<()> {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    // SAFETY: ioprio_set takes no pointers.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, priority) }).map(drop)
}

/// Sets the calling process's execution domain, personality(2).
pub fn set_personality(persona: u64) -> io::Result<()> {
    // SAFETY: personality takes no pointers.
    check(libc::c_long::from(unsafe { libc::personality(persona) })).map(drop)
}

/// Restores the default action of SIGPIPE, which Rust's runtime ignores.
pub fn restore_sigpipe() {
    // SAFETY: the default disposition of a signal involves no handler of ours.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// Executes another program, execve(2); returns only if that fails.
pub fn execve(path: &CStr, args: &[CString], env: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        let ends = [ptr::null()];
        strings.iter().map(|s| s.as_ptr()).chain(ends).collect()
    };
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: both arrays end with a null pointer and point at strings that outlive the call.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// What [`mount_setattr`] changes. Zero changes nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct MountChange {
    /// Attributes to set, `MOUNT_ATTR_*`.
    pub set: u64,
    /// Attributes to clear first.
    pub clear: u64,
    /// The propagation type, `MS_*`.
    pub propagation: u64,
    /// Whether the mounts below are changed as well.
    pub recursive: bool,
}

/// Changes a mount, mount_setattr(2).
pub fn mount_setattr(mount: BorrowedFd<'_>, change: MountChange) -> Result<(), Errno> {
    let attributes = libc::mount_attr {
        attr_set: change.set,
        attr_clr: change.clear,
        propagation: change.propagation,
        userns_fd: 0,
    };
    let depth = if change.recursive {
        libc::AT_RECURSIVE
    } else {
        0
    };
    // SAFETY: the path is an empty string, and the pointer and the size are those of `attributes`, which
    // the kernel only reads.
    let result = check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | depth,
            &raw const attributes,
            size_of_val(&attributes),
        )
    });
    result
        .map(drop)
        .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))
}

/// Takes ownership of a file descriptor that this program was started with, by its number.
pub fn take_inherited_fd(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD takes no pointers; it fails for a number that isn't open.
    check(libc::c_long::from(unsafe {
        libc::fcntl(fd, libc::F_GETFD)
    }))?;
    // SAFETY: it is open, and nothing else in this program was given this number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Watches a file or a socket for one kind of event.
pub fn watch<F>(file: F, interest: Interest) -> io::Result<AsyncFd<F>>
where
    F: AsRawFd + Into<OwnedFd>,
{
    // SAFETY: what is an owned descriptor, as a File is, keeps it open and never changes it.
    unsafe { AsyncFd::register_with_interest(file, interest) }.map_err(Into::into)
}

/// Starts to connect to a vsock port of the host, which has `limit` to answer.
pub fn dial_host(port: u32, limit: Duration) -> io::Result<OwnedFd> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    /// `SO_VM_SOCKETS_CONNECT_TIMEOUT_OLD` (linux/vm_sockets.h), with the C library's own timeval.
    const CONNECT_TIMEOUT: libc::c_int = 6;
    let socket = socket_with(
        AddressFamily::VSOCK,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    let limit = libc::timeval {
        tv_sec: limit.as_secs().cast_signed(),
        tv_usec: limit.subsec_micros().into(),
    };
    // SAFETY: the pointer and the size are those of a timeval that outlives the call.
    check(libc::c_long::from(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::AF_VSOCK,
            CONNECT_TIMEOUT,
            (&raw const limit).cast(),
            size_of_val(&limit) as libc::socklen_t,
        )
    }))?;
    // SAFETY: sockaddr_vm is plain old data for which all zeroes is a value.
    let mut host: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    host.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    host.svm_cid = libc::VMADDR_CID_HOST;
    host.svm_port = port;
    // SAFETY: the pointer and the size are those of an address that outlives the call.
    let connected = check(libc::c_long::from(unsafe {
        libc::connect(
            socket.as_raw_fd(),
            (&raw const host).cast(),
            size_of_val(&host) as libc::socklen_t,
        )
    }));
    match connected {
        Err(e) if e.raw_os_error() != Some(libc::EINPROGRESS) => Err(e),
        _ => Ok(socket),
    }
}

/// Brings up the interface `lo` of the caller's network namespace.
pub fn bring_loopback_up() -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: ifreq is plain old data for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an ifreq, which outlives the call.
    check(libc::c_long::from(unsafe {
        libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCSIFFLAGS as _,
            &raw const request,
        )
    }))
    .map(drop)
}

/// Has the kernel add the loop device of this number, unless it exists.
pub fn add_loop_device(number: i64) -> io::Result<()> {
    /// `LOOP_CTL_ADD` (linux/loop.h).
    const ADD: libc::c_ulong = 0x4c80;
    let number = libc::c_int::try_from(number).map_err(|_| io::ErrorKind::InvalidInput)?;
    let control = std::fs::File::open("/dev/loop-control")?;
    // SAFETY: the argument of LOOP_CTL_ADD is a number.
    let added = unsafe { libc::ioctl(control.as_raw_fd(), ADD as _, number) };
    match check(added.into()) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result.map(drop),
    }
}

/// Restricts the C library's lookups of users and groups to /etc/passwd and /etc/group.
///
/// Otherwise, in a container, the static C library would load the libraries that the *container's* nsswitch.conf
/// names.
pub fn look_up_users_in_files_only() {
    unsafe extern "C" {
        fn __nss_configure_lookup(
            database: *const libc::c_char,
            services: *const libc::c_char,
        ) -> libc::c_int;
    }
    for database in [c"passwd", c"group"] {
        // SAFETY: both are NUL-terminated strings; the process has one thread.
        unsafe { __nss_configure_lookup(database.as_ptr(), c"files".as_ptr()) };
    }
}
