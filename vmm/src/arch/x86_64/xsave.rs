//! The extended registers of a vCPU (x87, SSE, AVX and later ones) in the format of XSAVE. KVM
//! reports the size of the area: 4 KiB, or more if the processor has registers that don't fit.
#![allow(unsafe_code)] // KVM copies an area of the size that it reports, whatever buffer it is given

use kvm_bindings::{Xsave, kvm_xsave};
use kvm_ioctls::{Cap, Error, Kvm, VcpuFd};

/// Words of the area that every KVM has, which is 4 KiB.
const WORDS: usize = size_of::<kvm_xsave>() / size_of::<u32>();

/// The size of the area on this host. It doesn't change: only arch_prctl(2) with
/// `ARCH_REQ_XCOMP_GUEST_PERM` would change it, and hull doesn't call that.
#[derive(Clone, Copy, Debug)]
pub(super) struct XsaveArea {
    /// Words beyond the first 4 KiB.
    extra: usize,
}

impl XsaveArea {
    /// Asks KVM for the size. Before Linux 5.17 it can't be asked, and the area is 4 KiB.
    pub(super) fn query(kvm: &Kvm) -> Self {
        let bytes = usize::try_from(kvm.check_extension_int(Cap::Xsave2)).unwrap_or(0);
        Self {
            extra: bytes.div_ceil(size_of::<u32>()).saturating_sub(WORDS),
        }
    }

    /// Its size in words.
    pub(super) fn words(self) -> usize {
        WORDS + self.extra
    }

    /// The area of a vCPU.
    pub(super) fn get(self, vcpu: &VcpuFd) -> Result<Vec<u32>, Error> {
        if self.extra == 0 {
            return Ok(vcpu.get_xsave()?.region.to_vec());
        }
        let mut area = self.allocate()?;
        // SAFETY: the area is as large as KVM has said, or larger.
        unsafe { vcpu.get_xsave2(&mut area) }?;
        let first = &area.as_fam_struct_ref().xsave.region;
        Ok([first, area.as_slice()].concat())
    }

    /// Sets the area of a vCPU; `words` must have the length [`Self::words`].
    pub(super) fn set(self, vcpu: &VcpuFd, words: &[u32]) -> Result<(), Error> {
        let Some((first, rest)) = words.split_first_chunk::<WORDS>() else {
            return Err(Error::new(libc::EINVAL));
        };
        if rest.len() != self.extra {
            return Err(Error::new(libc::EINVAL));
        }
        let mut area = self.allocate()?;
        area.as_mut_slice().copy_from_slice(rest);
        // SAFETY: the length, which the area's allocation depends on, isn't changed.
        unsafe { area.as_mut_fam_struct() }.xsave.region = *first;
        // SAFETY: the area is as large as KVM has said, or larger.
        unsafe { vcpu.set_xsave2(&area) }
    }

    fn allocate(self) -> Result<Xsave, Error> {
        Xsave::new(self.extra).map_err(|_| Error::new(libc::ENOMEM))
    }
}
