//! Saving and restoring a vCPU and the VM's clock: read from KVM, and written to a newly created
//! vCPU and VM.
//!
//! The seccomp filter of vCPU threads doesn't allow the ioctls used here: it allows only what
//! running a guest needs ([`VCPU_IOCTLS`](super::VCPU_IOCTLS)), and stays like that as long as no
//! command saves anything.
//!
//! Reading or writing one part can change another, so the order matters in both directions. It is
//! the order of QEMU (target/i386/kvm/kvm.c, `kvm_arch_put_registers`) and Firecracker
//! (vstate/vcpu.rs). Whether this host's processor has the features of the saved CPUID isn't
//! checked: KVM doesn't check it either.
//!
//! The state of nested virtualisation isn't saved, since it is hidden from guests (`cpuid.rs`).

use std::ops::RangeInclusive;

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, KVM_MAX_MSR_ENTRIES, Msrs, kvm_clock_data, kvm_cpuid_entry2,
    kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};

use super::xsave::XsaveArea;
use crate::arch::VcpuStateError;

/// `IA32_TIME_STAMP_COUNTER`, which keeps counting.
const TSC: u32 = 0x10;
/// `IA32_TSC_DEADLINE`: when the local APIC's timer is due; zero if it isn't set.
const TSC_DEADLINE: u32 = 0x6e0;

/// Registers that KVM has but doesn't list, so that a VMM has to know them: the MTRRs for ranges of
/// any size (8 pairs of base and mask),
const VARIABLE_RANGES: RangeInclusive<u32> = 0x200..=0x20f;
/// those for fixed ranges in the first MiB,
const FIXED_RANGES: [u32; 11] = [
    0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f,
];
/// and the default type. The machine check banks aren't listed either, and aren't saved: hull never
/// reports a machine check to a guest.
const DEFAULT_TYPE: u32 = 0x2ff;

/// Registers that KVM lists and that aren't saved: Hyper-V's (`HV_X64_MSR_…`), which the guest's
/// CPUID doesn't announce.
const HYPER_V: RangeInclusive<u32> = 0x4000_0000..=0x4000_01ff;

/// Adds the name of the ioctl to its error.
fn failed(call: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> VcpuStateError {
    move |source| VcpuStateError::Kvm { call, source }
}

/// Saves and restores the states of vCPUs. Holds what it needs to know of this host's KVM for that.
#[derive(Debug)]
pub struct VcpuSaver {
    /// The model-specific registers that are saved, if a vCPU has them.
    msrs: Vec<u32>,
    xsave: XsaveArea,
}

/// A vCPU's state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VcpuState {
    /// As set by `KVM_SET_CPUID2`.
    cpuid: Vec<kvm_cpuid_entry2>,
    tsc_khz: u32,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xcrs: kvm_xcrs,
    xsave: Vec<u32>,
    debug_regs: kvm_debugregs,
    lapic: kvm_lapic_state,
    /// Index and value, in KVM's order.
    msrs: Vec<(u32, u64)>,
    mp_state: kvm_mp_state,
    events: kvm_vcpu_events,
}

impl VcpuSaver {
    /// Asks KVM which registers there are.
    ///
    /// # Errors
    /// KVM doesn't list its registers.
    pub fn new(kvm: &Kvm) -> Result<Self, VcpuStateError> {
        let listed = kvm.get_msr_index_list();
        let listed = listed.map_err(failed("KVM_GET_MSR_INDEX_LIST"))?;
        let listed = listed.as_slice().iter().copied();
        let unlisted = VARIABLE_RANGES.chain(FIXED_RANGES).chain([DEFAULT_TYPE]);
        Ok(Self {
            msrs: listed
                .filter(|index| !HYPER_V.contains(index))
                .chain(unlisted)
                .collect(),
            xsave: XsaveArea::query(kvm),
        })
    }

    /// Saves the state of a vCPU that a kick has made leave the guest; no vCPU of the VM may run.
    /// After an exit for port or memory-mapped I/O, call `KVM_RUN` once more with `immediate_exit`
    /// set, which completes the access.
    ///
    /// # Errors
    /// KVM refused to return a part of the state.
    pub fn save(&self, vcpu: &VcpuFd) -> Result<VcpuState, VcpuStateError> {
        // First: KVM processes a pending INIT or SIPI here, which changes the registers.
        let mp_state = vcpu.get_mp_state();
        let mp_state = mp_state.map_err(failed("KVM_GET_MP_STATE"))?;
        let cpuid = vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES);
        let cpuid = cpuid.map_err(failed("KVM_GET_CPUID2"))?;
        Ok(VcpuState {
            cpuid: cpuid.as_slice().to_vec(),
            tsc_khz: tsc_khz(vcpu)?,
            regs: vcpu.get_regs().map_err(failed("KVM_GET_REGS"))?,
            sregs: vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?,
            xcrs: vcpu.get_xcrs().map_err(failed("KVM_GET_XCRS"))?,
            xsave: self.xsave.get(vcpu).map_err(failed("KVM_GET_XSAVE2"))?,
            debug_regs: vcpu.get_debug_regs().map_err(failed("KVM_GET_DEBUGREGS"))?,
            // This makes KVM deliver posted interrupts to the local APIC first.
            lapic: vcpu.get_lapic().map_err(failed("KVM_GET_LAPIC"))?,
            msrs: self.get_msrs(vcpu)?,
            mp_state,
            // Last, since any of the above may cause an event. Fields are evaluated in order.
            events: vcpu
                .get_vcpu_events()
                .map_err(failed("KVM_GET_VCPU_EVENTS"))?,
        })
    }

    /// Restores a state into a newly created vCPU with the same number, in a VM that was created as
    /// for a boot. The vCPU must not have run, and nothing may interrupt it meanwhile.
    ///
    /// # Errors
    /// KVM refused a part of the state. The vCPU must not be used then.
    pub fn restore(&self, vcpu: &VcpuFd, state: &VcpuState) -> Result<(), VcpuStateError> {
        let (saved, own) = (state.xsave.len(), self.xsave.words());
        if saved != own {
            return Err(VcpuStateError::ExtendedRegisters { saved, own });
        }
        // First: it determines which registers, and which of their bits, exist.
        set_cpuid(vcpu, &state.cpuid)?;
        // Before the TSC, which counts cycles of this clock.
        set_tsc_khz(vcpu, state.tsc_khz)?;
        // Before the events: it drops pending exceptions.
        vcpu.set_regs(&state.regs).map_err(failed("KVM_SET_REGS"))?;
        // Before the local APIC: its base address and mode are part of these.
        vcpu.set_sregs(&state.sregs)
            .map_err(failed("KVM_SET_SREGS"))?;
        vcpu.set_xcrs(&state.xcrs).map_err(failed("KVM_SET_XCRS"))?;
        self.xsave
            .set(vcpu, &state.xsave)
            .map_err(failed("KVM_SET_XSAVE"))?;
        vcpu.set_debug_regs(&state.debug_regs)
            .map_err(failed("KVM_SET_DEBUGREGS"))?;
        // Before the MSRs: KVM accepts the timer's deadline only if the timer is in TSC-deadline
        // mode.
        vcpu.set_lapic(&state.lapic)
            .map_err(failed("KVM_SET_LAPIC"))?;
        set_msrs(vcpu, &in_restore_order(&state.msrs))?;
        // After the special registers: setting them makes a boot processor in its reset state
        // runnable.
        vcpu.set_mp_state(state.mp_state)
            .map_err(failed("KVM_SET_MP_STATE"))?;
        vcpu.set_vcpu_events(&state.events)
            .map_err(failed("KVM_SET_VCPU_EVENTS"))
    }

    /// Reads those of the registers that the vCPU has. KVM's list is the same for all vCPUs; one
    /// whose CPUID lacks a feature may lack its registers.
    fn get_msrs(&self, vcpu: &VcpuFd) -> Result<Vec<(u32, u64)>, VcpuStateError> {
        let mut values = Vec::with_capacity(self.msrs.len());
        let mut rest = &self.msrs[..];
        while !rest.is_empty() {
            let chunk = &rest[..rest.len().min(KVM_MAX_MSR_ENTRIES)];
            let found = read_msrs(vcpu, chunk)?;
            // KVM stops at the first one that it can't read.
            let tried = (found.len() + 1).min(chunk.len());
            values.extend(found);
            rest = &rest[tried..];
        }
        Ok(values)
    }
}

/// The values of the registers up to the first one that KVM can't read.
fn read_msrs(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<(u32, u64)>, VcpuStateError> {
    let asked: Vec<_> = indices.iter().map(|index| (*index, 0)).collect();
    let mut msrs = msrs_of(&asked)?;
    let count = vcpu.get_msrs(&mut msrs);
    let count = count.map_err(failed("KVM_GET_MSRS"))?;
    let found = msrs.as_slice().iter().take(count);
    Ok(found.map(|msr| (msr.index, msr.data)).collect())
}

/// At most [`KVM_MAX_MSR_ENTRIES`] registers in the form that the ioctls take.
fn msrs_of(values: &[(u32, u64)]) -> Result<Msrs, VcpuStateError> {
    let entry = |(index, data): &(u32, u64)| kvm_msr_entry {
        index: *index,
        data: *data,
        ..Default::default()
    };
    let entries: Vec<_> = values.iter().map(entry).collect();
    Msrs::from_entries(&entries).map_err(|_| VcpuStateError::TooLong { what: "registers" })
}

/// The registers in the order in which they must be set: the timer's deadline comes last, since KVM
/// compares it with the TSC.
///
/// A deadline of zero may belong to a timer that has just expired, whose pending interrupt KVM
/// doesn't expose. So the deadline is set to the saved TSC then, and the timer expires again:
/// guests cope with spurious timer interrupts. KVM ignores the deadline if the timer isn't in
/// TSC-deadline mode.
fn in_restore_order(msrs: &[(u32, u64)]) -> Vec<(u32, u64)> {
    let value = |wanted| msrs.iter().find(|(index, _)| *index == wanted);
    let deadline = value(TSC_DEADLINE).map(|(_, deadline)| match deadline {
        0 => value(TSC).map_or(1, |(_, tsc)| *tsc),
        set => *set,
    });
    let others = msrs.iter().filter(|(index, _)| *index != TSC_DEADLINE);
    let deadline = deadline.map(|deadline| (TSC_DEADLINE, deadline));
    others.copied().chain(deadline).collect()
}

/// Sets registers. If KVM refuses one, as it does with read-only ones, the register must have the
/// value already.
fn set_msrs(vcpu: &VcpuFd, values: &[(u32, u64)]) -> Result<(), VcpuStateError> {
    let mut rest = values;
    while !rest.is_empty() {
        let chunk = &rest[..rest.len().min(KVM_MAX_MSR_ENTRIES)];
        let count = vcpu.set_msrs(&msrs_of(chunk)?);
        let count = count.map_err(failed("KVM_SET_MSRS"))?;
        rest = &rest[count.min(chunk.len())..];
        if count < chunk.len() {
            let (index, value) = rest[0];
            if read_msrs(vcpu, &[index])? != [(index, value)] {
                return Err(VcpuStateError::Register { index, value });
            }
            rest = &rest[1..];
        }
    }
    Ok(())
}

fn set_cpuid(vcpu: &VcpuFd, entries: &[kvm_cpuid_entry2]) -> Result<(), VcpuStateError> {
    let what = "CPUID entries";
    let cpuid = CpuId::from_entries(entries).map_err(|_| VcpuStateError::TooLong { what })?;
    vcpu.set_cpuid2(&cpuid).map_err(failed("KVM_SET_CPUID2"))
}

fn tsc_khz(vcpu: &VcpuFd) -> Result<u32, VcpuStateError> {
    vcpu.get_tsc_khz().map_err(failed("KVM_GET_TSC_KHZ"))
}

/// Sets the TSC's rate. A processor that can't scale its TSC must have the saved rate already.
fn set_tsc_khz(vcpu: &VcpuFd, saved: u32) -> Result<(), VcpuStateError> {
    let own = tsc_khz(vcpu)?;
    if own == saved {
        return Ok(());
    }
    vcpu.set_tsc_khz(saved)
        .map_err(|_| VcpuStateError::TscRate { saved, own })
}

/// The VM's kvm-clock, in nanoseconds since the VM was created. Time that passes between saving and
/// restoring isn't counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockState(u64);

impl ClockState {
    /// Reads the clock.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn save(vm: &VmFd) -> Result<Self, VcpuStateError> {
        let clock = vm.get_clock().map_err(failed("KVM_GET_CLOCK"))?;
        Ok(Self(clock.clock))
    }

    /// Sets the clock of a VM, which continues from there.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn restore(self, vm: &VmFd) -> Result<(), VcpuStateError> {
        // No flags: with `KVM_CLOCK_REALTIME` KVM would add the time that has passed since.
        let clock = kvm_clock_data {
            clock: self.0,
            ..Default::default()
        };
        vm.set_clock(&clock).map_err(failed("KVM_SET_CLOCK"))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kvm_bindings::{KVM_MP_STATE_HALTED, KVM_VCPUEVENT_VALID_NMI_PENDING};
    use kvm_ioctls::VcpuExit;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    use super::*;
    use crate::arch::VcpuSetup;
    use crate::vm::Vm;

    const PAGE: u64 = 0x1000;

    fn kvm() -> Option<Kvm> {
        let kvm = Kvm::new().ok();
        if kvm.is_none() {
            eprintln!("skipped: no /dev/kvm");
        }
        kvm
    }

    /// A VM with a page of memory that holds `code`, and its only vCPU.
    fn vm(kvm: &Kvm, code: &[u8]) -> (VcpuFd, Vm) {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(PAGE), PAGE as usize)]);
        let memory = memory.expect("a page");
        memory
            .write_slice(code, GuestAddress(PAGE))
            .expect("in memory");
        let vm = Vm::new(kvm, Arc::new(memory)).expect("a VM");
        (vm.create_vcpu(0).expect("a vCPU"), vm)
    }

    /// A vCPU set up as for a boot, with every part of its state changed to differ from that after
    /// a reset.
    fn busy(kvm: &Kvm) -> (VcpuFd, Vm) {
        let (vcpu, vm) = vm(kvm, &[]);
        let mut setup = VcpuSetup::new(kvm, 1, PAGE).expect("CPUID");
        setup.apply(&vcpu, 0).expect("set up");
        let mut fpu = vcpu.get_fpu().expect("FPU");
        fpu.xmm[3] = [7; 16];
        vcpu.set_fpu(&fpu).expect("FPU");
        let mut debug_regs = vcpu.get_debug_regs().expect("debug registers");
        debug_regs.db[1] = 0x1234;
        vcpu.set_debug_regs(&debug_regs).expect("debug registers");
        set_msrs(&vcpu, &[(STAR, 0x0023_0010_0000_0000)]).expect("STAR");
        set_timer(&vcpu, u64::MAX);
        let mut events = vcpu.get_vcpu_events().expect("events");
        (events.nmi.pending, events.flags) = (1, KVM_VCPUEVENT_VALID_NMI_PENDING);
        vcpu.set_vcpu_events(&events).expect("events");
        let mp_state = KVM_MP_STATE_HALTED;
        vcpu.set_mp_state(kvm_mp_state { mp_state })
            .expect("halted");
        (vcpu, vm)
    }

    const STAR: u32 = 0xc000_0081;

    /// Switches the local APIC on, and sets its timer to a value of the TSC.
    fn set_timer(vcpu: &VcpuFd, deadline: u64) {
        let mut lapic = vcpu.get_lapic().expect("a local APIC");
        let mut put = |at: usize, value: u32| {
            let bytes = value.to_le_bytes().map(|byte| byte as i8);
            lapic.regs[at..at + 4].copy_from_slice(&bytes);
        };
        put(0xf0, 0x1ff); // spurious vector, enabled
        put(0x320, 2 << 17 | TIMER_VECTOR); // deadline
        vcpu.set_lapic(&lapic).expect("a local APIC");
        set_msrs(vcpu, &[(TSC_DEADLINE, deadline)]).expect("a deadline");
    }

    const TIMER_VECTOR: u32 = 0x31;

    /// The state after serialising it to JSON and back.
    fn json(state: &VcpuState) -> VcpuState {
        let text = serde_json::to_string(state).expect("JSON");
        serde_json::from_str(&text).expect("a state")
    }

    /// Removes the TSC from the state and returns it.
    fn take_tsc(state: &mut VcpuState) -> u64 {
        let at = state.msrs.iter().position(|(index, _)| *index == TSC);
        state.msrs.remove(at.expect("a TSC")).1
    }

    #[test]
    fn a_state_is_put_back_as_it_was_taken() {
        let Some(kvm) = kvm() else { return };
        let saver = VcpuSaver::new(&kvm).expect("KVM tells");
        let (busy, _vm) = busy(&kvm);
        let mut saved = json(&saver.save(&busy).expect("a state"));
        let msr = |wanted| saved.msrs.iter().find(|(index, _)| *index == wanted);
        assert_eq!(msr(TSC_DEADLINE), Some(&(TSC_DEADLINE, u64::MAX)));
        assert_eq!(msr(STAR), Some(&(STAR, 0x0023_0010_0000_0000)));
        assert_eq!(msr(DEFAULT_TYPE), Some(&(DEFAULT_TYPE, 0x806)));
        assert_eq!(saved.mp_state.mp_state, KVM_MP_STATE_HALTED);

        let (fresh, _other) = vm(&kvm, &[]);
        assert_ne!(saver.save(&fresh).expect("a state").regs, saved.regs);
        saver.restore(&fresh, &saved).expect("the same");
        let mut again = saver.save(&fresh).expect("a state");
        assert!(take_tsc(&mut again) >= take_tsc(&mut saved), "time goes on");
        assert_eq!(again, saved);
    }

    #[test]
    fn a_guest_goes_on_in_another_vm() {
        let Some(kvm) = kvm() else { return };
        let saver = VcpuSaver::new(&kvm).expect("KVM tells");
        // mov al, 1; out 0xf4, al; inc ax; out 0xf4, al; hlt: in 16-bit code
        let code = [0xb0, 1, 0xe6, 0xf4, 0x40, 0xe6, 0xf4, 0xf4];
        let (mut first, _vm) = vm(&kvm, &code);
        let mut sregs = first.get_sregs().expect("sregs");
        (sregs.cs.base, sregs.cs.selector) = (0, 0);
        first.set_sregs(&sregs).expect("sregs");
        let mut regs = first.get_regs().expect("regs");
        (regs.rip, regs.rflags) = (PAGE, 2);
        first.set_regs(&regs).expect("regs");
        let run = |vcpu: &mut VcpuFd| match vcpu.run() {
            Ok(VcpuExit::IoOut(0xf4, [byte])) => Some(*byte),
            _ => None,
        };
        assert_eq!(run(&mut first), Some(1));
        first.set_kvm_immediate_exit(1);
        let complete = first.run().map(drop).map_err(|error| error.errno());
        assert_eq!(complete, Err(libc::EINTR));
        let state = json(&saver.save(&first).expect("a state"));

        let (mut second, _other) = vm(&kvm, &code);
        saver.restore(&second, &state).expect("the same");
        assert_eq!(run(&mut second), Some(2));
    }

    #[test]
    fn states_of_other_hosts_are_refused() {
        let Some(kvm) = kvm() else { return };
        let saver = VcpuSaver::new(&kvm).expect("KVM tells");
        let (vcpu, _vm) = vm(&kvm, &[]);
        let saved = saver.save(&vcpu).expect("a state");
        let restore = |change: &dyn Fn(&mut VcpuState)| {
            let mut state = saved.clone();
            change(&mut state);
            saver.restore(&vcpu, &state)
        };
        assert!(matches!(
            restore(&|state| state.xsave.truncate(1000)),
            Err(VcpuStateError::ExtendedRegisters { saved: 1000, .. })
        ));
        assert!(matches!(
            restore(&|state| state.cpuid = vec![kvm_cpuid_entry2::default(); 1000]),
            Err(VcpuStateError::TooLong { .. })
        ));
        assert!(matches!(
            restore(&|state| state.msrs.push((0xdead_beef, 1))),
            Err(VcpuStateError::Register {
                index: 0xdead_beef,
                value: 1
            })
        ));
        assert!(restore(&|state| state.sregs.cr4 = u64::MAX).is_err());
        restore(&|_| ()).expect("its own");
    }

    #[test]
    fn the_deadline_comes_last_and_one_that_has_passed_is_due_again() {
        let set = [(TSC_DEADLINE, 9), (TSC, 5), (STAR, 7)];
        assert_eq!(
            in_restore_order(&set),
            [(TSC, 5), (STAR, 7), (TSC_DEADLINE, 9)]
        );
        let passed = [(TSC_DEADLINE, 0), (TSC, 5)];
        assert_eq!(in_restore_order(&passed), [(TSC, 5), (TSC_DEADLINE, 5)]);
        assert_eq!(in_restore_order(&[(STAR, 7)]), [(STAR, 7)]);
    }

    #[test]
    fn a_clock_goes_on_from_where_it_was() {
        let Some(kvm) = kvm() else { return };
        let (_vcpu, vm) = vm(&kvm, &[]);
        const HOUR: u64 = 3_600_000_000_000;
        ClockState(HOUR).restore(&vm.fd).expect("a clock");
        let ClockState(now) = ClockState::save(&vm.fd).expect("a clock");
        assert!((HOUR..2 * HOUR).contains(&now), "{now}");
    }
}
