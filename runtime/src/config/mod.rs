//! hull's configuration: one TOML file for the host, and what annotations of a container may change.
//!
//! `keys.rs` has the table of keys: what is printed of each, and the sample in `docs/hull.toml`, come from
//! there. What is stronger wins: the command line, then a container's annotations `io.hull.KEY`, as far
//! as the file's `annotations` allow them, then the file, then the defaults.

mod annotations;
mod file;
mod keys;
mod policy;

use std::collections::HashMap;
use std::num::NonZeroU8;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use annotations::{AnnotationError, PREFIX as ANNOTATION_PREFIX};
pub use file::ConfigError;

use crate::types::Boot;
pub use keys::MIN_MEMORY;
use keys::{log_size, memory, seconds, settable, slots, vcpus};
pub use policy::{HostNamespaces, PrivilegedDevices};

/// What is configured; each field is a key of the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How long a guest may take to come up, in seconds.
    #[serde(deserialize_with = "seconds")]
    pub boot_timeout: u32,
    /// The guest's kernel; empty is the built-in one.
    pub kernel: PathBuf,
    /// The guest's initramfs; empty is the built-in one.
    pub initramfs: PathBuf,
    /// Words for the end of the kernel's command line.
    pub kernel_params: String,
    /// The most vCPUs of a container without a CPU limit.
    #[serde(deserialize_with = "vcpus")]
    pub default_vcpus: NonZeroU8,
    /// The most vCPUs of any container.
    #[serde(deserialize_with = "vcpus")]
    pub max_vcpus: NonZeroU8,
    /// The memory of a VM without a memory limit, in MiB.
    #[serde(deserialize_with = "memory")]
    pub default_memory: u32,
    /// The most memory of any VM, in MiB.
    #[serde(deserialize_with = "memory")]
    pub max_memory: u32,
    /// What a guest's kernel and agent get beside the container's memory limit, in MiB.
    pub guest_memory_allowance: u16,
    /// What the host's cgroup of a VM lets its process have beside the guest's memory, in MiB.
    pub vm_memory_allowance: u16,
    /// The most of a guest's console that is kept, in KiB.
    #[serde(deserialize_with = "log_size")]
    pub console_log_size: u32,
    /// Whether a VM shares a processor's core with no other process.
    pub core_scheduling: bool,
    /// How many disks a VM can be given for further containers in it.
    #[serde(deserialize_with = "slots")]
    pub disk_slots: u8,
    /// How many network interfaces a VM can be given beside those that are there when it is created.
    #[serde(deserialize_with = "slots")]
    pub nic_slots: u8,
    /// Whether the host's kernel moves the packets of VMs' interfaces (vhost-net), where it can.
    pub vhost_net: bool,
    /// Whether engines' default AppArmor profiles are taken as held by what a VM has in their place.
    pub apparmor_defaults: bool,
    /// What becomes of containers that are to share namespaces of the host.
    pub host_namespaces: HostNamespaces,
    /// What becomes of the devices of privileged containers.
    pub privileged_devices: PrivilegedDevices,
    /// Whether containers reach UNIX sockets of the host in their bind mounts.
    pub volume_sockets: bool,
    /// The keys that a container's annotations may set.
    #[serde(deserialize_with = "settable")]
    pub annotations: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        const FOUR: NonZeroU8 = NonZeroU8::new(4).expect("not zero");
        Self {
            boot_timeout: 30,
            kernel: PathBuf::new(),
            initramfs: PathBuf::new(),
            kernel_params: String::new(),
            default_vcpus: FOUR, // each costs time at boot
            max_vcpus: keys::MAX_VCPUS,
            default_memory: 2048, // the host gives it page by page as it is used
            max_memory: keys::MAX_MEMORY,
            guest_memory_allowance: 48,
            vm_memory_allowance: 64,
            console_log_size: 256,
            core_scheduling: false, // it leaves half of a core empty wherever a VM has one runnable thread
            disk_slots: 0,          // each is a thread of the VM process, and is probed at boot
            nic_slots: 4,           // they share a thread, and each is probed at boot
            vhost_net: true,
            apparmor_defaults: true, // or no engine's container would run on Debian or Ubuntu
            host_namespaces: HostNamespaces::default(),
            privileged_devices: PrivilegedDevices::default(),
            volume_sockets: false, // what a socket gives is nobody's to judge but the operator's
            annotations: Vec::new(),
        }
    }
}

/// Where the configuration comes from: a file, and what is stronger than it.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The file; without one, the default, if it is there.
    pub file: Option<PathBuf>,
    /// This kernel for the guest.
    pub kernel: Option<PathBuf>,
    /// This initramfs for the guest.
    pub initramfs: Option<PathBuf>,
    /// How long a guest may take to come up, in seconds.
    pub boot_timeout: Option<u32>,
}

impl Settings {
    /// The configuration in force.
    ///
    /// # Errors
    /// When the file is none.
    pub fn load(&self) -> Result<Config, ConfigError> {
        Ok(self.over(Config::load(self.file.as_deref())?))
    }

    /// The configuration in force for a container with these annotations.
    ///
    /// # Errors
    /// When the file is none, or one of the annotations is refused.
    pub fn for_container(
        &self,
        annotations: &HashMap<String, String>,
    ) -> Result<Config, ConfigError> {
        let config = Config::load(self.file.as_deref())?;
        Ok(self.over(config.for_container(annotations)?))
    }

    fn over(&self, mut config: Config) -> Config {
        if let Some(kernel) = &self.kernel {
            config.kernel.clone_from(kernel);
        }
        if let Some(initramfs) = &self.initramfs {
            config.initramfs.clone_from(initramfs);
        }
        if let Some(seconds) = self.boot_timeout {
            config.boot_timeout = seconds;
        }
        config
    }
}

impl Config {
    /// How guests are booted.
    pub fn boot(&self) -> Boot {
        let named = |path: &Path| (!path.as_os_str().is_empty()).then(|| path.to_owned());
        Boot {
            kernel: named(&self.kernel),
            initramfs: named(&self.initramfs),
        }
    }
}
