//! The network of a sandbox: what an engine has put into its network namespace on the host is connected to its VM, and
//! told to its agent.
//!
//! Engines do their part at different times: before `create` (podman, CNI plugins), in hooks of `create` (docker up to
//! 25), or between `create` and `start`, by the pid that `state` names (docker since 26, podman with user namespaces).
//! So the namespace is looked into at the end of `create`, and again at `start` if it is the VM process's own. What
//! comes later is a process's to follow that `start` leaves ([`crate::sandbox::Follower`]).

use std::collections::HashSet;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use hull_vmm::virtio::net::pairs_for;
use oci_spec::runtime::{LinuxNetDevice, Spec};
use rustix::fs::{CWD, Mode, OFlags, Stat, fstat, fstatfs, openat, stat};

use super::Error;
use super::follower::is_network_followed;
use super::hooks::{Hooks, Stage};
use crate::chain::chain;
use crate::config::Config;
use crate::host::{Privilege, ProcessId, is_same_file};
use crate::network::{
    self, Interface, Namespace, disconnect, disconnect_all, move_into, read, update_local_access,
};
use crate::sandbox::{BlockingAgent, ConnectedNic, GuestNetwork, network_of, room_beside};
use crate::spec::{self, Network, Plan, SpecError};
use crate::store::{
    ContainerDir, NamedNamespace, Nic, SandboxDir, SandboxNetwork, SandboxRecord, State,
};

/// NSFS_MAGIC of linux/magic.h: the file system that namespaces are files of.
const NSFS_MAGIC: libc::__fsword_t = 0x6e73_6673;

/// A sandbox's network, before anything is made of it.
#[derive(Default)]
pub(super) struct PlannedNetwork {
    /// What is to be in its record.
    pub record: Option<SandboxNetwork>,
    /// How many interfaces it may have.
    pub slots: u8,
}

impl PlannedNetwork {
    /// What config.json asks for. In a user namespace that hull makes itself, nobody puts an interface.
    pub(super) fn of(plan: &Plan, spec: &Spec, config: &Config) -> Result<Self, Error> {
        let in_user_namespace = plan.user_namespace.is_some();
        let devices: Vec<_> = net_devices(spec).collect();
        let named = match &plan.network {
            _ if in_user_namespace && !devices.is_empty() => {
                let why = "an ordinary user can't move the host's network interfaces; remove it";
                return Err(SpecError::invalid("linux.netDevices", why).into());
            }
            Network::Creators => return Ok(Self::default()),
            Network::New if in_user_namespace => return Ok(Self::default()),
            Network::New => None,
            Network::Named(namespace) => {
                let file = identity(namespace).map_err(Error::NetworkNamespace)?;
                let path = spec::network_path(spec).map(|(_, path)| path.to_owned());
                path.map(|path| NamedNamespace { path, file })
            }
        };
        let needed = plan.interfaces + devices.len();
        let others = plan.disks.len() + usize::from(config.disk_slots);
        let spare = room_beside(others + needed).min(config.nic_slots.into());
        let slots = needed + spare;
        Ok(Self {
            record: Some(SandboxNetwork {
                named,
                vhost: config.vhost_net,
                pairs: pairs_for(plan.sizing.vcpus),
                nics: Vec::new(),
                followed: false,
                resolver: false,
            }),
            slots: u8::try_from(slots).unwrap_or(u8::MAX),
        })
    }
}

/// Moves what `linux.netDevices` of a config.json lists into a sandbox's namespace.
///
/// # Errors
/// When one isn't there, or can't be moved. Those that were moved before stay, as with runc: they are the host's again
/// when the namespace ends, as far as they are of hardware.
pub(super) fn move_devices(spec: &Spec, sandbox: &SandboxRecord) -> Result<(), Error> {
    let mut devices = net_devices(spec).peekable();
    if devices.peek().is_none() {
        return Ok(());
    }
    let namespace = Namespace::from(namespace_of_vm(sandbox).map_err(Error::NetworkNamespace)?);
    for (name, device) in devices {
        let new_name = device.name().as_deref().filter(|name| !name.is_empty());
        move_into(&namespace, name, new_name).map_err(|source| Error::NetDevice {
            name: name.clone(),
            source,
        })?;
    }
    Ok(())
}

/// The interfaces that a config.json lists, by their names on the host.
pub(super) fn net_devices(spec: &Spec) -> impl Iterator<Item = (&String, &LinuxNetDevice)> {
    let linux = spec.linux().as_ref();
    let devices = linux.and_then(|linux| linux.net_devices().as_ref());
    devices.into_iter().flatten()
}

/// Whether anything can be in a sandbox's namespace at the end of `create`. That of the VM process itself is new, and
/// only hooks have been told of it.
pub(super) fn may_have_interfaces(sandbox: &SandboxRecord, spec: &Spec) -> bool {
    let is_named = |own: &SandboxNetwork| own.named.is_some();
    sandbox.network.as_ref().is_some_and(is_named)
        || net_devices(spec).next().is_some()
        || Hooks::of(spec).any_of(&Stage::OF_CREATE)
}

/// What is in a sandbox's namespace, with the taps of interfaces that its VM doesn't have yet.
pub(super) struct ConnectedNetwork {
    namespace: Namespace,
    there: network::Network,
    nics: Vec<ConnectedNic>,
}

impl ConnectedNetwork {
    /// Connects those interfaces of a sandbox's namespace that aren't connected yet, to taps of their own.
    ///
    /// # Errors
    /// When one can't be connected. The record, on disk too, has all that were.
    pub(super) fn of(files: &SandboxDir, sandbox: &mut SandboxRecord) -> Result<Self, Error> {
        let namespace = Namespace::from(namespace_of_vm(sandbox).map_err(Error::NetworkNamespace)?);
        // One that is gone again stays in the record: its slot is still to be emptied.
        let nics = sandbox.network.iter().flat_map(|own| &own.nics);
        let connected: Vec<u32> = nics.map(|nic| nic.index).collect();
        let there = read(&namespace, &connected)?;
        let mut nics = Vec::new();
        for interface in &there.interfaces {
            nics.extend(connect_interface(files, sandbox, &namespace, interface)?);
        }
        if Privilege::own().has_forwarders_in_namespaces()
            && let Err(e) = update_local_access(&namespace, &there.interfaces)
        {
            log::warn!("{}", chain(&e));
        }
        Ok(Self {
            namespace,
            there,
            nics,
        })
    }

    /// Gives the VM its NICs, in slots that the guest is to probe when it is told: one that it finds at its boot is
    /// first in the guest's own network namespace, and takes some 20 ms to be moved.
    ///
    /// # Errors
    /// When the VM process doesn't take one. The record, on disk too, has all that it has.
    pub(super) fn hand_over(
        self,
        files: &SandboxDir,
        sandbox: &mut SandboxRecord,
    ) -> Result<GuestNetwork, Error> {
        for nic in self.nics {
            let index = nic.interface();
            let slot = nic.hand_over(&files.socket_path(), &self.namespace)?;
            set_slot(sandbox, index, Some(slot));
            files.save(sandbox)?;
        }
        let nics = sandbox.network.as_ref().map(|own| &own.nics[..]);
        Ok(GuestNetwork::of(&self.there, nics.unwrap_or_default()))
    }
}

/// Connects an interface, if it isn't.
fn connect_interface(
    files: &SandboxDir,
    sandbox: &mut SandboxRecord,
    namespace: &Namespace,
    interface: &Interface,
) -> Result<Option<ConnectedNic>, Error> {
    let index = interface.index;
    let Some(own) = &sandbox.network else {
        return Ok(None);
    };
    let is_connected = |nic: &Nic| nic.index == index && nic.slot.is_some();
    if own.nics.iter().any(is_connected) {
        return Ok(None);
    }
    let (vhost, pairs) = (own.vhost, own.pairs);
    // On disk before anything is made, so that `delete` knows of it, whatever becomes of this process.
    set_slot(sandbox, index, None);
    files.save(sandbox)?;
    Ok(Some(ConnectedNic::connect(
        namespace, interface, vhost, pairs,
    )?))
}

fn set_slot(sandbox: &mut SandboxRecord, index: u32, slot: Option<u8>) {
    if let Some(own) = &mut sandbox.network {
        own.nics.retain(|nic| nic.index != index);
        own.nics.push(Nic { index, slot });
    }
}

/// Whether a process is in this network namespace.
pub(super) fn is_in_network(process: ProcessId, namespace: &Stat) -> bool {
    let own = stat(format!("/proc/{}/ns/net", process.pid));
    own.is_ok_and(|own| is_same_file(&own, namespace))
}

/// The network namespace that a VM's process is in.
pub(super) fn namespace_of_vm(sandbox: &SandboxRecord) -> io::Result<OwnedFd> {
    let gone = || io::Error::from(io::ErrorKind::NotFound);
    network_of(sandbox.vmm.ok_or_else(gone)?)
}

/// Connects what an engine has put into the VM process's own namespace since `create`, and tells the agent of all.
///
/// # Errors
/// As with [`ConnectedNetwork`], and when the agent can't make it.
pub(super) fn connect_new_interfaces(
    dir: &ContainerDir,
    state: &mut State,
    agent: &BlockingAgent,
) -> Result<(), Error> {
    if is_network_followed(&state.sandbox)
        || state.own_network().is_none_or(|own| own.named.is_some())
    {
        return Ok(());
    }
    let had = state.own_network().is_some_and(|own| !own.nics.is_empty());
    let files = dir.own_sandbox();
    let connected = ConnectedNetwork::of(&files, &mut state.sandbox)?;
    let network = connected.hand_over(&files, &mut state.sandbox)?;
    if !had && network.is_empty() {
        return Ok(());
    }
    agent
        .ask(|agent| agent.update_network(dir.id(), network))
        .map_err(Error::ContainerProcess)
}

/// Takes away what is left of a sandbox, whose VM has ended, in a namespace that outlives it. Nobody may connect
/// anything in it any more.
///
/// # Errors
/// When the kernel refuses. A namespace that isn't where it was any more is its owner's business.
pub(super) fn disconnect_interfaces(
    network: Option<&SandboxNetwork>,
    files: &SandboxDir,
) -> Result<(), Error> {
    let Some(SandboxNetwork {
        named: Some(named),
        nics,
        ..
    }) = network
    else {
        return Ok(());
    };
    let mut indexes: HashSet<u32> = nics.iter().map(|nic| nic.index).collect();
    indexes.extend(files.connected_interfaces());
    if indexes.is_empty() {
        return Ok(());
    }
    let Some(namespace) = open_if_there(&named.path) else {
        return Ok(());
    };
    if identity(&namespace).map_err(Error::NetworkNamespace)? != named.file {
        return Ok(());
    }
    let namespace = Namespace::from(namespace);
    for index in indexes {
        disconnect(&namespace, index)?;
    }
    Ok(())
}

/// Takes away what VMs that have ended have left in the namespace that a file names, if it still does.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn disconnect_namespace(path: &Path) -> Result<(), Error> {
    let Some(file) = open_if_there(path) else {
        return Ok(());
    };
    let is_namespace = fstatfs(&file).is_ok_and(|system| system.f_type == NSFS_MAGIC);
    match is_namespace {
        true => Ok(disconnect_all(&Namespace::from(file))?),
        false => Ok(()),
    }
}

/// Opens what may be a namespace, and may be anything else by now.
fn open_if_there(path: &Path) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty()).ok()
}

/// By which a namespace is known, as long as it is there.
fn identity(namespace: &OwnedFd) -> io::Result<(u64, u64)> {
    let file = fstat(namespace)?;
    Ok((file.st_dev, file.st_ino))
}
