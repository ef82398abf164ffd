//! Statistics in the JSON of runc's `events` (its `types/events.go`).
//!
//! runc leaves out what is zero, which says the same. What the guest has nothing of is there and empty:
//! block devices, cpusets, the host's caches, network interfaces of libcontainer's making.
//!
//! At runc's places are the container's own, from the guest. What the VM takes of the host is beside them,
//! in `hull.vm`, which readers of runc's don't look at.

use hull_cgroup::stats::DeviceIo;
use serde_json::{Map, Value, json};

use hull_runtime::sandbox::{Limited, Pressure, PressureLine, Stats};

/// What the host counts of a VM's process.
#[derive(Debug)]
pub struct VmStats {
    /// Of its cgroup.
    pub cgroup: Stats,
    /// By block device.
    pub io: Vec<DeviceIo>,
}

/// The `data` of a `stats` event: of the container, and of its VM if that has a cgroup.
pub fn to_json(container: &Stats, vm: Option<&VmStats>) -> Value {
    let mut data = of_container(container);
    if let Some(vm) = vm {
        data["hull"] = json!({ "vm": of_vm(vm) });
    }
    data
}

fn of_vm(vm: &VmStats) -> Value {
    let each = |values: fn(&DeviceIo) -> [(&'static str, u64); 2]| -> Vec<Value> {
        let entries = vm.io.iter().flat_map(|device| {
            let (major, minor) = (device.major, device.minor);
            let entry =
                move |(op, value)| json!({ "major": major, "minor": minor, "op": op, "value": value });
            values(device).map(entry)
        });
        entries.collect()
    };
    json!({
        "cpu": cpu(&vm.cgroup),
        "memory": memory(&vm.cgroup),
        "pids": pids(&vm.cgroup),
        "blkio": {
            "ioServiceBytesRecursive":
                each(|io| [("Read", io.bytes_read), ("Write", io.bytes_written)]),
            "ioServicedRecursive": each(|io| [("Read", io.reads), ("Write", io.writes)]),
            "psi": pressure(&vm.cgroup.io_pressure),
        },
    })
}

fn of_container(stats: &Stats) -> Value {
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
    json!({
        "cpu": cpu(stats),
        "cpuset": {
            "cpu_exclusive": 0, "mem_hardwall": 0, "mem_exclusive": 0, "memory_migrate": 0,
            "memory_spread_page": 0, "memory_spread_slab": 0, "memory_pressure": 0,
            "sched_load_balance": 0, "sched_relax_domain_level": 0,
        },
        "memory": memory(stats),
        "pids": pids(stats),
        "blkio": { "psi": pressure(&stats.io_pressure) },
        "hugetlb": hugetlb,
        "intel_rdt": {},
        "network_interfaces": null,
    })
}

fn cpu(stats: &Stats) -> Value {
    let cpu = &stats.cpu;
    let nanoseconds = |usec: u64| usec.saturating_mul(1000);
    json!({
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
    })
}

fn memory(stats: &Stats) -> Value {
    json!({
        "cache": stats.memory_stat.get("file").copied().unwrap_or(0),
        "usage": entry(&stats.memory),
        "swap": entry(&with_memory(&stats.swap, &stats.memory)),
        "kernel": entry(&Limited::new()),
        "kernelTCP": entry(&Limited::new()),
        "raw": stats.memory_stat,
        "psi": pressure(&stats.memory_pressure),
    })
}

fn pids(stats: &Stats) -> Value {
    let limit = if stats.pids.limit == u64::MAX {
        0
    } else {
        stats.pids.limit
    };
    json!({ "current": stats.pids.usage, "limit": limit })
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
        let json = to_json(&stats(), None);
        assert_eq!(json["cpu"]["usage"]["total"], 7000);
        assert_eq!(json["memory"]["usage"]["limit"], 100);
        assert_eq!(json["memory"]["cache"], 4);
        assert_eq!(json["memory"]["swap"]["usage"], 11);
        assert_eq!(json["memory"]["swap"]["limit"], u64::MAX);
        assert_eq!(json["pids"], json!({ "current": 2, "limit": 0 }));
        assert_eq!(json["hugetlb"]["2MB"]["failcnt"], 0);
    }

    #[test]
    fn the_vms_are_beside_the_containers() {
        let io = DeviceIo {
            major: 8,
            minor: 16,
            bytes_read: 1,
            bytes_written: 2,
            reads: 3,
            writes: 4,
        };
        let mut vm = VmStats {
            cgroup: stats(),
            io: vec![io],
        };
        vm.cgroup.memory.usage = 99;
        let json = to_json(&stats(), Some(&vm));
        assert_eq!(json["memory"]["usage"]["usage"], 10);
        let vm = &json["hull"]["vm"];
        assert_eq!(vm["memory"]["usage"]["usage"], 99);
        assert_eq!(
            vm["blkio"]["ioServicedRecursive"][1],
            json!({ "major": 8, "minor": 16, "op": "Write", "value": 4 })
        );
        assert_eq!(to_json(&stats(), None)["hull"], Value::Null);
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
        assert_eq!(to_json(&stats, None)["cpu"]["psi"]["some"]["avg10"], 0.0);
    }
}
