//! System calls that a container may try without harm: made with arguments that a call which is let
//! through refuses in its own way, or that change only the process that makes it.

use std::ptr::null;

/// A system call and its arguments.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// The name of the call, and after a space what tells its arguments apart.
    pub name: &'static str,
    /// Its number on this architecture.
    pub number: libc::c_long,
    /// Numbers, or addresses of static data.
    pub args: [usize; 6],
}

/// All of them. What each asks for, its comment or its arguments' names say.
pub fn all() -> Vec<Call> {
    let root = c"/".as_ptr() as usize;
    let nowhere = null::<u8>() as usize;
    let bad = usize::MAX;
    let table: &[(&str, libc::c_long, &[usize])] = &[
        // privileged: refused without the capability, or else for their arguments
        ("acct", libc::SYS_acct, &[root]),
        ("bpf", libc::SYS_bpf, &[9999, nowhere, 0]),
        ("chroot", libc::SYS_chroot, &[root]),
        ("clock_adjtime", libc::SYS_clock_adjtime, &[0, nowhere]),
        ("delete_module", libc::SYS_delete_module, &[nowhere, 0]),
        ("fanotify_init", libc::SYS_fanotify_init, &[0, 0]),
        ("fsopen", libc::SYS_fsopen, &[nowhere, 0]),
        ("init_module", libc::SYS_init_module, &[nowhere, 0, nowhere]),
        ("ioperm", libc::SYS_ioperm, &[0, 1, 1]),
        ("iopl", libc::SYS_iopl, &[3]),
        ("kexec_load", libc::SYS_kexec_load, &[0, 0, nowhere, bad]),
        (
            "mount",
            libc::SYS_mount,
            &[root, root, c"nosuchfs".as_ptr() as usize, 0, 0],
        ),
        (
            "open_by_handle_at",
            libc::SYS_open_by_handle_at,
            &[bad, nowhere, 0],
        ),
        ("open_tree", libc::SYS_open_tree, &[bad, root, 1]),
        (
            "perf_event_open",
            libc::SYS_perf_event_open,
            &[nowhere, 0, 0, bad, 0],
        ),
        ("pivot_root", libc::SYS_pivot_root, &[root, root]),
        ("reboot", libc::SYS_reboot, &[0, 0, 0, 0]), // not its magic number
        ("setdomainname", libc::SYS_setdomainname, &[nowhere, bad]),
        ("setgid", libc::SYS_setgid, &[12345]),
        ("setgroups", libc::SYS_setgroups, &[0, nowhere]),
        ("sethostname", libc::SYS_sethostname, &[nowhere, bad]),
        ("setns", libc::SYS_setns, &[bad, 0]),
        ("settimeofday", libc::SYS_settimeofday, &[nowhere, nowhere]),
        ("setuid", libc::SYS_setuid, &[12345]),
        ("setpriority", libc::SYS_setpriority, &[0, 0, bad - 4]), // nice -5
        ("socket packet", libc::SYS_socket, &[17, 3, 0]),
        ("socket raw", libc::SYS_socket, &[2, 3, 1]), // AF_INET, SOCK_RAW, ICMP
        ("swapon", libc::SYS_swapon, &[nowhere, 0]),
        ("syslog", libc::SYS_syslog, &[99, nowhere, 0]),
        (
            "unshare files",
            libc::SYS_unshare,
            &[libc::CLONE_FILES as usize],
        ),
        (
            "unshare mount",
            libc::SYS_unshare,
            &[libc::CLONE_NEWNS as usize],
        ),
        (
            "unshare user",
            libc::SYS_unshare,
            &[libc::CLONE_NEWUSER as usize],
        ),
        (
            "unshare uts",
            libc::SYS_unshare,
            &[libc::CLONE_NEWUTS as usize],
        ),
        ("vhangup", libc::SYS_vhangup, &[]),
        // open to everybody
        (
            "add_key",
            libc::SYS_add_key,
            &[nowhere, nowhere, nowhere, 0, 0],
        ),
        ("chdir", libc::SYS_chdir, &[root]),
        ("getcpu", libc::SYS_getcpu, &[nowhere, nowhere, nowhere]),
        ("getitimer", libc::SYS_getitimer, &[99, nowhere]),
        ("getppid", libc::SYS_getppid, &[]),
        ("getrusage", libc::SYS_getrusage, &[99, nowhere]),
        ("inotify_init1", libc::SYS_inotify_init1, &[0]),
        ("io_uring_setup", libc::SYS_io_uring_setup, &[0, nowhere]),
        (
            "landlock_create_ruleset",
            libc::SYS_landlock_create_ruleset,
            &[nowhere, 0, 1],
        ),
        ("memfd_create", libc::SYS_memfd_create, &[root, 0]),
        ("mlock", libc::SYS_mlock, &[root, 1]),
        ("pidfd_open", libc::SYS_pidfd_open, &[1, 0]),
        (
            "process_vm_readv",
            libc::SYS_process_vm_readv,
            &[1, nowhere, 0, nowhere, 0, 0],
        ),
        ("ptrace", libc::SYS_ptrace, &[0, 0, 0, 0]), // traceme
        ("sched_yield", libc::SYS_sched_yield, &[]),
        ("socket alg", libc::SYS_socket, &[38, 5, 0]),
        ("socket inet", libc::SYS_socket, &[2, 1, 0]),
        ("socket inet6", libc::SYS_socket, &[10, 1, 0]),
        ("socket netlink", libc::SYS_socket, &[16, 3, 0]),
        ("socket unix", libc::SYS_socket, &[1, 1, 0]),
        ("sync", libc::SYS_sync, &[]),
        ("umask", libc::SYS_umask, &[0o77]),
        ("userfaultfd", libc::SYS_userfaultfd, &[1]), // UFFD_USER_MODE_ONLY
        // one call whose outcome depends on its arguments alone: 4 is no policy, and all but the
        // lower half of the argument is ignored by the kernel, though not by a filter
        (
            "sched_get_priority_max 0",
            libc::SYS_sched_get_priority_max,
            &[0],
        ),
        (
            "sched_get_priority_max 1",
            libc::SYS_sched_get_priority_max,
            &[1],
        ),
        (
            "sched_get_priority_max 2",
            libc::SYS_sched_get_priority_max,
            &[2],
        ),
        (
            "sched_get_priority_max 3",
            libc::SYS_sched_get_priority_max,
            &[3],
        ),
        (
            "sched_get_priority_max 4",
            libc::SYS_sched_get_priority_max,
            &[4],
        ),
        (
            "sched_get_priority_max 5",
            libc::SYS_sched_get_priority_max,
            &[5],
        ),
        (
            "sched_get_priority_max 2^32+1",
            libc::SYS_sched_get_priority_max,
            &[(1 << 32) + 1],
        ),
    ];
    table
        .iter()
        .map(|&(name, number, given)| {
            let mut args = [0; 6];
            args[..given.len()].copy_from_slice(given);
            Call { name, number, args }
        })
        .collect()
}

/// The names of the calls, as a seccomp profile has them.
pub fn names() -> Vec<&'static str> {
    let mut names: Vec<_> = all()
        .iter()
        .filter_map(|call| call.name.split(' ').next())
        .collect();
    names.dedup();
    names
}
