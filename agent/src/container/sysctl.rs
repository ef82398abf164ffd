//! `linux.sysctl`: written by the container's first process, in its namespaces, before its program starts.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;

use oci_spec::runtime::Spec;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};

use crate::error::{Failure, Strerror};

/// The directory of the sysctls' files.
const PROC_SYS: &str = "/proc/sys";

/// The sysctls of a container.
#[derive(Debug)]
pub struct Sysctls {
    values: BTreeMap<String, String>,
    directory: OwnedFd,
}

impl Sysctls {
    /// The sysctls of a config.json, if it has any. Opens /proc/sys, which a container may hide or write-protect
    /// later.
    ///
    /// # Errors
    /// When it can't be opened.
    pub fn of(spec: &Spec) -> Result<Option<Self>, Failure> {
        let given = spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.sysctl().clone());
        let values: BTreeMap<_, _> = given.into_iter().flatten().collect();
        if values.is_empty() {
            return Ok(None);
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = openat(CWD, PROC_SYS, flags, Mode::empty())
            .map_err(Failure::io(format!("open {PROC_SYS}")))?;
        Ok(Some(Self { values, directory }))
    }

    /// Writes them. The caller is in the container's namespaces, as root there: in /proc/sys the kernel shows each
    /// process the sysctls of its own namespaces.
    ///
    /// # Errors
    /// Names the first one that the kernel refuses.
    pub fn write(&self) -> Result<(), Failure> {
        for (key, value) in &self.values {
            set(&self.directory, key, value).map_err(|e| {
                let why = match e.kind() {
                    io::ErrorKind::NotFound => "the guest's kernel has no such sysctl".to_owned(),
                    _ => format!("set it to {value:?}: {}", Strerror(&e)),
                };
                Failure::config(format!("linux.sysctl[{key:?}]: {why}"))
            })?;
        }
        Ok(())
    }
}

fn set(directory: &OwnedFd, key: &str, value: &str) -> io::Result<()> {
    let file = openat2(
        directory,
        path(key),
        OFlags::WRONLY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
    )?;
    rustix::io::write(&file, value.as_bytes())?;
    Ok(())
}

/// The path of a sysctl's file below /proc/sys. Whichever of `.` and `/` comes first is the separator; the other
/// one is part of a name, in which the two are swapped (sysctl.d(5)).
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
    fn a_sysctl_that_does_not_exist_is_named() {
        let json = r#"{"ociVersion":"1.2.0","linux":{"sysctl":{"no.such/one":"1"}}}"#;
        let spec = serde_json::from_str(json).expect("a config.json");
        let sysctls = Sysctls::of(&spec).expect("/proc/sys").expect("some");
        let failure = sysctls.write().expect_err("there is none");
        let expected =
            "config.json: linux.sysctl[\"no.such/one\"]: the guest's kernel has no such sysctl";
        assert_eq!(failure.message, expected);
        assert!(Sysctls::of(&Spec::default()).expect("a spec").is_none());
    }
}
