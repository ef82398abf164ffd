//! What is to be said of a config.json beyond its table of fields: where an engine asks for something that a VM can't
//! do to the letter, and the operator decides what becomes of it ([`Config`]).

use std::os::fd::OwnedFd;

use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::audit::{Finding, Verdict};
use super::fields::Enforcer;
use super::refuse::Refusal;
use super::{Bundle, SpecError, apparmor, privileged, sockets};
use crate::config::{Config, HostNamespaces};

/// What engines put their name into: podman and CRI-O, containerd's CRI, nerdctl.
const ANNOTATIONS: [&str; 5] = [
    "io.podman.",
    "io.container.manager",
    "io.kubernetes.cri",
    "io.containerd.",
    "nerdctl/",
];

/// The length of the ids that docker, podman and the CRI give their containers, in hexadecimal digits.
const ENGINE_ID: usize = 64;

/// The namespaces that engines leave out to share the host's, as config.json calls them.
const SHARED: [(LinuxNamespaceType, &str); 4] = [
    (LinuxNamespaceType::Network, "network"),
    (LinuxNamespaceType::Pid, "pid"),
    (LinuxNamespaceType::Ipc, "ipc"),
    (LinuxNamespaceType::Uts, "uts"),
];

const NAMESPACES: &str = "linux.namespaces";

/// All that is to be said of a config.json in this folder, and the indices of `linux.devices` that the container hasn't.
/// `id` is that of a container with a sandbox of its own, as far as it is known; one that joins another's has the namespaces
/// of that.
pub(super) fn judge(
    spec: &Spec,
    folder: &OwnedFd,
    id: Option<&str>,
    config: &Config,
) -> (Vec<Finding>, Vec<usize>) {
    let mut findings = sockets::judge(spec, folder, config);
    findings.extend(apparmor::judge(spec.process().as_ref(), config));
    if let Some(id) = id {
        findings.extend(namespaces(spec, id, config));
    }
    let (devices, left_out) = privileged::judge(spec, config);
    findings.extend(devices);
    (findings, left_out)
}

/// Refuses what the operator doesn't let pass, and warns of the rest. `id` is that of a container with a sandbox of its
/// own.
///
/// # Errors
/// Names what is refused.
pub fn apply(bundle: &Bundle, id: Option<&str>, config: &Config) -> Result<(), SpecError> {
    let (findings, _) = judge(&bundle.spec, &bundle.dir, id, config);
    let (refused, noted): (Vec<_>, Vec<_>) = findings
        .into_iter()
        .partition(|finding| finding.verdict.is_fatal());
    if !refused.is_empty() {
        return Err(SpecError::Refused(refused));
    }
    for finding in noted {
        if let Verdict::Noted(_, note) = &finding.verdict {
            // A default profile is in every container of an engine.
            let level = match finding.path.starts_with("process.") {
                true => log::Level::Debug,
                false => log::Level::Warn,
            };
            log::log!(level, "config.json: {}: {note}", finding.path);
        }
    }
    Ok(())
}

/// What is to be said of the kinds of namespaces that are left out. An engine leaves one out to share the host's. In
/// any other bundle it is only told that there is no network: it may well want none.
fn namespaces(spec: &Spec, id: &str, config: &Config) -> Option<Finding> {
    let listed = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.namespaces().as_ref());
    let is_missing = |kind: LinuxNamespaceType| {
        !listed.is_some_and(|list| list.iter().any(|namespace| namespace.typ() == kind))
    };
    let missing: Vec<_> = (SHARED.iter())
        .filter(|(kind, _)| is_missing(*kind))
        .map(|(_, name)| *name)
        .collect();
    let network = is_missing(LinuxNamespaceType::Network);
    let engine = is_of_engine(spec, id);
    let verdict = match config.host_namespaces {
        _ if missing.is_empty() || !engine && !network => return None,
        HostNamespaces::Refuse if engine => refused(&missing),
        HostNamespaces::RefuseNetwork if engine && network => refused(&["network"]),
        _ if engine => Verdict::Noted(
            Enforcer::Guest,
            format!(
                "it lists no namespace of type {}, which asks for the host's: the container has the guest's{}",
                missing.join(", "),
                if network { ", with lo alone" } else { "" }
            ),
        ),
        _ => Verdict::Noted(
            Enforcer::Guest,
            "it lists no namespace of type network: the container has the guest's, with lo alone"
                .to_owned(),
        ),
    };
    let path = NAMESPACES.to_owned();
    Some(Finding { path, verdict })
}

fn refused(kinds: &[&str]) -> Verdict {
    let reason = format!(
        "it lists no namespace of type {}, which asks for the host's, and a VM can't share that",
        kinds.join(", ")
    );
    let remedy = match kinds {
        ["network"] => {
            "let the container have a network of its own (engines: --network bridge or pasta, and publish its ports), \
             or set host_namespaces = \"isolate\" in hull.toml: then it has lo alone"
        }
        _ => "let the container have its own, or change host_namespaces in hull.toml",
    };
    Verdict::Refused(Refusal::new(reason, remedy))
}

/// Whether an engine has made a config.json: it says so, or its cgroup is named after the container, as all engines do
/// it. Who writes a bundle by hand may leave out what the container needn't have; of buildah's nobody can tell.
pub fn is_of_engine(spec: &Spec, id: &str) -> bool {
    let is_engines = |key: &String| ANNOTATIONS.iter().any(|name| key.starts_with(name));
    let annotated = spec.annotations().as_ref();
    if annotated.is_some_and(|annotations| annotations.keys().any(is_engines)) {
        return true;
    }
    let path = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.cgroups_path().as_ref());
    let path = path.and_then(|path| path.to_str()).unwrap_or_default();
    let (above, name) = path.rsplit_once(['/', ':']).unwrap_or(("", path));
    let is_id =
        |text: &str| text.len() == ENGINE_ID && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    // ctr's containers have any names, below one of containerd's.
    !name.is_empty() && (name.split('-').any(is_id) || name == id && !above.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const ID: &str = "4f8a0c3d5b6e7f809192a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4c5d6e7f8";

    fn spec(kinds: &[&str], extra: Value) -> Spec {
        let namespaces: Vec<_> = kinds.iter().map(|kind| json!({"type": kind})).collect();
        let mut config = json!({"ociVersion": "1.2.0", "linux": {"namespaces": namespaces}});
        if let (Value::Object(linux), Some(path)) = (&mut config["linux"], extra.get("cgroupsPath"))
        {
            linux.insert("cgroupsPath".to_owned(), path.clone());
        }
        if let Some(annotations) = extra.get("annotations") {
            config["annotations"] = annotations.clone();
        }
        serde_json::from_value(config).expect("a config.json")
    }

    fn verdict(spec: &Spec, id: &str, host_namespaces: HostNamespaces) -> &'static str {
        let config = Config {
            host_namespaces,
            ..Config::default()
        };
        match namespaces(spec, id, &config).map(|finding| finding.verdict) {
            None => "taken",
            Some(Verdict::Noted(..)) => "noted",
            Some(Verdict::Refused(_)) => "refused",
            Some(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_engines_container_is_known() {
        let at = |path: &str| json!({ "cgroupsPath": path });
        for extra in [
            json!({"annotations": {"io.podman.annotations.init": "FALSE"}}),
            json!({"annotations": {"io.kubernetes.cri.sandbox-id": "x"}}),
            at(&format!("/docker/{ID}")),
            at(&format!("system.slice:docker:{ID}")),
            at(&format!("/libpod_parent/libpod-{ID}")),
            at("/default/c1"),
        ] {
            assert!(is_of_engine(&spec(&[], extra.clone()), "c1"), "{extra}");
        }
        for extra in [
            json!({}),
            at("/c1"),
            at("/group/other"),
            json!({"annotations": {"org.x": ""}}),
        ] {
            assert!(!is_of_engine(&spec(&[], extra.clone()), "c1"), "{extra}");
        }
    }

    #[test]
    fn an_engine_is_told_that_no_namespace_of_the_host_can_be_shared() {
        use HostNamespaces::{Isolate, Refuse, RefuseNetwork};
        let docker = || json!({ "cgroupsPath": format!("/docker/{ID}") });
        let all = spec(&["network", "pid", "ipc", "uts", "mount"], docker());
        let no_network = spec(&["pid", "ipc", "uts", "mount"], docker());
        let no_pid = spec(&["network", "ipc", "uts", "mount"], docker());
        for (policy, expected) in [
            (Refuse, ["taken", "refused", "refused"]),
            (RefuseNetwork, ["taken", "refused", "noted"]),
            (Isolate, ["taken", "noted", "noted"]),
        ] {
            let said = [&all, &no_network, &no_pid].map(|spec| verdict(spec, ID, policy));
            assert_eq!(said, expected, "{policy:?}");
        }
    }

    #[test]
    fn a_plain_bundle_may_leave_kinds_out_and_is_told_of_its_network() {
        let bundle = |kinds| spec(kinds, json!({}));
        let said = |kinds| verdict(&bundle(kinds), "c", HostNamespaces::Refuse);
        assert_eq!(said(&["mount", "network"]), "taken");
        assert_eq!(said(&["mount", "pid", "ipc", "uts"]), "noted");
        assert_eq!(said(&[]), "noted");
    }
}
