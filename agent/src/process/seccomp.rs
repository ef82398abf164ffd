//! `linux.seccomp`: compiled when the container is made, loaded by each of its processes.
//!
//! libcontainer's own loader isn't used: it loads a filter long before the program is executed, and not
//! at all for a further process of a container.

use std::io::{self, Read, Seek};

use libseccomp::error::SeccompError;
use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSeccompOperator, LinuxSyscall,
};
use rustix::fs::{MemfdFlags, memfd_create};
use serde::{Deserialize, Serialize};

use super::newer_calls;
use crate::sys;

/// The longest program that the kernel takes, `BPF_MAXINSNS` of <linux/bpf_common.h>, in bytes.
const LONGEST: u64 = 4096 * 8;

/// A compiled filter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    instructions: Vec<u8>,
    flags: u64,
}

/// Why a profile can't be compiled.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// Nobody could answer.
    #[error("linux.seccomp: the action SCMP_ACT_NOTIFY isn't supported yet")]
    Notify,
    /// libseccomp refuses something.
    #[error("linux.seccomp.{field}: {source}")]
    Refused {
        /// What it refuses.
        field: String,
        /// Its words.
        source: SeccompError,
    },
    /// An action that traces carries a 16-bit number.
    #[error("linux.seccomp: errnoRet {0} of SCMP_ACT_TRACE doesn't fit 16 bits")]
    Trace(u32),
    /// The compiled program couldn't be read back.
    #[error("linux.seccomp: read the compiled filter: {0}")]
    Export(#[from] io::Error),
}

impl ProfileError {
    fn at(field: impl Into<String>) -> impl FnOnce(SeccompError) -> Self {
        let field = field.into();
        move |source| Self::Refused { field, source }
    }
}

impl Program {
    /// Compiles a profile.
    ///
    /// # Errors
    /// When the profile asks for what can't be had.
    pub fn compile(profile: &LinuxSeccomp) -> Result<Self, ProfileError> {
        let default = action(profile.default_action(), profile.default_errno_ret())?;
        let mut filter =
            ScmpFilterContext::new(default).map_err(ProfileError::at("defaultAction"))?;
        for arch in profile.architectures().iter().flatten() {
            filter
                .add_arch(architecture(*arch))
                .map_err(ProfileError::at(format!("architectures: {arch}")))?;
        }
        for rule in profile.syscalls().iter().flatten() {
            let action = action(rule.action(), rule.errno_ret())?;
            // libseccomp refuses a rule that says what the default says.
            if action != default {
                add(&mut filter, action, rule)?;
            }
        }
        let mut instructions = newer_calls::prelude(profile);
        // Jumps are relative, so what goes before a program doesn't change it.
        instructions.extend(export(&filter)?);
        Ok(Self {
            instructions,
            flags: flags(profile.flags().as_deref()),
        })
    }

    /// Loads it into the calling process.
    ///
    /// # Errors
    /// `EACCES` without no_new_privs and CAP_SYS_ADMIN.
    pub fn load(&self) -> io::Result<()> {
        sys::load_seccomp(&self.instructions, self.flags)
    }
}

fn add(
    filter: &mut ScmpFilterContext,
    action: ScmpAction,
    rule: &LinuxSyscall,
) -> Result<(), ProfileError> {
    for name in rule.names() {
        // A name that this kernel's architecture doesn't have can't be called either.
        let Ok(syscall) = ScmpSyscall::from_name(name) else {
            log::debug!("linux.seccomp: unknown system call {name}");
            continue;
        };
        let comparisons: Vec<ScmpArgCompare> =
            rule.args().iter().flatten().map(comparison).collect();
        let result = if comparisons.is_empty() {
            filter.add_rule(action, syscall).map(drop)
        } else if compares_one_argument_twice(rule) {
            // libseccomp takes one comparison an argument: each becomes a rule, as with runc.
            comparisons.iter().try_for_each(|one| {
                filter
                    .add_rule_conditional(action, syscall, std::slice::from_ref(one))
                    .map(drop)
            })
        } else {
            filter
                .add_rule_conditional(action, syscall, &comparisons)
                .map(drop)
        };
        result.map_err(ProfileError::at(format!("syscalls: {name}")))?;
    }
    Ok(())
}

fn compares_one_argument_twice(rule: &LinuxSyscall) -> bool {
    let mut indices: Vec<usize> = rule.args().iter().flatten().map(|a| a.index()).collect();
    indices.sort_unstable();
    indices.windows(2).any(|pair| pair.first() == pair.last())
}

fn comparison(arg: &LinuxSeccompArg) -> ScmpArgCompare {
    let op = match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => ScmpCompareOp::NotEqual,
        LinuxSeccompOperator::ScmpCmpLt => ScmpCompareOp::Less,
        LinuxSeccompOperator::ScmpCmpLe => ScmpCompareOp::LessOrEqual,
        LinuxSeccompOperator::ScmpCmpEq => ScmpCompareOp::Equal,
        LinuxSeccompOperator::ScmpCmpGe => ScmpCompareOp::GreaterEqual,
        LinuxSeccompOperator::ScmpCmpGt => ScmpCompareOp::Greater,
        LinuxSeccompOperator::ScmpCmpMaskedEq => ScmpCompareOp::MaskedEqual(arg.value()),
    };
    // A masked comparison has its mask in `value` and the datum in `valueTwo`.
    let datum = match arg.op() {
        LinuxSeccompOperator::ScmpCmpMaskedEq => arg.value_two().unwrap_or(0),
        _ => arg.value(),
    };
    let index = u32::try_from(arg.index()).unwrap_or(u32::MAX);
    ScmpArgCompare::new(index, op, datum)
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction, ProfileError> {
    let number = errno.unwrap_or(libc::EPERM.unsigned_abs());
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => {
            ScmpAction::KillThread
        }
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(number.cast_signed()),
        LinuxSeccompAction::ScmpActTrace => {
            ScmpAction::Trace(u16::try_from(number).map_err(|_| ProfileError::Trace(number))?)
        }
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActNotify => return Err(ProfileError::Notify),
    })
}

fn architecture(arch: Arch) -> ScmpArch {
    match arch {
        Arch::ScmpArchNative => ScmpArch::Native,
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX32 => ScmpArch::X32,
        Arch::ScmpArchArm => ScmpArch::Arm,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        Arch::ScmpArchMips => ScmpArch::Mips,
        Arch::ScmpArchMips64 => ScmpArch::Mips64,
        Arch::ScmpArchMips64n32 => ScmpArch::Mips64N32,
        Arch::ScmpArchMipsel => ScmpArch::Mipsel,
        Arch::ScmpArchMipsel64 => ScmpArch::Mipsel64,
        Arch::ScmpArchMipsel64n32 => ScmpArch::Mipsel64N32,
        Arch::ScmpArchPpc => ScmpArch::Ppc,
        Arch::ScmpArchPpc64 => ScmpArch::Ppc64,
        Arch::ScmpArchPpc64le => ScmpArch::Ppc64Le,
        Arch::ScmpArchS390 => ScmpArch::S390,
        Arch::ScmpArchS390x => ScmpArch::S390X,
        Arch::ScmpArchRiscv64 => ScmpArch::Riscv64,
        Arch::ScmpArchParisc => ScmpArch::Parisc,
        Arch::ScmpArchParisc64 => ScmpArch::Parisc64,
        Arch::ScmpArchLoongarch64 => ScmpArch::Loongarch64,
        Arch::ScmpArchM68k => ScmpArch::M68k,
        Arch::ScmpArchSh => ScmpArch::Sh,
        Arch::ScmpArchSheb => ScmpArch::Sheb,
    }
}

/// The flags of seccomp(2). A profile without `flags` gets runc's default, SPEC_ALLOW.
fn flags(given: Option<&[LinuxSeccompFilterFlag]>) -> u64 {
    let Some(given) = given else {
        return libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    };
    given.iter().fold(0, |flags, flag| {
        flags
            | match flag {
                LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
                LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => {
                    libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW
                }
                // One thread has nobody to synchronise with, and nobody waits for notifications.
                LinuxSeccompFilterFlag::SeccompFilterFlagTsync
                | LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 0,
            }
    })
}

fn export(filter: &ScmpFilterContext) -> Result<Vec<u8>, ProfileError> {
    let memory = memfd_create("seccomp", MemfdFlags::CLOEXEC).map_err(io::Error::from)?;
    filter
        .export_bpf(&memory)
        .map_err(ProfileError::at("export"))?;
    let mut file = std::fs::File::from(memory);
    file.rewind()?;
    let mut instructions = Vec::new();
    file.take(LONGEST).read_to_end(&mut instructions)?;
    Ok(instructions)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compile(json: &str) -> Result<Program, ProfileError> {
        Program::compile(&serde_json::from_str(json).expect("valid JSON"))
    }

    #[test]
    fn a_profile_compiles_to_whole_instructions() {
        let program = compile(
            r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64"],"syscalls":[
                {"names":["mkdir","nosuchcall"],"action":"SCMP_ACT_ERRNO","errnoRet":95},
                {"names":["getcwd"],"action":"SCMP_ACT_ALLOW"},
                {"names":["socket"],"action":"SCMP_ACT_ERRNO",
                 "args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"},
                         {"index":0,"value":2,"op":"SCMP_CMP_EQ"}]}]}"#,
        )
        .expect("it compiles");
        assert!(!program.instructions.is_empty());
        assert_eq!(program.instructions.len() % 8, 0);
        assert_eq!(program.flags, libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW);
    }

    #[test]
    fn what_nobody_would_answer_is_refused() {
        let profile = r#"{"defaultAction":"SCMP_ACT_ALLOW",
            "syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_NOTIFY"}]}"#;
        assert!(matches!(compile(profile), Err(ProfileError::Notify)));
    }
}
