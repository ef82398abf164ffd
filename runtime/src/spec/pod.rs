//! What engines say of pods in annotations: in whose sandbox a container is to be, and what the pod's containers may use
//! in all.
//!
//! Their names are those of containerd's `pkg/cri/annotations`, CRI-O's and podman's `pkg/annotations`.

use std::collections::HashMap;

use oci_spec::runtime::{LinuxResources, Spec};

use super::sizing::memory_limit;
use crate::types::ContainerId;

/// The annotations of engines that name the sandbox, each with the one that says what the container is in it.
const SANDBOXES: [(&str, &str); 2] = [
    (
        "io.kubernetes.cri.sandbox-id",
        "io.kubernetes.cri.container-type",
    ),
    (
        "io.kubernetes.cri-o.SandboxID",
        "io.kubernetes.cri-o.ContainerType",
    ),
];

/// What the first container of a pod is called there.
const FIRST: &str = "sandbox";

/// The sum of the containers' memory limits, in bytes; 0 for none.
const MEMORY: &str = "io.kubernetes.cri.sandbox-memory";

/// The sum of their quotas of CPU time, and the period, in µs; 0 for none.
const CPU_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const CPU_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";

/// The sandbox that annotations name for a container that isn't its first one.
pub fn named_sandbox(
    annotations: &HashMap<String, String>,
    id: &ContainerId,
) -> Option<ContainerId> {
    let named = |(sandbox, role): &(&str, &str)| {
        let is_first = annotations.get(*role).is_some_and(|role| role == FIRST);
        let sandbox: ContainerId = annotations.get(*sandbox)?.parse().ok()?;
        (!is_first && sandbox != *id).then_some(sandbox)
    };
    SANDBOXES.iter().find_map(named)
}

/// Whether podman has made a container.
pub fn is_of_podman(annotations: &HashMap<String, String>) -> bool {
    (annotations.get("io.container.manager")).is_some_and(|manager| manager == "libpod")
}

/// Whether a container is the first one of a pod: it waits, and others do the work.
pub fn is_first_of_pod(spec: &Spec) -> bool {
    let annotations = spec.annotations().as_ref();
    annotations.is_some_and(|annotations| {
        (SANDBOXES.iter()).any(|(_, role)| annotations.get(*role).is_some_and(|it| it == FIRST))
    })
}

/// The limits that a VM is made for: those of its first container, and of a pod what all of them may use, as far as that
/// is known.
pub(super) fn limits_of_vm(spec: &Spec) -> LinuxResources {
    let linux = spec.linux().as_ref();
    let own = linux.and_then(|linux| linux.resources().clone());
    let mut limits = own.unwrap_or_default();
    if !is_first_of_pod(spec) {
        return limits;
    }
    let number = |name: &str| -> Option<i64> {
        let text = spec.annotations().as_ref()?.get(name)?;
        text.parse().ok().filter(|number| *number > 0)
    };
    if let Some(sum) = number(MEMORY).filter(|_| memory_limit(&limits).is_none_or(|own| own <= 0)) {
        let mut memory = limits.memory().unwrap_or_default();
        memory.set_limit(Some(sum));
        limits.set_memory(Some(memory));
    }
    if let Some(quota) = number(CPU_QUOTA) {
        let mut cpu = limits.cpu().clone().unwrap_or_default();
        if cpu.quota().is_none_or(|own| own <= 0) {
            let period = number(CPU_PERIOD).and_then(|period| u64::try_from(period).ok());
            cpu.set_quota(Some(quota)).set_period(period);
            limits.set_cpu(Some(cpu));
        }
    }
    limits
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn annotations(given: &[(&str, &str)]) -> HashMap<String, String> {
        let given = given.iter();
        given
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn engines_name_the_sandbox_of_a_member() {
        let id: ContainerId = "member".parse().expect("id");
        let of = |given: &[(&str, &str)]| {
            named_sandbox(&annotations(given), &id).map(|sandbox| sandbox.to_string())
        };
        let [(cri, cri_role), (crio, crio_role)] = SANDBOXES;
        let pod = Some("pod".to_owned());
        assert_eq!(of(&[(cri, "pod"), (cri_role, "container")]), pod);
        assert_eq!(of(&[(crio, "pod"), (crio_role, "container")]), pod);
        assert_eq!(of(&[(crio, "pod")]), pod, "podman 5 names no role");
        assert_eq!(of(&[(cri, "member"), (cri_role, FIRST)]), None);
        assert_eq!(of(&[(crio, "another"), (crio_role, FIRST)]), None);
        assert_eq!(of(&[(cri, "member")]), None, "itself");
        assert_eq!(of(&[(cri, "no/id")]), None);
    }

    #[test]
    fn a_pods_vm_is_made_for_what_its_containers_may_use() {
        let limits = |role: &str, resources: Value| {
            let spec = json!({
                "ociVersion": "1.2.0",
                "annotations": {
                    "io.kubernetes.cri.container-type": role, MEMORY: "268435456",
                    CPU_QUOTA: "150000", CPU_PERIOD: "100000",
                },
                "linux": { "resources": resources },
            });
            let limits = limits_of_vm(&serde_json::from_value(spec).expect("a config.json"));
            let cpu = limits.cpu().clone().unwrap_or_default();
            (memory_limit(&limits), cpu.quota(), cpu.period())
        };
        let sums = (Some(256 << 20), Some(150_000), Some(100_000));
        assert_eq!(limits(FIRST, json!({})), sums);
        assert_eq!(limits(FIRST, json!({"cpu": {"shares": 2}})), sums);
        assert_eq!(limits("container", json!({})), (None, None, None));
        let own = limits(FIRST, json!({"memory": {"limit": 5}}));
        assert_eq!(own.0, Some(5));
    }
}
