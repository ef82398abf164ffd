//! `linux.sysctl`: written by a helper that has entered the container's namespaces, before its program
//! starts.
//!
//! libcontainer's own writing isn't used: it doesn't say which of them the kernel has refused.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;

use oci_spec::runtime::{LinuxNamespaceType, Spec};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::thread::ThreadNameSpaceType;

use super::inside::Inside;
use crate::error::{Failure, Message};

/// Where the kernel shows them.
const FOLDER: &str = "/proc/sys";

/// The sysctls of a container.
#[derive(Debug)]
pub struct Sysctls {
    values: BTreeMap<String, String>,
    /// Which namespaces are the container's own, of those that sysctls belong to.
    namespaces: ThreadNameSpaceType,
    own_users: bool,
    folder: OwnedFd,
}

impl Sysctls {
    /// Takes them out of a config.json, if it has any. Opens the folder that they are in, which a
    /// container may hide or write-protect.
    ///
    /// # Errors
    /// When it can't be opened.
    pub fn take(spec: &mut Spec) -> Result<Option<Self>, Failure> {
        let Some(linux) = spec.linux_mut() else {
            return Ok(None);
        };
        let values: BTreeMap<_, _> = linux.sysctl().clone().into_iter().flatten().collect();
        linux.set_sysctl(None);
        if values.is_empty() {
            return Ok(None);
        }
        let kinds = || linux.namespaces().iter().flatten().map(|n| n.typ());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = openat(CWD, FOLDER, flags, Mode::empty())
            .map_err(Failure::io(format!("open {FOLDER}")))?;
        Ok(Some(Self {
            values,
            namespaces: kinds().map(flag).collect(),
            own_users: kinds().any(|kind| kind == LinuxNamespaceType::User),
            folder,
        }))
    }

    /// The namespaces to be in for [`Sysctls::write`]: the kernel shows everybody those of his own.
    pub fn namespaces(&self) -> ThreadNameSpaceType {
        self.namespaces
    }

    /// Writes them. The caller is the container's root then.
    ///
    /// # Errors
    /// Names the first that the kernel refuses.
    pub fn write(&self, container: &Inside) -> Result<(), Failure> {
        if self.own_users {
            container.become_root()?;
        }
        for (key, value) in &self.values {
            set(&self.folder, key, value).map_err(|e| {
                let why = match e.kind() {
                    io::ErrorKind::NotFound => "the guest's kernel has no such sysctl".to_owned(),
                    _ => format!("set it to {value:?}: {}", Message(&e)),
                };
                Failure::config(format!("linux.sysctl[{key:?}]: {why}"))
            })?;
        }
        Ok(())
    }
}

/// A namespace that sysctls belong to; nothing for others.
fn flag(kind: LinuxNamespaceType) -> ThreadNameSpaceType {
    match kind {
        LinuxNamespaceType::Network => ThreadNameSpaceType::NETWORK,
        LinuxNamespaceType::Ipc => ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION,
        LinuxNamespaceType::Uts => ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME,
        _ => ThreadNameSpaceType::empty(),
    }
}

fn set(folder: &OwnedFd, key: &str, value: &str) -> io::Result<()> {
    let file = openat2(
        folder,
        path(key),
        OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
    )?;
    rustix::io::write(&file, value.as_bytes())?;
    Ok(())
}

/// Its file. Whichever of `.` and `/` comes first separates its parts; the other one then is part of a
/// name, and written the other way round (sysctl.d(5)).
fn path(key: &str) -> String {
    match key.find(['.', '/']) {
        Some(first) if key.as_bytes().get(first) == Some(&b'.') => key
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                c => c,
            })
            .collect(),
        _ => key.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_a_path_by_whichever_separator_comes_first() {
        assert_eq!(path("net.ipv4.ip_forward"), "net/ipv4/ip_forward");
        assert_eq!(path("net/ipv4/ip_forward"), "net/ipv4/ip_forward");
        assert_eq!(path("net.ipv4.conf.eth0/1.mtu"), "net/ipv4/conf/eth0.1/mtu");
        assert_eq!(path("net/ipv4/conf/eth0.1/mtu"), "net/ipv4/conf/eth0.1/mtu");
    }

    #[test]
    fn they_are_no_longer_the_librarys() {
        let json = r#"{"ociVersion":"1.2.0","linux":{"sysctl":{"kernel.shmmax":"1"},
            "namespaces":[{"type":"ipc"},{"type":"user"}]}}"#;
        let mut spec = serde_json::from_str(json).expect("a config.json");
        let sysctls = Sysctls::take(&mut spec).expect("/proc/sys").expect("some");
        assert!(sysctls.own_users);
        let ipc = ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION;
        assert_eq!(sysctls.namespaces, ipc);
        assert!(Sysctls::take(&mut spec).expect("a spec").is_none());
    }
}
