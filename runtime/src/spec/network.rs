//! The network namespace of the host that config.json asks for: one that it names is opened, and looked
//! into before the VM's process joins it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::thread;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use rustix::fs::{CWD, Mode, OFlags, fstat, openat, stat};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::{Deserialize, Serialize};

use super::SpecError;

/// The network namespace of whoever asks.
const OWN: &str = "/proc/self/ns/net";

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

/// What a config.json asks for; a namespace that it names is opened.
///
/// # Errors
/// When there is none at that path, or one whose network a VM would not have.
pub fn asked_for(spec: &Spec) -> Result<Network, SpecError> {
    let namespaces = spec.linux().as_ref().and_then(|l| l.namespaces().as_ref());
    let asked = (namespaces.into_iter().flatten().enumerate())
        .find(|(_, namespace)| namespace.typ() == LinuxNamespaceType::Network);
    let Some((index, namespace)) = asked else {
        return Ok(Network::Creators);
    };
    let path = namespace.path().as_deref();
    match path.filter(|path| !path.as_os_str().is_empty()) {
        Some(path) => open(index, path).map(Network::Named),
        None => Ok(Network::New),
    }
}

/// Opens the namespace that the element `index` of `linux.namespaces` names.
fn open(index: usize, path: &Path) -> Result<OwnedFd, SpecError> {
    let field = format!("linux.namespaces[{index}].path");
    let failed = |source: io::Error| SpecError::Source {
        field: field.clone(),
        path: path.to_owned(),
        source,
    };
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let namespace = openat(CWD, path, flags, Mode::empty()).map_err(|e| failed(e.into()))?;
    if is_own(namespace.as_fd()).map_err(|e| failed(e.into()))? {
        let why = "it is the host's own network, which a VM cannot share";
        return Err(SpecError::invalid(field, why));
    }
    match connected(namespace.as_fd()).map_err(failed)? {
        Some(name) => {
            let why = format!(
                "{}: its interface {name:?} is up, and hull does not connect interfaces to a VM yet",
                path.display()
            );
            Err(SpecError::invalid(field, why))
        }
        None => Ok(namespace),
    }
}

fn is_own(namespace: BorrowedFd<'_>) -> rustix::io::Result<bool> {
    let (given, own) = (fstat(namespace)?, stat(Path::new(OWN))?);
    Ok((given.st_dev, given.st_ino) == (own.st_dev, own.st_ino))
}

/// The first interface of a namespace that is up and isn't `lo`.
///
/// Others may be there and mean nothing: some of the kernel's modules put one into every namespace.
fn connected(namespace: BorrowedFd<'_>) -> io::Result<Option<String>> {
    // A thread of its own: whoever looks into a namespace is in it.
    let look = || -> io::Result<Option<String>> {
        move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))?;
        let up = getifaddrs()?.find(|interface| {
            interface.flags.contains(InterfaceFlags::IFF_UP) && interface.interface_name != "lo"
        });
        Ok(up.map(|interface| interface.interface_name))
    };
    thread::scope(|scope| scope.spawn(look).join())
        .unwrap_or_else(|_| Err(io::Error::other("the thread that looked into it died")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn asked(namespaces: &serde_json::Value) -> Result<Network, SpecError> {
        let spec = json!({ "ociVersion": "1.2.0", "linux": { "namespaces": namespaces } });
        asked_for(&serde_json::from_value(spec).expect("a config.json"))
    }

    fn named_at(path: &str) -> Result<Network, SpecError> {
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
    fn what_is_no_network_namespace_is_refused() {
        assert!(matches!(
            named_at("/nonexistent"),
            Err(SpecError::Source { .. })
        ));
        assert!(matches!(
            named_at("/proc/self/ns/uts"),
            Err(SpecError::Source { .. })
        ));
    }

    #[test]
    fn without_a_path_it_is_a_new_one_if_there_is_to_be_one() {
        assert!(matches!(named_at(""), Ok(Network::New)));
        let (new, none) = (json!([{"type": "network"}]), json!([{"type": "pid"}]));
        assert!(matches!(asked(&new), Ok(Network::New)));
        assert!(matches!(asked(&none), Ok(Network::Creators)));
    }
}
