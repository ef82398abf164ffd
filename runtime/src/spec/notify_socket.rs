//! A service manager's socket (sd_notify(3)) that an engine has for a container among its bind mounts, as podman's conmon
//! does for `--sdnotify=container`: config.json's `process.env` names it at runc's place.
//!
//! A socket is of one kernel: in a VM nobody could send to it. So the mount is left out, the agent has a socket of its own
//! at that place, and the host tells the engine's what comes of it.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use hull_protocol::paths::{NOTIFY_DIRECTORY, NOTIFY_SOCKET};
use oci_spec::runtime::{Mount, Spec};
use rustix::fs::{AtFlags, FileType, statat};

use super::Bundle;
use super::mounts::is_bind;

impl Bundle {
    /// Leaves the mount of such a socket out of config.json, if there is one. Returns where the socket is on the host.
    pub fn take_notify_socket(&mut self) -> Option<PathBuf> {
        let socket = take(&mut self.spec, &self.dir)?;
        Some(self.path.join(socket))
    }
}

/// The path is as config.json has it, absolute or from the bundle.
fn take(spec: &mut Spec, bundle: &impl AsFd) -> Option<PathBuf> {
    let environment = spec.process().as_ref()?.env().as_ref()?;
    let place = format!("{NOTIFY_DIRECTORY}/{NOTIFY_SOCKET}");
    let mut named = environment
        .iter()
        .filter_map(|it| it.strip_prefix("NOTIFY_SOCKET="));
    if !named.any(|named| named == place) {
        return None;
    }
    let mounts = spec.mounts_mut().as_mut()?;
    let is_there = |mount: &Mount| mount.destination() == Path::new(NOTIFY_DIRECTORY);
    let last = mounts.iter().rposition(is_there)?;
    let mount = &mounts[last];
    let options = mount.options().iter().flatten().map(String::as_str);
    if !is_bind(mount.typ().as_deref(), options) {
        return None;
    }
    let socket = mount.source().as_ref()?.join(NOTIFY_SOCKET);
    let about = statat(bundle, &socket, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    if FileType::from_raw_mode(about.st_mode) != FileType::Socket {
        return None;
    }
    mounts.remove(last);
    Some(socket)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, Mode, OFlags, openat};
    use serde_json::json;
    use std::os::unix::net::UnixDatagram;

    /// Which socket is found, and how many mounts are left.
    fn found(named: &str, destination: &str, source: &str) -> (Option<PathBuf>, usize) {
        let bundle = tempfile::tempdir().expect("a folder");
        for folder in ["notify", "other"] {
            std::fs::create_dir(bundle.path().join(folder)).expect("a folder");
        }
        let path = bundle.path().join("notify/notify.sock");
        let _socket = UnixDatagram::bind(&path).expect("a socket");
        std::fs::write(bundle.path().join("other/notify.sock"), "").expect("a file");
        let mut spec = serde_json::from_value(json!({
            "ociVersion": "1.2.0",
            "process": {"cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["A=b", named]},
            "mounts": [
                {"destination": "/run", "type": "tmpfs"},
                {"destination": destination, "source": source, "type": "bind", "options": ["bind", "private"]},
                {"destination": "/srv", "source": "notify", "options": ["rbind"]},
            ],
        }))
        .expect("a config.json");
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let folder = openat(CWD, bundle.path(), flags, Mode::empty()).expect("the folder");
        let socket = take(&mut spec, &folder);
        (socket, spec.mounts().as_ref().map_or(0, Vec::len))
    }

    #[test]
    fn the_mount_of_an_engines_notify_socket_is_left_out() {
        const NAMED: &str = "NOTIFY_SOCKET=/run/notify/notify.sock";
        let socket = Some(PathBuf::from("notify/notify.sock"));
        assert_eq!(found(NAMED, "/run/notify", "notify"), (socket.clone(), 2));
        assert_eq!(found(NAMED, "/run/notify/", "notify"), (socket, 2));
        for (named, destination, source) in [
            ("NOTIFY_SOCKET=/run/notify/other", "/run/notify", "notify"),
            ("NOTIFY=/run/notify/notify.sock", "/run/notify", "notify"),
            (NAMED, "/run/other", "notify"),
            (NAMED, "/run/notify", "other"),
            (NAMED, "/run/notify", "none"),
        ] {
            let left = found(named, destination, source);
            assert_eq!(left, (None, 3), "{named} {destination} {source}");
        }
    }
}
