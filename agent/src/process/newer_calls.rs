//! System calls that are newer than a seccomp profile.
//!
//! A C library tries a new call first, and takes the older one when it gets ENOSYS. A profile that was
//! written before the call, and refuses what it doesn't list with EPERM, would break that. So a call
//! whose number is above all those that the profile names gets ENOSYS before the profile is asked, as
//! with runc; and as there, only in the architectures that the profile lists.

use libseccomp::{ScmpArch, ScmpSyscall};
use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction};

/// An instruction of classic BPF, as `struct sock_filter` lies in memory.
type Instruction = [u8; 8];

// <linux/bpf_common.h>
const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const JUMP_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_GREATER: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
const JUMP_AT_LEAST: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

// `struct seccomp_data`: offsets of its members
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;

// <linux/audit.h>
const X86_64: u32 = 0xc000_003e;
const X86: u32 = 0x4000_0003;
/// What tells the calls of x32 from those of x86-64, whose architecture they share.
const X32_BIT: u32 = 0x4000_0000;

/// SECCOMP_RET_ERRNO with ENOSYS.
const NO_SUCH_CALL: u32 = 0x0005_0000 | libc::ENOSYS.unsigned_abs();

/// Of each architecture that a profile is for, the highest number of a call that it names.
#[derive(Debug, Default, PartialEq, Eq)]
struct Highest {
    x86_64: Option<u32>,
    x86: Option<u32>,
    x32: Option<u32>,
}

/// The instructions to put before a profile's own; none where what it doesn't list is allowed.
pub fn prelude(profile: &LinuxSeccomp) -> Vec<u8> {
    let allows = matches!(
        profile.default_action(),
        LinuxSeccompAction::ScmpActAllow
            | LinuxSeccompAction::ScmpActLog
            | LinuxSeccompAction::ScmpActTrace
    );
    let instructions = if allows {
        Vec::new()
    } else {
        instructions(&highest(profile))
    };
    instructions.concat()
}

fn highest(profile: &LinuxSeccomp) -> Highest {
    let wants = |arch| profile.architectures().iter().flatten().any(|a| *a == arch);
    let of = |arch| {
        let rules = profile.syscalls().iter().flatten();
        rules
            .flat_map(|rule| rule.names())
            .filter_map(|name| ScmpSyscall::from_name_by_arch(name, arch).ok())
            // Negative ones are libseccomp's own, for calls that the architecture lacks.
            .filter_map(|call| u32::try_from(i32::from(call)).ok())
            .max()
    };
    Highest {
        x86_64: (wants(Arch::ScmpArchX86_64) || wants(Arch::ScmpArchNative))
            .then(|| of(ScmpArch::X8664))
            .flatten(),
        x86: wants(Arch::ScmpArchX86)
            .then(|| of(ScmpArch::X86))
            .flatten(),
        x32: wants(Arch::ScmpArchX32)
            .then(|| of(ScmpArch::X32))
            .flatten(),
    }
}

/// The test of each architecture either returns or falls through to the next, and the last one to the
/// profile.
fn instructions(highest: &Highest) -> Vec<Instruction> {
    let mut all = Vec::new();
    if let Some(last) = highest.x86 {
        all.extend([
            step(LOAD, 0, 0, ARCHITECTURE),
            step(JUMP_EQUAL, 0, 3, X86),
            step(LOAD, 0, 0, NUMBER),
            step(JUMP_GREATER, 0, 1, last),
            step(RETURN, 0, 0, NO_SUCH_CALL),
        ]);
    }
    if let Some(last) = highest.x32 {
        let last = last | X32_BIT;
        all.extend([
            step(LOAD, 0, 0, ARCHITECTURE),
            step(JUMP_EQUAL, 0, 3, X86_64),
            step(LOAD, 0, 0, NUMBER),
            step(JUMP_GREATER, 0, 1, last),
            step(RETURN, 0, 0, NO_SUCH_CALL),
        ]);
    }
    if let Some(last) = highest.x86_64 {
        all.extend([
            step(LOAD, 0, 0, ARCHITECTURE),
            step(JUMP_EQUAL, 0, 4, X86_64),
            step(LOAD, 0, 0, NUMBER),
            // x32's numbers are not this architecture's.
            step(JUMP_AT_LEAST, 2, 0, X32_BIT),
            step(JUMP_GREATER, 0, 1, last),
            step(RETURN, 0, 0, NO_SUCH_CALL),
        ]);
    }
    all
}

/// One instruction; the jumps are over so many of those that follow, if it holds and if not.
fn step(code: u16, holds: u8, not: u8, value: u32) -> Instruction {
    let [a, b] = code.to_ne_bytes();
    let [k, l, m, n] = value.to_ne_bytes();
    [a, b, holds, not, k, l, m, n]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(default: &str, architectures: &str) -> LinuxSeccomp {
        let json = format!(
            r#"{{"defaultAction":"{default}","architectures":[{architectures}],"syscalls":[
                {{"names":["read","openat2","nosuchcall"],"action":"SCMP_ACT_ALLOW"}}]}}"#
        );
        serde_json::from_str(&json).expect("valid JSON")
    }

    #[test]
    fn the_highest_call_of_each_architecture_is_found() {
        let all = profile(
            "SCMP_ACT_ERRNO",
            r#""SCMP_ARCH_X86_64","SCMP_ARCH_X86","SCMP_ARCH_X32""#,
        );
        let found = highest(&all);
        assert_eq!((found.x86_64, found.x86), (Some(437), Some(437)));
        assert_eq!(found.x32.map(|last| last & !X32_BIT), Some(437));
        let native = highest(&profile("SCMP_ACT_ERRNO", r#""SCMP_ARCH_NATIVE""#));
        assert_eq!(
            (native.x86_64, native.x86, native.x32),
            (Some(437), None, None)
        );
        let none = highest(&profile("SCMP_ACT_ERRNO", ""));
        assert_eq!(none, Highest::default());
    }

    #[test]
    fn a_profile_that_allows_the_rest_has_no_prelude() {
        let of = |default| prelude(&profile(default, r#""SCMP_ARCH_X86_64""#));
        assert!(of("SCMP_ACT_ALLOW").is_empty());
        assert_eq!(of("SCMP_ACT_ERRNO").len(), 6 * 8);
    }
}
