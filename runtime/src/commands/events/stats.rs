//! Statistics in the JSON of runc's `events` (its `types/events.go`).
//!
//! runc leaves out what is zero, which says the same. What the guest has nothing of is there and empty:
//! block devices, cpusets, the host's caches, network interfaces of libcontainer's making.

use serde_json::{Map, Value, json};

use crate::sandbox::{Limited, Pressure, PressureLine, Stats};

/// The `data` of a `stats` event.
pub fn to_json(stats: &Stats) -> Value {
    let cpu = &stats.cpu;
    let nanoseconds = |usec: u64| usec.saturating_mul(1000);
    let hugetlb: Map<String, Value> = stats
        .hugetlb
        .iter()
        .map(|(size, pages)| {
            let value = json!({
                "usage": pages.usage, "max": pages.peak, "failcnt": pages.failures,
            });
            (size.clone(), value)
        })
        .collect();
    let pids_limit = if stats.pids.limit == u64::MAX {
        0
    } else {
        stats.pids.limit
    };
    json!({
        "cpu": {
            "usage": {
                "total": nanoseconds(cpu.usage_usec),
                "kernel": nanoseconds(cpu.system_usec),
                "user": nanoseconds(cpu.user_usec),
            },
            "throttling": {
                "periods": cpu.periods,
                "throttledPeriods": cpu.throttled_periods,
                "throttledTime": nanoseconds(cpu.throttled_usec),
            },
            "psi": pressure(&cpu.pressure),
        },
        "cpuset": {
            "cpu_exclusive": 0, "mem_hardwall": 0, "mem_exclusive": 0, "memory_migrate": 0,
            "memory_spread_page": 0, "memory_spread_slab": 0, "memory_pressure": 0,
            "sched_load_balance": 0, "sched_relax_domain_level": 0,
        },
        "memory": {
            "cache": stats.memory_stat.get("file").copied().unwrap_or(0),
            "usage": entry(&stats.memory),
            "swap": entry(&with_memory(&stats.swap, &stats.memory)),
            "kernel": entry(&Limited::new()),
            "kernelTCP": entry(&Limited::new()),
            "raw": stats.memory_stat,
            "psi": pressure(&stats.memory_pressure),
        },
        "pids": { "current": stats.pids.usage, "limit": pids_limit },
        "blkio": { "psi": pressure(&stats.io_pressure) },
        "hugetlb": hugetlb,
        "intel_rdt": {},
        "network_interfaces": null,
    })
}

fn entry(data: &Limited) -> Value {
    json!({
        "limit": data.limit, "usage": data.usage, "max": data.peak, "failcnt": data.failures,
    })
}

/// What readers of cgroup v1 expect as swap: memory and swap together.
fn with_memory(swap: &Limited, memory: &Limited) -> Limited {
    Limited {
        usage: swap.usage.saturating_add(memory.usage),
        limit: swap.limit.saturating_add(memory.limit),
        ..swap.clone()
    }
}

fn pressure(pressure: &Pressure) -> Value {
    json!({ "some": pressure_line(&pressure.some), "full": pressure_line(&pressure.full) })
}

fn pressure_line(line: &PressureLine) -> Value {
    json!({
        "avg10": percent(line.avg10), "avg60": percent(line.avg60), "avg300": percent(line.avg300),
        "total": line.total_usec,
    })
}

/// JSON knows neither infinity nor what isn't a number.
fn percent(value: f64) -> f64 {
    if value.is_finite() { value } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn limited(usage: u64, limit: u64) -> Limited {
        Limited {
            usage,
            limit,
            ..Default::default()
        }
    }

    fn stats() -> Stats {
        let mut stats = Stats {
            cpu: Default::default(),
            memory: limited(10, 100),
            swap: limited(1, u64::MAX),
            memory_stat: BTreeMap::from([("file".to_owned(), 4)]),
            memory_pressure: Pressure::new(),
            pids: limited(2, u64::MAX),
            io_pressure: Pressure::new(),
            hugetlb: BTreeMap::from([("2MB".to_owned(), limited(0, u64::MAX))]),
            oom_kills: 0,
        };
        stats.cpu.usage_usec = 7;
        stats
    }

    #[test]
    fn units_and_meanings_are_runcs() {
        let json = to_json(&stats());
        assert_eq!(json["cpu"]["usage"]["total"], 7000);
        assert_eq!(json["memory"]["usage"]["limit"], 100);
        assert_eq!(json["memory"]["cache"], 4);
        assert_eq!(json["memory"]["swap"]["usage"], 11);
        assert_eq!(json["memory"]["swap"]["limit"], u64::MAX);
        assert_eq!(json["pids"], json!({ "current": 2, "limit": 0 }));
        assert_eq!(json["hugetlb"]["2MB"]["failcnt"], 0);
    }

    #[test]
    fn what_no_json_can_say_is_nothing() {
        let mut stats = stats();
        stats
            .cpu
            .pressure
            .mut_or_insert_default()
            .some
            .mut_or_insert_default()
            .avg10 = f64::NAN;
        assert_eq!(to_json(&stats)["cpu"]["psi"]["some"]["avg10"], 0.0);
    }
}
