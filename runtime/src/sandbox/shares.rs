//! The shares of a sandbox that runs, changed from outside: the VM process itself may mount nothing.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use hull_vmm::jail::tree::{self, Share};

use super::SandboxError;
use crate::host::ProcessId;

/// Adds the shares of a further container, which lie in this folder of the tree.
///
/// # Errors
/// Names the share. Some of them may be there then, for [`remove_shares`].
pub fn add_shares(vmm: ProcessId, folder: &str, shares: Vec<Share>) -> Result<(), SandboxError> {
    let process = open(vmm)?;
    tree::add_shares(process.as_fd(), folder, shares).map_err(SandboxError::Shares)
}

/// Removes a folder of the tree with all shares in it; that there is none is no error, nor that the sandbox is gone.
///
/// # Errors
/// When the system refuses.
pub fn remove_shares(vmm: ProcessId, folder: &str) -> Result<(), SandboxError> {
    let Some(process) = vmm.open() else {
        return Ok(());
    };
    match tree::remove_shares(process.as_fd(), folder) {
        // With the process its mounts have gone.
        Err(_) if !vmm.is_alive() => Ok(()),
        Err(e) => Err(SandboxError::Shares(e)),
        Ok(written) => {
            for share in written {
                log::warn!(
                    "the guest has a file of {} open for writing: until it closes that, or its VM process {} ends, it \
                     can change what it has opened or looked up there",
                    share.display(),
                    vmm.pid
                );
            }
            Ok(())
        }
    }
}

/// Has the host refuse every change to the root of a sandbox's first container from now on, as the guest's kernel does.
/// The VM process may be in a user namespace of its own.
///
/// Not before the container is made: mount points may have to be made in its root.
///
/// # Errors
/// When the VMM process is gone.
pub(super) fn seal_root(
    vmm: BorrowedFd<'_>,
    folder: &str,
    in_user_namespace: bool,
) -> Result<(), SandboxError> {
    let root = format!("{folder}/rootfs");
    tree::make_read_only(vmm, Path::new(&root), in_user_namespace)
        .map_err(SandboxError::ReadOnlyRoot)
}

fn open(vmm: ProcessId) -> Result<OwnedFd, SandboxError> {
    let gone = || std::io::Error::from_raw_os_error(libc::ESRCH);
    vmm.open()
        .ok_or_else(|| SandboxError::host("open the sandbox's VMM process")(gone()))
}
