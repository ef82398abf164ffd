//! The namespaces that config.json names by a path: those of other containers in the same VM. Whose they are, the verbs
//! find out.

use std::path::Path;

use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::Bundle;

/// A namespace that config.json names by a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NamespacePath<'a> {
    /// Its index in `linux.namespaces`.
    pub index: usize,
    /// Its kind.
    pub kind: LinuxNamespaceType,
    /// The path.
    pub path: &'a Path,
}

impl NamespacePath<'_> {
    /// The JSON path of the field that names it.
    pub fn field(&self) -> String {
        format!("linux.namespaces[{}].path", self.index)
    }

    /// The name of its kind's file in `/proc/<pid>/ns` (namespaces(7)).
    pub fn file(&self) -> &'static str {
        match self.kind {
            LinuxNamespaceType::Network => "net",
            LinuxNamespaceType::Ipc => "ipc",
            LinuxNamespaceType::Uts => "uts",
            LinuxNamespaceType::Pid => "pid",
            LinuxNamespaceType::User => "user",
            LinuxNamespaceType::Mount => "mnt",
            LinuxNamespaceType::Cgroup => "cgroup",
            LinuxNamespaceType::Time => "time",
        }
    }
}

/// The namespaces that a config.json names by their paths.
pub fn named(spec: &Spec) -> impl Iterator<Item = NamespacePath<'_>> {
    let linux = spec.linux().as_ref();
    let listed = linux.and_then(|linux| linux.namespaces().as_ref());
    let listed = listed.into_iter().flatten().enumerate();
    listed.filter_map(|(index, namespace)| {
        let path = namespace.path().as_deref()?;
        let kind = namespace.typ();
        (!path.as_os_str().is_empty()).then_some(NamespacePath { index, kind, path })
    })
}

/// Whether a config.json asks for users of the container's own.
pub fn has_own_users(spec: &Spec) -> bool {
    super::split::has_user_namespace(spec)
}

impl Bundle {
    /// Leaves the path of a namespace out of config.json, as it is the guest's.
    pub fn take_namespace_path(&mut self, kind: LinuxNamespaceType) {
        let linux = self.spec.linux_mut().as_mut();
        let listed = linux.and_then(|linux| linux.namespaces_mut().as_mut());
        for namespace in listed.into_iter().flatten() {
            if namespace.typ() == kind {
                namespace.set_path(None);
            }
        }
    }

    /// Leaves the user namespace out of config.json: those whose it is to have have none.
    pub fn take_user_namespace(&mut self) {
        if let Some(linux) = self.spec.linux_mut() {
            if let Some(listed) = linux.namespaces_mut() {
                listed.retain(|namespace| namespace.typ() != LinuxNamespaceType::User);
            }
            linux.set_uid_mappings(None).set_gid_mappings(None);
        }
    }
}
