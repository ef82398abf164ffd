//! What hull's user may do on the host: the one place that asks whether that is root, and of what.
//!
//! A user id of 0 says little by itself. Rootless engines run their runtime as root of a user namespace, and there it
//! has every capability, but over that namespace's resources alone: mounts of mount namespaces, interfaces of network
//! namespaces that belong to it, and ids that it maps. What is the host's stays out of reach: other ids, cgroups that
//! nobody has delegated, `trusted.*` attributes, a lower `oom_score_adj`, higher limits.

use std::fs;

/// What this process is to the host's kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// Root of the host.
    HostRoot,
    /// Root of a user namespace.
    NamespaceRoot,
    /// Another user.
    User,
}

impl Privilege {
    /// That of this process.
    pub fn own() -> Self {
        // A kernel without user namespaces has no such file.
        let map = fs::read_to_string("/proc/self/uid_map").ok();
        Self::of(rustix::process::geteuid().is_root(), map.as_deref())
    }

    fn of(is_root: bool, uid_map: Option<&str>) -> Self {
        match is_root {
            false => Self::User,
            true if uid_map.is_none_or(maps_all_to_themselves) => Self::HostRoot,
            true => Self::NamespaceRoot,
        }
    }

    /// Whether it is root of the host.
    pub fn is_host_root(self) -> bool {
        self == Self::HostRoot
    }

    /// Whether an engine that runs its runtime with this may forward ports by a process in a container's network
    /// namespace: it may not set up the host's network instead.
    pub fn has_forwarders_in_namespaces(self) -> bool {
        self == Self::NamespaceRoot
    }

    /// Whether it may mount, make namespaces, and write files as every user that it knows: it is root, of the host or
    /// of a user namespace.
    pub fn is_some_root(self) -> bool {
        self != Self::User
    }
}

/// Whether it is the map of the first user namespace (user_namespaces(7)).
fn maps_all_to_themselves(uid_map: &str) -> bool {
    let numbers = uid_map.split_ascii_whitespace().map(str::parse::<u32>);
    numbers.eq([Ok(0), Ok(0), Ok(u32::MAX)])
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "         0          0 4294967295\n";

    #[test]
    fn root_is_the_hosts_where_every_id_is_the_hosts() {
        assert_eq!(Privilege::of(true, Some(HOST)), Privilege::HostRoot);
        assert_eq!(Privilege::of(true, None), Privilege::HostRoot);
    }

    #[test]
    fn root_of_a_user_namespace_is_not_the_hosts() {
        for map in [
            "         0       1000          1\n         1     100000      65536\n",
            "0 0 65536\n",
            "0 0 1\n1 1 4294967294\n",
            "",
        ] {
            let found = Privilege::of(true, Some(map));
            assert_eq!(found, Privilege::NamespaceRoot, "{map:?}");
            assert!(found.is_some_root() && !found.is_host_root());
        }
    }

    #[test]
    fn nobody_else_is_root() {
        for map in [HOST, "0 1000 1\n"] {
            assert_eq!(Privilege::of(false, Some(map)), Privilege::User);
        }
    }
}
