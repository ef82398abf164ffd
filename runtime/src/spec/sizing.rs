//! How large a VM a container gets: from the limits of config.json, or from the host where there are none.

use std::num::NonZeroU8;

use oci_spec::runtime::{LinuxCpu, LinuxResources, Spec};

use super::cpulist::CpuList;
use super::pod::is_first_of_pod;
use crate::config::{Config, MIN_MEMORY};
use crate::types::Sizing;

/// The guest's kernel keeps account of its memory in `struct page`s, which are 1/64 of their pages.
const ACCOUNT_SHARE: u64 = 64;

/// The section of memory that a guest's kernel adds and removes at once, in MiB.
const SECTION: u64 = 128;

/// The period of a CPU quota without one, in µs (cpu.max, Documentation/admin-guide/cgroup-v2.rst).
const DEFAULT_PERIOD: u64 = 100_000;

/// What the host has to give.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// The CPUs that this process may run on.
    pub cpus: u64,
    /// The memory, in bytes.
    pub memory: u64,
}

impl Host {
    /// Asks the kernel.
    pub fn read() -> Self {
        let cpus = rustix::thread::sched_getaffinity(None).map_or(1, |set| set.count().into());
        let info = rustix::system::sysinfo();
        let memory = info.totalram.saturating_mul(info.mem_unit.into());
        Self { cpus, memory }
    }
}

/// What a VM is too small for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TooSmall {
    /// A memory limit.
    Memory,
    /// A CPU quota.
    Cpus,
}

impl Sizing {
    /// Whether a VM of this size can give what these limits allow, if it grows as far as it can. No limit allows what
    /// there is.
    ///
    /// # Errors
    /// Says what there is too little of.
    pub fn covers(
        &self,
        resources: &LinuxResources,
        host: Host,
        config: &Config,
    ) -> Result<(), TooSmall> {
        let limit = memory_limit(resources).and_then(|limit| u64::try_from(limit).ok());
        let wanted = limit
            .filter(|limit| *limit > 0)
            .map(|limit| with_allowance(limit, config));
        let most = u64::from(self.memory_mib) + u64::from(self.growth_mib);
        if wanted.is_some_and(|wanted| wanted > most && wanted > MIN_MEMORY.into()) {
            return Err(TooSmall::Memory);
        }
        let cpus = resources.cpu().as_ref().and_then(cpus_at_once);
        if cpus.is_some_and(|cpus| cpus.min(host.cpus) > self.vcpus.get().into()) {
            return Err(TooSmall::Cpus);
        }
        Ok(())
    }

    /// The size for a container with these limits on this host. One for a pod can grow whatever its limits: a further
    /// container may have one.
    pub fn of(
        resources: Option<&LinuxResources>,
        is_pod: bool,
        host: Host,
        config: &Config,
    ) -> Self {
        let cpus = vcpus(
            resources.and_then(|resources| resources.cpu().as_ref()),
            host,
            config,
        );
        let memory = memory(resources.and_then(memory_limit), host, config);
        let is_held = is_pod || resources.is_some_and(has_memory_limit);
        Self {
            vcpus: u8::try_from(cpus)
                .ok()
                .and_then(NonZeroU8::new)
                .unwrap_or(NonZeroU8::MIN),
            memory_mib: u32::try_from(memory).unwrap_or(u32::MAX),
            growth_mib: growth(is_held, memory, host, config),
        }
    }

    /// The memory that a VM of this size is to have from now on, in MiB, for a container with these limits: what one
    /// would be created with, as far as this one can grow or shrink.
    pub fn memory_for(&self, resources: &LinuxResources, host: Host, config: &Config) -> u32 {
        self.within(memory(memory_limit(resources), host, config))
    }

    /// The same for several containers.
    pub(super) fn memory_for_all(&self, demand: Demand, config: &Config) -> u32 {
        let unlimited = match demand.has_unlimited {
            true => u64::from(config.default_memory),
            false => 0,
        };
        // What a VM has by default is enough for its kernel, too.
        let limited = match demand.limits {
            0 => 0,
            limits => with_allowance(limits, config),
        };
        self.within(limited.saturating_add(unlimited))
    }

    /// As many MiB as are wanted, as far as the VM can grow or shrink.
    fn within(&self, wanted: u64) -> u32 {
        let most = self.memory_mib.saturating_add(self.growth_mib);
        u32::try_from(wanted)
            .unwrap_or(u32::MAX)
            .clamp(self.memory_mib, most)
    }
}

/// What the containers of a VM want of its memory: each its limit, and those without one what a VM has by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// The sum of the limits, in bytes.
    limits: u64,
    has_unlimited: bool,
}

impl Demand {
    /// Adds a container with this config.json. The first one of a pod wants nothing.
    pub fn add(&mut self, spec: &Spec) {
        let linux = spec.linux().as_ref();
        let limit = linux
            .and_then(|linux| memory_limit(linux.resources().as_ref()?))
            .and_then(|limit| u64::try_from(limit).ok())
            .filter(|limit| *limit > 0);
        match limit {
            Some(limit) => self.limits = self.limits.saturating_add(limit),
            None => self.has_unlimited |= !is_first_of_pod(spec),
        }
    }
}

/// The memory limit in bytes, as config.json has it: -1 for none.
pub(super) fn memory_limit(resources: &LinuxResources) -> Option<i64> {
    resources.memory().as_ref()?.limit()
}

/// Whether a container's memory is limited.
pub fn has_memory_limit(resources: &LinuxResources) -> bool {
    memory_limit(resources).is_some_and(|limit| limit > 0)
}

/// As many vCPUs as the limits let run at once, and no more than the host can.
fn vcpus(limits: Option<&LinuxCpu>, host: Host, config: &Config) -> u64 {
    let quota = limits.and_then(cpus_at_once);
    let listed = limits
        .and_then(|cpu| cpu.cpus().as_ref()?.parse::<CpuList>().ok())
        .map(|list| u64::from(list.count()))
        .filter(|count| *count > 0);
    let limit = match (quota, listed) {
        (Some(quota), Some(listed)) => quota.min(listed),
        (quota, listed) => quota
            .or(listed)
            .unwrap_or(config.default_vcpus.get().into()),
    };
    limit.min(host.cpus).clamp(1, config.max_vcpus.get().into())
}

/// How many CPUs a quota lets run at once.
fn cpus_at_once(cpu: &LinuxCpu) -> Option<u64> {
    let quota = cpu
        .quota()
        .and_then(|quota| u64::try_from(quota).ok())
        .filter(|q| *q > 0)?;
    let period = cpu
        .period()
        .filter(|period| *period > 0)
        .unwrap_or(DEFAULT_PERIOD);
    Some(quota.div_ceil(period))
}

/// The memory in MiB for a limit in bytes.
fn memory(limit: Option<i64>, host: Host, config: &Config) -> u64 {
    let wanted = match effective(limit, host) {
        Some(limit) => with_allowance(limit, config),
        None => u64::from(config.default_memory).min(host.memory >> 20),
    };
    wanted.clamp(MIN_MEMORY.into(), config.max_memory.into())
}

/// A limit in bytes that limits something: one above what the host has doesn't.
fn effective(limit: Option<i64>, host: Host) -> Option<u64> {
    let limit = u64::try_from(limit?).ok()?;
    (limit > 0 && limit < host.memory).then_some(limit)
}

/// The MiB of a container's memory limit, if the configuration gives its VM less than the container could use by
/// it: whoever gave the limit is to hear of that.
pub(super) fn limit_above_vm(
    resources: &LinuxResources,
    host: Host,
    config: &Config,
) -> Option<u64> {
    let limit = effective(memory_limit(resources), host)?;
    (with_allowance(limit, config) > config.max_memory.into()).then_some(limit >> 20)
}

/// How much a VM with `memory` MiB can grow, in MiB: whole sections of its kernel's, up to what the host has and the
/// configuration allows. None at all without a limit on its container's memory: nothing on the host would hold a hostile
/// guest, to which more addresses are memory than it has been given.
fn growth(is_held: bool, memory: u64, host: Host, config: &Config) -> u32 {
    let most = u64::from(config.max_memory).min(host.memory >> 20);
    let growth = most.saturating_sub(memory) / SECTION * SECTION;
    match is_held {
        true => u32::try_from(growth).unwrap_or(u32::MAX),
        false => 0,
    }
}

/// The memory in MiB that lets a container have `limit` bytes.
fn with_allowance(limit: u64, config: &Config) -> u64 {
    let limit = limit.div_ceil(1 << 20);
    limit + u64::from(config.guest_memory_allowance) + limit / ACCOUNT_SHARE
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const HOST: Host = Host {
        cpus: 8,
        memory: 16 << 30,
    };

    fn size(resources: Value) -> (u8, u32) {
        let resources: LinuxResources = serde_json::from_value(resources).expect("resources");
        let sizing = Sizing::of(Some(&resources), false, HOST, &Config::default());
        (sizing.vcpus.get(), sizing.memory_mib)
    }

    #[test]
    fn without_limits_the_defaults_hold() {
        assert_eq!(size(json!({})), (4, 2048));
        let small = Sizing::of(
            None,
            false,
            Host {
                cpus: 1,
                memory: 1 << 30,
            },
            &Config::default(),
        );
        assert_eq!((small.vcpus.get(), small.memory_mib), (1, 1024));
    }

    #[test]
    fn the_configuration_moves_defaults_and_bounds() {
        let config = Config {
            default_vcpus: NonZeroU8::MIN,
            default_memory: 256,
            max_memory: 1024,
            guest_memory_allowance: 100,
            ..Config::default()
        };
        let size = |limits: Value| {
            let limits: LinuxResources = serde_json::from_value(limits).expect("resources");
            let sizing = Sizing::of(Some(&limits), false, HOST, &config);
            (sizing.vcpus.get(), sizing.memory_mib)
        };
        assert_eq!(size(json!({})), (1, 256));
        assert_eq!(
            size(json!({"memory": {"limit": 128 << 20}})).1,
            128 + 100 + 2
        );
        assert_eq!(size(json!({"memory": {"limit": 8_i64 << 30}})).1, 1024);
        let above = |limit: i64| {
            let limits = json!({"memory": {"limit": limit}});
            let limits = serde_json::from_value(limits).expect("resources");
            limit_above_vm(&limits, HOST, &config)
        };
        assert_eq!(
            (above(8 << 30), above(128 << 20), above(-1)),
            (Some(8192), None, None)
        );
    }

    #[test]
    fn a_quota_is_rounded_up_to_whole_cpus() {
        assert_eq!(
            size(json!({"cpu": {"quota": 150_000, "period": 100_000}})).0,
            2
        );
        assert_eq!(size(json!({"cpu": {"quota": 1_000}})).0, 1);
        assert_eq!(size(json!({"cpu": {"quota": -1, "period": 100_000}})).0, 4);
        assert_eq!(size(json!({"cpu": {"quota": 5_000_000}})).0, 8);
    }

    #[test]
    fn the_narrower_of_quota_and_cpuset_counts() {
        assert_eq!(size(json!({"cpu": {"quota": 600_000, "cpus": "0-1"}})).0, 2);
        assert_eq!(size(json!({"cpu": {"quota": 100_000, "cpus": "0-5"}})).0, 1);
        assert_eq!(size(json!({"cpu": {"cpus": ""}})).0, 4);
    }

    #[test]
    fn a_memory_limit_leaves_the_container_all_of_it() {
        assert_eq!(
            size(json!({"memory": {"limit": 512 << 20}})).1,
            512 + 48 + 8
        );
        assert_eq!(size(json!({"memory": {"limit": 1 << 20}})).1, 128);
    }

    #[test]
    fn a_vm_covers_what_it_was_made_for_and_no_more() {
        let covers = |limits: Value| {
            let made: LinuxResources = serde_json::from_value(
                json!({"memory": {"limit": 512 << 20}, "cpu": {"quota": 200_000}}),
            )
            .expect("resources");
            let limits: LinuxResources = serde_json::from_value(limits).expect("resources");
            let config = Config::default();
            let sizing = Sizing::of(Some(&made), false, HOST, &config);
            sizing.fixed().covers(&limits, HOST, &config)
        };
        assert_eq!(covers(json!({"memory": {"limit": 512 << 20}})), Ok(()));
        assert_eq!(
            covers(json!({"memory": {"limit": -1}, "cpu": {"quota": -1}})),
            Ok(())
        );
        assert_eq!(
            covers(json!({"memory": {"limit": 1 << 30}})),
            Err(TooSmall::Memory)
        );
        assert_eq!(
            covers(json!({"memory": {"limit": i64::MAX}})),
            Err(TooSmall::Memory)
        );
        assert_eq!(
            covers(json!({"cpu": {"quota": 300_000}})),
            Err(TooSmall::Cpus)
        );
        assert_eq!(
            covers(json!({"cpu": {"quota": 100_000, "period": 50_000}})),
            Ok(())
        );
    }

    #[test]
    fn a_vm_grows_where_its_container_has_a_limit() {
        let growth = |limit: i64, config: &Config| {
            let limits: LinuxResources =
                serde_json::from_value(json!({"memory": {"limit": limit}})).expect("resources");
            Sizing::of(Some(&limits), false, HOST, config).growth_mib
        };
        let config = Config::default();
        assert_eq!(growth(-1, &config), 0);
        assert_eq!(growth(512 << 20, &config), 15744, "up to the host's memory");
        let small = Config {
            max_memory: 1024,
            ..Config::default()
        };
        assert_eq!(growth(512 << 20, &small), 384);
        assert_eq!(growth(8 << 30, &small), 0);
    }

    #[test]
    fn a_vm_gets_what_one_would_be_created_with() {
        let sizing = Sizing {
            vcpus: NonZeroU8::MIN,
            memory_mib: 568,
            growth_mib: 1024,
        };
        let config = Config::default();
        let memory = |limit: i64| {
            let limits = serde_json::from_value(json!({"memory": {"limit": limit}}));
            sizing.memory_for(&limits.expect("resources"), HOST, &config)
        };
        assert_eq!(memory(64 << 20), 568);
        assert_eq!(memory(1 << 30), 1024 + 48 + 16);
        assert_eq!(memory(-1), 1592, "not 2048");
        assert_eq!(memory(2 << 30), 1592);
        let limits = serde_json::from_value(json!({"memory": {"limit": 1 << 30}}));
        let limits: LinuxResources = limits.expect("resources");
        assert_eq!(sizing.covers(&limits, HOST, &config), Ok(()));
        assert_eq!(
            sizing.fixed().covers(&limits, HOST, &config),
            Err(TooSmall::Memory)
        );
    }

    #[test]
    fn a_pods_vm_grows_by_what_its_containers_may_use() {
        let config = Config::default();
        let sizing = Sizing::of(None, true, HOST, &config);
        assert_eq!((sizing.memory_mib, sizing.growth_mib), (2048, 14336));
        let demand = |limits: &[i64]| {
            let first = json!({"ociVersion": "1.2.0", "annotations": {
                "io.kubernetes.cri.container-type": "sandbox"}});
            let others = limits.iter().map(|limit| {
                json!({"ociVersion": "1.2.0", "linux": {"resources": {"memory": {"limit": limit}}}})
            });
            let mut demand = Demand::default();
            for spec in [first].into_iter().chain(others) {
                demand.add(&serde_json::from_value(spec).expect("a config.json"));
            }
            sizing.memory_for_all(demand, &config)
        };
        assert_eq!(demand(&[]), 2048, "as it is");
        assert_eq!(demand(&[1 << 30, 2 << 30]), 3072 + 48 + 48);
        assert_eq!(demand(&[1 << 30, -1]), 1024 + 48 + 16 + 2048);
        assert_eq!(demand(&[64 << 30]), 16384, "no more than it can");
    }

    #[test]
    fn a_limit_that_limits_nothing_is_none() {
        for limit in [-1, 0, i64::MAX] {
            assert_eq!(size(json!({"memory": {"limit": limit}})).1, 2048, "{limit}");
        }
    }
}
