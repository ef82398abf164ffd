//! Finds a program as runc does, by the rules of Go's `exec.LookPath` and with its error messages.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, FileType, accessat, stat};

use crate::error::Strerror;

/// Why no program was found.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// A name without a slash, and no directory of PATH has it.
    #[error("executable file not found in $PATH")]
    NotInPath,
    /// The path can't be looked up.
    #[error("stat {path}: {}", Strerror(.source))]
    Stat {
        /// The path.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The path is a directory's, for which execve(2) has `EACCES`: docker and podman end with 126 for that one's words.
    #[error("is a directory: permission denied")]
    IsDirectory,
    /// This user may not execute the file.
    #[error("permission denied")]
    PermissionDenied,
}

/// Finds the program of a name: taken as a path if there is a slash in it, otherwise searched for in `PATH`.
///
/// To be called in the container, as the process's user.
pub fn find(name: &str, path: Option<&str>) -> Result<PathBuf, LookupError> {
    if name.contains('/') {
        return check(Path::new(name)).map(|()| PathBuf::from(name));
    }
    path.filter(|path| !path.is_empty() && !name.is_empty())
        .into_iter()
        .flat_map(|path| path.split(':'))
        .map(|directory| Path::new(directory).join(name))
        // Relative directories of PATH are skipped, as which program they name depends on cwd.
        .find(|candidate| candidate.is_absolute() && check(candidate).is_ok())
        .ok_or(LookupError::NotInPath)
}

fn check(path: &Path) -> Result<(), LookupError> {
    let stat = stat(path).map_err(|e| LookupError::Stat {
        path: path.display().to_string(),
        source: e.into(),
    })?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        return Err(LookupError::IsDirectory);
    }
    accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)
        .map_err(|_| LookupError::PermissionDenied)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn program(path: &Path, mode: u32) {
        fs::write(path, "").expect("write a file");
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("set its mode");
    }

    #[test]
    fn the_first_executable_in_the_path_is_found() {
        let dir = tempfile::tempdir().expect("a directory");
        let (first, second) = (dir.path().join("1"), dir.path().join("2"));
        fs::create_dir(&first).expect("create");
        fs::create_dir(&second).expect("create");
        program(&first.join("tool"), 0o644);
        program(&second.join("tool"), 0o755);
        let path = format!("relative:{}:{}", first.display(), second.display());
        assert_eq!(find("tool", Some(&path)).ok(), Some(second.join("tool")));
    }

    #[test]
    fn each_failure_has_runcs_message() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("file");
        program(&file, 0o644);
        let say = |name: &str, path| find(name, path).expect_err("not found").to_string();
        let missing = "executable file not found in $PATH";
        assert_eq!(say("nosuch", Some("/bin")), missing);
        assert_eq!(say("sh", None), missing);
        assert_eq!(
            say("/nosuch", None),
            "stat /nosuch: no such file or directory"
        );
        assert_eq!(say("/tmp", None), "is a directory: permission denied");
        assert_eq!(say(&file.to_string_lossy(), None), "permission denied");
    }
}
