//! A bind mount of /dev to /dev, by which engines give a container all devices.
//!
//! The guest's /dev has what only the agent may use, and the agent would see what a container makes in it. So the
//! container gets a new /dev, in which [`DeviceNodes`](crate::container::devices::DeviceNodes) makes the same
//! devices.

use std::path::Path;

use oci_spec::runtime::Mount;

use crate::container::devices::DEV;

/// The mounts below /dev that programs expect of a host: destination, type, options.
const SUBMOUNTS: &[(&str, &str, &[&str])] = &[
    (
        "/dev/pts",
        "devpts",
        &[
            "nosuid",
            "noexec",
            "newinstance",
            "ptmxmode=0666",
            "mode=0620",
        ],
    ),
    ("/dev/shm", "tmpfs", &["nosuid", "nodev", "mode=1777"]),
];

/// Replaces such a mount by one of a new tmpfs. Returns the mounts to make below it, if it was recursive; `None`,
/// without a change, for any other mount.
pub fn replace(mount: &mut Mount) -> Option<Vec<Mount>> {
    let dev = Path::new(DEV);
    let options = mount.options().clone().unwrap_or_default();
    let is_bind = mount.typ().as_deref() == Some("bind");
    let of_dev = mount.source().as_deref() == Some(dev) && mount.destination() == dev;
    if !is_bind || !of_dev || options.iter().any(|option| option == "remount") {
        return None;
    }
    let recursive = options.iter().any(|option| option == "rbind");
    let kept = options
        .into_iter()
        .filter(|o| !matches!(o.as_str(), "bind" | "rbind"));
    let options = kept.chain(["mode=755".to_owned()]).collect();
    *mount = file_system(DEV, "tmpfs", options);
    let submounts = SUBMOUNTS.iter().filter(|_| recursive);
    let submounts = submounts.map(|(destination, kind, options)| {
        let options = options.iter().map(|option| (*option).to_owned());
        file_system(destination, kind, options.collect())
    });
    Some(submounts.collect())
}

fn file_system(destination: &str, kind: &str, options: Vec<String>) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(destination.into())
        .set_typ(Some(kind.to_owned()))
        .set_source(Some(kind.into()))
        .set_options(Some(options));
    mount
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn replaced(source: &str, option: &str) -> Option<(Mount, Vec<Mount>)> {
        let mount = json!({
            "destination": "/dev", "type": "bind", "source": source, "options": [option, "nosuid"],
        });
        let mut mount = serde_json::from_value(mount).expect("a mount");
        let submounts = replace(&mut mount)?;
        Some((mount, submounts))
    }

    #[test]
    fn only_the_guests_dev_is_replaced() {
        assert!(replaced("/run/hull/share/c/mounts/1", "rbind").is_none());
        let (dev, submounts) = replaced("/dev", "bind").expect("replaced");
        assert_eq!(dev.typ().as_deref(), Some("tmpfs"));
        let options = ["nosuid", "mode=755"].map(str::to_owned);
        assert_eq!(dev.options().as_deref(), Some(&options[..]));
        assert!(submounts.is_empty());
        let (_, submounts) = replaced("/dev/", "rbind").expect("replaced");
        assert_eq!(submounts.len(), SUBMOUNTS.len());
    }
}
