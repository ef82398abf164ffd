//! A test guest of a few instructions, which shows whether KVM runs guests on the processor.
//!
//! Some machines have a /dev/kvm without VMX or SVM: it can be opened, creates VMs, and emulates
//! what a guest's kernel does in privileged mode, as far as its instruction emulator goes. An
//! unmodified kernel needs more than that, and fails only after half a minute. The emulator is the
//! kernel's own (arch/x86/kvm/emulate.c), so a single instruction that it doesn't know shows the
//! difference at once.
#![allow(unsafe_code)] // KVM is given the guest's memory

use kvm_ioctls::{Kvm, VcpuExit};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap};

use crate::arch::{ProbeError, ProbeOutcome};

/// The guest physical address of the guest's only page, where its code starts.
const PAGE: u64 = 0x1000;

/// The port that the guest writes its answer to.
const PORT: u16 = 0xf4;

/// `mov ax, 7; popcnt ax, ax; out 0xf4, al; hlt`, in 16-bit code. Every processor with VMX or SVM that
/// is still in use has POPCNT (since 2008), and KVM's emulator doesn't know it.
const CODE: [u8; 10] = [0xb8, 7, 0, 0xf3, 0x0f, 0xb8, 0xc0, 0xe6, PORT as u8, 0xf4];

/// The number of bits in 7.
const ANSWER: u8 = 3;

/// Runs the guest.
///
/// # Errors
/// When it can't be set up, or ends in a way that neither kind of KVM explains.
pub fn probe(kvm: &Kvm) -> Result<ProbeOutcome, ProbeError> {
    let failed = |call| move |source| ProbeError::Kvm { call, source };
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(PAGE), 0x1000)])
        .map_err(|e| ProbeError::Memory(e.to_string()))?;
    memory
        .write_slice(&CODE, GuestAddress(PAGE))
        .map_err(|e| ProbeError::Memory(e.to_string()))?;
    let host_address = memory
        .get_host_address(GuestAddress(PAGE))
        .map_err(|e| ProbeError::Memory(e.to_string()))?;

    let vm = kvm.create_vm().map_err(failed("KVM_CREATE_VM"))?;
    let region = kvm_bindings::kvm_userspace_memory_region {
        slot: 0,
        guest_phys_addr: PAGE,
        memory_size: 0x1000,
        userspace_addr: host_address as u64,
        flags: 0,
    };
    // SAFETY: the page is mapped until `memory` is dropped, which is after `vm` and `vcpu` are, and
    // nothing but the guest uses it meanwhile.
    unsafe { vm.set_user_memory_region(region) }.map_err(failed("KVM_SET_USER_MEMORY_REGION"))?;
    let mut vcpu = vm.create_vcpu(0).map_err(failed("KVM_CREATE_VCPU"))?;
    let mut sregs = vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    vcpu.set_sregs(&sregs).map_err(failed("KVM_SET_SREGS"))?;
    let mut regs = vcpu.get_regs().map_err(failed("KVM_GET_REGS"))?;
    regs.rip = PAGE;
    regs.rflags = 2;
    vcpu.set_regs(&regs).map_err(failed("KVM_SET_REGS"))?;

    match vcpu.run().map_err(failed("KVM_RUN"))? {
        VcpuExit::IoOut(PORT, [ANSWER]) => Ok(ProbeOutcome::RunsGuests),
        VcpuExit::InternalError => Ok(ProbeOutcome::OnlyEmulates),
        // Without an interrupt table, an instruction that is undefined to the emulator ends in a
        // triple fault.
        VcpuExit::Shutdown => Ok(ProbeOutcome::OnlyEmulates),
        other => Err(ProbeError::Exit(format!("{other:?}"))),
    }
}
