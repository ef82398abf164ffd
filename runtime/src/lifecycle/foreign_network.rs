//! A network namespace that config.json names by a process, and that another container is in: engines ask so to join
//! it (`--network container:NAME`, members of a pod). A VM can't: it takes all that comes in by the interfaces that it
//! is connected to, so two can't share one, and a container of another runtime would lose its network.

use std::path::{Component, Path};

use oci_spec::runtime::Spec;
use rustix::fs::{Stat, stat};

use super::network::is_in_network;
use super::{Context, Error};
use crate::host::ProcessId;
use crate::spec;
use crate::types::ContainerId;

/// Refuses the network namespace of a running sandbox, and one that an engine has taken from another process. Who writes
/// a bundle may have a process that keeps a namespace for it.
///
/// # Errors
/// Names whose it is, and says what to do.
pub(super) fn refuse(context: &Context, id: &ContainerId, spec: &Spec) -> Result<(), Error> {
    let Some((index, path)) = spec::network_path(spec) else {
        return Ok(());
    };
    let (Some(process), Ok(namespace)) = (process_of(path), stat(path)) else {
        return Ok(());
    };
    // The host's own is refused for what it is.
    if spec::is_hosts_network(&namespace).unwrap_or(false) {
        return Ok(());
    }
    let field = format!("linux.namespaces[{index}].path");
    let path = path.to_owned();
    if let Some(sandbox) = sandbox_in(context, &namespace)? {
        return Err(Error::NetworkOfSandbox {
            field,
            path,
            sandbox,
        });
    }
    match spec::is_of_engine(spec, id.as_str()) {
        true => Err(Error::NetworkOfContainer {
            field,
            path,
            process,
        }),
        false => Ok(()),
    }
}

/// The process that a path below /proc is about.
fn process_of(path: &Path) -> Option<i32> {
    let below = path.strip_prefix("/proc").ok()?;
    match below.components().next()? {
        Component::Normal(name) => name.to_str()?.parse().ok(),
        _ => None,
    }
}

/// The sandbox whose VM's process is in this network namespace.
fn sandbox_in(context: &Context, namespace: &Stat) -> Result<Option<ContainerId>, Error> {
    let is_in = |vmm: &ProcessId| is_in_network(*vmm, namespace) && vmm.is_alive();
    let states = context.store()?.list()?.states;
    let found = states.into_iter().find(|state| {
        let own = state.own_sandbox();
        own.is_some_and(|own| own.network.is_some() && own.vmm.as_ref().is_some_and(is_in))
    });
    Ok(found.map(|state| state.container.id))
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
