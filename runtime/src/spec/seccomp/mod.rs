//! `linux.seccomp`, compiled: what the agent loads into the container's processes.
//!
//! It is done here rather than in the guest because it takes memory and a tenth of a start's time there,
//! and so that a profile that can't be had is refused before a VM is started.

mod bpf;
mod cache;
mod newer_calls;

use std::io::{self, Read, Seek};

use hull_protocol::agent::SeccompFilter;
use libseccomp::error::SeccompError;
use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag,
    LinuxSeccompOperator, LinuxSyscall,
};
use rustix::fs::{MemfdFlags, memfd_create};

use bpf::Instruction;
pub use cache::FilterCache;

/// The longest program that the kernel takes, `BPF_MAXINSNS` of <linux/bpf_common.h>, in bytes.
const LONGEST: u64 = 4096 * 8;

/// Why a profile can't be compiled.
#[derive(Debug, thiserror::Error)]
pub enum SeccompProfileError {
    /// Nobody could answer.
    #[error("config.json: linux.seccomp: SCMP_ACT_NOTIFY: a listener cannot leave the guest")]
    Notify,
    /// libseccomp refuses something.
    #[error("config.json: linux.seccomp.{field}")]
    Refused {
        /// What it refuses.
        field: String,
        /// Its words.
        #[source]
        source: SeccompError,
    },
    /// An action that traces carries a 16-bit number.
    #[error("config.json: linux.seccomp: errnoRet {0} of SCMP_ACT_TRACE doesn't fit 16 bits")]
    Trace(u32),
    /// The compiled program couldn't be read back.
    #[error("config.json: linux.seccomp: cannot read the compiled filter")]
    Export(#[from] io::Error),
}

impl SeccompProfileError {
    fn at(field: impl Into<String>) -> impl FnOnce(SeccompError) -> Self {
        let field = field.into();
        move |source| Self::Refused { field, source }
    }
}

/// Compiles a profile for the guest's kernel, which runs programs of x86-64 and of x86: what a profile
/// says of other architectures never matters there.
///
/// # Errors
/// When the profile asks for what can't be had.
fn compile(profile: &LinuxSeccomp) -> Result<SeccompFilter, SeccompProfileError> {
    let mut instructions = newer_calls::prelude(profile);
    instructions.extend(profiles_own(profile)?);
    Ok(SeccompFilter {
        instructions,
        flags: flags(profile.flags().as_deref()),
        ..Default::default()
    })
}

/// What the profile says itself. Each architecture has a filter of its own, of which one is jumped over:
/// libseccomp takes twice as long over one filter for both.
fn profiles_own(profile: &LinuxSeccomp) -> Result<Vec<Instruction>, SeccompProfileError> {
    let mut instructions = Vec::new();
    if is_for(profile, Arch::ScmpArchX86) {
        let x86 = filter(profile, ScmpArch::X86)?;
        instructions.extend(bpf::unless_x86_skip(x86.len()));
        instructions.extend(x86);
    }
    instructions.extend(filter(profile, ScmpArch::X8664)?);
    Ok(instructions)
}

fn is_for(profile: &LinuxSeccomp, arch: Arch) -> bool {
    profile.architectures().iter().flatten().any(|a| *a == arch)
}

/// The profile for one architecture; to calls of any other it says no.
fn filter(profile: &LinuxSeccomp, arch: ScmpArch) -> Result<Vec<Instruction>, SeccompProfileError> {
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut filter =
        ScmpFilterContext::new(default).map_err(SeccompProfileError::at("defaultAction"))?;
    // Sought by halves instead of one after the other: the kernel does it for every number there is when
    // it loads the filter, and then for each call that isn't always allowed.
    filter
        .set_ctl_optimize(2)
        .map_err(SeccompProfileError::at("syscalls"))?;
    if arch != ScmpArch::X8664 {
        filter
            .add_arch(arch)
            .and_then(|filter| filter.remove_arch(ScmpArch::X8664))
            .map_err(SeccompProfileError::at("architectures"))?;
    }
    for (index, rule) in profile.syscalls().iter().flatten().enumerate() {
        let action = action(rule.action(), rule.errno_ret())?;
        // libseccomp refuses a rule that says what the default says.
        if action != default {
            add(&mut filter, action, rule, index)?;
        }
    }
    export(&filter)
}

fn add(
    filter: &mut ScmpFilterContext,
    action: ScmpAction,
    rule: &LinuxSyscall,
    index: usize,
) -> Result<(), SeccompProfileError> {
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
        result.map_err(SeccompProfileError::at(format!(
            "syscalls[{index}]: {name}"
        )))?;
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

fn action(
    action: LinuxSeccompAction,
    errno: Option<u32>,
) -> Result<ScmpAction, SeccompProfileError> {
    let number = errno.unwrap_or(libc::EPERM.unsigned_abs());
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => {
            ScmpAction::KillThread
        }
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(number.cast_signed()),
        LinuxSeccompAction::ScmpActTrace => ScmpAction::Trace(
            u16::try_from(number).map_err(|_| SeccompProfileError::Trace(number))?,
        ),
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActNotify => return Err(SeccompProfileError::Notify),
    })
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

fn export(filter: &ScmpFilterContext) -> Result<Vec<Instruction>, SeccompProfileError> {
    let memory = memfd_create("seccomp", MemfdFlags::CLOEXEC).map_err(io::Error::from)?;
    filter
        .export_bpf(&memory)
        .map_err(SeccompProfileError::at("export"))?;
    let mut file = std::fs::File::from(memory);
    file.rewind()?;
    let mut program = Vec::new();
    file.take(LONGEST).read_to_end(&mut program)?;
    let (instructions, _) = program.as_chunks();
    Ok(instructions
        .iter()
        .copied()
        .map(u64::from_ne_bytes)
        .collect())
}

#[cfg(test)]
mod tests;
