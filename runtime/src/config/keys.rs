//! The table of the configuration's keys, what values they take, and how a configuration is printed.

use std::fmt::{self, Write as _};
use std::num::NonZeroU8;

use serde::de::{Deserialize as _, Deserializer, Error as _};
use serde_json::Value;

use super::Config;

/// The most vCPUs that a VM can have.
pub const MAX_VCPUS: NonZeroU8 = NonZeroU8::new(64).expect("not zero");

/// The least memory that a guest starts with, in MiB.
pub const MIN_MEMORY: u32 = 128;

/// The most memory that a VM can have, in MiB: 1 TiB.
pub const MAX_MEMORY: u32 = 1 << 20;

/// A key, and what users are told about it.
#[derive(Debug)]
pub struct Key {
    /// Its name in the file, and behind `io.hull.` in annotations.
    pub name: &'static str,
    /// What it means, in lines as long as they are printed.
    about: &'static str,
}

const fn key(name: &'static str, about: &'static str) -> Key {
    Key { name, about }
}

/// The key that annotations never set.
pub const ANNOTATIONS: &str = "annotations";

/// Every key, in the order in which they are printed.
pub const KEYS: &[Key] = &[
    key(
        "boot_timeout",
        "Seconds that a guest may take to come up (--boot-timeout).",
    ),
    key(
        "kernel",
        "The guest's kernel, an uncompressed ELF file (--kernel); empty: the built-in one.",
    ),
    key(
        "initramfs",
        "The guest's initramfs, a cpio archive (--initramfs); empty: the built-in one.",
    ),
    key(
        "kernel_params",
        "Words for the end of the guest kernel's command line.",
    ),
    key(
        "default_vcpus",
        "vCPUs of a container without a CPU limit, if the host has as many CPUs.",
    ),
    key("max_vcpus", "The most vCPUs of any container: 1 to 64."),
    key(
        "default_memory",
        "Memory of a VM without a memory limit, in MiB: 128 or more. The host gives a page when it is\n\
         first used.",
    ),
    key(
        "max_memory",
        "The most memory of any VM, in MiB: when it is created, and when it grows (update --memory).",
    ),
    key(
        "guest_memory_allowance",
        "What a guest's kernel and agent get beside the container's memory limit, in MiB. 1/64 of the\n\
         limit comes on top, for the kernel's account of it.",
    ),
    key(
        "vm_memory_allowance",
        "What the host's cgroup of a VM with a memory limit lets its process have beside the guest's\n\
         memory, in MiB: for the process itself, and what the host's kernel keeps for its files.",
    ),
    key(
        "console_log_size",
        "The most that is kept of what a guest writes to its console, in KiB: 65536 at most.",
    ),
    key(
        "core_scheduling",
        "Whether a VM shares no processor core with other processes, where cores have several threads:\n\
         true or false. It shuts side channels between siblings, and costs processor time.",
    ),
    key(
        "disk_slots",
        "How many block devices of the host a VM can be given while it runs, for further containers in it\n\
         (create --sandbox): 0 to 16. Each stays in its slot until the VM ends.",
    ),
    key(
        "nic_slots",
        "How many network interfaces a VM can be given beside those that its network namespace has when it\n\
         is created: 0 to 16. docker gives all of a container's between create and start.",
    ),
    key(
        "vhost_net",
        "Whether the host's kernel moves the packets of VMs' network interfaces by /dev/vhost-net, where it\n\
         can: true or false. Otherwise the VM's process does.",
    ),
    key(
        "apparmor_defaults",
        "Whether engines' default AppArmor profiles (docker-default, containers-default-*, crio-default*,\n\
         cri-containerd.apparmor.d) are taken: true or false. Guests have no AppArmor; what holds in their\n\
         place is the VM, and config.json's masked paths, capabilities and seccomp filter.",
    ),
    key(
        "host_namespaces",
        "What becomes of an engine's container that is to share namespaces of the host (--network host,\n\
         --pid host and the like), which a VM can't: \"refuse\" it, \"refuse-network\" (refuse it for the\n\
         network, warn of others), or \"isolate\": warn, and it has the guest's, with lo alone.",
    ),
    key(
        "privileged_devices",
        "What a privileged container has of the devices of the host that engines list for it: \"guest\"\n\
         (those that a guest has), \"guest-and-disks\" (the host's block devices, too), or \"refuse\" (it is\n\
         refused for those that a guest can't have).",
    ),
    key(
        "volume_sockets",
        "Whether programs in a container can connect to UNIX sockets of the host that lie in its bind mounts\n\
         (stream sockets: docker.sock, an ssh-agent's, a database's): true or false. Who serves such a socket\n\
         may have more to give than the VM's wall leaves: the socket of docker is the host's root.",
    ),
    key(
        ANNOTATIONS,
        "Keys of this file that a container's annotations may set, for that container: with\n\
         [\"default_memory\"], the annotation io.hull.default_memory does. Others are refused.",
    ),
];

/// Whether an annotation could set a key of this name.
pub fn is_settable(name: &str) -> bool {
    name != ANNOTATIONS && KEYS.iter().any(|key| key.name == name)
}

impl fmt::Display for Config {
    /// As the TOML file that says it, with what each key means.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let values = serde_json::to_value(self).map_err(|_| fmt::Error)?;
        f.write_str(
            "# hull's configuration. It is read from /etc/hull/hull.toml, or from --config FILE.\n",
        )?;
        for Key { name, about } in KEYS {
            f.write_char('\n')?;
            for line in about.lines() {
                writeln!(f, "# {line}")?;
            }
            writeln!(f, "{name} = {}", InToml(&values[name]))?;
        }
        Ok(())
    }
}

/// A value as TOML: numbers, lists and most strings are written as JSON writes them.
struct InToml<'a>(&'a Value);

impl fmt::Display for InToml<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The one character that TOML wants escaped and JSON doesn't.
        f.write_str(&self.0.to_string().replace('\u{7f}', "\\u007f"))
    }
}

/// A number between two, which may be the same.
fn within<'de, D: Deserializer<'de>>(from: D, least: u32, most: u32) -> Result<u32, D::Error> {
    let number = u32::deserialize(from)?;
    if (least..=most).contains(&number) {
        return Ok(number);
    }
    let why = format!("{number} is not between {least} and {most}");
    Err(D::Error::custom(why))
}

/// A time limit: a second at least, a day at most.
pub fn seconds<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    within(from, 1, 86_400)
}

/// A number of slots for devices.
pub fn slots<'de, D: Deserializer<'de>>(from: D) -> Result<u8, D::Error> {
    let number = within(from, 0, 16)?;
    Ok(u8::try_from(number).unwrap_or(u8::MAX))
}

/// A number of vCPUs.
pub fn vcpus<'de, D: Deserializer<'de>>(from: D) -> Result<NonZeroU8, D::Error> {
    let number = within(from, 1, MAX_VCPUS.get().into())?;
    let number = u8::try_from(number).ok().and_then(NonZeroU8::new);
    Ok(number.unwrap_or(MAX_VCPUS))
}

/// A VM's memory, in MiB.
pub fn memory<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    within(from, MIN_MEMORY, MAX_MEMORY)
}

/// The size of a console log, in KiB: 64 MiB at most, as it lies where the state does, on tmpfs.
pub fn log_size<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    within(from, 0, 64 << 10)
}

/// Names of keys that annotations can set.
pub fn settable<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    let names = Vec::<String>::deserialize(from)?;
    match names.iter().find(|name| !is_settable(name)) {
        Some(name) => Err(D::Error::custom(format!(
            "{name:?} is not a key that an annotation can set"
        ))),
        None => Ok(names),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_a_key_and_every_key_a_field() {
        let values = serde_json::to_value(Config::default()).expect("JSON");
        let fields: Vec<_> = values.as_object().expect("an object").keys().collect();
        let keys: Vec<_> = KEYS.iter().map(|key| key.name).collect();
        assert_eq!(fields, keys);
    }

    #[test]
    fn the_sample_is_the_default_configuration() {
        assert_eq!(
            Config::default().to_string(),
            include_str!("../../../docs/hull.toml"),
            "docs/hull.toml is what `hull config` prints where there is no configuration"
        );
    }

    #[test]
    fn what_is_printed_is_read_again() {
        let config = Config {
            kernel: "/a \"b\"\\\u{7f}\n\u{1}é".into(),
            annotations: vec!["kernel_params".to_owned()],
            max_memory: 4096,
            ..Config::default()
        };
        assert_eq!(toml::from_str::<Config>(&config.to_string()), Ok(config));
    }
}
