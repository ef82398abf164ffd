//! `process.cwd`, where it isn't there: as with runc it is made, and libcontainer doesn't make it.

use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::Mount;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2};
use rustix::io::Errno;

/// Makes the folder in the container's root, before that has mounts and may be read-only. What will lie
/// below a mount isn't there to be made yet. Whatever fails here, entering the folder fails of.
pub fn make(root: &Path, cwd: &Path, mounts: &[Mount]) {
    if mounts
        .iter()
        .any(|mount| cwd.starts_with(mount.destination()))
    {
        return;
    }
    if let Err(error) = make_in(root, cwd) {
        log::debug!("make the folder {}: {error}", cwd.display());
    }
}

fn make_in(root: &Path, cwd: &Path) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, root, flags, Mode::empty())?;
    let open = |path: &Path| -> Result<OwnedFd, Errno> {
        openat2(&root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)
    };
    let mut path = PathBuf::from("/");
    let mut parent = open(&path)?;
    for part in cwd.components() {
        path.push(part);
        parent = match (open(&path), part) {
            (Err(Errno::NOENT), Component::Normal(name)) => {
                mkdirat(&parent, name, Mode::from_raw_mode(0o755))?;
                open(&path)?
            }
            (opened, _) => opened?,
        };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn it_is_made_within_the_root_wherever_links_lead() {
        let root = std::env::temp_dir().join(format!("hull-cwd-{}", std::process::id()));
        std::fs::create_dir_all(root.join("there")).expect("a folder");
        symlink("/there", root.join("link")).expect("a link");
        make(&root, Path::new("/link/../link/new/one"), &[]);
        assert!(root.join("there/new/one").is_dir());
        symlink("/nowhere", root.join("dangling")).expect("a link");
        make(&root, Path::new("/dangling/new"), &[]);
        assert!(!root.join("nowhere").exists() && !Path::new("/nowhere").exists());
        std::fs::remove_dir_all(root).expect("our folder");
    }
}
