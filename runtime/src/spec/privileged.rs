//! Privileged containers: an engine allows them all devices, and lists all that the host has. That means *whatever there
//! is*, not each of them: in a guest it is what guests have. The host's block devices are left out as well, unless the
//! operator says otherwise: who asks for privileges inside doesn't ask for the host's disks by that.
//!
//! A list is taken for such a one if the rules allow every device, and it has the devices that every runtime makes
//! anyway, which nobody lists one by one. A single device that is asked for comes with rules that allow that one.
//!
//! Without root, podman binds the nodes of all devices to where they are instead, and gives no rules.

use std::path::Path;

use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroupBuilder, LinuxDeviceType, Mount, Spec};
use rustix::fs::{FileType, major, minor, stat};
use serde_json::Value;

use super::audit::{Finding, Verdict};
use super::disks::is_guests_loop;
use super::fields::Enforcer;
use super::mounts::is_bind;
use super::refuse::{Refusal, is_guests_device};
use crate::config::{Config, PrivilegedDevices};

/// What a runtime makes without being asked (config-linux.md of the runtime-spec, "Default Devices").
const DEFAULT_DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// The most entries that are looked at: no host has as many devices.
const MOST: usize = 16384;

/// Whether the `linux` object of a config.json lists all devices of the host.
pub fn lists_all_devices(linux: &Value) -> bool {
    let rules = linux["resources"]["devices"].as_array();
    let about_all = |rule: &Value| matches!(rule["type"].as_str(), None | Some("" | "a"));
    // One about all devices replaces those before it: docker writes the rules for other containers first.
    let allowed = |rules: &Vec<Value>| {
        let in_effect = rules.iter().rposition(about_all).map(|last| &rules[last..]);
        in_effect.is_some_and(|rules| rules.iter().all(|rule| rule["allow"] == true))
    };
    let devices = linux["devices"]
        .as_array()
        .filter(|list| list.len() <= MOST);
    rules.is_some_and(allowed) && devices.is_some_and(|list| has_defaults(list))
}

fn has_defaults(devices: &[Value]) -> bool {
    DEFAULT_DEVICES.iter().all(|name| {
        let path = format!("/dev/{name}");
        devices.iter().any(|device| device["path"] == *path)
    })
}

/// The same of a config.json that has been read.
fn is_privileged(spec: &Spec) -> bool {
    let Some(linux) = spec.linux() else {
        return false;
    };
    // What it costs to make JSON of it, hardly any container has to pay.
    let devices = linux.devices().as_ref().map_or(0, Vec::len);
    devices >= DEFAULT_DEVICES.len()
        && serde_json::to_value(linux).is_ok_and(|json| lists_all_devices(&json))
}

/// Whether a container that lists all devices has this one.
fn is_kept(device: &LinuxDevice, config: &Config) -> bool {
    let number = |number: i64| u32::try_from(number).ok();
    let Some(number) = number(device.major()).zip(number(device.minor())) else {
        return device.typ() == LinuxDeviceType::P;
    };
    match device.typ() {
        LinuxDeviceType::P => true,
        LinuxDeviceType::B => {
            config.privileged_devices == PrivilegedDevices::GuestAndDisks || is_guests_loop(number)
        }
        _ => is_guests_device(number),
    }
}

/// Leaves a config.json that lists all devices those that the container has; any other stays as it is.
pub(super) fn keep_own_devices(spec: &mut Spec, config: &Config) {
    if binds_all_devices(spec) {
        keep_own_nodes(spec);
    }
    if !is_privileged(spec) {
        return;
    }
    if let Some(mut linux) = spec.linux().clone() {
        let devices = linux.devices_mut().iter_mut();
        devices.for_each(|devices| devices.retain(|device| is_kept(device, config)));
        spec.set_linux(Some(linux));
    }
}

/// The node of the host that a mount binds to where it is.
fn bound_node(mount: &Mount) -> Option<&Path> {
    let options = mount.options().iter().flatten().map(String::as_str);
    let source = mount.source().as_deref()?;
    let in_place = source == mount.destination() && source.starts_with("/dev");
    (in_place && is_bind(mount.typ().as_deref(), options)).then_some(source)
}

/// Whether all devices of the host are bound, and no rule says which may be used.
fn binds_all_devices(spec: &Spec) -> bool {
    let resources = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.resources().as_ref());
    let rules = resources.and_then(|resources| resources.devices().as_ref());
    // A terminal is the container's own.
    let mut nodes = DEFAULT_DEVICES.iter().filter(|name| **name != "tty");
    let is_bound = |name: &&str| {
        let path = Path::new("/dev").join(name);
        let mut mounts = spec.mounts().iter().flatten();
        mounts.any(|mount| bound_node(mount) == Some(&path))
    };
    rules.is_none_or(Vec::is_empty) && nodes.all(is_bound)
}

/// Whether a container that has all devices bound lacks this one.
fn is_foreign_node(mount: &Mount) -> bool {
    let about = bound_node(mount).and_then(|path| stat(path).ok());
    about.is_some_and(|about| match FileType::from_raw_mode(about.st_mode) {
        FileType::BlockDevice => true,
        FileType::CharacterDevice => {
            !is_guests_device((major(about.st_rdev), minor(about.st_rdev)))
        }
        _ => false,
    })
}

/// The runtime of who isn't root enforces no rules about devices: the nodes are all that there is.
fn keep_own_nodes(spec: &mut Spec) {
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    mounts.retain(|mount| !is_foreign_node(mount));
    spec.set_mounts(Some(mounts));
    if let Some(mut linux) = spec.linux().clone() {
        let mut resources = linux.resources().clone().unwrap_or_default();
        let all = LinuxDeviceCgroupBuilder::default().allow(true).build();
        resources.set_devices(all.ok().map(|all| vec![all]));
        linux.set_resources(Some(resources));
        spec.set_linux(Some(linux));
    }
}

/// What is to be said where all devices of the host are bound.
fn judge_nodes(spec: &Spec, config: &Config) -> Option<Finding> {
    if !binds_all_devices(spec) {
        return None;
    }
    let is_foreign = |mount: &&Mount| is_foreign_node(mount);
    let foreign = spec.mounts().iter().flatten().filter(is_foreign).count();
    let all = "it binds all devices of the host, as podman does for privileged containers";
    let verdict = match config.privileged_devices {
        _ if foreign == 0 => return None,
        PrivilegedDevices::Refuse => refused(all, foreign),
        PrivilegedDevices::Guest | PrivilegedDevices::GuestAndDisks => noted(all, foreign, ""),
    };
    let path = "mounts".to_owned();
    Some(Finding { path, verdict })
}

fn refused(all: &str, lacking: usize) -> Verdict {
    Verdict::Refused(Refusal::new(
        format!("{all}, and a guest can't have {lacking} of them"),
        "name the ones that it needs (engines: --device, --cap-add), or change privileged_devices in hull.toml",
    ))
}

fn noted(all: &str, lacking: usize, disks: &str) -> Verdict {
    let note = format!(
        "{all}: the container has those that a guest has, without {lacking} others{disks} (privileged_devices of \
         hull.toml)"
    );
    Verdict::Noted(Enforcer::Both, note)
}

/// What is to be said of the devices of a privileged container, and which of the list it hasn't, by their index.
pub(super) fn judge(spec: &Spec, config: &Config) -> (Option<Finding>, Vec<usize>) {
    let devices = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.devices().as_deref());
    let devices = devices.filter(|_| is_privileged(spec)).unwrap_or_default();
    let left_out: Vec<_> = (devices.iter().enumerate())
        .filter(|(_, device)| !is_kept(device, config))
        .collect();
    if left_out.is_empty() {
        return (judge_nodes(spec, config), Vec::new());
    }
    let all = "it lists all devices of the host, as engines do for privileged containers";
    let is_disk = |(_, device): &&(usize, &LinuxDevice)| device.typ() == LinuxDeviceType::B;
    let disks = match left_out.iter().filter(is_disk).count() {
        0 => String::new(),
        1 => ", a block device of the host among them".to_owned(),
        disks => format!(", {disks} block devices of the host among them"),
    };
    let verdict = match config.privileged_devices {
        PrivilegedDevices::Refuse => refused(all, left_out.len()),
        PrivilegedDevices::Guest | PrivilegedDevices::GuestAndDisks => {
            noted(all, left_out.len(), &disks)
        }
    };
    let path = "linux.devices".to_owned();
    let indices = left_out.into_iter().map(|(index, _)| index).collect();
    (Some(Finding { path, verdict }), indices)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// What docker and podman write of a small host.
    fn linux() -> Value {
        let device = |path: &str, kind: &str, major: i64, minor: i64| json!({"path": path, "type": kind, "major": major, "minor": minor, "fileMode": 438, "uid": 0, "gid": 0});
        json!({
            "resources": {"devices": [{"allow": true, "access": "rwm"}]},
            "devices": [
                device("/dev/full", "c", 1, 7), device("/dev/fuse", "c", 10, 229), device("/dev/kvm", "c", 10, 232),
                device("/dev/null", "c", 1, 3), device("/dev/random", "c", 1, 8), device("/dev/sda", "b", 8, 0),
                device("/dev/loop7", "b", 7, 0xf_ffff), device("/dev/tty", "c", 5, 0), device("/dev/tty0", "c", 4, 0),
                device("/dev/urandom", "c", 1, 9), device("/dev/zero", "c", 1, 5), device("/dev/kmsg", "c", 1, 11)],
        })
    }

    fn spec(linux: &Value) -> Spec {
        serde_json::from_value(json!({"ociVersion": "1.2.0", "linux": linux}))
            .expect("a config.json")
    }

    fn kept(policy: PrivilegedDevices) -> Vec<String> {
        let mut spec = spec(&linux());
        let config = Config {
            privileged_devices: policy,
            ..Config::default()
        };
        keep_own_devices(&mut spec, &config);
        let devices = spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.devices().clone());
        let path = |device: LinuxDevice| device.path().display().to_string();
        devices.unwrap_or_default().into_iter().map(path).collect()
    }

    #[test]
    fn a_privileged_container_has_what_a_guest_has_and_no_disk_of_the_host() {
        let guests = [
            "/dev/full",
            "/dev/fuse",
            "/dev/null",
            "/dev/random",
            "/dev/loop7",
            "/dev/tty",
            "/dev/urandom",
            "/dev/zero",
            "/dev/kmsg",
        ];
        assert_eq!(kept(PrivilegedDevices::Guest), guests);
        let with_disks = kept(PrivilegedDevices::GuestAndDisks);
        assert!(with_disks.contains(&"/dev/sda".to_owned()));
        assert!(!with_disks.contains(&"/dev/kvm".to_owned()));
    }

    #[test]
    fn what_is_left_out_is_said_once() {
        let (finding, left_out) = judge(&spec(&linux()), &Config::default());
        assert_eq!(left_out, [2, 5, 8]);
        let Some(Verdict::Noted(_, note)) = finding.map(|finding| finding.verdict) else {
            panic!("nothing is said");
        };
        assert!(
            note.contains("without 3 others, a block device of the host among them"),
            "{note}"
        );
    }

    #[test]
    fn only_the_list_of_all_devices_means_that() {
        assert!(lists_all_devices(&linux()));
        let mut docker = linux();
        docker["resources"]["devices"] = json!([{"allow": false}, {"allow": true}]);
        assert!(lists_all_devices(&docker));
        let mut denies = linux();
        denies["resources"]["devices"] =
            json!([{"allow": true}, {"allow": false, "type": "b", "major": 8}]);
        let mut one = linux();
        one["devices"] = json!([linux()["devices"][2]]);
        let mut few = linux();
        few["resources"]["devices"] =
            json!([{"allow": true, "type": "c", "major": 10, "minor": 232}]);
        for other in [denies, one, few, json!({})] {
            assert!(!lists_all_devices(&other), "{other}");
        }
    }

    #[test]
    fn without_root_the_nodes_of_the_host_are_left_out() {
        let bind = |path: &str| json!({"destination": path, "type": "bind", "source": path, "options": ["slave", "rbind"]});
        let bound = |paths: &[&str]| -> Spec {
            let mounts: Vec<_> = paths.iter().map(|path| bind(path)).collect();
            serde_json::from_value(json!({"ociVersion": "1.2.0", "mounts": mounts, "linux": {}}))
                .expect("a config.json")
        };
        let nodes = [
            "/dev/full",
            "/dev/null",
            "/dev/random",
            "/dev/urandom",
            "/dev/zero",
        ];
        // One that guests don't have, where this machine has it.
        let terminal = "/dev/pts/0";
        let mut spec = bound(&[&nodes[..], &[terminal]].concat());
        keep_own_devices(&mut spec, &Config::default());
        let kept = spec.mounts().iter().flatten().map(Mount::destination);
        let kept: Vec<_> = kept
            .filter(|path| *path != Path::new(terminal) || path.exists())
            .collect();
        assert_eq!(kept, nodes.map(Path::new));
        let rules = spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.resources().clone());
        let rules = rules.and_then(|resources| resources.devices().clone());
        assert!(rules.is_some_and(|rules| rules.len() == 1 && rules[0].allow()));
        let few = bound(&nodes[1..]);
        assert!(!binds_all_devices(&few));
    }
}
