//! Statistics in containerd's message (`io.containerd.cgroups.v2.Metrics`): the container's own, from the guest.

use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, HugeTlbStat, IOStat, MemoryEvents, MemoryStat, Metrics, PSIData, PSIStats, PidsStat,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField, MessageFull};
use hull_runtime::sandbox::{Pressure, PressureLine, Stats};

use super::error::Error;

/// The message, packed.
///
/// # Errors
/// When it can't be written.
pub fn to_any(stats: &Stats) -> Result<Any, Error> {
    let value = metrics(stats).write_to_bytes();
    let value = value.map_err(|source| Error::Message {
        what: "the statistics",
        source,
    })?;
    Ok(Any {
        type_url: Metrics::descriptor().full_name().to_owned(),
        value,
        ..Default::default()
    })
}

fn metrics(stats: &Stats) -> Metrics {
    let hugetlb = stats.hugetlb.iter().map(|(size, pages)| HugeTlbStat {
        current: pages.usage,
        max: pages.peak,
        pagesize: size.clone(),
        failcnt: pages.failures,
        ..Default::default()
    });
    Metrics {
        pids: Some(PidsStat {
            current: stats.pids.usage,
            // Without a limit, as containerd has it.
            limit: Some(stats.pids.limit)
                .filter(|limit| *limit < u64::MAX)
                .unwrap_or(0),
            ..Default::default()
        })
        .into(),
        cpu: Some(cpu(stats)).into(),
        memory: Some(memory(stats)).into(),
        io: Some(IOStat {
            psi: pressure(&stats.io_pressure),
            ..Default::default()
        })
        .into(),
        hugetlb: hugetlb.collect(),
        memory_events: Some(MemoryEvents {
            max: stats.memory.failures,
            oom: stats.oom_kills,
            oom_kill: stats.oom_kills,
            ..Default::default()
        })
        .into(),
        ..Default::default()
    }
}

fn cpu(stats: &Stats) -> CPUStat {
    let cpu = &stats.cpu;
    CPUStat {
        usage_usec: cpu.usage_usec,
        user_usec: cpu.user_usec,
        system_usec: cpu.system_usec,
        nr_periods: cpu.periods,
        nr_throttled: cpu.throttled_periods,
        throttled_usec: cpu.throttled_usec,
        psi: pressure(&cpu.pressure),
        ..Default::default()
    }
}

fn memory(stats: &Stats) -> MemoryStat {
    let of = |name: &str| stats.memory_stat.get(name).copied().unwrap_or(0);
    MemoryStat {
        anon: of("anon"),
        file: of("file"),
        kernel_stack: of("kernel_stack"),
        slab: of("slab"),
        sock: of("sock"),
        shmem: of("shmem"),
        file_mapped: of("file_mapped"),
        file_dirty: of("file_dirty"),
        file_writeback: of("file_writeback"),
        anon_thp: of("anon_thp"),
        inactive_anon: of("inactive_anon"),
        active_anon: of("active_anon"),
        inactive_file: of("inactive_file"),
        active_file: of("active_file"),
        unevictable: of("unevictable"),
        slab_reclaimable: of("slab_reclaimable"),
        slab_unreclaimable: of("slab_unreclaimable"),
        pgfault: of("pgfault"),
        pgmajfault: of("pgmajfault"),
        workingset_refault: of("workingset_refault_file"),
        workingset_activate: of("workingset_activate_file"),
        workingset_nodereclaim: of("workingset_nodereclaim"),
        pgrefill: of("pgrefill"),
        pgscan: of("pgscan"),
        pgsteal: of("pgsteal"),
        pgactivate: of("pgactivate"),
        pgdeactivate: of("pgdeactivate"),
        pglazyfree: of("pglazyfree"),
        pglazyfreed: of("pglazyfreed"),
        thp_fault_alloc: of("thp_fault_alloc"),
        thp_collapse_alloc: of("thp_collapse_alloc"),
        usage: stats.memory.usage,
        usage_limit: stats.memory.limit,
        max_usage: stats.memory.peak,
        swap_usage: stats.swap.usage,
        swap_limit: stats.swap.limit,
        swap_max_usage: stats.swap.peak,
        psi: pressure(&stats.memory_pressure),
        ..Default::default()
    }
}

fn pressure(pressure: &Pressure) -> MessageField<PSIStats> {
    let line = |line: &PressureLine| PSIData {
        avg10: line.avg10,
        avg60: line.avg60,
        avg300: line.avg300,
        total: line.total_usec,
        ..Default::default()
    };
    Some(PSIStats {
        some: Some(line(&pressure.some)).into(),
        full: Some(line(&pressure.full)).into(),
        ..Default::default()
    })
    .into()
}
