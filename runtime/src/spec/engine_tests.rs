//! What engines write, taken from them as they are (`engines/`: their own files, with neutral names, a part of their
//! seccomp profile, and fewer of their host's terminals): nothing of it is refused but what a VM can't do.

use std::fs;

use serde_json::{Value, json};

use super::{Finding, Verdict, audit_bundle, load};
use crate::chain::chain;
use crate::config::{Config, HostNamespaces};

/// The containers of engines that have all that their engine gives by default, and some options.
const TAKEN: &[(&str, &str)] = &[
    ("buildah 1.28", include_str!("engines/buildah-1.28.json")),
    (
        "containerd 1.6, by ctr",
        include_str!("engines/containerd-1.6.json"),
    ),
    (
        "containerd 1.6, privileged",
        include_str!("engines/containerd-1.6-privileged.json"),
    ),
    ("docker 20.10", include_str!("engines/docker-20.10.json")),
    (
        "docker 20.10, options",
        include_str!("engines/docker-20.10-options.json"),
    ),
    (
        "docker 20.10, privileged",
        include_str!("engines/docker-20.10-privileged.json"),
    ),
    ("docker 28.5", include_str!("engines/docker-28.5.json")),
    (
        "docker 28.5, binds",
        include_str!("engines/docker-28.5-binds.json"),
    ),
    (
        "docker 28.5, privileged",
        include_str!("engines/docker-28.5-privileged.json"),
    ),
    ("podman 4.3", include_str!("engines/podman-4.3.json")),
    (
        "podman 4.3, options",
        include_str!("engines/podman-4.3-options.json"),
    ),
    (
        "podman 4.3, privileged",
        include_str!("engines/podman-4.3-privileged.json"),
    ),
    (
        "podman 4.3, without root",
        include_str!("engines/podman-4.3-rootless.json"),
    ),
    (
        "podman 4.3, privileged without root",
        include_str!("engines/podman-4.3-rootless-privileged.json"),
    ),
    (
        "podman 4.3, systemd",
        include_str!("engines/podman-4.3-systemd.json"),
    ),
    (
        "podman 4.3, users",
        include_str!("engines/podman-4.3-users.json"),
    ),
    (
        "podman 5.8, binds",
        include_str!("engines/podman-5.8-binds.json"),
    ),
    (
        "podman 5.8, options",
        include_str!("engines/podman-5.8-options.json"),
    ),
    (
        "podman 5.8, pod",
        include_str!("engines/podman-5.8-pod.json"),
    ),
    (
        "podman 5.8, privileged",
        include_str!("engines/podman-5.8-privileged.json"),
    ),
    (
        "podman 5.8, systemd",
        include_str!("engines/podman-5.8-systemd.json"),
    ),
    (
        "podman 5.8, users",
        include_str!("engines/podman-5.8-users.json"),
    ),
];

/// With the network, the processes, the queues and the name of the host.
const OF_THE_HOST: &[(&str, &str)] = &[
    (
        "containerd 1.6",
        include_str!("engines/containerd-1.6-host.json"),
    ),
    ("docker 28.5", include_str!("engines/docker-28.5-host.json")),
    ("podman 4.3", include_str!("engines/podman-4.3-host.json")),
    ("podman 5.8", include_str!("engines/podman-5.8-host.json")),
];

/// What hull says of such a file. containerd names the bundle's folder as the container.
fn audited(config: &str, policy: &Config) -> Vec<Finding> {
    let folder = tempfile::tempdir().expect("a folder");
    let bundle = folder.path().join("c2");
    fs::create_dir_all(bundle.join("rootfs")).expect("a rootfs");
    fs::write(bundle.join("config.json"), config).expect("a config.json");
    audit_bundle(&bundle, policy).expect("audited")
}

fn refused(findings: &[Finding]) -> Vec<&Finding> {
    findings
        .iter()
        .filter(|finding| finding.verdict.is_fatal())
        .collect()
}

fn note<'a>(findings: &'a [Finding], path: &str) -> &'a str {
    let of_path = |finding: &&Finding| finding.path == path;
    match findings
        .iter()
        .find(of_path)
        .map(|finding| &finding.verdict)
    {
        Some(Verdict::Noted(_, note)) => note,
        other => panic!("{path}: {other:?}"),
    }
}

#[test]
fn an_engines_default_config_is_taken() {
    for (engine, config) in TAKEN {
        let findings = audited(config, &Config::default());
        assert!(
            refused(&findings).is_empty(),
            "{engine}: {:?}",
            refused(&findings)
        );
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("rootfs")).expect("a rootfs");
        fs::write(folder.path().join("config.json"), config).expect("a config.json");
        load(folder.path()).unwrap_or_else(|e| panic!("{engine}: {}", chain(&e)));
    }
}

#[test]
fn a_default_profile_is_told_of_or_refused_by_the_operator() {
    let strict = Config {
        apparmor_defaults: false,
        ..Config::default()
    };
    let defaults = TAKEN
        .iter()
        .filter(|(_, config)| config.contains("apparmorProfile\":\"c"));
    assert!(defaults.clone().count() > 5);
    for (engine, config) in defaults {
        let taken = audited(config, &Config::default());
        assert!(
            note(&taken, "process.apparmorProfile").contains("taken as held by"),
            "{engine}"
        );
        let findings = audited(config, &strict);
        assert_eq!(refused(&findings).len(), 1, "{engine}");
        assert_eq!(
            refused(&findings)[0].path,
            "process.apparmorProfile",
            "{engine}"
        );
    }
}

#[test]
fn a_privileged_container_is_told_what_it_lacks_once() {
    for (engine, config) in TAKEN
        .iter()
        .filter(|(engine, _)| engine.ends_with("privileged"))
    {
        let findings = audited(config, &Config::default());
        let note = note(&findings, "linux.devices");
        assert!(
            note.contains("has those that a guest has, without"),
            "{engine}: {note}"
        );
        let devices: Value = serde_json::from_str(config).expect("JSON");
        let listed = devices["linux"]["devices"].as_array().map_or(0, Vec::len);
        let is_whole = |f: &&Finding| f.path.starts_with("linux.devices[") && f.path.ends_with(']');
        let told = findings.iter().filter(is_whole).count();
        assert!(told > 8 && told < listed, "{engine}: {told} of {listed}");
    }
}

#[test]
fn what_is_to_share_the_hosts_network_is_refused_with_a_way_out() {
    let isolating = Config {
        host_namespaces: HostNamespaces::Isolate,
        ..Config::default()
    };
    for (engine, config) in OF_THE_HOST {
        let findings = audited(config, &Config::default());
        let refusals = refused(&findings);
        assert_eq!(refusals.len(), 1, "{engine}: {refusals:?}");
        assert_eq!(refusals[0].path, "linux.namespaces", "{engine}");
        let isolated = audited(config, &isolating);
        assert!(refused(&isolated).is_empty(), "{engine}");
        assert!(
            note(&isolated, "linux.namespaces").contains("with lo alone"),
            "{engine}"
        );
    }
    // docker up to 25 names the host's instead.
    let named: Value =
        serde_json::from_str(include_str!("engines/docker-20.10-host.json")).expect("JSON");
    let network = json!({"type": "network", "path": "/var/run/docker/netns/default"});
    assert_eq!(named["linux"]["namespaces"][1], network);
}
