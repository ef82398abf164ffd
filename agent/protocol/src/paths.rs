//! Paths in the guest that both sides use: the host writes them into the config.json that it sends.

/// Where the agent mounts the shared tree. A container's root is `<SHARE>/<id>/rootfs`, and the
/// source of its n-th bind mount is `<SHARE>/<id>/mounts/<n>`.
pub const SHARE: &str = "/run/hull/share";

/// The longest id of a container or a process, in bytes: it becomes a file name (NAME_MAX).
pub const MAX_ID_LENGTH: usize = 255;

/// Whether a text can be the id of a container or a process: runc's rule, by which it is one component of a
/// path. (That the comma is among the characters comes from runc's expression, `[\w+-\.]`.)
#[must_use]
pub fn is_valid_id(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_+,-.".contains(c);
    let named = !text.is_empty() && text.len() <= MAX_ID_LENGTH && !matches!(text, "." | "..");
    named && text.chars().all(allowed)
}

/// The prefix of a mount option that the host adds for the agent, for each mount that the host has below a bind
/// mount's source: `ATTRIBUTES:PATH` follows, the attributes as in /proc/self/mountinfo. By convention, options that
/// begin with `x-` are comments, which file systems ignore.
pub const SUBMOUNT_OPTION: &str = "x-hull.below=";

/// Where the agent makes a node for each block device of the host, named by the disk's serial number: the source of
/// a bind mount of the device.
pub const DISKS: &str = "/dev/hull";

/// Where the agent mounts the file systems in memory that containers have in common: `<SHARED_MEMORY>/<name>`.
pub const SHARED_MEMORY: &str = "/run/hull/memory";

/// Where a container has the socket by which it says that it is ready (sd_notify(3)), if the host asks for one: runc's
/// place. The socket has a directory of its own.
pub const NOTIFY_DIRECTORY: &str = "/run/notify";

/// The socket's name in there.
pub const NOTIFY_SOCKET: &str = "notify.sock";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_one_component_of_a_path() {
        let longest = "x".repeat(MAX_ID_LENGTH);
        for id in ["a-1_b.c+d", "-a", "..a", ".a", "a,b", "...", &longest] {
            assert!(is_valid_id(id), "{id}");
        }
        let longer = "x".repeat(MAX_ID_LENGTH + 1);
        for text in ["", ".", "..", "a/b", "a b", "a\n", "a\0", "\u{e4}", &longer] {
            assert!(!is_valid_id(text), "{text:?}");
        }
    }
}
