//! The split: what the host does for a bundle, and the config.json that the agent in the guest gets.
//!
//! The guest sees of the host's files only what is shared with it: the container's root, and each bind
//! mount's source. In the guest's config.json their paths are those of the share. Block devices stay
//! there under the host's numbers; the agent knows the guest's, and mounts what lies on one. What the host enforces is taken out:
//! - cgroupsPath and the hooks, but for startContainer, are the host's;
//! - the paths of namespaces: the host's have no part in the guest's kernel;
//! - the seccomp profile, which goes to the agent compiled;
//! - the memory policy: the VM's memory is the host's;
//! - the SELinux label, which is the VM process's, and the AppArmor profile, which is nobody's;
//! - cpuset and limits of block devices, in `unified` too: the guest's CPUs and devices aren't the host's.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use hull_protocol::agent::{BlockDevice, SeccompFilter, SharedMemory, SharedNamespaces};
use hull_protocol::paths::SHARE;
use hull_vmm::jail::tree::{AccessTimes, BindMount, ReadOnly, Share, Source, View, ViewMount};
use oci_spec::runtime::{Hooks, LinuxNamespaceType, LinuxResources, Mount, Process, Root, Spec};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, openat, statat};

use super::cpulist::{CpuList, Pinned};
use super::disks::{Access, Disk, Disks, Place};
use super::guest_linux::guest_linux;
use super::mount_options::{Treatment, flags, treatment};
use super::mounts::{Maker, ON_A_DISK, OTHER_WAYS, file_system, maker, owners, receives};
use super::pod::{is_first_of_pod, limits_of_vm};
use super::privileged::keep_own_devices;
use super::refuse::GUEST_DEVICES;
use super::sizing::{Host, limit_above_vm};
use super::user_namespace::{self, UserNamespace};
use super::{
    Bundle, FilterCache, MemoryPolicy, Network, SpecError, bind, network, shm, sockets, view,
};
use crate::config::Config;
use crate::host::Privilege;
use crate::types::Sizing;

/// What is done about a bundle.
#[derive(Debug)]
pub struct Plan {
    /// How large a VM it gets.
    pub sizing: Sizing,
    /// The container's limits, of which some are the host's.
    pub resources: LinuxResources,
    /// What the guest sees of the host's file systems.
    pub shares: Vec<Share>,
    /// What the host sees of the container's files by the VM process's pid.
    pub view: View,
    /// The user namespace of the VMM process, where hull's user isn't root.
    pub user_namespace: Option<UserNamespace>,
    /// The block devices of the host that the guest gets.
    pub disks: Vec<Disk>,
    /// What the agent makes the container of.
    pub guest_spec: GuestSpec,
    /// The network namespace for the VM's process.
    pub network: Network,
    /// How many interfaces it has that are the VM's.
    pub interfaces: usize,
    /// By what policy the VM's memory is allocated.
    pub memory_policy: Option<MemoryPolicy>,
    /// process.oomScoreAdj, for the VM's process as well.
    pub oom_score_adj: Option<i32>,
    /// The VM process's label, on a host with SELinux.
    pub selinux_label: Option<String>,
    cpus: Option<CpuList>,
}

impl Plan {
    /// Whether config.json lists CPUs.
    pub fn is_bound_to_cpus(&self) -> bool {
        self.cpus.is_some()
    }

    /// Binds this process to the CPUs that config.json lists, and so the VMM process if it is started
    /// while the value that is returned lives.
    ///
    /// # Errors
    /// When the host has none of them.
    pub fn pin(&self) -> Result<Option<Pinned>, SpecError> {
        match &self.cpus {
            Some(cpus) => {
                let pinned = cpus.pin().map_err(|source| SpecError::Cpus { source });
                pinned.map(Some)
            }
            None => Ok(None),
        }
    }
}

/// What the agent makes a container of.
#[derive(Debug, Default)]
pub struct GuestSpec {
    /// The config.json as the guest is to see it.
    pub json: Vec<u8>,
    /// What the guest lacks to give the root the attributes of its mounts on the host.
    pub root_options: Vec<String>,
    /// The host's block devices in it.
    pub block_devices: Vec<BlockDevice>,
    /// Its seccomp profile, compiled.
    pub seccomp: Option<SeccompFilter>,
    /// The file systems in memory that it has in common with other containers of its sandbox.
    pub shared_memory: Vec<SharedMemory>,
    /// The namespaces of other containers in the guest that it is to have.
    pub shared_namespaces: SharedNamespaces,
}

/// Splits a bundle for a container whose shares are to be in this folder of the VM's tree, one path component.
/// `privilege` is that of hull's user; `filters` may have its seccomp profile compiled. The serial numbers of its disks
/// begin with `serials`, up to 16 characters: no two disks of a VM may have the same.
///
/// # Errors
/// When the source of a bind mount or a block device can't be opened, or is of a kind that can't be
/// shared; and when a network namespace can't be joined.
pub fn plan(
    bundle: &Bundle,
    folder: &str,
    serials: &str,
    config: &Config,
    filters: &FilterCache,
    privilege: Privilege,
) -> Result<Plan, SpecError> {
    let mut guest = bundle.spec.clone();
    let user_namespace = match privilege.is_some_root() {
        true => None,
        false => Some(user_namespace::take(&mut guest)?),
    };
    let resources = resources(&bundle.spec);
    let host = Host::read();
    let of_vm = limits_of_vm(&bundle.spec);
    let sizing = Sizing::of(Some(&of_vm), is_first_of_pod(&bundle.spec), host, config);
    warn_of_a_limit_above_the_vm(resources, host, config);

    // So it is with the mounts that a user namespace's mount namespace has from the host's.
    let locked = !privilege.is_host_root() || has_user_namespace(&bundle.spec);
    let (root, root_options) = share_root(bundle, folder, locked)?;
    guest.set_root(Some(guest_root(&bundle.spec, folder)));
    keep_own_devices(&mut guest, config);
    let mut disks = Disks::of(&bundle.spec, serials);
    disks.add_devices(&guest)?;
    let mut shares = vec![root];
    let mut mounts = guest.mounts().clone().unwrap_or_default();
    let way = Way {
        folder,
        locked,
        volume_sockets: config.volume_sockets,
        same_ids: user_namespace.is_none(),
    };
    let mut guests = Guests {
        disks,
        memory: Vec::new(),
    };
    let placed = split_mounts(bundle, way, &mut mounts, &mut guests, &mut shares)?;
    guest.set_mounts(Some(mounts));
    guest.set_hooks(guest_hooks(&bundle.spec));
    guest.set_linux(Some(guest_linux(guest.linux().clone())));
    if let Some(process) = guest.process_mut() {
        process.set_selinux_label(None).set_apparmor_profile(None);
    }

    let json = serde_json::to_vec(&guest).map_err(|source| SpecError::Type {
        field: "(top level)".to_owned(),
        source,
    })?;
    let (network, interfaces) = network::asked_for(&bundle.spec, config)?;
    let disks = guests.disks.into_vec();
    let block_devices = disks.iter().map(|disk| disk.about.clone()).collect();
    let linux = bundle.spec.linux().as_ref();
    let policy = linux.and_then(|linux| linux.memory_policy().as_ref());
    let profile = linux.and_then(|linux| linux.seccomp().as_ref());
    Ok(Plan {
        sizing,
        resources: resources.cloned().unwrap_or_default(),
        view: view::of(&guest, folder, placed),
        shares,
        user_namespace,
        disks,
        guest_spec: GuestSpec {
            json,
            root_options,
            block_devices,
            seccomp: profile.map(|profile| filters.filter(profile)).transpose()?,
            shared_memory: guests.memory,
            shared_namespaces: SharedNamespaces::default(),
        },
        network,
        interfaces,
        memory_policy: policy.map(MemoryPolicy::of).transpose()?,
        oom_score_adj: (bundle.spec.process().as_ref()).and_then(Process::oom_score_adj),
        selinux_label: (bundle.spec.process().as_ref()).and_then(label_of),
        cpus: cpus(resources),
    })
}

/// Says that a container can't use the memory that its limit lets it have.
fn warn_of_a_limit_above_the_vm(resources: Option<&LinuxResources>, host: Host, config: &Config) {
    if let Some(limit) = resources.and_then(|limits| limit_above_vm(limits, host, config)) {
        log::warn!(
            "config.json: linux.resources.memory.limit: {limit} MiB are more than the container can use: its VM \
             gets {} MiB, the max_memory of hull.toml",
            config.max_memory
        );
    }
}

/// The container's root as a share, and what the guest lacks to give it the attributes of its mounts.
fn share_root(bundle: &Bundle, id: &str, locked: bool) -> Result<(Share, Vec<String>), SpecError> {
    let failed = |source| SpecError::Source {
        field: "root.path".to_owned(),
        path: bundle.rootfs_path.clone(),
        source,
    };
    let rootfs = bundle.rootfs.try_clone().map_err(failed)?;
    let options = root_options(&bundle.spec, &rootfs, locked).map_err(failed)?;
    let share = Share {
        name: "config.json: root.path".to_owned(),
        target: format!("{id}/rootfs").into(),
        source: Source::Bind(BindMount {
            path: rootfs,
            recursive: true,
            receives_propagation: false,
            read_only: ReadOnly::Unchanged,
            times: AccessTimes::default(),
            owners: None,
        }),
    };
    Ok((share, options))
}

/// How bind mounts are shared.
#[derive(Clone, Copy)]
struct Way<'a> {
    /// The folder of the VM's tree that they are in.
    folder: &'a str,
    /// Whether what a source's mount forbids stays forbidden.
    locked: bool,
    /// Whether a source may be a socket.
    volume_sockets: bool,
    /// Whether users have the same numbers in the guest as on the host.
    same_ids: bool,
}

/// What becomes the guest's own instead of a share.
struct Guests<'a> {
    disks: Disks<'a>,
    memory: Vec<SharedMemory>,
}

/// Makes of each mount what the guest is to do about it, and adds what the host has to provide. Returns what is where.
fn split_mounts(
    bundle: &Bundle,
    way: Way<'_>,
    mounts: &mut [Mount],
    guests: &mut Guests<'_>,
    shares: &mut Vec<Share>,
) -> Result<Vec<ViewMount>, SpecError> {
    let mut placed = Vec::new();
    for (index, mount) in mounts.iter_mut().enumerate() {
        absolute_destination(mount, index);
        let destination = mount.destination().clone();
        let maker = maker_of(mount);
        let share = match maker {
            Maker::Shared => split_bind(bundle, guests, way, index, mount)?,
            Maker::Host => Some(mount_on_host(bundle, way.folder, index, mount)?),
            Maker::Disk => {
                mount_in_guest(bundle, &mut guests.disks, index, mount)?;
                None
            }
            Maker::Guest => {
                bind::remount(mount, &placed, shares, way.locked);
                keep_guest_mount(mount);
                None
            }
        };
        let content = view::content(mount, maker, share.as_ref());
        placed.extend(content.map(|content| ViewMount {
            destination,
            content,
        }));
        shares.extend(share);
    }
    Ok(placed)
}

/// The label that a process is to have, if any.
fn label_of(process: &Process) -> Option<String> {
    let label = process.selinux_label().clone();
    label.filter(|label| !label.is_empty())
}

/// Whether a container has users of its own.
pub(super) fn has_user_namespace(spec: &Spec) -> bool {
    let namespaces = spec.linux().as_ref().map(|linux| linux.namespaces().iter());
    let mut kinds = namespaces.into_iter().flatten().flatten();
    kinds.any(|namespace| namespace.typ() == LinuxNamespaceType::User)
}

fn resources(spec: &Spec) -> Option<&LinuxResources> {
    spec.linux().as_ref()?.resources().as_ref()
}

/// The CPUs that config.json lists, if any; that they are a list has been checked.
fn cpus(resources: Option<&LinuxResources>) -> Option<CpuList> {
    let list: CpuList = resources?.cpu().as_ref()?.cpus().as_ref()?.parse().ok()?;
    (list.count() > 0).then_some(list)
}

fn guest_root(spec: &Spec, id: &str) -> Root {
    let mut root = spec.root().clone().unwrap_or_default();
    root.set_path(PathBuf::from(format!("{SHARE}/{id}/rootfs")));
    root
}

/// What the root has of the host's mounts. To runc it is a bind mount, and `readonly` a flag that is set.
fn root_options(spec: &Spec, rootfs: &OwnedFd, locked: bool) -> io::Result<Vec<String>> {
    let read_only = spec.root().as_ref().and_then(Root::readonly) == Some(true);
    let asked = if read_only {
        &["ro".to_owned()][..]
    } else {
        &[]
    };
    let mut options = bind::Source::of(rootfs, locked)?.inherited(asked);
    options.extend(bind::below(rootfs)?);
    Ok(options)
}

/// The hooks that run in the container.
fn guest_hooks(spec: &Spec) -> Option<Hooks> {
    let start = spec.hooks().as_ref()?.start_container().clone()?;
    let mut hooks = Hooks::default();
    hooks.set_start_container(Some(start));
    Some(hooks)
}

fn maker_of(mount: &Mount) -> Maker {
    let options = mount.options().iter().flatten().map(String::as_str);
    maker(mount.typ().as_deref(), options)
}

/// runc takes a relative destination as relative to the container's root, and warns.
fn absolute_destination(mount: &mut Mount, index: usize) {
    if !mount.destination().is_absolute() {
        log::warn!(
            "config.json: mounts[{index}].destination: it is relative; taken as relative to /"
        );
        mount.set_destination(Path::new("/").join(mount.destination()));
    }
}

/// A mount that the guest makes or changes.
fn keep_guest_mount(mount: &mut Mount) {
    if mount.source().is_none() {
        mount.set_source(mount.typ().as_ref().map(PathBuf::from));
    }
    let options = guest_options(mount);
    mount.set_options((!options.is_empty()).then_some(options));
}

/// The options that are the guest's: without those that ask for what is so anyway, and the host's own.
fn guest_options(mount: &Mount) -> Vec<String> {
    let kept = |option: &&String| {
        let hosts = matches!(
            treatment(option),
            Some(Treatment::Default | Treatment::Owners)
        );
        !option.is_empty() && !hosts
    };
    mount
        .options()
        .iter()
        .flatten()
        .filter(kept)
        .cloned()
        .collect()
}

/// A file system on a disk: the disk becomes the guest's, and its kernel mounts it.
fn mount_in_guest(
    bundle: &Bundle,
    disks: &mut Disks<'_>,
    index: usize,
    mount: &mut Mount,
) -> Result<(), SpecError> {
    let field = format!("mounts[{index}].source");
    let named = mount.source().clone();
    let source = named.ok_or_else(|| SpecError::invalid(&*field, "this type needs one"))?;
    let place = Place {
        field: &field,
        path: &source,
    };
    let flags_of_open = OFlags::PATH | OFlags::CLOEXEC;
    let node = openat(&bundle.dir, &source, flags_of_open, Mode::empty());
    let node = node.map_err(|e| SpecError::Source {
        field: field.clone(),
        path: bundle.path.join(&source),
        source: e.into(),
    })?;
    let options = mount.options().as_deref().unwrap_or_default();
    let reads = flags(options) & libc::MS_RDONLY != 0 || mount.typ().as_deref() == Some("erofs");
    let access = if reads { Access::Read } else { Access::Mount };
    mount.set_source(Some(disks.add_node(node.as_fd(), access, place)?));
    keep_guest_mount(mount);
    Ok(())
}

/// A file system that the host mounts: in the guest, a bind mount of that.
fn mount_on_host(
    bundle: &Bundle,
    id: &str,
    index: usize,
    mount: &mut Mount,
) -> Result<Share, SpecError> {
    let source = mount.source().as_deref().unwrap_or(Path::new(""));
    let about = statat(&bundle.dir, source, AtFlags::empty());
    let is_disk = |stat: Stat| FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice;
    if about.is_ok_and(is_disk) {
        let why = format!("{}: {ON_A_DISK}; {OTHER_WAYS}", source.display());
        return Err(SpecError::invalid(format!("mounts[{index}].source"), why));
    }
    let target = format!("{id}/mounts/{index}");
    let share = Share {
        name: format!("config.json: mounts[{index}]"),
        target: target.clone().into(),
        source: Source::FileSystem(file_system(mount)),
    };
    let of_the_mount = |option: &String| {
        !matches!(
            treatment(option),
            None | Some(Treatment::FileSystem | Treatment::Fill)
        )
    };
    let mut options = guest_options(mount);
    options.retain(of_the_mount);
    options.insert(0, "bind".to_owned());
    mount.set_options(Some(options));
    bind_share(mount, &target);
    Ok(share)
}

/// Makes a mount one of a share.
fn bind_share(mount: &mut Mount, target: &str) {
    mount.set_typ(Some("bind".to_owned()));
    mount.set_source(Some(PathBuf::from(format!("{SHARE}/{target}"))));
    mount.set_uid_mappings(None).set_gid_mappings(None);
}

/// A bind mount: rewritten for the guest, and shared by the host unless the guest has the source itself.
fn split_bind(
    bundle: &Bundle,
    guests: &mut Guests<'_>,
    way: Way<'_>,
    index: usize,
    mount: &mut Mount,
) -> Result<Option<Share>, SpecError> {
    let Way { folder, locked, .. } = way;
    let field = format!("mounts[{index}].source");
    let receives = receives(mount, &bundle.spec);
    let owners = owners(mount, index, &bundle.spec);
    let mut options = bind_options(mount);
    mount.set_options(Some(options.clone()));
    mount.set_typ(Some("bind".to_owned()));

    let named = mount.source().clone();
    let named = named.filter(|source| !source.as_os_str().is_empty());
    let source = named.ok_or_else(|| SpecError::invalid(&*field, "a bind mount needs one"))?;
    if is_guests_own(&source, mount.destination()) {
        return Ok(None);
    }
    let failed = |error: io::Error| SpecError::Source {
        field: field.clone(),
        path: bundle.path.join(&source),
        source: error,
    };
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let fd = openat(&bundle.dir, &source, flags, Mode::empty()).map_err(|e| failed(e.into()))?;
    let stat = rustix::fs::fstat(&fd).map_err(|e| failed(e.into()))?;
    let shareable = shareable(&stat, way.volume_sockets)
        .map_err(|why| SpecError::invalid(&*field, format!("{}: {why}", source.display())))?;
    match shareable {
        Shareable::File => {
            let own = shm::in_guest(mount, &fd, &stat, &bundle.spec, way.same_ids);
            if let Some(own) = own.map_err(failed)? {
                let of_source = bind::Source::of(&fd, locked).map_err(failed)?;
                options.extend(of_source.inherited(&options));
                shm::replace(mount, options, &own);
                guests.memory.push(own);
                return Ok(None);
            }
            let target = format!("{folder}/mounts/{index}");
            let of_source = bind::Source::of(&fd, locked).map_err(failed)?;
            if let Some(option) = of_source.unlocks(&options) {
                let why = format!(
                    "{option:?}: in a user namespace, what the source's mount on the host forbids \
                     stays forbidden; remove it"
                );
                return Err(SpecError::invalid(format!("mounts[{index}].options"), why));
            }
            let recursive = options.iter().any(|option| option == "rbind");
            let (read_only, times) = (of_source.read_only(&options), bind::access_times(&options));
            options.extend(of_source.inherited(&options));
            if recursive {
                options.extend(bind::below(&fd).map_err(failed)?);
            }
            mount.set_options(Some(options));
            bind_share(mount, &target);
            Ok(Some(Share {
                name: format!("config.json: mounts[{index}]"),
                target: target.into(),
                source: Source::Bind(BindMount {
                    path: fd,
                    recursive,
                    receives_propagation: receives,
                    read_only,
                    times,
                    owners,
                }),
            }))
        }
        Shareable::GuestDevice(device) => {
            mount.set_source(Some(Path::new("/dev").join(device)));
            Ok(None)
        }
        Shareable::Disk => {
            let place = Place {
                field: &field,
                path: &source,
            };
            let disk = guests.disks.add_node(fd.as_fd(), Access::Rules, place)?;
            mount.set_source(Some(disk));
            Ok(None)
        }
    }
}

/// The guest's options of a bind mount, which say that it is one.
fn bind_options(mount: &Mount) -> Vec<String> {
    let mut options = guest_options(mount);
    let binds = |option: &String| matches!(option.as_str(), "bind" | "rbind");
    if !options.iter().any(binds) {
        options.insert(0, "bind".to_owned());
    }
    options
}

/// Binding the kernel's own trees to where they are anyway is how engines ask for "the same as outside"
/// of a namespace, and outside of the container is the guest. So it is with all devices, wherever they
/// are to be.
fn is_guests_own(source: &Path, destination: &Path) -> bool {
    let kernels = source.starts_with("/proc") || source.starts_with("/sys");
    source == Path::new("/dev") || (kernels && source == destination)
}

/// How the source of a bind mount is shared.
enum Shareable {
    /// As a folder or file of the shared tree.
    File,
    /// The guest's own device of this name is taken in its stead.
    GuestDevice(&'static str),
    /// As a disk.
    Disk,
}

/// Whether a file can be shared, and how.
fn shareable(stat: &Stat, volume_sockets: bool) -> Result<Shareable, &'static str> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory | FileType::RegularFile => Ok(Shareable::File),
        FileType::BlockDevice => Ok(Shareable::Disk),
        FileType::CharacterDevice => {
            let number = (
                rustix::fs::major(stat.st_rdev),
                rustix::fs::minor(stat.st_rdev),
            );
            let device = GUEST_DEVICES
                .iter()
                .find(|(_, major, minor)| (*major, *minor) == number);
            match device {
                Some((name, ..)) => Ok(Shareable::GuestDevice(name)),
                None => Err("a guest has no such character device"),
            }
        }
        FileType::Socket if volume_sockets => Ok(Shareable::File),
        FileType::Socket => Err(sockets::REASON),
        FileType::Fifo => Err("a FIFO of the host cannot be opened from inside a VM"),
        _ => Err("it is of no kind that can be shared"),
    }
}
