//! The network namespace of the host that config.json asks for: one that it names is opened, for the VM's process to
//! join it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType, Spec};
use rustix::fs::{CWD, Mode, OFlags, Stat, fstat, openat, stat};
use serde::{Deserialize, Serialize};

use super::SpecError;
use crate::config::{Config, HostNamespaces};
use crate::host::is_same_file;
use crate::network::{Namespace, count};

/// The network namespace of whoever asks.
const OWN: &str = "/proc/self/ns/net";

/// The network namespace of the first process.
const INITS: &str = "/proc/1/ns/net";

/// Why the host's own can't be joined, and what to do. Engines name it for --network host.
const HOSTS_OWN: &str = "it is the host's own network, which a VM cannot share; let the container have one of its own \
                         (engines: --network bridge or pasta, and publish its ports), or set host_namespaces = \
                         \"isolate\" in hull.toml: then it has lo alone";

/// The host's network namespace that the VM's process is in, where engines look for the container's. The
/// descriptor is this process's own in a plan, and a number of the VMM process's in what that is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Network<Fd = OwnedFd> {
    /// Its creator's: config.json has no such namespace.
    Creators,
    /// A new one.
    New,
    /// This one.
    Named(Fd),
}

impl<Fd> Network<Fd> {
    /// The same, with its descriptor in another form.
    ///
    /// # Errors
    /// When `change` fails.
    pub fn with<'a, To, E>(
        &'a self,
        change: impl FnOnce(&'a Fd) -> Result<To, E>,
    ) -> Result<Network<To>, E> {
        Ok(match self {
            Self::Creators => Network::Creators,
            Self::New => Network::New,
            Self::Named(fd) => Network::Named(change(fd)?),
        })
    }
}

/// What a config.json asks for, and how many interfaces a VM can have of it; a namespace that it names is opened. For the
/// host's own there is a new one, if the operator says so.
///
/// # Errors
/// When there is none at that path, it is the host's own, or has an interface that can't be a VM's.
pub fn asked_for(spec: &Spec, config: &Config) -> Result<(Network, usize), SpecError> {
    match (element(spec), path(spec)) {
        (None, _) => Ok((Network::Creators, 0)),
        (Some(_), None) => Ok((Network::New, 0)),
        (Some(_), Some((index, path))) => open(index, path, config),
    }
}

/// The path of the network namespace that a config.json names, and its index in `linux.namespaces`.
pub fn path(spec: &Spec) -> Option<(usize, &Path)> {
    let (index, namespace) = element(spec)?;
    let path = namespace.path().as_deref()?;
    (!path.as_os_str().is_empty()).then_some((index, path))
}

/// The element of `linux.namespaces` for the network, and its index.
fn element(spec: &Spec) -> Option<(usize, &LinuxNamespace)> {
    let namespaces = spec.linux().as_ref()?.namespaces().as_ref()?;
    (namespaces.iter().enumerate())
        .find(|(_, namespace)| namespace.typ() == LinuxNamespaceType::Network)
}

/// Opens the namespace that the element `index` of `linux.namespaces` names.
fn open(index: usize, path: &Path, config: &Config) -> Result<(Network, usize), SpecError> {
    let field = format!("linux.namespaces[{index}].path");
    let failed = |source: io::Error| SpecError::Source {
        field: field.clone(),
        path: path.to_owned(),
        source,
    };
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let namespace = openat(CWD, path, flags, Mode::empty()).map_err(|e| failed(e.into()))?;
    let about = fstat(&namespace).map_err(|e| failed(e.into()))?;
    if is_hosts(&about).map_err(|e| failed(e.into()))? {
        if config.host_namespaces == HostNamespaces::Isolate {
            log::warn!(
                "config.json: {field}: {}: it is the host's own network, which a VM cannot share: the container has \
                 lo alone",
                path.display()
            );
            return Ok((Network::New, 0));
        }
        return Err(SpecError::invalid(field, HOSTS_OWN));
    }
    let look = || count(&Namespace::borrowed(namespace.as_fd())?);
    let interfaces = look().map_err(|source| SpecError::Network {
        field: field.clone(),
        path: path.to_owned(),
        source,
    })?;
    Ok((Network::Named(namespace), interfaces))
}

/// Whether it is the network that hull itself is in, or the host's first process, which is the host's where hull is in
/// one of its own. Who may not look at the latter can't change it either.
///
/// # Errors
/// When there is no /proc.
pub fn is_hosts(namespace: &Stat) -> rustix::io::Result<bool> {
    let own = stat(OWN)?;
    let inits = stat(INITS);
    Ok(is_same_file(namespace, &own) || inits.is_ok_and(|inits| is_same_file(namespace, &inits)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn asked_under(
        config: &Config,
        namespaces: &serde_json::Value,
    ) -> Result<(Network, usize), SpecError> {
        let spec = json!({ "ociVersion": "1.2.0", "linux": { "namespaces": namespaces } });
        asked_for(
            &serde_json::from_value(spec).expect("a config.json"),
            config,
        )
    }

    fn asked(namespaces: &serde_json::Value) -> Result<(Network, usize), SpecError> {
        asked_under(&Config::default(), namespaces)
    }

    fn named_at(path: &str) -> Result<(Network, usize), SpecError> {
        asked(&json!([{"type": "pid"}, {"type": "network", "path": path}]))
    }

    #[test]
    fn the_runtimes_own_is_refused() {
        let said = named_at(OWN).expect_err("refused").to_string();
        assert!(
            said.contains("linux.namespaces[1].path: it is the host's own"),
            "{said}"
        );
    }

    #[test]
    fn the_operator_can_have_it_isolated() {
        let config = Config {
            host_namespaces: HostNamespaces::Isolate,
            ..Config::default()
        };
        let own = json!([{"type": "network", "path": OWN}]);
        assert!(matches!(asked_under(&config, &own), Ok((Network::New, 0))));
    }

    #[test]
    fn what_is_no_network_namespace_is_refused() {
        assert!(matches!(
            named_at("/nonexistent"),
            Err(SpecError::Source { .. })
        ));
        assert!(matches!(
            named_at("/proc/self/ns/uts"),
            Err(SpecError::Network { .. })
        ));
    }

    #[test]
    fn without_a_path_it_is_a_new_one_if_there_is_to_be_one() {
        assert!(matches!(named_at(""), Ok((Network::New, 0))));
        let (new, none) = (json!([{"type": "network"}]), json!([{"type": "pid"}]));
        assert!(matches!(asked(&new), Ok((Network::New, 0))));
        assert!(matches!(asked(&none), Ok((Network::Creators, 0))));
    }
}
