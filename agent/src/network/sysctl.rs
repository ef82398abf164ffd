//! The sysctls of an interface, `net.*.conf.IFNAME.*` and `net.*.neigh.IFNAME.*`.

use std::fs::OpenOptions;
use std::io::{self, Write};

use super::desired::Sysctl;

/// Directories beside those of the interfaces, whose sysctls are about all of them. The kernel makes no directory for
/// an interface of such a name, but a container may give one to its interface.
const NOT_INTERFACES: [&str; 2] = ["all", "default"];

/// Sets a sysctl of the interface of this name, in the calling thread's network namespace.
///
/// # Errors
/// When the kernel has no such sysctl, or refuses the value.
pub fn set(interface: &str, sysctl: &Sysctl) -> io::Result<()> {
    if NOT_INTERFACES.contains(&interface) {
        let problem = format!("an interface named {interface} has no sysctls");
        return Err(io::Error::other(problem));
    }
    // The kernel accepts no name with a `/` in it, nor `..`.
    let path = format!(
        "/proc/sys/net/{}/{}/{interface}/{}",
        sysctl.family, sysctl.group, sysctl.name
    );
    let mut file = OpenOptions::new().write(true).open(path)?;
    file.write_all(sysctl.value.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_named_like_the_directory_of_all_sets_no_sysctl_of_all() {
        let sysctl = Sysctl {
            family: "ipv4".into(),
            group: "conf".into(),
            name: "no_such_sysctl".into(),
            value: "1".into(),
        };
        let refused = set("all", &sysctl).expect_err("not an interface's");
        assert_eq!(refused.kind(), io::ErrorKind::Other);
        let missing = set("lo", &sysctl).expect_err("there is none");
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }
}
