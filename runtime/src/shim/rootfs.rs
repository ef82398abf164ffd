//! The container's root file system: what containerd's snapshotter says is to be mounted, in the bundle's `rootfs`.

use std::ffi::{CString, OsStr};
use std::io;
use std::path::{Component, Path, PathBuf};

use containerd_shim_protos::api::Mount;
use hull_runtime::spec;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount as umount};

use super::error::Error;

/// Where a bundle's is.
pub fn of(bundle: &Path) -> PathBuf {
    bundle.join("rootfs")
}

/// As much text of options as mount(2) takes: a page, with the zero at its end.
const LONGEST_OPTIONS: usize = 4095;

/// Mounts all of it.
///
/// # Errors
/// When one can't be mounted; those before it stay, for [`unmount`].
pub fn mount_all(rootfs: &Path, mounts: &[Mount]) -> Result<(), Error> {
    if mounts.is_empty() {
        return Ok(());
    }
    match std::fs::create_dir(rootfs) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            return Err(Error::file("make the folder", rootfs)(e));
        }
        _ => {}
    }
    mounts.iter().try_for_each(|one| mount_one(rootfs, one))
}

fn mount_one(rootfs: &Path, one: &Mount) -> Result<(), Error> {
    let target = below(rootfs, &one.target)?;
    let (flags, data) = options(&one.options)?;
    let data = (!data.is_empty())
        .then(|| CString::new(data).map_err(|e| Error::Invalid(format!("a mount option: {e}"))))
        .transpose()?;
    let file_system = match one.type_.as_str() {
        "bind" | "rbind" => OsStr::new("none"),
        other => OsStr::new(other),
    };
    let failed =
        |e: Errno| Error::file("mount the container's root file system at", &target)(e.into());
    let source = OsStr::new(&one.source);
    mount(source, &target, file_system, flags, data.as_deref()).map_err(failed)?;
    // What else a bind mount is to be, it only becomes afterwards (mount(2)).
    let later = flags - (MountFlags::BIND | MountFlags::REC);
    if flags.contains(MountFlags::BIND) && !later.is_empty() {
        let flags = MountFlags::BIND | later;
        rustix::mount::mount_remount(&target, flags, "").map_err(failed)?;
    }
    Ok(())
}

/// A mount's target within the root file system.
fn below(rootfs: &Path, target: &str) -> Result<PathBuf, Error> {
    let within = Path::new(target.trim_start_matches('/'));
    let is_plain = (within.components()).all(|part| matches!(part, Component::Normal(_)));
    match is_plain {
        // An empty one would have a slash at its end.
        true if within.as_os_str().is_empty() => Ok(rootfs.to_owned()),
        true => Ok(rootfs.join(within)),
        false => Err(Error::Invalid(format!(
            "rootfs: the mount's target {target:?} is no path below it"
        ))),
    }
}

/// Flags, and what the file system itself is told.
fn options(options: &[String]) -> Result<(MountFlags, String), Error> {
    let has = |name: &str| options.iter().any(|option| option == name);
    if has("loop") {
        return Err(Error::Unsupported(
            "rootfs: the mount option loop: hull mounts no image files yet; use a snapshotter that mounts folders or \
             block devices",
        ));
    }
    // The kernel's ABI has them in an int.
    let mut flags = MountFlags::from_bits_retain(spec::mount_flags(options) as u32);
    flags.set(MountFlags::BIND, has("bind") || has("rbind"));
    flags.set(MountFlags::REC, has("rbind"));
    let data = spec::for_file_system(options);
    if data.len() > LONGEST_OPTIONS {
        return Err(Error::Invalid(format!(
            "rootfs: the mount has {} bytes of options, and the kernel takes {LONGEST_OPTIONS}: the image has too \
             many layers",
            data.len()
        )));
    }
    Ok((flags, data))
}

/// Unmounts whatever is mounted at it.
///
/// # Errors
/// When something stays.
pub fn unmount(rootfs: &Path) -> Result<(), Error> {
    loop {
        match umount(rootfs, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // Nothing is mounted there, or nothing is there.
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(e) => return Err(Error::file("unmount", rootfs)(e.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn options_are_the_kernels_or_the_file_systems() {
        let overlay = words("index=off workdir=/w upperdir=/u lowerdir=/a:/b ro");
        let (flags, data) = options(&overlay).expect("options");
        assert_eq!(flags, MountFlags::RDONLY);
        assert_eq!(data, "index=off,workdir=/w,upperdir=/u,lowerdir=/a:/b");
        let (flags, data) = options(&words("rbind ro")).expect("options");
        assert_eq!(
            flags,
            MountFlags::BIND | MountFlags::REC | MountFlags::RDONLY
        );
        assert_eq!(data, "");
        let (flags, data) =
            options(&words("defaults noexec exec nosuid private")).expect("options");
        assert_eq!((flags, data.as_str()), (MountFlags::NOSUID, "private"));
        assert!(options(&words("loop")).is_err());
        assert!(options(&[format!("lowerdir={}", "/a".repeat(2100))]).is_err());
    }

    #[test]
    fn no_mount_leaves_the_root_file_system() {
        let rootfs = Path::new("/b/rootfs");
        assert_eq!(below(rootfs, "").expect("itself"), rootfs);
        assert_eq!(below(rootfs, "/x/y").expect("below"), rootfs.join("x/y"));
        for target in ["..", "/x/../..", "x/.."] {
            assert!(below(rootfs, target).is_err(), "{target}");
        }
    }
}
