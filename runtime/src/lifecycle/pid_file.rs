//! The file that tells an engine the pid of a container's or an exec's process on the host.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use super::Error;

/// Writes a pid file as runc does: it appears whole, for whoever watches for it.
///
/// # Errors
/// When it can't be written.
pub fn write(path: &Path, pid: i32) -> Result<(), Error> {
    let failed = |source| Error::PidFile {
        path: path.to_owned(),
        source,
    };
    let name = path
        .file_name()
        .ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
    let temporary = path.with_file_name(format!(".{}", name.to_string_lossy()));
    // What a command that was killed has left. Or somebody's link, which is not to be followed.
    let _ = fs::remove_file(&temporary);
    let mut file = File::create_new(&temporary).map_err(failed)?;
    file.write_all(pid.to_string().as_bytes())
        .and_then(|()| fs::rename(&temporary, path))
        .map_err(|source| {
            let _ = fs::remove_file(&temporary);
            failed(source)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_file_goes_through_nobodys_link() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, others) = (folder.path().join("pid"), folder.path().join("others"));
        fs::write(&others, "kept").expect("write");
        std::os::unix::fs::symlink(&others, folder.path().join(".pid")).expect("a link");

        write(&path, 42).expect("written");

        assert_eq!(fs::read_to_string(&path).expect("read"), "42");
        assert_eq!(fs::read_to_string(&others).expect("read"), "kept");
        assert_eq!(fs::read_dir(folder.path()).expect("read").count(), 2);
    }
}
