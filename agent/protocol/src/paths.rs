//! Paths in the guest that both sides name: the host writes them into the config.json that it sends.

/// Where the agent mounts the shared tree. A container's root is `<SHARE>/<id>/rootfs`, and the
/// source of its n-th bind mount is `<SHARE>/<id>/mounts/<n>`.
pub const SHARE: &str = "/run/hull/share";
