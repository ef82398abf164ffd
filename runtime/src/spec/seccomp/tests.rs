//! What compiled profiles say to a call, by running them.

use super::bpf::{ARCHITECTURE, NUMBER, X86, X86_64};
use super::*;

const PROFILE: &str = r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":1,
    "architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86","SCMP_ARCH_X32"],
    "syscalls":[
        {"names":["read","write","socketcall","ipc","openat2","mmap2","waitpid","time","nosuchcall"],
         "action":"SCMP_ACT_ALLOW"},
        {"names":["ptrace"],"action":"SCMP_ACT_ERRNO"},
        {"names":["socket"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":40,"op":"SCMP_CMP_NE"}]},
        {"names":["personality"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":8,"op":"SCMP_CMP_EQ"}]},
        {"names":["personality"],"action":"SCMP_ACT_LOG","args":[{"index":0,"value":9,"op":"SCMP_CMP_GT"}]},
        {"names":["clone"],"action":"SCMP_ACT_ALLOW",
         "args":[{"index":0,"value":2114060288,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"}]},
        {"names":["mkdir"],"action":"SCMP_ACT_TRAP",
         "args":[{"index":1,"value":7,"op":"SCMP_CMP_EQ"},{"index":1,"value":9,"op":"SCMP_CMP_EQ"}]},
        {"names":["clone3"],"action":"SCMP_ACT_ERRNO","errnoRet":38}]}"#;

const ALLOWED: u32 = libc::SECCOMP_RET_ALLOW;

fn refused(errno: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | errno.cast_unsigned()
}

fn profile(json: &str) -> LinuxSeccomp {
    serde_json::from_str(json).expect("valid JSON")
}

/// Runs a program on a call with six equal arguments, as the kernel does.
fn run(program: &[Instruction], arch: u32, call: u32, argument: u64) -> u32 {
    let [low, high] = [argument as u32, (argument >> 32) as u32];
    let load = |offset: u32| match offset {
        NUMBER => call,
        ARCHITECTURE => arch,
        16.. if offset.is_multiple_of(8) => low,
        16.. => high,
        _ => panic!("nobody needs offset {offset}"),
    };
    let (mut a, mut at) = (0, 0);
    loop {
        let [c, d, holds, not, k @ ..] = program[at].to_ne_bytes();
        let (code, k) = (u16::from_ne_bytes([c, d]), u32::from_ne_bytes(k));
        let jump = |condition| usize::from(if condition { holds } else { not });
        at += 1;
        match code {
            bpf::LOAD => a = load(k),
            bpf::JUMP => at += k as usize,
            bpf::JUMP_EQUAL => at += jump(a == k),
            bpf::JUMP_GREATER => at += jump(a > k),
            bpf::JUMP_AT_LEAST => at += jump(a >= k),
            0x54 => a &= k, // BPF_ALU | BPF_AND | BPF_K
            bpf::RETURN => return k,
            _ => panic!("nobody needs instruction {code:#x}"),
        }
    }
}

#[test]
fn a_call_is_answered_as_the_profile_says() {
    let filter = compile(&profile(PROFILE)).expect("it compiles");
    let answer = |call: i64, argument| run(&filter.instructions, X86_64, call as u32, argument);
    assert_eq!(answer(libc::SYS_read, 0), ALLOWED);
    assert_eq!(answer(libc::SYS_ptrace, 0), refused(libc::EPERM));
    assert_eq!(answer(libc::SYS_socket, 40), refused(libc::EPERM));
    assert_eq!(answer(libc::SYS_socket, 1), ALLOWED);
    assert_eq!(answer(libc::SYS_clone3, 0), refused(libc::ENOSYS));
    // Newer than all that the profile names, and of an architecture that the guest hasn't.
    assert_eq!(answer(500, 0), refused(libc::ENOSYS));
    assert_eq!(answer(0x4000_0000, 0), refused(libc::ENOSYS));
    assert_eq!(filter.flags, libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW);
}

#[test]
fn two_filters_answer_as_one_for_both_architectures() {
    let docker: serde_json::Value =
        serde_json::from_str(include_str!("../../../../tests/bench/src/docker.json"))
            .expect("valid JSON");
    answer_as_one(&profile(PROFILE));
    answer_as_one(&profile(&docker["linux"]["seccomp"].to_string()));
}

fn answer_as_one(profile: &LinuxSeccomp) {
    let ours = profiles_own(profile).expect("it compiles");
    let default = action(profile.default_action(), profile.default_errno_ret()).expect("an action");
    let mut one = ScmpFilterContext::new(default).expect("a filter");
    one.add_arch(ScmpArch::X86).expect("x86");
    for (index, rule) in profile.syscalls().iter().flatten().enumerate() {
        let action = action(rule.action(), rule.errno_ret()).expect("an action");
        if action != default {
            add(&mut one, action, rule, index).expect("a rule");
        }
    }
    let theirs = export(&one).expect("it compiles");
    let arguments = [
        0,
        1,
        7,
        8,
        9,
        10,
        40,
        2_114_060_288,
        1 << 32,
        (1 << 32) | 40,
        u64::MAX,
    ];
    for arch in [X86_64, X86, 0] {
        for call in (0..1024).chain([0x4000_0000, u32::MAX]) {
            for argument in arguments {
                assert_eq!(
                    run(&ours, arch, call, argument),
                    run(&theirs, arch, call, argument),
                    "{arch:x}, {call}, {argument}"
                );
            }
        }
    }
}

#[test]
fn what_nobody_would_answer_is_refused() {
    let json = r#"{"defaultAction":"SCMP_ACT_ALLOW",
        "syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_NOTIFY"}]}"#;
    let error = compile(&profile(json)).expect_err("refused");
    assert!(matches!(error, SeccompProfileError::Notify), "{error}");
}
