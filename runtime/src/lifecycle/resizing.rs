//! A VM's memory, changed along with its container's limit.
//!
//! What the VM has is asked of its process, and what it is to have follows from the container's limit: nothing of it is
//! on disk. So an `update` that is killed on its way leaves a VM with more memory than its container may use, at worst,
//! and the next one sets it right.

use super::Error;
use crate::chain::chain;
use crate::sandbox::{AgentError, Plugged, plug_memory, plugged_memory};
use crate::spec::VmMemory;
use crate::store::SandboxDir;
use crate::types::Sizing;

/// The size of the blocks that a guest plugs, in MiB.
const BLOCK: u32 = (hull_vmm::virtio::mem::BLOCK_SIZE >> 20) as u32;

/// What is to become of a VM's memory.
#[derive(Debug)]
pub(super) struct Resizing {
    files: SandboxDir,
    before: Plugged,
    /// Beside what it was booted with, in MiB.
    wanted_mib: u32,
    /// The most that it can have so, in MiB.
    most_mib: u32,
}

impl Resizing {
    /// Of the VM with these files and this size, which is to have so much. None where it can't grow after all, and
    /// needn't.
    ///
    /// # Errors
    /// When its process doesn't tell how things are.
    pub(super) fn of(
        files: SandboxDir,
        sizing: Sizing,
        memory: VmMemory,
    ) -> Result<Option<Self>, AgentError> {
        let wanted_mib = memory.mib.saturating_sub(sizing.memory_mib);
        let most = sizing.growth_mib;
        let before = match plugged_memory(&files) {
            // The host's limit follows this, so the VM process isn't believed that it has more than it can.
            Ok(Plugged { mib, requested_mib }) => Plugged {
                mib: mib.min(most),
                requested_mib: requested_mib.min(most),
            },
            Err(AgentError::NotTaken { .. }) if wanted_mib == 0 => return Ok(None),
            Err(e) => return Err(e),
        };
        let least = match memory.may_shrink {
            true => 0,
            false => before.mib,
        };
        Ok(Some(Self {
            files,
            before,
            wanted_mib: wanted_mib.next_multiple_of(BLOCK).max(least),
            most_mib: most,
        }))
    }

    /// The most that the VM has meanwhile, beside what it was booted with, in MiB: it is to be let have that on the host.
    pub(super) fn most_mib(&self) -> u32 {
        let Plugged { mib, requested_mib } = self.before;
        mib.max(requested_mib).max(self.wanted_mib)
    }

    /// Lets it grow, if it is to. Before the container may use the memory.
    ///
    /// # Errors
    /// When it doesn't get there. What it has taken is to be [put back](Self::put_back).
    pub(super) fn grow(&self) -> Result<(), Error> {
        if self.wanted_mib <= self.before.mib {
            return Ok(());
        }
        let plugged = plug_memory(&self.files, self.wanted_mib)?.mib;
        if plugged >= self.wanted_mib {
            return Ok(());
        }
        Err(Error::NotGrown {
            wanted: self.wanted_mib - self.before.mib,
            taken: plugged.saturating_sub(self.before.mib),
        })
    }

    /// Has it be as it was. Returns whether it is.
    pub(super) fn put_back(&self) -> bool {
        if self.wanted_mib <= self.before.mib {
            return true;
        }
        let asked = plug_memory(&self.files, self.before.requested_mib);
        // What refuses to be asked may be as it was all the same.
        match asked.or_else(|_| plugged_memory(&self.files)) {
            Ok(plugged) => plugged.mib <= self.before.mib,
            Err(e) => {
                log::warn!("the VM may have more memory than before: {}", chain(&e));
                false
            }
        }
    }

    /// Lets it shrink, if it is to. After the container may use the memory no more. Returns what the VM has
    /// from then on, beside what it was booted with, in MiB; `None` if that doesn't change.
    pub(super) fn shrink(&self) -> Option<u32> {
        if self.wanted_mib >= self.most_mib() {
            return None;
        }
        match plug_memory(&self.files, self.wanted_mib) {
            Ok(Plugged { mib, .. }) => {
                let mib = mib.min(self.most_mib);
                if mib > self.wanted_mib {
                    log::warn!(
                        "the VM keeps {} MiB of memory that its container may use no more: what the guest has \
                         there can't be moved yet",
                        mib - self.wanted_mib
                    );
                }
                Some(mib.max(self.wanted_mib))
            }
            Err(e) => {
                log::warn!("the VM doesn't shrink: {}", chain(&e));
                None
            }
        }
    }
}
