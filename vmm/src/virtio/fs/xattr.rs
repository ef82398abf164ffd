//! Extended attributes: maps their names between the guest and the host, and hides some from the
//! guest.
//!
//! On the host, accessing `trusted.*` takes CAP_SYS_ADMIN, which the device's thread doesn't have.
//! But overlayfs and others in a guest need attributes that only the guest's administrator can
//! access. They are stored as `user.virtiofs.trusted.*` on the host, as virtiofsd's documentation
//! recommends. So a guest never sees the host's `trusted.*`, nor the host a guest's. The guest's
//! kernel checks permissions by the name in the guest; no process of a guest can use the name on
//! the host.
//!
//! The host's file systems have `user.*` on regular files and directories only, so a guest's `trusted.*` is
//! refused (EPERM) on all others.

use std::borrow::Cow;
use std::ffi::CStr;
use std::io;

use virtiofsd::passthrough::xattrmap::{AppliedRule, XattrMap};

/// The mapping; the first rule that matches a name applies. The guest's `trusted.*` gets a prefix
/// on the host, the host's own `trusted.*` is hidden, the guest can't use names with the prefix,
/// and all others are the same on both sides.
const RULES: &str = "
    /prefix/all/trusted./user.virtiofs./
    /bad/server//trusted./
    /bad/client/user.virtiofs.//
    /ok/all///
";

/// Maps names between the guest and the host.
#[derive(Debug)]
pub(super) struct NameMap(XattrMap);

impl NameMap {
    pub(super) fn new() -> io::Result<Self> {
        let rules = XattrMap::try_from(RULES).map_err(io::Error::other)?;
        Ok(Self(rules))
    }

    /// The host's name for what the guest calls `name`.
    ///
    /// # Errors
    /// EPERM: a guest must not use this name.
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
        // The library returns an empty name if there is none, which the guest's kernel treats as an
        // error.
        if names == [0] {
            names.clear();
        }
        Ok(names)
    }
}

/// The error for reading an attribute that the guest must not name: there is no such attribute.
pub(super) fn no_such_attribute(_: io::Error) -> io::Error {
    io::Error::from_raw_os_error(libc::ENODATA)
}

/// The error for the guest when reading `name` has failed.
///
/// The guest's kernel reads ACLs to check permissions, and any error but ENODATA would become the
/// result of the check. So the file counts as having no ACL, and its mode applies, if the host's
/// file system doesn't support ACLs, or the host doesn't let the VM process of an ordinary user
/// open the file.
pub(super) fn for_permission_check(name: &CStr, error: io::Error) -> io::Error {
    let is_acl = name == c"system.posix_acl_access" || name == c"system.posix_acl_default";
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::EACCES | libc::EPERM) if is_acl => no_such_attribute(error),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trusted_attributes_have_another_name_on_the_host() {
        let names = NameMap::new().expect("the rules");
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
        let names = NameMap::new().expect("the rules");
        let list = |names_of_host: &[u8]| names.in_guest(names_of_host.to_vec()).expect("a list");
        assert_eq!(
            list(b"user.a\0user.virtiofs.trusted.b\0trusted.c\0"),
            b"user.a\0trusted.b\0"
        );
        assert_eq!(list(b"trusted.c\0"), b"");
        assert_eq!(list(b""), b"");
    }
}
