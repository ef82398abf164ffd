//! Extended attributes: the names that the guest's have on the host, and what of them a guest can't have.
//!
//! On the host, `trusted.*` belongs to whoever has CAP_SYS_ADMIN there, which the device's thread has not:
//! overlayfs and others in a guest need attributes that only the *guest's* administrator sees. They are
//! kept in `user.virtiofs.trusted.*`, where virtiofsd's own documentation has such attributes. So the host's
//! `trusted.*` are never a guest's, nor a guest's the host's. Who may read or set them in the guest, its
//! kernel decides by the name that they have there; the host's names no process of a guest can use.
//!
//! The host's file systems have `user.*` on regular files and directories only, so a guest's `trusted.*` is
//! refused (EPERM) on all others.

use std::borrow::Cow;
use std::ffi::CStr;
use std::io;

use virtiofsd::passthrough::xattrmap::{AppliedRule, XattrMap};

/// What becomes of a name, the first rule that fits: the guest's `trusted.*` has a prefix on the host,
/// the host's own `trusted.*` is not shown, the guest doesn't name what has the prefix, and all else
/// is the same on both sides.
const RULES: &str = "
    /prefix/all/trusted./user.virtiofs./
    /bad/server//trusted./
    /bad/client/user.virtiofs.//
    /ok/all///
";

/// What the names are on the other side.
#[derive(Debug)]
pub(super) struct Names(XattrMap);

impl Names {
    pub(super) fn new() -> io::Result<Self> {
        let rules = XattrMap::try_from(RULES).map_err(io::Error::other)?;
        Ok(Self(rules))
    }

    /// The host's name for what the guest calls `name`.
    ///
    /// # Errors
    /// EPERM: it is not a guest's to name.
    pub(super) fn on_host<'a>(&self, name: &'a CStr) -> io::Result<Cow<'a, CStr>> {
        match self.0.map_client_xattr(name) {
            Ok(AppliedRule::Pass(name)) => Ok(name),
            _ => Err(io::Error::from_raw_os_error(libc::EPERM)),
        }
    }

    /// The guest's names for a list of the host's, each with its NUL.
    pub(super) fn in_guest(&self, names: Vec<u8>) -> io::Result<Vec<u8>> {
        let mut names = self
            .0
            .map_server_xattrlist(names)
            .map_err(io::Error::other)?;
        // The library's empty list is an empty name, which the guest's kernel takes for an error.
        if names == [0] {
            names.clear();
        }
        Ok(names)
    }
}

/// Why an attribute can't be read that isn't a guest's to name: to the guest, there is none.
pub(super) fn absent(_: io::Error) -> io::Error {
    io::Error::from_raw_os_error(libc::ENODATA)
}

/// What the guest is told when `name` can't be read.
///
/// Its kernel reads ACLs to check permissions, and any error but "there is none" would be the result of the
/// check. There is none where the host's file system has no ACLs, nor for a process that the host doesn't
/// let open the file (that of an ordinary user): the mode decides.
pub(super) fn for_permissions(name: &CStr, error: io::Error) -> io::Error {
    let is_acl = name == c"system.posix_acl_access" || name == c"system.posix_acl_default";
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::EACCES | libc::EPERM) if is_acl => absent(error),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trusted_attributes_have_another_name_on_the_host() {
        let names = Names::new().expect("the rules");
        let on_host = |name| names.on_host(name).map(Cow::into_owned).ok();
        assert_eq!(
            on_host(c"trusted.overlay.opaque").as_deref(),
            Some(c"user.virtiofs.trusted.overlay.opaque")
        );
        assert_eq!(on_host(c"user.colour").as_deref(), Some(c"user.colour"));
        assert_eq!(on_host(c"user.virtiofs.trusted.overlay.opaque"), None);
        assert_eq!(on_host(c"user.virtiofs."), None);
    }

    #[test]
    fn a_list_has_the_guests_names_and_not_the_hosts_trusted_ones() {
        let names = Names::new().expect("the rules");
        let list = |names_of_host: &[u8]| names.in_guest(names_of_host.to_vec()).expect("a list");
        assert_eq!(
            list(b"user.a\0user.virtiofs.trusted.b\0trusted.c\0"),
            b"user.a\0trusted.b\0"
        );
        assert_eq!(list(b"trusted.c\0"), b"");
        assert_eq!(list(b""), b"");
    }
}
