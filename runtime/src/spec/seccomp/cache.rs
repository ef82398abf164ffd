//! Compiled filters, kept for the next container with the same profile.
//!
//! libseccomp takes some milliseconds for a profile as engines write it, and most containers of a host
//! have one and the same. So a filter is kept in a folder below `--root`, in a file that begins with
//! what the filter was made of: the profile, and who compiled it. Only the same bytes have it back. A
//! file that isn't whole, or that somebody else could have written, counts as none. Nothing here fails
//! a container: what can't be kept is compiled again.

use std::fs::{self, File};
use std::hash::Hasher;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use hull_protocol::agent::SeccompFilter;
use libseccomp::ScmpVersion;
use oci_spec::runtime::LinuxSeccomp;
use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, fstat, openat, statat, unlinkat};

use super::{LONGEST, SeccompProfileError, compile};
use crate::host::Staged;
use crate::types::RESERVED;

/// How many files the folder may have. A host has one or two profiles in use.
const MOST: usize = 32;

/// The flags before a program and the checksum after it, in bytes.
const AROUND: u64 = 16;

/// The filters that are kept below one `--root`.
#[derive(Debug)]
pub struct FilterCache {
    folder: PathBuf,
}

impl FilterCache {
    /// Those below `root`. Nothing is made before there is something to keep.
    pub fn below(root: &Path) -> Self {
        Self {
            folder: root.join(RESERVED.filters),
        }
    }

    /// The filter of a profile, compiled now or before.
    ///
    /// # Errors
    /// When the profile asks for what can't be had.
    pub fn filter(&self, profile: &LinuxSeccomp) -> Result<SeccompFilter, SeccompProfileError> {
        let key = match key(profile) {
            Ok(key) => key,
            Err(e) => {
                log::debug!("seccomp filters aren't kept: {e}");
                return compile(profile);
            }
        };
        match self.find(&key) {
            Ok(filter) => return Ok(filter),
            Err(e) => log::debug!("no seccomp filter is kept: {e}"),
        }
        let filter = compile(profile)?;
        if let Err(e) = self.keep(&key, &filter) {
            log::debug!(
                "{}: a seccomp filter isn't kept: {e}",
                self.folder.display()
            );
        }
        Ok(filter)
    }

    fn find(&self, key: &[u8]) -> io::Result<SeccompFilter> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = openat(self.open()?, name(key), flags, Mode::empty())?;
        let mut text = Vec::new();
        // One byte more than there can be shows in its length.
        File::from(file)
            .take(key.len() as u64 + AROUND + LONGEST + 1)
            .read_to_end(&mut text)?;
        unpack(key, &text).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// The file appears whole under its name, in place of one that was no good.
    fn keep(&self, key: &[u8], filter: &SeccompFilter) -> io::Result<()> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(&self.folder)?;
        let folder = self.open()?;
        make_room(&folder)?;
        let name = name(key);
        let new = format!("{name}.{}", std::process::id());
        Staged::write(folder.as_fd(), &name, &new, &pack(key, filter))?.keep()
    }

    /// Opens the folder, if nobody else can write there: `--root` may be where others can.
    fn open(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = openat(CWD, &self.folder, flags, Mode::empty())?;
        let stat = fstat(&folder)?;
        let own = stat.st_uid == rustix::process::geteuid().as_raw();
        if own && stat.st_mode & 0o077 == 0 {
            Ok(folder)
        } else {
            Err(io::ErrorKind::PermissionDenied.into())
        }
    }
}

/// Removes what has been there for longest, so that one more file has room. What a command that was
/// killed has left of a new one goes the same way.
fn make_room(folder: &OwnedFd) -> io::Result<()> {
    let mut files = Vec::new();
    for entry in Dir::read_from(folder)? {
        let name = entry?.file_name().to_owned();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        // Somebody else may just have removed it.
        if let Ok(stat) = statat(folder, &name, AtFlags::SYMLINK_NOFOLLOW) {
            files.push((stat.st_mtime, stat.st_mtime_nsec, name));
        }
    }
    files.sort_unstable();
    let surplus = (files.len() + 1).saturating_sub(MOST);
    for (_, _, name) in files.iter().take(surplus) {
        let _ = unlinkat(folder, name, AtFlags::empty());
    }
    Ok(())
}

/// All that a filter follows from. The binary has the code here, the list of newer calls and, linked
/// into it, libseccomp; another build is another file, or the same one changed.
fn key(profile: &LinuxSeccomp) -> io::Result<Vec<u8>> {
    let hull = fs::metadata("/proc/self/exe")?;
    let libseccomp = ScmpVersion::current().map_err(io::Error::other)?;
    let mut key = serde_json::to_vec(profile)?;
    writeln!(
        key,
        "\n{} {}, libseccomp {libseccomp}, {}:{} {} {}.{}",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::ARCH,
        hull.dev(),
        hull.ino(),
        hull.size(),
        hull.ctime(),
        hull.ctime_nsec(),
    )?;
    Ok(key)
}

fn name(key: &[u8]) -> String {
    format!("{:016x}", hash(key))
}

/// Finds files and tells whole ones; that they are right, the key in them says.
fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

fn pack(key: &[u8], filter: &SeccompFilter) -> Vec<u8> {
    let mut text = key.to_vec();
    text.extend(filter.flags.to_ne_bytes());
    text.extend(filter.instructions.iter().flat_map(|i| i.to_ne_bytes()));
    let checksum = hash(&text);
    text.extend(checksum.to_ne_bytes());
    text
}

/// The filter in a file, if that is whole and this key's.
fn unpack(key: &[u8], text: &[u8]) -> Option<SeccompFilter> {
    let (whole, checksum) = text.split_last_chunk()?;
    if hash(whole) != u64::from_ne_bytes(*checksum) {
        return None;
    }
    let (flags, program) = whole.strip_prefix(key)?.split_first_chunk()?;
    let (instructions, []) = program.as_chunks() else {
        return None;
    };
    let length = 1..=LONGEST as usize;
    length.contains(&program.len()).then(|| SeccompFilter {
        instructions: instructions
            .iter()
            .copied()
            .map(u64::from_ne_bytes)
            .collect(),
        flags: u64::from_ne_bytes(*flags),
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::time::SystemTime;

    fn profile(call: &str) -> LinuxSeccomp {
        let json = format!(
            r#"{{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86_64"],
                "syscalls":[{{"names":["{call}"],"action":"SCMP_ACT_ALLOW"}}]}}"#
        );
        serde_json::from_str(&json).expect("valid JSON")
    }

    fn cache() -> (tempfile::TempDir, FilterCache) {
        let root = tempfile::tempdir().expect("a folder");
        let cache = FilterCache::below(&root.path().join("hull"));
        (root, cache)
    }

    fn files(cache: &FilterCache) -> Vec<PathBuf> {
        let entries = fs::read_dir(&cache.folder).expect("the folder");
        entries.map(|e| e.expect("an entry").path()).collect()
    }

    /// Puts a mark into what is kept, so that it can be told from what is compiled.
    fn marked(cache: &FilterCache, profile: &LinuxSeccomp) -> SeccompFilter {
        let mut filter = cache.filter(profile).expect("it compiles");
        filter.flags |= 1 << 63;
        let key = key(profile).expect("a key");
        cache.keep(&key, &filter).expect("kept");
        filter
    }

    #[test]
    fn a_profile_is_compiled_once() {
        let (_root, cache) = cache();
        let kept = marked(&cache, &profile("read"));
        assert_eq!(cache.filter(&profile("read")).expect("kept"), kept);
        let other = cache.filter(&profile("write")).expect("it compiles");
        assert_ne!(other.instructions, kept.instructions);
        assert_eq!(files(&cache).len(), 2);
        let folder = fs::metadata(&cache.folder).expect("the folder");
        assert_eq!(folder.permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_file_that_is_not_right_is_written_anew() {
        let (_root, cache) = cache();
        let compiled = cache.filter(&profile("read")).expect("it compiles");
        let file = files(&cache).pop().expect("a file");
        let whole = fs::read(&file).expect("read");
        let mut others = whole.clone();
        others[20] ^= 1;
        let beyond = [whole.clone(), vec![0; 1 << 20]].concat();
        let of_other_key = pack(b"{}", &compiled);
        let empty = pack(
            &key(&profile("read")).expect("a key"),
            &SeccompFilter::default(),
        );
        for wrong in [
            &whole[..whole.len() - 8],
            &[],
            &others,
            &beyond,
            &of_other_key,
            &empty,
        ] {
            fs::write(&file, wrong).expect("write");
            let filter = cache.filter(&profile("read")).expect("it compiles");
            assert_eq!(filter, compiled);
            assert_eq!(fs::read(&file).expect("read"), whole);
        }
    }

    #[test]
    fn what_others_could_have_written_is_not_taken() {
        let (_root, cache) = cache();
        let kept = marked(&cache, &profile("read"));
        fs::set_permissions(&cache.folder, fs::Permissions::from_mode(0o770)).expect("chmod");
        assert_ne!(cache.filter(&profile("read")).expect("it compiles"), kept);
    }

    #[test]
    fn what_cannot_be_kept_is_compiled_all_the_same() {
        let (root, cache) = cache();
        fs::write(root.path().join("hull"), "no folder").expect("write");
        cache.filter(&profile("read")).expect("it compiles");
    }

    #[test]
    fn the_oldest_goes_when_there_are_too_many() {
        let (_root, cache) = cache();
        cache.filter(&profile("read")).expect("it compiles");
        let oldest = files(&cache).pop().expect("a file");
        let file = File::options().write(true).open(&oldest).expect("open");
        file.set_modified(SystemTime::UNIX_EPOCH).expect("utimens");
        for number in 0..MOST {
            let key = number.to_string();
            cache
                .keep(key.as_bytes(), &SeccompFilter::default())
                .expect("kept");
        }
        let left = files(&cache);
        assert_eq!(left.len(), MOST);
        assert!(!left.contains(&oldest));
    }
}
