//! /dev/shm of engines. Most mount a tmpfs on the host for each container, with the size that its user asked for, and
//! bind it. Shared with the guest it would be a network file system to programs, outside of the container's memory
//! limit. So the guest makes a tmpfs that is as the host's is: one for all containers of a sandbox that bind the same.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use hull_protocol::agent::SharedMemory;
use hull_protocol::paths::SHARED_MEMORY;
use hull_vmm::jail::userns::IdMap;
use oci_spec::runtime::{LinuxIdMapping, Mount, Spec};
use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, Stat, StatxAttributes, StatxFlags, fstatfs, openat, stat,
    statx,
};

use super::mounts::within_root;
use super::split::has_user_namespace;
use super::user_namespace::ranges;

/// Where programs look for it (shm_overview(7)).
const SHM: &str = "/dev/shm";

/// What statfs(2) says of a tmpfs: `TMPFS_MAGIC` of linux/magic.h.
const TMPFS: u64 = 0x0102_1994;

/// The tmpfs that a guest is to have in the place of a bind mount's source, if it is an engine's /dev/shm: the root of
/// a tmpfs other than the host's own, with nothing in it yet. It is named by the host's, which no other has while that is
/// mounted. With `same_ids`, users have the same numbers in the guest as on the host.
///
/// # Errors
/// When the kernel doesn't tell.
pub(super) fn in_guest(
    mount: &Mount,
    source: &OwnedFd,
    about: &Stat,
    spec: &Spec,
    same_ids: bool,
) -> io::Result<Option<SharedMemory>> {
    if within_root(mount.destination()) != Path::new(SHM)
        || FileType::from_raw_mode(about.st_mode) != FileType::Directory
    {
        return Ok(None);
    }
    let host = stat(SHM).ok();
    let is_hosts = host.is_some_and(|host| host.st_dev == about.st_dev);
    let system = fstatfs(source)?;
    if is_hosts || system.f_type as u64 != TMPFS || !is_root_of_mount(source)? || !is_empty(source)?
    {
        return Ok(None);
    }
    let mut options = vec![format!(
        "mode={:o}",
        Mode::from_raw_mode(about.st_mode).bits()
    )];
    // Without a limit there, the guest's kernel has its own.
    if let Some(bytes) = system
        .f_blocks
        .checked_mul(system.f_bsize as u64)
        .filter(|bytes| *bytes > 0)
    {
        options.push(format!("size={bytes}"));
    }
    options.extend(owner(about, spec, same_ids));
    Ok(Some(SharedMemory {
        name: format!("shm-{:x}", about.st_dev),
        options,
        ..Default::default()
    }))
}

/// The options for its owner and group, by the guest's ids, if these aren't root's.
fn owner(about: &Stat, spec: &Spec, same_ids: bool) -> Vec<String> {
    let linux = spec.linux().as_ref();
    let has_own_ids = !same_ids && has_user_namespace(spec);
    let ids = [
        (
            "uid",
            about.st_uid,
            linux.and_then(|linux| linux.uid_mappings().as_deref()),
        ),
        (
            "gid",
            about.st_gid,
            linux.and_then(|linux| linux.gid_mappings().as_deref()),
        ),
    ];
    let option = |(name, id, maps): (&str, u32, Option<&[LinuxIdMapping]>)| {
        let id = match has_own_ids {
            true => inside(id, &ranges(maps.unwrap_or_default()))?,
            false => id,
        };
        (id != 0).then(|| format!("{name}={id}"))
    };
    ids.into_iter().filter_map(option).collect()
}

/// Makes of a bind mount of an engine's /dev/shm one of the guest's own.
pub(super) fn replace(mount: &mut Mount, options: Vec<String>, own: &SharedMemory) {
    mount.set_source(Some(Path::new(SHARED_MEMORY).join(&own.name)));
    mount.set_options(Some(options));
    mount.set_uid_mappings(None).set_gid_mappings(None);
}

/// An id of the host by those of the container, if it is one of its.
fn inside(id: u32, maps: &[IdMap]) -> Option<u32> {
    maps.iter().find_map(|map| {
        let offset = id
            .checked_sub(map.outside)
            .filter(|offset| *offset < map.count)?;
        map.inside.checked_add(offset)
    })
}

fn is_root_of_mount(folder: &OwnedFd) -> io::Result<bool> {
    let about = statx(
        folder,
        OsStr::new(""),
        AtFlags::EMPTY_PATH,
        StatxFlags::empty(),
    )?;
    Ok(about.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

fn is_empty(folder: &OwnedFd) -> io::Result<bool> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let entries = Dir::new(openat(folder, ".", flags, Mode::empty())?)?;
    for entry in entries {
        let name = entry?;
        if !matches!(name.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, fstat};
    use serde_json::json;

    fn made_for(destination: &str, source: &Path) -> Option<SharedMemory> {
        let mount = json!({"destination": destination, "type": "bind", "source": source});
        let mount: Mount = serde_json::from_value(mount).expect("a mount");
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let source = openat(CWD, source, flags, Mode::empty()).expect("it is there");
        let about = fstat(&source).expect("it is open");
        in_guest(&mount, &source, &about, &Spec::default(), true).expect("the kernel tells")
    }

    #[test]
    fn any_other_folder_is_shared() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(made_for(SHM, folder.path()), None, "no mount of its own");
        assert_eq!(made_for(SHM, Path::new(SHM)), None, "the host's own");
        assert_eq!(made_for("/elsewhere", Path::new(SHM)), None);
    }

    #[test]
    fn owners_are_those_of_the_container() {
        let map = |inside, outside, count| IdMap {
            inside,
            outside,
            count,
        };
        let maps = [map(0, 1000, 1), map(1, 100_000, 9)];
        let of = |id| inside(id, &maps);
        assert_eq!((of(1000), of(100_008)), (Some(0), Some(9)));
        assert_eq!((of(0), of(100_009)), (None, None));
    }
}
