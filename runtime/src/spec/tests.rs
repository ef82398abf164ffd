//! Bundles on disk, and what hull makes of them.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use hull_vmm::jail::tree::{ReadOnly, Share, Source};
use hull_vmm::jail::userns::IdMap;
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::split::Plan;
use super::{Bundle, FilterCache, SpecError, load};
use crate::chain::chain;
use crate::config::Config;
use crate::host::Privilege;

fn plan(bundle: &Bundle, id: &str) -> Result<Plan, SpecError> {
    let filters = FilterCache::below(&bundle.path().join("hull"));
    let root = Privilege::HostRoot;
    super::plan(bundle, id, "hull", &Config::default(), &filters, root)
}

/// The least that is a config.json.
fn minimal() -> Value {
    json!({
        "ociVersion": "1.0.2",
        "process": { "cwd": "/", "args": ["/bin/true"] },
        "root": { "path": "rootfs" },
    })
}

fn bundle_of(text: &[u8]) -> TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    fs::create_dir(dir.path().join("rootfs")).expect("a rootfs");
    fs::write(dir.path().join("config.json"), text).expect("a config.json");
    dir
}

fn bundle(config: &Value) -> TempDir {
    bundle_of(config.to_string().as_bytes())
}

/// The minimal config.json with one value put at a JSON pointer (RFC 6901); parents are made.
fn with(pointer: &str, value: Value) -> Value {
    let mut config = minimal();
    put(&mut config, pointer, value);
    config
}

fn put(config: &mut Value, pointer: &str, value: Value) {
    let mut place = config;
    for part in pointer.split('/').skip(1) {
        place = if part == "0" {
            if place.get(0).is_none() {
                *place = json!([null]);
            }
            &mut place[0]
        } else {
            if !place.is_object() {
                *place = Value::Object(Map::new());
            }
            &mut place[part]
        };
    }
    *place = value;
}

/// What hull says to a config.json that it doesn't take.
fn refusal(config: &Value) -> String {
    let dir = bundle(config);
    match load(dir.path()) {
        Ok(_) => panic!("taken: {config}"),
        Err(e) => chain(&e),
    }
}

/// The guest's config.json, and the shares' targets with their read-only flags.
fn split(dir: &TempDir) -> (Value, Vec<(PathBuf, ReadOnly)>) {
    let plan = plan(&load(dir.path()).expect("taken"), "c1").expect("split");
    let guest = serde_json::from_slice(&plan.guest_spec.json).expect("JSON");
    (
        guest,
        plan.shares
            .into_iter()
            .map(|share| match share.source {
                Source::Bind(mounted) => (share.target, mounted.read_only),
                Source::FileSystem(_) => (share.target, ReadOnly::Unchanged),
            })
            .collect(),
    )
}

#[test]
fn the_least_config_is_taken() {
    let dir = bundle(&minimal());
    let bundle = load(dir.path()).expect("taken");
    assert_eq!(bundle.rootfs(), bundle.path().join("rootfs"));
}

#[test]
fn what_is_wrong_is_said_in_one_line_with_its_place() {
    let cases = [
        (
            "/ociVersion",
            json!("2.0.0"),
            r#"ociVersion: "2.0.0": hull reads versions 1.x"#,
        ),
        (
            "/ociVersion",
            json!("one"),
            r#"ociVersion: "one": it is not a semantic version"#,
        ),
        ("/ociVersion", json!(null), "ociVersion: it is missing"),
        ("/process", json!(null), "process: it is missing"),
        (
            "/process/cwd",
            json!("tmp"),
            r#"process.cwd: "tmp" is not an absolute path"#,
        ),
        ("/process/cwd", json!(""), "process.cwd: it is missing"),
        ("/process/args", json!(null), "process.args: it is missing"),
        (
            "/process/args",
            json!([]),
            "process.args: it names no program to run",
        ),
        (
            "/process/args",
            json!("sh"),
            "process.args: invalid type: string",
        ),
        (
            "/process/args",
            json!(["a\0b"]),
            "process.args[0]: it has a NUL byte",
        ),
        (
            "/process/capabilities",
            json!({"permitted": ["CAP_KILL"], "effective": ["CAP_KILL", "CAP_SYS_ADMIN"]}),
            "process.capabilities.effective: CAP_SYS_ADMIN is not in process.capabilities.permitted",
        ),
        (
            "/process/capabilities",
            json!({"permitted": ["CAP_KILL"], "inheritable": ["CAP_KILL"]}),
            "process.capabilities.inheritable: CAP_KILL is not in process.capabilities.bounding",
        ),
        (
            "/process/env",
            json!(["A=", "B"]),
            r#"process.env[1]: "B" is not NAME=VALUE"#,
        ),
        (
            "/process/env",
            json!(["=B"]),
            r#"process.env[0]: "=B" is not NAME=VALUE"#,
        ),
        (
            "/process/user/additionalGids",
            json!(vec![7; 65537]),
            "process.user.additionalGids: 65537 groups are more than 65536",
        ),
        (
            "/process/ioPriority",
            json!({"class": "IOPRIO_CLASS_BE", "priority": 9}),
            "process.ioPriority.priority: 9",
        ),
        (
            "/process/rlimits",
            json!([{"type": "RLIMIT_X"}]),
            "process.rlimits[0].type: unknown variant",
        ),
        ("/root", json!(null), "root: it is missing"),
        ("/root/path", json!("gone"), "gone: No such file"),
        (
            "/root/path",
            json!("config.json"),
            "config.json: not a directory",
        ),
        (
            "/mounts",
            json!([{"type": "proc"}]),
            "mounts[0]: missing field `destination`",
        ),
        (
            "/hostname",
            json!("h"),
            r#"hostname: it needs a namespace of type "uts""#,
        ),
        (
            "/linux/maskedPaths",
            json!(["/proc/kcore"]),
            "linux.maskedPaths: it needs a namespace",
        ),
        (
            "/linux/namespaces",
            json!([{"type": "pid"}, {"type": "pid"}]),
            "linux.namespaces[1].type: this kind",
        ),
        (
            "/linux/namespaces",
            json!([{"type": "net"}]),
            "linux.namespaces[0].type: unknown variant",
        ),
        (
            "/linux/sysctl",
            json!({"net.ipv4.ip_forward": "1"}),
            "it needs a namespace of type \"network\"",
        ),
        (
            "/linux/sysctl",
            json!({"vm.swappiness": "1"}),
            "it does not belong to a namespace",
        ),
        (
            "/linux/resources/memory",
            json!({"limit": 2048, "swap": 1024}),
            "linux.resources.memory.swap: it includes",
        ),
        (
            "/linux/resources/cpu",
            json!({"cpus": "2-1"}),
            "linux.resources.cpu.cpus: \"2-1\" is not a list",
        ),
        (
            "/linux/rootfsPropagation",
            json!("public"),
            "linux.rootfsPropagation: \"public\" is not",
        ),
        (
            "/hooks/prestart",
            json!([{"path": "/h"}, {"path": "h"}]),
            "hooks.prestart[1].path: \"h\" is not an absolute path",
        ),
        (
            "/hooks/poststop",
            json!([{"path": "/h", "timeout": 0}]),
            "hooks.poststop[0].timeout: 0 is not",
        ),
        (
            "/hooks/poststart",
            json!([{"path": "/h", "env": ["A=", "B"]}]),
            "hooks.poststart[0].env: \"B\" is not NAME=VALUE",
        ),
    ];
    for (pointer, value, expected) in cases {
        let said = refusal(&with(pointer, value));
        assert!(
            said.starts_with("config.json: ") && said.contains(expected),
            "{said}"
        );
        assert!(!said.contains('\n'), "{said}");
    }
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let cases = [
        (
            "/linux/intelRdt",
            json!({"closID": "x"}),
            "config.json: linux.intelRdt: ",
        ),
        (
            "/linux/namespaces",
            json!([{"type": "mount", "path": "/n"}]),
            "linux.namespaces[0].path: ",
        ),
        (
            "/linux/devices",
            json!([{"path": "/dev/dri/card0", "type": "c", "major": 226, "minor": 0}]),
            "linux.devices[0]: /dev/dri/card0 (226:0): ",
        ),
        (
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_NOTIFY"}),
            "linux.seccomp.defaultAction: ",
        ),
        (
            "/process/selinuxLabel",
            json!("x"),
            "process.selinuxLabel: ",
        ),
        (
            "/process/apparmorProfile",
            json!("a-profile"),
            "process.apparmorProfile: ",
        ),
        (
            "/mounts",
            json!([{"destination": "/proc", "type": "tmpfs"}]),
            "mounts[0].destination: ",
        ),
        (
            "/mounts",
            json!([{"destination": "/m", "options": ["bind", "idmap"]}]),
            "mounts[0].options[1]: ",
        ),
        (
            "/mounts",
            json!([{"destination": "/m", "options": ["bind", "size=1"]}]),
            "mounts[0].options[1]: ",
        ),
    ];
    for (pointer, value, expected) in cases {
        let said = refusal(&with(pointer, value));
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn broken_json_is_refused_with_line_and_column() {
    let dir = bundle_of(b"{\n  \"process\": }");
    let said = chain(&load(dir.path()).expect_err("refused"));
    assert!(
        said.contains("config.json: not valid JSON") && said.contains("line 2 column"),
        "{said}"
    );
}

#[test]
fn no_bundle_and_no_config_are_told_apart() {
    let dir = tempfile::tempdir().expect("a folder");
    assert!(matches!(load(dir.path()), Err(SpecError::NoConfig { .. })));
    assert!(matches!(
        load(&dir.path().join("gone")),
        Err(SpecError::Bundle { .. })
    ));
}

#[test]
fn a_bundle_whose_path_state_json_cannot_have_is_refused_by_its_name() {
    let dir = tempfile::tempdir().expect("a folder");
    let name = dir.path().join(OsStr::from_bytes(b"\xff"));
    fs::rename(bundle(&minimal()).keep(), &name).expect("a new name");
    // By whatever name it is called.
    let link = dir.path().join("link");
    symlink(&name, &link).expect("a link");
    for path in [name, link] {
        let said = chain(&load(&path).expect_err("refused"));
        assert!(
            said.starts_with("bundle ") && said.contains("UTF-8"),
            "{said}"
        );
    }
}

#[test]
fn a_config_that_is_no_file_is_refused_at_once() {
    let dir = tempfile::tempdir().expect("a folder");
    fs::create_dir(dir.path().join("config.json")).expect("a folder in its place");
    assert!(matches!(load(dir.path()), Err(SpecError::File { .. })));
}

#[test]
fn a_config_of_endless_size_is_refused() {
    let mut text = minimal().to_string().into_bytes();
    text.resize(4 << 20, b' ');
    assert!(matches!(
        load(bundle_of(&text).path()),
        Err(SpecError::File { .. })
    ));
}

#[test]
fn a_root_behind_a_symlink_is_refused() {
    let dir = bundle(&with("/root/path", json!("link")));
    symlink("rootfs", dir.path().join("link")).expect("a symlink");
    let said = chain(&load(dir.path()).expect_err("refused"));
    assert!(
        said.contains("root.path") && said.contains("symlink"),
        "{said}"
    );
}

#[test]
fn the_guest_gets_its_own_paths() {
    let mut config = with(
        "/mounts",
        json!([
            {"destination": "/proc", "type": "proc"},
            {"destination": "/data", "source": "rootfs", "options": ["rbind", "rprivate", "ro", "nosuid"]},
            {"destination": "/one", "type": "bind", "source": "config.json", "options": ["rw"]},
        ]),
    );
    config["hostname"] = json!("h");
    config["linux"] = json!({
        "namespaces": [{"type": "uts"}, {"type": "network", "path": ""}],
        "cgroupsPath": "/x",
        "resources": {"cpu": {"cpus": "0", "shares": 512}, "memory": {"limit": 0}},
    });
    let (guest, shares) = split(&bundle(&config));

    assert_eq!(guest["root"]["path"], "/run/hull/share/c1/rootfs");
    assert_eq!(guest["mounts"][0]["source"], "proc");
    assert_eq!(guest["mounts"][1]["source"], "/run/hull/share/c1/mounts/1");
    assert_eq!(
        guest["mounts"][1]["options"],
        json!(["rbind", "rprivate", "ro", "nosuid"])
    );
    assert_eq!(guest["mounts"][2]["options"], json!(["bind", "rw"]));
    assert_eq!(
        guest["linux"]["namespaces"],
        json!([{"type": "uts"}, {"type": "network"}])
    );
    assert_eq!(guest["linux"]["cgroupsPath"], Value::Null);
    assert_eq!(guest["linux"]["resources"]["cpu"], json!({"shares": 512}));
    assert_eq!(guest["linux"]["resources"]["memory"], json!({}));
    let expected = [
        ("c1/rootfs", ReadOnly::Unchanged),
        ("c1/mounts/1", ReadOnly::Itself(true)),
        ("c1/mounts/2", ReadOnly::Unchanged),
    ];
    assert_eq!(
        shares,
        expected.map(|(target, read_only)| (PathBuf::from(target), read_only))
    );
}

#[test]
fn the_host_mounts_what_needs_its_paths_and_the_guest_binds_that() {
    let mut config = with(
        "/mounts",
        json!([
            {"destination": "/o", "type": "overlay", "source": "none",
             "options": ["ro", "sync", "rslave", "lowerdir=/a"]},
            {"destination": "/m", "source": "rootfs", "options": ["bind", "ro", "rslave", "idmap"]},
            {"destination": "/m", "type": "bind", "options": ["remount", "rw"]},
        ]),
    );
    let maps = json!([{"containerID": 0, "hostID": 1000, "size": 1}]);
    config["mounts"][1]["uidMappings"] = maps.clone();
    config["mounts"][1]["gidMappings"] = maps;
    let dir = bundle(&config);
    let (guest, _) = split(&dir);
    let expected = json!([
        {"destination": "/o", "type": "bind", "source": "/run/hull/share/c1/mounts/0",
         "options": ["bind", "ro", "rslave"]},
        {"destination": "/m", "type": "bind", "source": "/run/hull/share/c1/mounts/1",
         "options": ["bind", "ro", "rslave"]},
        {"destination": "/m", "type": "bind", "source": "bind", "options": ["remount", "rw"]},
    ]);
    assert_eq!(guest["mounts"], expected);

    let plan = plan(&load(dir.path()).expect("taken"), "c1").expect("split");
    let Source::Bind(mounted) = &plan.shares[2].source else {
        panic!("{:?}", plan.shares);
    };
    assert!(mounted.receives_propagation && !mounted.recursive);
    assert_eq!(mounted.read_only, ReadOnly::Itself(false));
    let owners = mounted.owners.as_ref().expect("owners");
    assert_eq!(owners.name, "config.json: mounts[1].uidMappings");
    assert_eq!(
        owners.gids,
        [IdMap {
            inside: 0,
            outside: 1000,
            count: 1
        }]
    );
}

#[test]
fn a_share_is_the_file_that_was_opened_whatever_becomes_of_its_name() {
    let dir = bundle(&with(
        "/mounts",
        json!([{"destination": "/m", "source": "rootfs", "options": ["bind"]}]),
    ));
    let loaded = load(dir.path()).expect("taken");
    fs::rename(dir.path().join("rootfs"), dir.path().join("moved")).expect("renamed");
    let error = plan(&loaded, "c1").expect_err("the bind's source is gone");
    assert!(chain(&error).contains("mounts[0].source"), "{error}");
    fs::create_dir(dir.path().join("rootfs")).expect("another folder");
    let shares = plan(&loaded, "c1").expect("split").shares;
    let inode = |share: &Share| match &share.source {
        Source::Bind(mounted) => rustix::fs::fstat(&mounted.path).expect("stat").st_ino,
        Source::FileSystem(_) => panic!("{share:?} is a folder of the host"),
    };
    assert_ne!(inode(&shares[0]), inode(&shares[1]));
}

#[test]
fn the_guests_own_trees_and_devices_are_not_shared() {
    let dir = bundle(&with(
        "/mounts",
        json!([
            {"destination": "/sys", "source": "/sys", "options": ["rbind"]},
            {"destination": "/dev/zero", "source": "/dev/zero", "options": ["bind"]},
            {"destination": "/mnt", "source": "/dev", "options": ["bind"]},
        ]),
    ));
    let (guest, shares) = split(&dir);
    assert_eq!(shares.len(), 1);
    assert_eq!(guest["mounts"][0]["source"], "/sys");
    assert_eq!(guest["mounts"][1]["source"], "/dev/zero");
    assert_eq!(guest["mounts"][2]["source"], "/dev");
}

#[test]
fn a_block_device_that_the_host_lacks_is_no_disk() {
    let device = json!([{"path": "/dev/sdb", "type": "b", "major": 8, "minor": 4095}]);
    let dir = bundle(&with("/linux/devices", device));
    let plan = plan(&load(dir.path()).expect("taken"), "c1").expect("planned");
    assert!(plan.disks.is_empty());
}

#[test]
fn a_socket_cannot_be_shared_without_the_operators_word() {
    let dir = bundle(&with(
        "/mounts",
        json!([{"destination": "/s", "source": "s", "options": ["bind"]}]),
    ));
    let _socket = UnixListener::bind(dir.path().join("s")).expect("a socket");
    let error = plan(&load(dir.path()).expect("taken"), "c1").expect_err("refused");
    assert!(
        chain(&error).contains("mounts[0].source: s: it is a UNIX socket"),
        "{error}"
    );
}

/// Places in a config.json: those of the specification, with an index for each array.
fn places() -> Vec<String> {
    include_str!("fields-1.3.txt")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|path| {
            format!(
                "/{}",
                path.replace("[]", ".0")
                    .replace('*', "eth0")
                    .replace('.', "/")
            )
        })
        .collect()
}

/// Values that some field or other has, and some that none has.
fn values() -> impl Strategy<Value = Value> {
    let known = [
        json!("/"),
        json!("rootfs"),
        json!("bind"),
        json!("tmpfs"),
        json!("uts"),
        json!("user"),
        json!("0-1"),
        json!("1.2.0"),
        json!("c"),
        json!("SCMP_ACT_ALLOW"),
        json!(["rbind", "ro"]),
        json!(["private", "bind"]),
        json!(["a"]),
        json!([{"type": "network"}, {"type": "uts"}]),
        json!([{"containerID": 0, "hostID": 0, "size": 1}]),
        json!({"a": "b"}),
        json!(true),
        json!([{"destination": "/d", "source": "config.json", "options": ["bind"]}]),
        json!([{"destination": "d", "type": "tmpfs", "options": ["size=1m", "noexec"]}]),
    ];
    prop_oneof![
        3 => prop::sample::select(known.to_vec()),
        1 => any::<i64>().prop_map(Value::from),
        1 => any::<f64>().prop_map(Value::from),
        1 => ".{0,8}".prop_map(Value::from),
        1 => Just(Value::Null),
        1 => Just(json!([])),
        1 => Just(json!({})),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn whatever_is_taken_can_be_split(
        edits in prop::collection::vec((prop::sample::select(places()), values()), 0..6)
    ) {
        let mut config = minimal();
        for (place, value) in edits {
            put(&mut config, &place, value);
        }
        let dir = bundle(&config);
        if let Ok(loaded) = load(dir.path()) {
            match plan(&loaded, "c1") {
                Ok(plan) => {
                    prop_assert!(plan.sizing.memory_mib >= 128);
                    prop_assert!(serde_json::from_slice::<oci_spec::runtime::Spec>(&plan.guest_spec.json).is_ok());
                }
                // What a bind mount names is what only the split looks at, beside the host's disks.
                Err(e) => prop_assert!(chain(&e).contains(".source: "), "{}", chain(&e)),
            }
        }
    }

    #[test]
    fn no_text_makes_the_reader_fall(text in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = load(bundle_of(&text).path());
    }
}
