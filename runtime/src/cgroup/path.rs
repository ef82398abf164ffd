//! Which cgroup `cgroupsPath` means with the cgroupfs driver: runc's rules.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::{CgroupError, oom_kill};
use crate::spec::within_root;
use crate::types::ContainerId;

/// The cgroup, from the mount's root, for what config.json asks for. `own` is the one of this process:
/// a relative path is relative to the cgroup around it, for it may have processes itself, and such a
/// cgroup has no limited ones below it.
///
/// # Errors
/// When the path is no cgroup's, or leads through a name that hull keeps for itself.
pub fn resolve(asked: Option<&Path>, id: &ContainerId, own: &Path) -> Result<PathBuf, CgroupError> {
    let asked = asked.unwrap_or(Path::new(id.as_str()));
    let path = if asked.is_absolute() {
        within_root(asked)
    } else {
        // Its own `..`s stay below.
        let around = own.parent().unwrap_or(Path::new("/"));
        let below = within_root(&Path::new("/").join(asked));
        within_root(around).join(below.strip_prefix("/").unwrap_or(&below))
    };
    if path.file_name().is_none() {
        return Err(CgroupError::Path(format!(
            "{asked:?} is the root of all cgroups, which a container cannot have"
        )));
    }
    if path.iter().any(is_kept) {
        return Err(CgroupError::Path(format!(
            "{asked:?} has a name that ends in {}, as those of cgroups do in which hull has processes killed; choose \
             another one (without cgroupsPath it is the container's id)",
            oom_kill::SUFFIX
        )));
    }
    Ok(path)
}

/// Whether it is a name for what is made beside a container's cgroup.
fn is_kept(name: &OsStr) -> bool {
    name.as_bytes().ends_with(oom_kill::SUFFIX.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolved(asked: &str, own: &str) -> Option<String> {
        let id = "web".parse().expect("id");
        let asked = Some(Path::new(asked)).filter(|path| !path.as_os_str().is_empty());
        let path = resolve(asked, &id, Path::new(own)).ok()?;
        Some(path.display().to_string())
    }

    #[test]
    fn an_absolute_path_is_the_mounts() {
        assert_eq!(resolved("/a/b", "/own/leaf").as_deref(), Some("/a/b"));
        assert_eq!(resolved("/../a/../../b/", "/own").as_deref(), Some("/b"));
    }

    #[test]
    fn a_relative_path_and_none_are_beside_this_process() {
        assert_eq!(resolved("a/b", "/own/leaf").as_deref(), Some("/own/a/b"));
        assert_eq!(resolved("", "/own/leaf").as_deref(), Some("/own/web"));
        assert_eq!(resolved("", "/").as_deref(), Some("/web"));
    }

    #[test]
    fn no_path_leads_out_of_where_it_belongs() {
        assert_eq!(resolved("../../a", "/own/leaf").as_deref(), Some("/own/a"));
        assert_eq!(resolved("a", "/../x/leaf").as_deref(), Some("/x/a"));
        assert_eq!(resolved("/", "/own"), None);
        assert_eq!(resolved("/a/..", "/own"), None);
    }

    #[test]
    fn none_is_where_processes_are_killed_for_another() {
        assert_eq!(resolved("/a/web.hull-oom", "/own"), None);
        assert_eq!(resolved("web.hull-oom/a", "/own/leaf"), None);
        assert!(resolved("/a/hull-oom", "/own").is_some());
        let id = "web.hull-oom".parse().expect("id");
        let refused = resolve(None, &id, Path::new("/own/leaf")).expect_err("refused");
        assert!(
            refused.to_string().contains("linux.cgroupsPath"),
            "{refused}"
        );
    }
}
