//! Paths in the guest that both sides name: the host writes them into the config.json that it sends.

/// Where the agent mounts the shared tree. A container's root is `<SHARE>/<id>/rootfs`, and the
/// source of its n-th bind mount is `<SHARE>/<id>/mounts/<n>`.
pub const SHARE: &str = "/run/hull/share";

/// The longest id of a container or a process, in bytes: it becomes a file's name, with something added.
pub const LONGEST_ID: usize = 200;

/// Begins a mount option for the agent alone, of a further mount that the host has below a bind mount's
/// source: `ATTRIBUTES:PATH`, the attributes as /proc/self/mountinfo has them. By custom, options that begin with `x-` are comments to a file system.
pub const BELOW: &str = "x-hull.below=";

/// Where the agent makes a node for each block device of the host, by the disk's serial number: what a
/// bind mount of one binds.
pub const DISKS: &str = "/dev/hull";
