//! Seccomp filters, one for each role: a system call that isn't in the role's table kills the
//! process.
//!
//! The tables in [`tables`] and the architecture's own ([`arch_syscalls`]) are the whole policy. A
//! filter allows a system call by its number, and where a table says so only with certain
//! arguments. What a pointer argument points to can't be checked.

mod tables;

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};

use super::{Error, Role};
use crate::arch::arch_syscalls;

/// A system call that a table allows.
#[derive(Clone, Copy, Debug)]
struct AllowedCall {
    /// Its number.
    call: libc::c_long,
    /// The condition on its arguments.
    arguments: ArgumentCheck,
}

/// A condition on arguments. Only their lower 32 bits are compared: all arguments that are checked
/// are ints.
#[derive(Clone, Copy, Debug)]
enum ArgumentCheck {
    /// Any arguments.
    Any,
    /// The argument with this index has one of these values; and for each pair, that with this index has this value.
    OneOf(u8, &'static [u32], &'static [(u8, u32)]),
    /// For each pair: the argument with this index has none of these bits set.
    WithoutBits(&'static [(u8, u32)]),
    /// The argument with this index is the pid of this process.
    OwnPid(u8),
}

const fn any(call: libc::c_long) -> AllowedCall {
    AllowedCall {
        call,
        arguments: ArgumentCheck::Any,
    }
}

const fn one_of(call: libc::c_long, argument: u8, values: &'static [u32]) -> AllowedCall {
    one_of_with(call, argument, values, &[])
}

/// The same, and for each pair, the argument with this index has this value.
const fn one_of_with(
    call: libc::c_long,
    argument: u8,
    values: &'static [u32],
    others: &'static [(u8, u32)],
) -> AllowedCall {
    AllowedCall {
        call,
        arguments: ArgumentCheck::OneOf(argument, values, others),
    }
}

const fn without_bits(call: libc::c_long, arguments: &'static [(u8, u32)]) -> AllowedCall {
    AllowedCall {
        call,
        arguments: ArgumentCheck::WithoutBits(arguments),
    }
}

const fn own_pid(call: libc::c_long, argument: u8) -> AllowedCall {
    AllowedCall {
        call,
        arguments: ArgumentCheck::OwnPid(argument),
    }
}

impl AllowedCall {
    fn rules(&self) -> Result<Vec<SeccompRule>, BackendError> {
        let condition = |argument, operator, value| {
            SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
        };
        let rule = |argument, operator, value| {
            SeccompRule::new(vec![condition(argument, operator, value)?])
        };
        match self.arguments {
            ArgumentCheck::Any => Ok(Vec::new()),
            ArgumentCheck::OneOf(argument, values, others) => {
                let equal = |(argument, value): &(u8, u32)| {
                    condition(*argument, SeccompCmpOp::Eq, u64::from(*value))
                };
                let with_others = |value: &u32| {
                    let all = [(argument, *value)];
                    let conditions = all.iter().chain(others).map(equal);
                    SeccompRule::new(conditions.collect::<Result<_, _>>()?)
                };
                values.iter().map(with_others).collect()
            }
            ArgumentCheck::WithoutBits(arguments) => {
                let without = |(argument, bits): &(u8, u32)| {
                    condition(*argument, SeccompCmpOp::MaskedEq(u64::from(*bits)), 0)
                };
                let conditions = arguments.iter().map(without);
                Ok(vec![SeccompRule::new(
                    conditions.collect::<Result<_, _>>()?,
                )?])
            }
            ArgumentCheck::OwnPid(argument) => {
                let pid = std::process::id().into();
                Ok(vec![rule(argument, SeccompCmpOp::Eq, pid)?])
            }
        }
    }
}

/// Installs the filter of `role` in the calling thread.
pub(super) fn install(role: Role) -> Result<(), Error> {
    let program = compile(role).map_err(|source| Error::Compile(role, source))?;
    seccompiler::apply_filter(&program).map_err(Error::Install)
}

/// The system calls that `role` may make.
fn table(role: Role) -> impl Iterator<Item = AllowedCall> {
    let own: [&[AllowedCall]; 2] = match role {
        Role::Main => [tables::MAIN, &[]],
        Role::Vcpu => [tables::VCPU, &[]],
        Role::Filesystem => [tables::FILESYSTEM, &[]],
        Role::FilesystemAndSockets => [tables::FILESYSTEM, tables::VOLUME_SOCKETS],
        Role::Block => [tables::BLOCK, &[]],
        Role::DiskSlot => [tables::BLOCK, tables::DISK_SLOT],
        Role::Net => [tables::NET, tables::NET_IOCTLS],
        Role::NetSlot => [tables::NET, tables::NET_SLOT],
        Role::StandIn => [tables::AGENTS_CLIENT, tables::STAND_IN],
        Role::NetworkFollower => [tables::AGENTS_CLIENT, tables::NETWORK_FOLLOWER],
        Role::Follower => [tables::AGENTS_CLIENT, tables::FOLLOWER],
        Role::OomReporter => [tables::OOM_REPORTER, &[]],
    };
    let own = own.into_iter().flatten();
    let processors = arch_syscalls(role).iter().map(|call| any(*call));
    tables::COMMON.iter().chain(own).copied().chain(processors)
}

fn compile(role: Role) -> Result<BpfProgram, BackendError> {
    let rules = table(role)
        .map(|allowed| Ok((allowed.call, allowed.rules()?)))
        .collect::<Result<BTreeMap<_, _>, BackendError>>()?;
    SeccompFilter::new(
        rules,
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        TargetArch::try_from(std::env::consts::ARCH)?,
    )?
    .try_into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_compiles() {
        for role in Role::ALL {
            let program = compile(role).expect("a filter");
            assert!(
                program.len() < 1024,
                "{role:?}: {} instructions",
                program.len()
            );
        }
    }

    #[test]
    fn no_call_is_listed_twice() {
        // The second would silently replace the first.
        for role in Role::ALL {
            let mut calls: Vec<_> = table(role).map(|allowed| allowed.call).collect();
            calls.sort_unstable();
            assert!(
                calls.windows(2).all(|pair| pair[0] != pair[1]),
                "{role:?}: {calls:?}"
            );
        }
    }

    #[test]
    fn only_virtio_fs_changes_files_other_than_their_bytes() {
        let changes = [
            libc::SYS_openat,
            libc::SYS_openat2,
            libc::SYS_linkat,
            libc::SYS_unlinkat,
            libc::SYS_renameat2,
            libc::SYS_ftruncate,
            libc::SYS_fchmod,
            libc::SYS_fchmodat,
            libc::SYS_fchown,
            libc::SYS_fchownat,
            libc::SYS_utimensat,
            libc::SYS_fsetxattr,
            libc::SYS_fremovexattr,
        ];
        for role in Role::ALL.into_iter().filter(|role| !role.serves_files()) {
            for allowed in table(role) {
                let opens = [Role::NetworkFollower, Role::OomReporter].contains(&role);
                if opens && allowed.call == libc::SYS_openat {
                    let ArgumentCheck::WithoutBits([(2, bits)]) = allowed.arguments else {
                        panic!("{allowed:?}: it could create files");
                    };
                    assert_eq!(bits & tables::NEW_FILE, tables::NEW_FILE);
                    continue;
                }
                if (role, allowed.call) == (Role::OomReporter, libc::SYS_unlinkat) {
                    let ArgumentCheck::OneOf(2, [bits], _) = allowed.arguments else {
                        panic!("{allowed:?}: it could remove files");
                    };
                    assert_eq!(*bits, libc::AT_REMOVEDIR as u32);
                    continue;
                }
                assert!(
                    !changes.contains(&allowed.call),
                    "{role:?}: {}",
                    allowed.call
                );
            }
        }
    }

    #[test]
    fn nothing_is_listed_that_would_open_the_jail() {
        let never = [
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_clone,
            libc::SYS_clone3,
            libc::SYS_fork,
            libc::SYS_vfork,
            libc::SYS_ptrace,
            libc::SYS_mount,
            libc::SYS_move_mount,
            libc::SYS_open_tree,
            libc::SYS_setns,
            libc::SYS_unshare,
            libc::SYS_bpf,
            libc::SYS_io_uring_setup,
            libc::SYS_kill,
            libc::SYS_open_by_handle_at,
            libc::SYS_name_to_handle_at,
            libc::SYS_userfaultfd,
            libc::SYS_pidfd_getfd,
            libc::SYS_process_vm_writev,
            libc::SYS_memfd_create,
        ];
        // The follower's sockets are of three families: by AF_UNIX only the VMM listens where it is, and by AF_INET it
        // reaches what its guest does. virtio-fs connects by the number of a descriptor.
        let connecting = [Role::NetworkFollower, Role::FilesystemAndSockets];
        let connects = [libc::SYS_socket, libc::SYS_connect];
        for role in Role::ALL {
            for allowed in table(role) {
                if connecting.contains(&role) && connects.contains(&allowed.call) {
                    continue;
                }
                if (role, allowed.call) == (Role::OomReporter, libc::SYS_clone) {
                    let ArgumentCheck::OneOf(0, flags, _) = allowed.arguments else {
                        panic!("{allowed:?}: it could make namespaces");
                    };
                    let harmless = (libc::CLONE_VM | libc::SIGCHLD) as u32;
                    assert!(flags.iter().all(|flags| flags & !harmless == 0));
                    continue;
                }
                assert!(!never.contains(&allowed.call), "{role:?}: {}", allowed.call);
            }
        }
    }
}
