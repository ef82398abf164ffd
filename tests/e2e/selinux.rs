//! A host with SELinux: config.json's label is that of the VM process.
//!
//! The emulated host gets a policy for it (`selinux.policy`), and must be started with `--selinux`.

use std::fs;
use std::process::Command;

use hull_tests::{Bundle, Container, only_hull, skip};
use serde_json::json;

const LABEL: &str = "system_u:system_r:vm_t";

/// Ends the test unless the host has SELinux with the policy.
macro_rules! policy {
    () => {
        only_hull!("runc has the container's process labelled, not a VM's");
        if std::env::var_os("HULL_EMULATED_HOST").is_none() {
            skip!("this host's SELinux policy, if any, is not the test's to change");
        }
        load_policy();
    };
}

fn load_policy() {
    static LOADED: std::sync::Once = std::sync::Once::new();
    LOADED.call_once(|| {
        let folder = tempfile::tempdir().unwrap();
        let policy = folder.path().join("policy");
        let text = concat!(env!("CARGO_MANIFEST_DIR"), "/e2e/selinux.policy");
        run(Command::new("checkpolicy")
            .args(["-U", "allow", "-c", "33", "-o"])
            .arg(&policy)
            .arg(text));
        run(Command::new("mount").args(["-t", "selinuxfs", "selinuxfs", "/sys/fs/selinux"]));
        fs::write("/sys/fs/selinux/load", fs::read(policy).unwrap()).unwrap();
    });
}

fn run(command: &mut Command) {
    assert!(command.status().unwrap().success(), "{command:?}");
}

fn labelled(label: &str) -> Container {
    let bundle = Bundle::new().shell("sleep 3600");
    Container::new(
        bundle
            .set("/process/selinuxLabel", json!(label))
            .set("/linux/mountLabel", json!(label)),
    )
}

#[test]
fn every_thread_of_the_vm_process_has_the_containers_label() {
    policy!();
    let mut container = labelled(LABEL);
    container.create();
    let _ = container.start().ok();

    let threads = fs::read_dir(format!("/proc/{}/task", container.state().pid)).unwrap();
    for thread in threads {
        let label = fs::read_to_string(thread.unwrap().path().join("attr/current")).unwrap();
        assert_eq!(label.trim_end_matches(['\0', '\n', ' ']), LABEL);
    }
    let own = fs::read_to_string("/proc/self/attr/current").unwrap();
    assert!(own.contains(":host_t"), "{own}");

    // Engines give an exec the container's label.
    let process = json!({
        "user": { "uid": 0, "gid": 0 }, "cwd": "/", "args": ["/bin/true"], "selinuxLabel": LABEL,
    });
    let exec = |process: serde_json::Value| {
        let file = container.bundle.file("process.json", &process.to_string());
        let file = file.display().to_string();
        container.call(&["exec", "--process", &file, &container.id])
    };
    let _ = exec(process.clone()).ok();
    let mut other = process;
    other["selinuxLabel"] = json!("system_u:system_r:host_t");
    let _ = exec(other).fails_saying("is not the label of the container's VM");
}

#[test]
fn a_label_that_the_policy_does_not_know_is_refused() {
    policy!();
    let container = labelled("system_u:system_r:nobody_t");
    let _ = (container.run()).fails_saying("process.selinuxLabel: the host's SELinux policy");
}
