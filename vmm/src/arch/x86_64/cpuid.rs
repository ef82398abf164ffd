//! The guest's CPUID: what the host's KVM supports, without the features that are hidden from
//! guests, and with a topology of its own (one socket, one core per vCPU, no hyperthreads).
//!
//! Leaf numbers and bits are those of Intel's SDM volume 2A, "CPUID", AMD's APM volume 3, appendix E,
//! and Linux's Documentation/virt/kvm/x86/cpuid.rst.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

/// The size of the buffer for KVM's entries: the most that KVM ever reports.
const MAX_ENTRIES: usize = kvm_bindings::KVM_MAX_CPUID_ENTRIES;

/// Leaf 1.
mod leaf1 {
    /// Bits of ECX that are hidden from guests: MONITOR, VMX, PDCM (performance capabilities).
    pub const ECX_HIDDEN: u32 = 1 << 3 | 1 << 5 | 1 << 15;
    pub const ECX_TSC_DEADLINE: u32 = 1 << 24;
    pub const ECX_HYPERVISOR: u32 = 1 << 31;
    /// More than one logical processor in the package.
    pub const EDX_HTT: u32 = 1 << 28;
}

/// Leaf 6, EAX: the local APIC's timer runs in every power state. The rest of the leaf, power
/// management, is left to the host.
const ARAT: u32 = 1 << 2;

/// Leaf 0x8000_0001, ECX, bits hidden from guests: SVM, and the extended performance counters
/// (core, northbridge, last-level cache).
const AMD_HIDDEN: u32 = 1 << 2 | 1 << 23 | 1 << 24 | 1 << 28;

/// Leaves that are removed, so that the guest reads zeroes, which mean "not supported": MONITOR
/// (5), performance counters (0xa, 0x8000_0022), SVM (0x8000_000a), and the newer topologies (0x1f,
/// 0x8000_0026), which would contradict leaf 0xb.
const DROPPED: [u32; 6] = [0x5, 0xa, 0x1f, 0x8000_000a, 0x8000_0022, 0x8000_0026];

/// The entries for `KVM_SET_CPUID2`, built once; only the APIC id is changed for each vCPU.
#[derive(Debug)]
pub(super) struct Template {
    entries: CpuId,
}

impl Template {
    /// Builds the entries that all `vcpus` vCPUs have in common from what KVM supports.
    pub(super) fn new(kvm: &Kvm, vcpus: u8) -> Result<Self, kvm_ioctls::Error> {
        let supported = kvm.get_supported_cpuid(MAX_ENTRIES)?;
        let deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        Ok(Self::from_supported(supported.as_slice(), vcpus, deadline))
    }

    fn from_supported(supported: &[kvm_cpuid_entry2], vcpus: u8, tsc_deadline: bool) -> Self {
        let mut entries: Vec<_> = supported
            .iter()
            .filter(|entry| !DROPPED.contains(&entry.function) && entry.function != 0xb)
            .copied()
            .collect();
        for entry in &mut entries {
            restrict(entry, tsc_deadline);
            describe_topology(entry, vcpus);
        }
        entries.extend(extended_topology(vcpus));
        entries.truncate(MAX_ENTRIES);
        Self {
            entries: CpuId::from_entries(&entries).expect("truncated to the limit"),
        }
    }

    /// The entries for the vCPU with this APIC id.
    pub(super) fn for_vcpu(&mut self, apic_id: u8) -> &CpuId {
        for entry in self.entries.as_mut_slice() {
            match entry.function {
                0x1 => entry.ebx = entry.ebx & 0x00ff_ffff | u32::from(apic_id) << 24,
                0xb => entry.edx = apic_id.into(),
                // Extended APIC id, core id, and node: all in the one socket and node.
                0x8000_001e => {
                    (entry.eax, entry.ebx, entry.ecx) = (apic_id.into(), apic_id.into(), 0);
                }
                _ => {}
            }
        }
        &self.entries
    }
}

/// Clears the features that are hidden from guests, and sets those that KVM provides without
/// reporting them.
fn restrict(entry: &mut kvm_cpuid_entry2, tsc_deadline: bool) {
    match entry.function {
        // The highest basic leaf: leaf 0xb is always there.
        0x0 => entry.eax = entry.eax.max(0xb),
        0x1 => {
            entry.ecx &= !leaf1::ECX_HIDDEN;
            entry.ecx |= leaf1::ECX_HYPERVISOR;
            if tsc_deadline {
                entry.ecx |= leaf1::ECX_TSC_DEADLINE;
            }
        }
        0x6 => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (ARAT, 0, 0, 0),
        0x8000_0001 => entry.ecx &= !AMD_HIDDEN,
        _ => {}
    }
}

/// Bits of an APIC id that number the cores of the socket.
fn core_bits(vcpus: u8) -> u32 {
    u32::from(vcpus).next_power_of_two().trailing_zeros()
}

fn describe_topology(entry: &mut kvm_cpuid_entry2, vcpus: u8) {
    let count = u32::from(vcpus);
    let ids = 1 << core_bits(vcpus);
    match entry.function {
        0x1 => {
            entry.ebx = entry.ebx & 0xff00_ffff | count << 16;
            entry.edx &= !leaf1::EDX_HTT;
            if vcpus > 1 {
                entry.edx |= leaf1::EDX_HTT;
            }
        }
        // Intel's caches: 31:26 core ids in the package, 25:14 ids that share the cache, 7:5 its level.
        0x4 if entry.eax & 0x1f != 0 => {
            let sharing = if entry.eax >> 5 & 7 >= 3 { ids - 1 } else { 0 };
            entry.eax = entry.eax & 0x3fff | sharing << 14 | (ids - 1).min(63) << 26;
        }
        // AMD's caches, the same way, without core ids.
        0x8000_001d if entry.eax & 0x1f != 0 => {
            let sharing = if entry.eax >> 5 & 7 >= 3 {
                count - 1
            } else {
                0
            };
            entry.eax = entry.eax & 0x3fff | sharing << 14;
        }
        // AMD: 7:0 cores less one, 15:12 bits of the APIC id that number them.
        0x8000_0008 => entry.ecx = core_bits(vcpus) << 12 | (count - 1),
        _ => {}
    }
}

/// Leaf 0xb: a level of threads (one to a core), one of cores, and the end.
fn extended_topology(vcpus: u8) -> [kvm_cpuid_entry2; 3] {
    const THREADS: u32 = 1;
    const CORES: u32 = 2;
    let level = |index: u32, kind: u32, shift: u32, count: u32| kvm_cpuid_entry2 {
        function: 0xb,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: kind << 8 | index,
        ..Default::default()
    };
    [
        level(0, THREADS, 0, 1),
        level(1, CORES, core_bits(vcpus), vcpus.into()),
        level(2, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            eax: 0xffff_ffff,
            ebx: 0xffff_ffff,
            ecx: 0xffff_ffff,
            edx: 0xffff_ffff,
            ..Default::default()
        }
    }

    fn template(vcpus: u8) -> Template {
        let all = [
            0,
            1,
            4,
            5,
            6,
            0xa,
            0xb,
            0x1f,
            0x8000_0001,
            0x8000_0008,
            0x8000_000a,
            0x8000_001e,
        ];
        let all: Vec<_> = all.iter().map(|function| leaf(*function, 0)).collect();
        Template::from_supported(&all, vcpus, true)
    }

    fn find(cpuid: &CpuId, function: u32, index: u32) -> Option<kvm_cpuid_entry2> {
        let mut entries = cpuid.as_slice().iter();
        entries
            .find(|e| e.function == function && e.index == index)
            .copied()
    }

    #[test]
    fn nested_virtualisation_and_counters_are_hidden() {
        let mut template = template(1);
        let cpuid = template.for_vcpu(0);
        for function in DROPPED {
            assert_eq!(find(cpuid, function, 0), None, "{function:#x}");
        }
        let one = find(cpuid, 1, 0).expect("leaf 1");
        assert_eq!(one.ecx & (1 << 5 | 1 << 3 | 1 << 15), 0);
        assert_ne!(one.ecx & (1 << 31), 0, "hypervisor");
        assert_ne!(one.ecx & (1 << 24), 0, "TSC deadline");
        assert_eq!(find(cpuid, 0x8000_0001, 0).expect("leaf").ecx & 1 << 2, 0);
    }

    #[test]
    fn each_vcpu_has_its_own_id_in_one_socket() {
        let mut template = template(3);
        for id in 0..3 {
            let cpuid = template.for_vcpu(id);
            assert_eq!(find(cpuid, 1, 0).expect("leaf").ebx >> 24, u32::from(id));
            for index in 0..3 {
                let level = find(cpuid, 0xb, index).expect("leaf 0xb");
                assert_eq!(level.edx, u32::from(id));
            }
            assert_eq!(
                find(cpuid, 0x8000_001e, 0).expect("leaf").eax,
                u32::from(id)
            );
        }
        let cpuid = template.for_vcpu(0);
        let cores = find(cpuid, 0xb, 1).expect("cores");
        assert_eq!((cores.eax, cores.ebx), (2, 3));
        assert_eq!(find(cpuid, 0x8000_0008, 0).expect("leaf").ecx, 2 << 12 | 2);
    }

    #[test]
    fn one_vcpu_is_no_multiprocessor() {
        let mut template = template(1);
        let cpuid = template.for_vcpu(0);
        assert_eq!(find(cpuid, 1, 0).expect("leaf").edx & 1 << 28, 0);
        assert_eq!(find(cpuid, 0xb, 1).expect("leaf").eax, 0);
    }

    #[test]
    fn this_hosts_own_entries_fit() {
        let Ok(kvm) = Kvm::new() else {
            return eprintln!("skipped: no /dev/kvm");
        };
        let mut template = Template::new(&kvm, 4).expect("supported CPUID");
        assert!(find(template.for_vcpu(3), 0, 0).is_some());
    }
}
