//! SELinux on the host: the label of the VM process.
//!
//! What config.json's `process.selinuxLabel` confines with runc is the container's first process. Here that
//! one is in the guest, whose kernel has no SELinux; what acts on the host in its place is the VM process, so
//! that gets the label. Two files are all there is to it, so this isn't libselinux, a C library that the
//! binary would then depend on.

use std::fs;
use std::io;

/// What statfs(2) says of selinuxfs (SELINUX_MAGIC of linux/magic.h).
const MAGIC: u32 = 0xf97c_ff8c;

/// Where the label is written that the next program gets which this thread, or a child of it, executes.
const NEXT: &str = "/proc/thread-self/attr/exec";

/// Whether the host has it: its file system is mounted, as libselinux decides too.
pub fn is_enabled() -> bool {
    // The field's type is another one on other processors.
    rustix::fs::statfs("/sys/fs/selinux")
        .is_ok_and(|about| u32::try_from(about.f_type) == Ok(MAGIC))
}

/// As long as it lives, what the calling thread executes gets its label.
#[derive(Debug)]
pub struct NextLabel(());

impl NextLabel {
    /// # Errors
    /// When the host's policy doesn't know the label.
    pub fn set(label: &str) -> io::Result<Self> {
        fs::write(NEXT, label)?;
        Ok(Self(()))
    }
}

impl Drop for NextLabel {
    fn drop(&mut self) {
        // A label that could be set can be taken away.
        let _ = fs::write(NEXT, "");
    }
}
