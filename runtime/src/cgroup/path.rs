//! Which cgroup `cgroupsPath` means with the cgroupfs driver: runc's rules.

use std::path::{Path, PathBuf};

use super::CgroupError;
use crate::spec::within_root;
use crate::types::ContainerId;

/// The cgroup, from the mount's root, for what config.json asks for. `own` is the one of this process:
/// a relative path is relative to the cgroup around it, for it may have processes itself, and such a
/// cgroup has no limited ones below it.
///
/// # Errors
/// When the path is no cgroup's.
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
    match path.file_name() {
        Some(_) => Ok(path),
        None => Err(CgroupError::Path(format!(
            "{asked:?} is the root of all cgroups, which a container cannot have"
        ))),
    }
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
}
