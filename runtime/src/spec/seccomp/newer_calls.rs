//! System calls that are newer than a seccomp profile.
//!
//! A C library tries a new call first, and takes the older one when it gets ENOSYS. A profile that was
//! written before the call, and refuses what it doesn't list with EPERM, would break that. So a call
//! whose number is above all those that the profile names gets ENOSYS before the profile is asked, as
//! with runc; and as there, only in the architectures that the profile lists.

use libseccomp::{ScmpArch, ScmpSyscall};
use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction};

use super::bpf::{
    ARCHITECTURE, Instruction, JUMP_AT_LEAST, JUMP_EQUAL, JUMP_GREATER, LOAD, NUMBER, RETURN, X86,
    X86_64, step,
};
use super::is_for;

/// What tells the calls of x32 from those of x86-64, whose architecture they share.
const X32_BIT: u32 = 0x4000_0000;

/// SECCOMP_RET_ERRNO with ENOSYS.
const NO_SUCH_CALL: u32 = 0x0005_0000 | libc::ENOSYS.unsigned_abs();

/// Of each architecture that a profile is for, the highest number of a call that it names.
#[derive(Debug, Default, PartialEq, Eq)]
struct Highest {
    x86_64: Option<u32>,
    x86: Option<u32>,
}

/// The instructions to put before a profile's own.
pub fn prelude(profile: &LinuxSeccomp) -> Vec<Instruction> {
    let allows = matches!(
        profile.default_action(),
        LinuxSeccompAction::ScmpActAllow
            | LinuxSeccompAction::ScmpActLog
            | LinuxSeccompAction::ScmpActTrace
    );
    let mut all = Vec::new();
    if is_for(profile, Arch::ScmpArchX32) {
        all.extend(no_x32());
    }
    // Where what isn't listed is allowed, the kernel says itself what it doesn't know.
    if !allows {
        all.extend(nothing_above(&highest(profile)));
    }
    all
}

fn highest(profile: &LinuxSeccomp) -> Highest {
    let of = |arch| {
        let rules = profile.syscalls().iter().flatten();
        rules
            .flat_map(|rule| rule.names())
            .filter_map(|name| ScmpSyscall::from_name_by_arch(name, arch).ok())
            // Negative ones are libseccomp's own, for calls that the architecture lacks.
            .filter_map(|call| u32::try_from(i32::from(call)).ok())
            .max()
    };
    let native = is_for(profile, Arch::ScmpArchX86_64) || is_for(profile, Arch::ScmpArchNative);
    let x86 = is_for(profile, Arch::ScmpArchX86);
    Highest {
        x86_64: native.then(|| of(ScmpArch::X8664)).flatten(),
        x86: x86.then(|| of(ScmpArch::X86)).flatten(),
    }
}

/// A profile may be for x32 besides; the guest's kernel isn't, and has ENOSYS for all of its calls.
fn no_x32() -> Vec<Instruction> {
    no_such_call(X86_64, &[step(JUMP_AT_LEAST, 0, 1, X32_BIT)])
}

/// The test of each architecture either returns or falls through to the next, and the last one to the
/// profile.
fn nothing_above(highest: &Highest) -> Vec<Instruction> {
    let mut all = Vec::new();
    if let Some(last) = highest.x86 {
        all.extend(no_such_call(X86, &[step(JUMP_GREATER, 0, 1, last)]));
    }
    if let Some(last) = highest.x86_64 {
        let tests = [
            // x32's numbers are not this architecture's.
            step(JUMP_AT_LEAST, 2, 0, X32_BIT),
            step(JUMP_GREATER, 0, 1, last),
        ];
        all.extend(no_such_call(X86_64, &tests));
    }
    all
}

/// Says that there is no such call, where one of this architecture has a number from which the tests lead
/// to the instruction after them. From any other they lead to the one after that.
fn no_such_call<const N: usize>(architecture: u32, tests: &[Instruction; N]) -> Vec<Instruction> {
    let others = const { N as u8 + 2 };
    let mut all = vec![
        step(LOAD, 0, 0, ARCHITECTURE),
        step(JUMP_EQUAL, 0, others, architecture),
        step(LOAD, 0, 0, NUMBER),
    ];
    all.extend(tests);
    all.push(step(RETURN, 0, 0, NO_SUCH_CALL));
    all
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
        let both = profile("SCMP_ACT_ERRNO", r#""SCMP_ARCH_X86_64","SCMP_ARCH_X86""#);
        let found = highest(&both);
        assert_eq!((found.x86_64, found.x86), (Some(437), Some(437)));
        let native = highest(&profile("SCMP_ACT_ERRNO", r#""SCMP_ARCH_NATIVE""#));
        assert_eq!((native.x86_64, native.x86), (Some(437), None));
        let none = highest(&profile("SCMP_ACT_ERRNO", ""));
        assert_eq!(none, Highest::default());
    }

    #[test]
    fn a_profile_that_allows_the_rest_has_no_prelude() {
        let of = |default, arch| prelude(&profile(default, arch)).len();
        assert_eq!(of("SCMP_ACT_ALLOW", r#""SCMP_ARCH_X86_64""#), 0);
        assert_eq!(of("SCMP_ACT_ERRNO", r#""SCMP_ARCH_X86_64""#), 6);
        assert_eq!(of("SCMP_ACT_LOG", r#""SCMP_ARCH_X32""#), 5);
    }
}
