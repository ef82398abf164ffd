//! Bad input gets one clear line and an exit code, and changes nothing.
//!
//! That nothing is left behind is looked at when each [`Container`] is dropped.

use std::fs;
use std::process::Command;

use hull_tests::{Bundle, Container, Finished, Running, only_hull, runtime};
use serde_json::{Value, json};

/// A refusal: exit code 1 and one line on standard error that has all these words.
#[track_caller]
fn refused(done: Finished, words: &[&str]) {
    let done = done.exits(1);
    assert_eq!(
        done.err().lines().count(),
        1,
        "not one line: {}",
        done.err()
    );
    assert_eq!(done.out(), "");
    for word in words {
        let _ = done.clone().fails_saying(word);
    }
}

/// Both ways to make a container refuse, and none exists afterwards.
#[track_caller]
fn refuses_to_create(container: &Container, words: &[&str]) {
    for verb in ["create", "run"] {
        let args = [verb, "--bundle", container.bundle_path(), &container.id];
        refused(container.call(&args), words);
    }
    let _ = container.call(&["state", &container.id]).exits(1);
    assert_eq!(container.call(&["list", "--quiet"]).ok().out(), "");
}

#[test]
fn no_bundle() {
    let container = Container::new(Bundle::new());
    fs::remove_dir_all(container.bundle.path()).unwrap();
    refuses_to_create(&container, &["no such file or directory"]);
}

#[test]
fn no_config() {
    let container = Container::new(Bundle::new());
    fs::remove_file(container.bundle.path().join("config.json")).unwrap();
    refuses_to_create(&container, &["config.json"]);
}

#[test]
fn broken_json() {
    let container = Container::new(Bundle::new());
    let config = container.bundle.path().join("config.json");
    fs::write(config, "{ \"ociVersion\": \"1.0.2\",").unwrap();
    let words: &[&str] = if runtime::is_hull() {
        &["config.json", "line 1"]
    } else {
        &["EOF"]
    };
    refuses_to_create(&container, words);
}

/// Where runc takes what hull refuses.
#[test]
fn a_config_that_readers_take_for_different_things() {
    type Change = fn(String) -> Vec<u8>;
    let cases: [(Change, &str); 4] = [
        (|text| (text + " more").into(), "trailing characters"),
        (
            |text| {
                let mut bytes = text.into_bytes();
                let name = bytes.windows(3).position(|word| word == b"box");
                bytes[name.expect("the host's name")] = 0xff;
                bytes
            },
            "invalid unicode",
        ),
        (
            |text| (text + &" ".repeat(3 << 20)).into(),
            "larger than 3 MiB",
        ),
        (
            |text| text.replacen('{', r#"{"hostname": "first", "#, 1).into(),
            "\"hostname\" is there twice",
        ),
    ];
    for (change, refusal) in cases {
        let container = Container::new(Bundle::new());
        let config = container.bundle.path().join("config.json");
        let text = fs::read_to_string(&config).unwrap();
        fs::write(&config, change(text)).unwrap();
        if runtime::is_hull() {
            refuses_to_create(&container, &["config.json", refusal]);
        } else {
            let _ = container.run().ok();
        }
    }
}

#[test]
fn a_field_of_a_wrong_type() {
    let container = Container::new(Bundle::new().set("/process/args", json!("not a list")));
    refuses_to_create(&container, &["process.args"]);
}

#[test]
fn a_version_that_is_not_ours() {
    only_hull!("runc doesn't look at ociVersion");
    for version in ["2.0.0", "0.9", "latest", ""] {
        let container = Container::new(Bundle::new().set("/ociVersion", json!(version)));
        refuses_to_create(&container, &["ociVersion"]);
    }
}

#[test]
fn no_process_arguments() {
    let container = Container::new(Bundle::new().args(&[]));
    refuses_to_create(&container, &["args"]);
}

#[test]
fn a_missing_root_file_system() {
    let container = Container::new(Bundle::new());
    fs::remove_dir_all(container.bundle.rootfs()).unwrap();
    refuses_to_create(&container, &["rootfs"]);
}

#[test]
fn ids_that_are_no_names() {
    let container = Container::new(Bundle::new());
    for id in ["a/b", "../a", "..", "a b", "a\nb"] {
        let create = ["create", "--bundle", container.bundle_path(), id];
        let done = container.call(&create).exits(1);
        assert!(
            done.err().contains("invalid container ID format"),
            "{id:?}: {}",
            done.err()
        );
    }
    assert_eq!(fs::read_dir(container.root()).map_or(0, Iterator::count), 0);
}

#[test]
fn runcs_ids_are_taken() {
    const LONGEST: usize = 255;
    for (before, length) in [("", LONGEST), ("-", 0), ("..", 0), (",", 0)] {
        let container = Container::new(Bundle::new().shell("echo ready; exec sleep 3600"));
        let id = format!("{before}{:x<length$}", container.id);
        // An id with a dash in front comes after two.
        let create = ["create", "--bundle", container.bundle_path(), "--", &id];
        let mut created = Running::spawn(&mut container.command(&create));
        assert!(created.exit().success(), "{id}: {}", created.finish().err());
        let _ = container.call(&["start", "--", &id]).ok();
        assert_eq!(created.line(), "ready", "{id}");
        let said = container
            .call(&["exec", "--", &id, "/bin/echo", "hello"])
            .ok();
        assert_eq!(said.out(), "hello", "{id}");
        assert_eq!(container.call(&["list", "--quiet"]).ok().out(), id);
        let _ = container.call(&["delete", "--force", "--", &id]).ok();
        assert_eq!(container.leaks(), Vec::<String>::new(), "{id}");
    }
}

#[test]
fn an_empty_id() {
    let container = Container::new(Bundle::new());
    let create = ["create", "--bundle", container.bundle_path(), ""];
    refused(container.call(&create), &[]);
}

#[test]
fn an_id_in_use() {
    let mut first = Container::new(Bundle::new());
    first.create();
    let before = first.state();

    for verb in ["create", "run"] {
        let args = [verb, "--bundle", first.bundle_path(), &first.id];
        refused(
            first.call(&args),
            &["container with given ID already exists"],
        );
    }

    let after = first.state();
    assert_eq!((after.pid, after.status), (before.pid, before.status));
    let _ = first.start().ok();
}

#[test]
fn a_signal_or_verb_that_does_not_exist() {
    let mut container = Container::new(Bundle::new());
    container.create();
    refused(container.kill("NONSENSE"), &["NONSENSE"]);
    let verb = container.call(&["nonsense"]);
    assert!(!verb.status.success() || !runtime::is_hull());
}

#[test]
fn unsupported_fields_are_refused_by_their_path() {
    only_hull!("runc supports or ignores them");
    let cases: &[(&str, Value, &str)] = &[
        (
            "/process/selinuxLabel",
            json!("system_u:system_r:t:s0"),
            "process.selinuxLabel",
        ),
        (
            "/process/apparmorProfile",
            json!("a-profile"),
            "process.apparmorProfile",
        ),
        (
            "/linux/intelRdt",
            json!({ "closID": "a" }),
            "linux.intelRdt",
        ),
        (
            "/linux/resources/memory",
            json!({ "swappiness": 5 }),
            "linux.resources.memory.swappiness",
        ),
        (
            "/linux/resources/rdma",
            json!({ "mlx5_1": { "hcaHandles": 3 } }),
            "linux.resources.rdma",
        ),
        (
            "/linux/resources/network",
            json!({ "classID": 1 }),
            "linux.resources.network.classID",
        ),
        (
            "/linux/seccomp",
            json!({ "defaultAction": "SCMP_ACT_NOTIFY" }),
            "linux.seccomp.defaultAction",
        ),
        ("/linux/mountLabel", json!("a"), "linux.mountLabel"),
        (
            "/linux/namespaces/2",
            json!({ "type": "ipc", "path": "/proc/1/ns/ipc" }),
            "linux.namespaces[2].path",
        ),
        // The host's kernel is asked to mount it, and finds no such device.
        ("/mounts/5/type", json!("ext4"), "mounts[5]"),
        ("/mounts/5/options", json!(["mand"]), "mounts[5].options[0]"),
        (
            "/vm",
            json!({ "hypervisor": { "path": "/bin/qemu" } }),
            "vm",
        ),
        ("/windows", json!({ "layerFolders": ["a"] }), "windows"),
    ];
    let mut accepted = Vec::new();
    for (pointer, value, path) in cases {
        let container = Container::new(Bundle::new().set(pointer, value.clone()));
        let done = container.call(&["create", "--bundle", container.bundle_path(), &container.id]);
        let said = done.err();
        if done.status.success()
            || !said.contains(&format!("config.json: {path}"))
            || said.lines().count() != 1
        {
            accepted.push(format!("{path}: {} {said:?}", done.status));
        }
    }
    assert!(accepted.is_empty(), "{accepted:#?}");
}

#[test]
fn a_command_that_never_starts_leaves_the_root_as_it_was() {
    let container = Container::new(Bundle::new().args(&["/bin/nonsense"]));
    let before = Command::new("find")
        .arg(container.bundle.rootfs())
        .output()
        .unwrap();

    let _ = container.run().exits(1);

    assert_eq!(container.call(&["list", "--quiet"]).ok().out(), "");
    let after = Command::new("find")
        .arg(container.bundle.rootfs())
        .output()
        .unwrap();
    let files = |output: Vec<u8>| String::from_utf8(output).unwrap().lines().count();
    assert_eq!(files(before.stdout), files(after.stdout));
}
