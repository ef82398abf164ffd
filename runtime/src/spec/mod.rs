//! config.json: read, audit, split into the host's part and the guest's.
//!
//! [`load`] reads a bundle and takes it only if every field that it sets is enforced by somebody;
//! `fields.rs` has the table that says by whom, and [`audit_bundle`] tells it for a bundle. [`plan`] turns
//! the bundle into what is done about it: the shares, disks and the size of the VM on the host, and the
//! config.json that the agent gets.

mod apparmor;
mod audit;
mod bind;
mod bounds;
mod cpulist;
mod defaults;
mod disks;
#[cfg(test)]
mod engine_tests;
mod error;
mod fields;
mod guest_linux;
mod json;
mod memory_policy;
mod mount_options;
mod mounts;
mod namespaces;
mod network;
mod notify_socket;
mod pod;
mod policy;
mod privileged;
mod read;
mod reference;
mod refuse;
mod seccomp;
mod shm;
mod sizing;
mod sockets;
mod split;
#[cfg(test)]
mod tests;
mod update;
mod user_namespace;
mod validate;
mod view;

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;

pub use apparmor::without_profile;
pub use audit::{Finding, Verdict};
pub use cpulist::{CpuList, PinnedProcess};
pub use disks::Disk;
pub use error::SpecError;
pub use fields::{Enforcer, supports, supports_value};
pub use memory_policy::MemoryPolicy;
pub use mount_options::{
    flags as mount_flags, for_file_system, supported as supported_mount_options,
};
pub use mounts::{is_bind, within_root};
pub use namespaces::{NamespacePath, has_own_users, named as named_namespaces};
pub use network::{Network, is_hosts as is_hosts_network, path as network_path};
pub use pod::{is_first_of_pod, is_of_podman, named_sandbox};
pub use policy::{apply as apply_policy, is_of_engine};
pub use read::{audit_bundle, load, load_process, parse_process};
pub use reference::reference;
pub use seccomp::FilterCache;
pub use sizing::{Demand, has_memory_limit};
pub use split::{GuestSpec, Plan, plan};
pub use update::{Update, VmMemory, fits, memory_for_all, read_changes, update, warn_if_too_small};
pub use user_namespace::UserNamespace;
pub use validate::validate_process;

/// The version of the runtime-spec that hull implements.
pub const OCI_VERSION: &str = "1.3.0";

/// A bundle that hull takes.
#[derive(Debug)]
pub struct Bundle {
    /// The folder, opened with O_PATH.
    dir: OwnedFd,
    path: PathBuf,
    spec: Spec,
    /// The container's root, opened with O_PATH.
    rootfs: OwnedFd,
    rootfs_path: PathBuf,
}

impl Bundle {
    /// Where the bundle is: absolute, without symlinks.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the container's root is: absolute, without symlinks.
    pub fn rootfs(&self) -> &Path {
        &self.rootfs_path
    }

    /// The container's root, opened with O_PATH.
    pub fn rootfs_fd(&self) -> BorrowedFd<'_> {
        self.rootfs.as_fd()
    }

    /// Whether nothing may be changed in it.
    pub fn read_only_root(&self) -> bool {
        let root = self.spec.root().as_ref();
        root.and_then(|root| root.readonly()).unwrap_or(false)
    }

    /// The whole config.json.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// config.json's annotations.
    pub fn annotations(&self) -> HashMap<String, String> {
        self.spec.annotations().clone().unwrap_or_default()
    }
}
