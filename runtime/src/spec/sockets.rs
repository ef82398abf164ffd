//! UNIX sockets of the host as the sources of bind mounts. A socket is of one kernel; the operator decides whether
//! connections to it are passed on to the host.

use std::os::fd::OwnedFd;

use oci_spec::runtime::Spec;
use rustix::fs::{AtFlags, FileType, statat};

use super::audit::{Finding, Verdict};
use super::mounts::is_bind;
use super::refuse::Refusal;
use crate::config::Config;

/// What is said of one.
pub(super) const REASON: &str =
    "it is a UNIX socket of the host, which can't be connected to from inside a VM";

/// What to do about it.
const REMEDY: &str = "leave the mount out, or set volume_sockets = true in hull.toml before the VM is made: then connections \
                      are passed on to the host, and with them all that its server lets a client do";

/// What is to be said of the bind mounts of a bundle in this folder.
pub(super) fn judge(spec: &Spec, bundle: &OwnedFd, config: &Config) -> Vec<Finding> {
    if config.volume_sockets {
        return Vec::new();
    }
    let mounts = spec.mounts().iter().flatten().enumerate();
    let refused = mounts.filter_map(|(index, mount)| {
        let options = mount.options().iter().flatten().map(String::as_str);
        let source = mount.source().as_ref()?;
        let is_socket = is_bind(mount.typ().as_deref(), options)
            && statat(bundle, source, AtFlags::empty())
                .is_ok_and(|about| FileType::from_raw_mode(about.st_mode) == FileType::Socket);
        is_socket.then(|| Finding {
            path: format!("mounts[{index}].source"),
            verdict: Verdict::Refused(Refusal::new(
                format!("{}: {REASON}", source.display()),
                REMEDY,
            )),
        })
    });
    refused.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, Mode, OFlags, openat};
    use serde_json::json;
    use std::os::unix::net::UnixListener;

    #[test]
    fn the_socket_among_the_bind_mounts_is_named_with_what_to_do_about_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("s");
        let _listener = UnixListener::bind(&path).expect("a socket");
        std::fs::write(folder.path().join("file"), "").expect("a file");
        let spec: Spec = serde_json::from_value(json!({"ociVersion": "1.2.0", "mounts": [
            {"destination": "/a", "source": folder.path(), "options": ["rbind"]},
            {"destination": "/b", "source": "file", "type": "bind"},
            {"destination": "/c", "source": "s", "type": "tmpfs"},
            {"destination": "/d", "source": "s", "type": "bind"},
            {"destination": "/e", "source": path, "options": ["bind", "ro"]},
            {"destination": "/f", "source": "none", "type": "bind"},
        ]}))
        .expect("a config.json");
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let bundle = openat(CWD, folder.path(), flags, Mode::empty()).expect("the folder");
        let mut config = Config::default();
        let said = judge(&spec, &bundle, &config);
        let paths: Vec<_> = said.iter().map(|finding| &*finding.path).collect();
        assert_eq!(paths, ["mounts[3].source", "mounts[4].source"]);
        let Verdict::Refused(refusal) = &said[1].verdict else {
            panic!("{said:?}");
        };
        assert!(
            refusal
                .reason
                .contains("/s: it is a UNIX socket of the host")
        );
        assert!(refusal.remedy.contains("volume_sockets = true"));
        config.volume_sockets = true;
        assert_eq!(judge(&spec, &bundle, &config), []);
    }
}
