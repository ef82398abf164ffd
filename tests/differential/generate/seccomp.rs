//! `linux.seccomp`: lists of what is refused, and of what is allowed.

use hull_tests::calls;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Topic, change, one_of, some_of};
use crate::case::Change;

/// The control makes these itself once the filter is loaded, if `noNewPrivileges` is false.
const CONTROLS_OWN: &[&str] = &[
    "chdir",
    "sched_yield",
    "setgid",
    "setgroups",
    "setuid",
    "umask",
];

/// What the control and the probe need of a list of what is allowed: to be executed, to look around
/// and to make children.
const NEEDED: &[&str] = &[
    "access",
    "arch_prctl",
    "brk",
    "capget",
    "capset",
    "chdir",
    "clone",
    "clone3",
    "close",
    "dup",
    "dup2",
    "dup3",
    "epoll_create1",
    "epoll_ctl",
    "epoll_pwait",
    "epoll_wait",
    "execve",
    "execveat",
    "exit",
    "exit_group",
    "faccessat",
    "faccessat2",
    "fchown",
    "fcntl",
    "fork",
    "fstat",
    "fstatfs",
    "futex",
    "getcwd",
    "getdents64",
    "getegid",
    "geteuid",
    "getgid",
    "getpgid",
    "getpid",
    "getpriority",
    "getrandom",
    "getrlimit",
    "getsid",
    "gettid",
    "getuid",
    "ioctl",
    "ioprio_get",
    "keyctl",
    "lseek",
    "lstat",
    "madvise",
    "mmap",
    "mprotect",
    "munmap",
    "nanosleep",
    "newfstatat",
    "open",
    "openat",
    "personality",
    "pipe2",
    "poll",
    "ppoll",
    "prctl",
    "pread64",
    "prlimit64",
    "read",
    "readlink",
    "readlinkat",
    "rseq",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sched_getaffinity",
    "sched_getscheduler",
    "sched_yield",
    "set_robust_list",
    "set_tid_address",
    "setgid",
    "setgroups",
    "setuid",
    "sigaltstack",
    "stat",
    "statx",
    "tgkill",
    "umask",
    "uname",
    "unlink",
    "unlinkat",
    "vfork",
    "wait4",
    "waitid",
    "write",
    "writev",
];

/// A list of what is allowed comes with `noNewPrivileges`: without it, the control loads the filter
/// before it has done its own work.
pub fn topic() -> Topic {
    let allowing = allowing().prop_map(|profile| {
        vec![
            Change("/process/noNewPrivileges".to_owned(), true.into()),
            Change("/linux/seccomp".to_owned(), profile),
        ]
    });
    prop_oneof![2 => change("/linux/seccomp", refusing()), 1 => allowing].boxed()
}

fn probed() -> Vec<&'static str> {
    let mut names = calls::names();
    names.retain(|name| !CONTROLS_OWN.contains(name));
    names
}

/// All is allowed but what rules say.
fn refusing() -> BoxedStrategy<Value> {
    let rules = prop::collection::vec(prop_oneof![3 => rule(), 2 => rule_by_arguments()], 1..=4);
    (
        one_of(&["SCMP_ACT_ALLOW", "SCMP_ACT_LOG"]),
        rules,
        architectures(),
    )
        .prop_map(|(default, rules, architectures)| profile(default, &rules, architectures))
        .boxed()
}

/// All is refused but what the probe needs, and some more.
fn allowing() -> BoxedStrategy<Value> {
    let errno = prop::option::of(one_of(&[1u32, 13, 38]));
    (some_of(&probed(), 12), errno, architectures())
        .prop_map(|(names, errno, architectures)| {
            let names = [NEEDED.to_vec(), names].concat();
            let rules = [json!({ "names": names, "action": "SCMP_ACT_ALLOW" })];
            let mut profile = profile("SCMP_ACT_ERRNO", &rules, architectures);
            if let Some(errno) = errno {
                profile["defaultErrnoRet"] = errno.into();
            }
            profile
        })
        .boxed()
}

fn profile(default: &str, rules: &[Value], architectures: Value) -> Value {
    json!({ "defaultAction": default, "architectures": architectures, "syscalls": rules })
}

fn architectures() -> BoxedStrategy<Value> {
    one_of(&[
        json!([]),
        json!(["SCMP_ARCH_X86_64"]),
        json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]),
    ])
}

fn action() -> BoxedStrategy<Value> {
    prop_oneof![
        2 => Just(json!({ "action": "SCMP_ACT_ERRNO" })),
        3 => one_of(&[1u32, 2, 13, 28, 38, 95, 110]).prop_map(|errno| json!({ "action": "SCMP_ACT_ERRNO", "errnoRet": errno })),
        2 => one_of(&["SCMP_ACT_KILL", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP", "SCMP_ACT_TRACE", "SCMP_ACT_LOG", "SCMP_ACT_ALLOW"])
            .prop_map(|action| json!({ "action": action })),
    ]
    .boxed()
}

fn rule() -> BoxedStrategy<Value> {
    let names = prop::sample::subsequence(probed(), 1..=4);
    (names, action(), any::<bool>())
        .prop_map(|(mut names, mut rule, unknown)| {
            if unknown {
                names.push("no_such_call");
            }
            rule["names"] = json!(names);
            rule
        })
        .boxed()
}

/// On the call whose outcome depends on its argument.
fn rule_by_arguments() -> BoxedStrategy<Value> {
    let operator = one_of(&[
        "SCMP_CMP_NE",
        "SCMP_CMP_LT",
        "SCMP_CMP_LE",
        "SCMP_CMP_EQ",
        "SCMP_CMP_GE",
        "SCMP_CMP_GT",
        "SCMP_CMP_MASKED_EQ",
    ]);
    let value = one_of(&[0u64, 1, 2, 3, (1 << 32) + 1]);
    let argument = (operator, value, 0u64..4).prop_map(|(operator, value, second)| {
        json!({ "index": 0, "op": operator, "value": value, "valueTwo": second })
    });
    (prop::collection::vec(argument, 1..=2), action())
        .prop_map(|(arguments, mut rule)| {
            rule["names"] = json!(["sched_get_priority_max"]);
            rule["args"] = arguments.into();
            rule
        })
        .boxed()
}
