//! What a guest is booted from.

use std::path::PathBuf;

/// How the guest is to be booted.
#[derive(Clone, Debug, Default)]
pub struct Boot {
    /// This kernel, rather than the built-in one.
    pub kernel: Option<PathBuf>,
    /// This initramfs, rather than the built-in one.
    pub initramfs: Option<PathBuf>,
}
