//! Seccomp profiles: every action, every comparison, both of the processor's kinds of system calls.

use hull_tests::bundle::PROBE;
use hull_tests::{Bundle, Container};
use serde_json::{Value, json};

/// A system call with one argument, and what is to come of it under the profile.
type Call = (libc::c_long, u64, &'static str);

/// What a shell says of a command that SIGSYS has ended.
const KILLED: &str = "ended 159";

/// Makes each call in a process of its own, and compares.
#[track_caller]
fn come_of(profile: Value, command: &str, calls: &[Call]) {
    let script: String = calls
        .iter()
        .map(|(call, argument, _)| {
            format!("{PROBE} {command} {call} {argument} 2>&1 || echo ended $?\n")
        })
        .collect();
    let bundle = Bundle::new().shell(&script).set("/linux/seccomp", profile);
    let out = Container::new(bundle).run().ok().out();
    // The shell's own word on a process that a signal has ended.
    let seen: Vec<_> = out
        .lines()
        .filter(|line| !line.contains("system call"))
        .collect();
    let expected: Vec<_> = calls.iter().map(|call| call.2).collect();
    assert_eq!(seen, expected, "{out}");
}

#[test]
fn every_action_acts() {
    let rule = |name: &str, action: &str| json!({ "names": [name], "action": action });
    let errno = |name: &str, errno: u32| json!({ "names": [name, "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno });
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"],
        "syscalls": [
            errno("umask", 77),
            errno("nfsservctl", 0),
            rule("swapoff", "SCMP_ACT_ERRNO"),
            rule("acct", "SCMP_ACT_TRACE"),
            rule("vhangup", "SCMP_ACT_TRAP"),
            rule("sync", "SCMP_ACT_KILL_PROCESS"),
            rule("quotactl", "SCMP_ACT_KILL"),
            rule("getsid", "SCMP_ACT_KILL_THREAD"),
            rule("alarm", "SCMP_ACT_LOG"),
            rule("getpgid", "SCMP_ACT_ALLOW"),
        ],
    });
    let calls = [
        (libc::SYS_umask, 0, "errno 77"),
        (libc::SYS_nfsservctl, 0, "0"),
        (libc::SYS_swapoff, 0, "errno 1"),
        // there is nobody who traces
        (libc::SYS_acct, 0, "errno 38"),
        (libc::SYS_vhangup, 0, KILLED),
        (libc::SYS_sync, 0, KILLED),
        (libc::SYS_quotactl, 0, KILLED),
        (libc::SYS_getsid, 0, KILLED),
        (libc::SYS_alarm, 0, "0"),
        (libc::SYS_getpgid, 1, "1"),
    ];
    come_of(profile, "syscall", &calls);
}

#[test]
fn every_comparison_compares_all_64_bits() {
    let rule = |name: &str, op: &str, value: u64, two: u64| {
        let args = json!([{ "index": 0, "value": value, "valueTwo": two, "op": op }]);
        json!({ "names": [name], "action": "SCMP_ACT_ERRNO", "errnoRet": 77, "args": args })
    };
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [
            rule("umask", "SCMP_CMP_EQ", 18, 0),
            rule("alarm", "SCMP_CMP_NE", 0, 0),
            rule("getpgid", "SCMP_CMP_LT", 1, 0),
            rule("getsid", "SCMP_CMP_LE", 1, 0),
            rule("sched_get_priority_max", "SCMP_CMP_GE", 2, 0),
            rule("sched_get_priority_min", "SCMP_CMP_GT", 2, 0),
            rule("sched_getscheduler", "SCMP_CMP_MASKED_EQ", 0xf0, 0x10),
        ],
    });
    let high = 1 << 32;
    let calls = [
        (libc::SYS_umask, 18, "errno 77"),
        (libc::SYS_umask, 18 | high, "18"),
        (libc::SYS_alarm, 1, "errno 77"),
        (libc::SYS_alarm, 0, "0"),
        (libc::SYS_getpgid, 0, "errno 77"),
        (libc::SYS_getpgid, 1, "1"),
        (libc::SYS_getsid, 1, "errno 77"),
        (libc::SYS_getsid, 1 | high, "1"),
        (libc::SYS_sched_get_priority_max, 2, "errno 77"),
        (libc::SYS_sched_get_priority_max, 1, "99"),
        (libc::SYS_sched_get_priority_min, 3, "errno 77"),
        (libc::SYS_sched_get_priority_min, 2, "1"),
        (libc::SYS_sched_getscheduler, 0x1f, "errno 77"),
        (libc::SYS_sched_getscheduler, 0, "0"),
    ];
    come_of(profile, "syscall", &calls);
}

#[test]
fn calls_of_32_bits_are_filtered_if_the_profile_has_them_and_kill_if_not() {
    const UMASK_OF_32_BITS: libc::c_long = 60;
    let profile = |architectures: Value| {
        json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": architectures,
            "syscalls": [{ "names": ["umask"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77 }],
        })
    };
    let both = profile(json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]));
    come_of(both, "syscall32", &[(UMASK_OF_32_BITS, 0, "errno 77")]);
    let native = profile(json!(["SCMP_ARCH_X86_64"]));
    come_of(native, "syscall32", &[(UMASK_OF_32_BITS, 0, KILLED)]);
}

#[test]
fn a_call_newer_than_the_profile_is_missing_and_an_older_one_refused() {
    // by the programs, and by runc once it has loaded the filter
    let needed = "access arch_prctl brk capget capset chdir clone clone3 close dup2 epoll_create1 epoll_ctl \
        epoll_pwait eventfd2 execve exit exit_group faccessat2 fchown fcntl fstat fstatfs futex getcwd \
        getdents64 geteuid getpid getppid getrandom gettid getuid ioctl lseek madvise mmap mprotect munmap \
        nanosleep newfstatat openat pipe poll prctl pread64 prlimit64 read readlink readlinkat rseq \
        rt_sigaction rt_sigprocmask rt_sigreturn sched_getaffinity sched_yield set_robust_list \
        set_tid_address setgid setgroups setuid sigaltstack stat tgkill uname vfork wait4 write";
    let allowed: Vec<_> = needed.split_whitespace().chain(["openat2"]).collect();
    let profile = json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{ "names": allowed, "action": "SCMP_ACT_ALLOW" }],
    });
    let calls = [
        (libc::SYS_umask, 0, "errno 1"),
        (libc::SYS_openat2, 0, "errno 22"),
        (libc::SYS_process_madvise, 0, "errno 38"),
    ];
    come_of(profile, "syscall", &calls);
}
