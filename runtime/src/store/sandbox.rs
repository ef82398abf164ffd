//! A sandbox on disk: the record of its VM, the socket by which it is reached, and what its guest says.

use std::fs::File;
use std::io;
use std::num::NonZeroU8;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::folder::{Folder, files};
use super::{StoreError, StoreKey, interfaces};
use crate::cgroup::HostCgroup;
use crate::host::ProcessId;
use crate::types::{ContainerId, Sizing};

/// What of a console log is looked at for its last lines, in bytes.
const CONSOLE_END: u64 = 64 << 10;

/// The record on disk: `sandbox.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// The sandbox's id: its first container's.
    pub id: ContainerId,
    /// The VM's size.
    pub sizing: Sizing,
    /// The process that runs the VM; none until it has been launched.
    pub vmm: Option<ProcessId>,
    /// The host's cgroup that is the VM's alone, from before it is made.
    pub cgroup: Option<HostCgroup>,
    /// How its network namespace on the host is connected to the VM; not at all where that is its creator's.
    #[serde(default)]
    pub network: Option<SandboxNetwork>,
    /// The process that follows what happens on both sides, from `start` on, where there is one.
    #[serde(default)]
    pub follower: Option<ProcessId>,
    /// Whether the VM's containers reach UNIX sockets of the host in their bind mounts.
    #[serde(default)]
    pub volume_sockets: bool,
}

/// A sandbox's network namespace on the host, and what of it is connected to the VM.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SandboxNetwork {
    /// The namespace, where config.json names it: it outlives the VM. Else it is the VM process's own.
    pub named: Option<NamedNamespace>,
    /// Whether the host's kernel moves the packets, where it can.
    pub vhost: bool,
    /// The pairs of queues of each of the VM's network interfaces.
    #[serde(default = "one_pair")]
    pub pairs: NonZeroU8,
    /// The VM's network interfaces, each from before it is connected. What the follower connects is in a list of its own.
    pub nics: Vec<Nic>,
    /// Whether the sandbox's follower follows changes of it.
    #[serde(default)]
    pub followed: bool,
    /// Whether the container reaches a resolver that is in the namespace.
    #[serde(default)]
    pub resolver: bool,
}

/// What a VM has that an older hull has made.
fn one_pair() -> NonZeroU8 {
    NonZeroU8::MIN
}

/// A file that names a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedNamespace {
    /// As config.json has it.
    pub path: PathBuf,
    /// The file's device and inode, which are the namespace's.
    pub file: (u64, u64),
}

/// A network interface of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// The index of the interface on the host that it is connected to.
    pub index: u32,
    /// The slot that it is in; none until the VM has it.
    pub slot: Option<u8>,
}

impl SandboxRecord {
    /// What is known of a sandbox whose folder is gone, or another's by now.
    pub(super) fn gone(id: ContainerId, vmm: ProcessId) -> Self {
        Self {
            id,
            sizing: Sizing::SMALLEST,
            vmm: Some(vmm),
            cgroup: None,
            network: None,
            follower: None,
            volume_sockets: false,
        }
    }
}

/// What can still be read of a record that isn't whole, or that another version of hull has written.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Remains {
    /// The sandbox's id. All else is another sandbox's if this is another id.
    id: Option<ContainerId>,
    /// The process that runs the VM.
    pub vmm: Option<ProcessId>,
    /// The VM's cgroup.
    pub cgroup: Option<HostCgroup>,
    /// Its network.
    pub network: Option<SandboxNetwork>,
    /// Its follower.
    pub follower: Option<ProcessId>,
}

/// A sandbox's files, in the folder of its first container.
#[derive(Clone, Debug)]
pub struct SandboxDir {
    folder: Arc<Folder>,
}

impl SandboxDir {
    pub(super) fn new(folder: Arc<Folder>) -> Self {
        Self { folder }
    }

    /// The sandbox's id.
    pub fn id(&self) -> &ContainerId {
        &self.folder.id
    }

    /// How a process can name the store that the sandbox is in.
    ///
    /// # Errors
    /// When the kernel can't tell.
    pub fn store_key(&self) -> io::Result<StoreKey> {
        self.folder.store_key()
    }

    /// Reads the sandbox's record.
    ///
    /// # Errors
    /// When the sandbox is gone, or its record damaged.
    pub fn load(&self) -> Result<SandboxRecord, StoreError> {
        self.folder
            .read_record(files::SANDBOX, |record: &SandboxRecord| &record.id)
    }

    /// What can still be read of a damaged record; nothing at the worst. An older hull had all of it in the
    /// container's.
    pub fn remains(&self) -> Remains {
        let remains = |name| {
            let text = self.folder.read(name).unwrap_or_default();
            let remains: Remains = serde_json::from_slice(&text).unwrap_or_default();
            match &remains.id {
                Some(id) if *id != *self.id() => Remains::default(),
                _ => remains,
            }
        };
        let (own, older) = (remains(files::SANDBOX), remains(files::CONTAINER));
        Remains {
            id: own.id,
            vmm: own.vmm.or(older.vmm),
            cgroup: own.cgroup.or(older.cgroup),
            network: own.network,
            follower: own.follower,
        }
    }

    /// Replaces the sandbox's record: a reader sees the old one or the new one.
    ///
    /// # Errors
    /// When it can't be written; the old one then stays.
    pub fn save(&self, record: &SandboxRecord) -> Result<(), StoreError> {
        self.folder
            .write_record(files::SANDBOX, files::SANDBOX_NEW, record)
    }

    /// Makes the file that takes what the guest's kernel and agent say, or opens it.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn create_console_log(&self) -> Result<File, StoreError> {
        self.create(files::CONSOLE, OFlags::APPEND)
    }

    /// Makes the list of interfaces that the follower connects ([`ConnectedInterfaces`]), which is empty.
    ///
    /// # Errors
    /// When it can't be made.
    ///
    /// [`ConnectedInterfaces`]: super::ConnectedInterfaces
    pub fn create_connected_interfaces(&self) -> Result<File, StoreError> {
        self.create(files::INTERFACES, OFlags::empty())
    }

    /// The indexes of the interfaces that the follower has connected; none where there is no such list.
    pub fn connected_interfaces(&self) -> Vec<u32> {
        let text = self.folder.read(files::INTERFACES).unwrap_or_default();
        interfaces::parse(&text)
    }

    fn create(&self, name: &str, flags: OFlags) -> Result<File, StoreError> {
        let flags = flags | OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::openat(&self.folder.dir, name, flags, mode)
            .map(File::from)
            .map_err(|e| self.folder.failed("create", name, e))
    }

    /// The last `lines` lines of the console log; empty where there is none.
    pub fn console_tail(&self, lines: usize) -> Vec<String> {
        let text = self
            .folder
            .read_last(files::CONSOLE, CONSOLE_END)
            .unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let all: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
        all[all.len().saturating_sub(lines)..]
            .iter()
            .map(|l| (*l).to_owned())
            .collect()
    }

    /// A path to the control socket, for this process only, while this value lives.
    pub fn socket_path(&self) -> PathBuf {
        self.folder.short_path(files::SOCKET)
    }
}
