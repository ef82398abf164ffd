//! Which sandbox a container belongs to, and which namespaces it has in common with others there.
//!
//! Engines say it in two ways. Those of pods name the sandbox in an annotation: containerd's CRI plugin, CRI-O, podman.
//! And all name other containers' namespaces by a process, `/proc/<pid>/ns/net`: the members of a pod, and who is asked
//! to share one container's network (`--network container:NAME`). The processes of hull's containers are in namespaces of
//! their own on the host, which stand for those in the guest. So what such a path means is: in that VM, that
//! container's.

use std::path::{Component, Path};

use hull_protocol::agent::SharedNamespaces;
use oci_spec::runtime::LinuxNamespaceType;
use rustix::fs::stat;

use super::create::Create;
use super::{Context, Error};
use crate::host::{ProcessId, is_same_file};
use crate::spec::{self, Bundle, NamespacePath};
use crate::store::{State, StoreError};
use crate::types::ContainerId;

/// The sandbox that a container is to be made in, if it isn't one of its own. `--sandbox` comes first.
///
/// # Errors
/// When the containers that exist can't be listed, and when a namespace is that of a container whose network isn't to be
/// shared.
pub(super) fn sandbox_of(
    context: &Context,
    request: &Create<'_>,
) -> Result<Option<ContainerId>, Error> {
    if request.sandbox.is_some() {
        return Ok(request.sandbox.clone());
    }
    let annotations = request.bundle.annotations();
    if let Some(sandbox) = spec::named_sandbox(&annotations, &request.id) {
        match context.find(&sandbox) {
            // podman names the pod where that has no container of its own.
            Err(Error::Store(StoreError::Missing(_))) if spec::is_of_podman(&annotations) => {}
            _ => return Ok(Some(sandbox)),
        }
    }
    by_namespaces(context, &request.bundle)
}

/// The sandbox of the container whose process the paths of namespaces name.
fn by_namespaces(context: &Context, bundle: &Bundle) -> Result<Option<ContainerId>, Error> {
    let mut of_processes = spec::named_namespaces(bundle.spec())
        .filter(|named| process_of(named.path).is_some())
        .peekable();
    if of_processes.peek().is_none() {
        return Ok(None);
    }
    let states = context.store()?.list()?.states;
    let mut found = of_processes.filter_map(|named| Some((named, by_process(&named, &states)?)));
    let Some((named, state)) = found.next() else {
        return Ok(None);
    };
    let network = spec::named_namespaces(bundle.spec())
        .find(|named| named.kind == LinuxNamespaceType::Network)
        .and_then(|named| by_process(&named, &states));
    if network.is_none_or(|network| network.sandbox.id != state.sandbox.id) {
        return Err(Error::NamespaceOfSandbox {
            field: named.field(),
            path: named.path.to_owned(),
            container: state.container.id.clone(),
        });
    }
    Ok(Some(state.sandbox.id.clone()))
}

/// The namespaces that a container has in common with others of its sandbox, whose VM runs in this process. config.json
/// doesn't name them any more.
///
/// # Errors
/// When one that it names is nobody's in the sandbox. A network is left, for who sees to the host's.
pub(super) fn share(
    context: &Context,
    bundle: &mut Bundle,
    sandbox: &ContainerId,
    vmm: ProcessId,
) -> Result<SharedNamespaces, Error> {
    let mut shared = SharedNamespaces::default();
    let mut users = None;
    let mut taken = Vec::new();
    let mut states = Vec::new();
    for named in spec::named_namespaces(bundle.spec()) {
        if states.is_empty() {
            states = context.store()?.list()?.states;
            states.retain(|state| state.sandbox.vmm == Some(vmm));
        }
        let by_process = by_process(&named, &states).map(|state| &state.container.id);
        let whose = by_process.or_else(|| is_of(&named, vmm).then_some(sandbox));
        let Some(whose) = whose else {
            match named.kind {
                LinuxNamespaceType::Network => continue,
                _ => return Err(foreign(&named)),
            }
        };
        let id = match named.kind {
            LinuxNamespaceType::Network => &mut shared.network,
            LinuxNamespaceType::Ipc => &mut shared.ipc,
            LinuxNamespaceType::Uts => &mut shared.uts,
            LinuxNamespaceType::Pid => &mut shared.pid,
            _ => {
                users = Some(whose.clone());
                &mut shared.user
            }
        };
        id.push_str(whose.as_str());
        taken.push(named.kind);
    }
    for kind in taken {
        bundle.take_namespace_path(kind);
    }
    if let Some(whose) = users
        && !spec::has_own_users(&context.find(&whose)?.load_config()?)
    {
        bundle.take_user_namespace();
        shared.user.clear();
    }
    Ok(shared)
}

/// Refuses namespaces of the host that a container with a sandbox of its own names: it has its own in its guest. The
/// network's is the VM process's to join.
///
/// # Errors
/// Names the first.
pub(super) fn refuse_foreign(bundle: &Bundle) -> Result<(), Error> {
    let mut named = spec::named_namespaces(bundle.spec());
    match named.find(|named| named.kind != LinuxNamespaceType::Network) {
        Some(named) => Err(foreign(&named)),
        None => Ok(()),
    }
}

fn foreign(named: &NamespacePath<'_>) -> Error {
    Error::ForeignNamespace {
        field: named.field(),
        path: named.path.to_owned(),
    }
}

/// The container whose process on the host a path is about, if that still is the process.
fn by_process<'a>(named: &NamespacePath<'_>, states: &'a [State]) -> Option<&'a State> {
    let pid = process_of(named.path)?;
    let is_its = |process: ProcessId| {
        process.pid == pid && is_same_namespace(named, pid) && process.is_alive()
    };
    (states.iter()).find(|state| state.process().is_some_and(is_its))
}

/// Whether a namespace is the one that a VM's process has, and nobody else: its users are the host's.
fn is_of(named: &NamespacePath<'_>, vmm: ProcessId) -> bool {
    named.kind != LinuxNamespaceType::User && is_same_namespace(named, vmm.pid) && vmm.is_alive()
}

fn is_same_namespace(named: &NamespacePath<'_>, pid: i32) -> bool {
    let own = stat(format!("/proc/{pid}/ns/{}", named.file()));
    match (own, stat(named.path)) {
        (Ok(own), Ok(named)) => is_same_file(&own, &named),
        _ => false,
    }
}

/// The process that a path below /proc is about.
pub(super) fn process_of(path: &Path) -> Option<i32> {
    let below = path.strip_prefix("/proc").ok()?;
    match below.components().next()? {
        Component::Normal(name) => name.to_str()?.parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_below_proc_is_a_processs() {
        let of = |path: &str| process_of(Path::new(path));
        assert_eq!(of("/proc/768/ns/net"), Some(768));
        for path in [
            "/proc/self/ns/net",
            "/run/netns/proc",
            "proc/7/ns/net",
            "/proc",
            "",
        ] {
            assert_eq!(of(path), None, "{path}");
        }
    }
}
