//! `linux.memoryPolicy`: the NUMA policy of the host by which the VM's memory is allocated.
#![allow(unsafe_code)] // set_mempolicy(2), which no crate wraps

use std::io;

use oci_spec::runtime::{LinuxMemoryPolicy, MemoryPolicyFlagType, MemoryPolicyModeType};
use serde::{Deserialize, Serialize};

use super::SpecError;
use super::cpulist::CpuList;

/// What set_mempolicy(2) takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPolicy {
    /// `MPOL_*`, with `MPOL_F_*` in it.
    mode: i32,
    /// One bit a node; empty for no nodes.
    nodes: Vec<u64>,
}

impl MemoryPolicy {
    /// Reads the field.
    ///
    /// # Errors
    /// When its nodes are no list. Whether policy and nodes go together, the kernel says.
    pub fn of(policy: &LinuxMemoryPolicy) -> Result<Self, SpecError> {
        let flags = policy.flags().iter().flatten().map(flag);
        let nodes = policy.nodes().as_deref().unwrap_or_default();
        let nodes: CpuList = nodes.parse().map_err(|_| {
            let why = format!("{nodes:?} is not a list of nodes, like \"0,2-3\"");
            SpecError::invalid("linux.memoryPolicy.nodes", why)
        })?;
        Ok(Self {
            mode: flags.fold(mode(policy.mode()), |all, flag| all | flag),
            nodes: nodes.bits(),
        })
    }

    /// Makes it the policy of the calling thread, and of what it starts.
    ///
    /// # Errors
    /// When the host's kernel has no such policy (EINVAL), or no NUMA at all (ENOSYS).
    pub fn apply(&self) -> io::Result<()> {
        // The kernel takes one bit less than it is told.
        let bits = match self.nodes.len() {
            0 => 0,
            words => words * 64 + 1,
        };
        let nodes = if bits == 0 {
            std::ptr::null()
        } else {
            self.nodes.as_ptr()
        };
        // SAFETY: the kernel reads `bits - 1` bits, which is all of the words, which outlive the call.
        match unsafe { libc::syscall(libc::SYS_set_mempolicy, self.mode, nodes, bits) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }
}

/// <linux/mempolicy.h>
fn mode(mode: MemoryPolicyModeType) -> i32 {
    match mode {
        MemoryPolicyModeType::MpolDefault => 0,
        MemoryPolicyModeType::MpolPreferred => 1,
        MemoryPolicyModeType::MpolBind => 2,
        MemoryPolicyModeType::MpolInterleave => 3,
        MemoryPolicyModeType::MpolLocal => 4,
        MemoryPolicyModeType::MpolPreferredMany => 5,
        MemoryPolicyModeType::MpolWeightedInterleave => 6,
    }
}

fn flag(flag: &MemoryPolicyFlagType) -> i32 {
    match flag {
        MemoryPolicyFlagType::MpolFNumaBalancing => 1 << 13,
        MemoryPolicyFlagType::MpolFRelativeNodes => 1 << 14,
        MemoryPolicyFlagType::MpolFStaticNodes => 1 << 15,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(json: &str) -> Result<MemoryPolicy, SpecError> {
        MemoryPolicy::of(&serde_json::from_str(json).expect("a policy"))
    }

    #[test]
    fn nodes_are_bits_and_flags_go_with_the_mode() {
        let json = r#"{"mode":"MPOL_BIND","nodes":"0,2,64","flags":["MPOL_F_STATIC_NODES"]}"#;
        let policy = policy(json).expect("a policy");
        assert_eq!((policy.mode, policy.nodes), (0x8002, vec![5, 1]));
    }

    #[test]
    fn without_nodes_there_are_no_bits() {
        let policy = policy(r#"{"mode":"MPOL_DEFAULT"}"#).expect("a policy");
        assert_eq!((policy.mode, policy.nodes), (0, vec![]));
    }

    #[test]
    fn what_is_no_list_is_refused() {
        let said = policy(r#"{"mode":"MPOL_BIND","nodes":"x"}"#).expect_err("refused");
        assert!(
            said.to_string().contains("linux.memoryPolicy.nodes"),
            "{said}"
        );
    }
}
