//! A network namespace that config.json names: opened, and looked into before the VM's process joins it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::thread;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use rustix::fs::{CWD, Mode, OFlags, fstat, openat, stat};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::SpecError;

/// The network namespace of whoever asks.
const OWN: &str = "/proc/self/ns/net";

/// Opens the network namespace that a config.json names, if it names one.
///
/// # Errors
/// When there is none at that path, or one whose network a VM would not have.
pub fn named(spec: &Spec) -> Result<Option<OwnedFd>, SpecError> {
    let namespaces = spec.linux().as_ref().and_then(|l| l.namespaces().as_ref());
    let named = namespaces
        .into_iter()
        .flatten()
        .enumerate()
        .find_map(|(index, namespace)| {
            let path = namespace
                .path()
                .as_deref()
                .filter(|p| !p.as_os_str().is_empty())?;
            (namespace.typ() == LinuxNamespaceType::Network).then_some((index, path))
        });
    let Some((index, path)) = named else {
        return Ok(None);
    };
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
        None => Ok(Some(namespace)),
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

    fn named_at(path: &str) -> Result<Option<OwnedFd>, SpecError> {
        let spec = json!({
            "ociVersion": "1.2.0",
            "linux": {"namespaces": [{"type": "pid"}, {"type": "network", "path": path}]},
        });
        named(&serde_json::from_value(spec).expect("a config.json"))
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
    fn no_path_names_none() {
        assert!(named_at("").expect("nothing to open").is_none());
    }
}
