//! Attributes of a process besides its credentials: scheduler, I/O priority, CPU affinity, personality and OOM
//! score adjustment.

use std::fs;

use oci_spec::runtime::{
    IOPriorityClass, LinuxIOPriority, LinuxPersonality, LinuxPersonalityDomain, LinuxSchedulerFlag,
    LinuxSchedulerPolicy, Process, Scheduler,
};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::error::Failure;
use crate::sys;

/// The personality of a 32-bit kernel, <linux/personality.h>.
const PER_LINUX32: u64 = 8;

/// Sets the calling process's scheduler, I/O priority and personality.
///
/// # Errors
/// When the kernel refuses; the message names the field.
pub fn apply(process: &Process, personality: Option<&LinuxPersonality>) -> Result<(), Failure> {
    if let Some(scheduler) = process.scheduler() {
        sys::set_scheduler(&scheduler_attributes(scheduler))
            .map_err(Failure::field("process.scheduler"))?;
    }
    if let Some(priority) = process.io_priority() {
        sys::set_io_priority(io_priority(priority))
            .map_err(Failure::field("process.ioPriority"))?;
    }
    if let Some(personality) = personality {
        let persona = match personality.domain() {
            LinuxPersonalityDomain::PerLinux => 0,
            LinuxPersonalityDomain::PerLinux32 => PER_LINUX32,
        };
        sys::set_personality(persona).map_err(Failure::field("linux.personality"))?;
    }
    Ok(())
}

/// Sets the OOM score adjustment of the calling process, which its children inherit.
///
/// # Errors
/// When the kernel refuses.
pub fn set_oom_score_adj(process: &Process) -> Result<(), Failure> {
    match process.oom_score_adj() {
        Some(score) => fs::write("/proc/self/oom_score_adj", score.to_string())
            .map_err(Failure::field("process.oomScoreAdj")),
        None => Ok(()),
    }
}

/// Sets the CPU affinity of the calling process from a list like `0-2,4`; `field` is the list's field of
/// config.json.
///
/// # Errors
/// When it is not a list, or the guest has none of the CPUs.
pub fn set_cpu_affinity(field: &str, list: Option<&str>) -> Result<(), Failure> {
    let Some(list) = list.filter(|list| !list.is_empty()) else {
        return Ok(());
    };
    let set = cpu_set(list)
        .ok_or_else(|| Failure::config(format!("{field}: {list:?} is not a list of CPUs")))?;
    sched_setaffinity(None, &set).map_err(Failure::field(format!("{field}: {list:?}")))
}

fn cpu_set(list: &str) -> Option<CpuSet> {
    let number = |text: &str| -> Option<usize> {
        let number = text.trim().parse().ok()?;
        (number < CpuSet::MAX_CPU).then_some(number)
    };
    let mut set = CpuSet::new();
    for part in list.split(',').filter(|part| !part.trim().is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        for cpu in number(first)?..=number(last)? {
            set.set(cpu);
        }
    }
    Some(set)
}

/// For sched_setattr(2).
fn scheduler_attributes(scheduler: &Scheduler) -> libc::sched_attr {
    let policy = match scheduler.policy() {
        LinuxSchedulerPolicy::SchedOther => libc::SCHED_OTHER,
        LinuxSchedulerPolicy::SchedFifo => libc::SCHED_FIFO,
        LinuxSchedulerPolicy::SchedRr => libc::SCHED_RR,
        LinuxSchedulerPolicy::SchedBatch => libc::SCHED_BATCH,
        // Reserved by the kernel, which refuses it.
        LinuxSchedulerPolicy::SchedIso => 4,
        LinuxSchedulerPolicy::SchedIdle => libc::SCHED_IDLE,
        LinuxSchedulerPolicy::SchedDeadline => libc::SCHED_DEADLINE,
    };
    let flag = |flag: &LinuxSchedulerFlag| match flag {
        LinuxSchedulerFlag::SchedResetOnFork => libc::SCHED_FLAG_RESET_ON_FORK,
        LinuxSchedulerFlag::SchedFlagReclaim => libc::SCHED_FLAG_RECLAIM,
        LinuxSchedulerFlag::SchedFlagDLOverrun => libc::SCHED_FLAG_DL_OVERRUN,
        LinuxSchedulerFlag::SchedFlagKeepPolicy => libc::SCHED_FLAG_KEEP_POLICY,
        LinuxSchedulerFlag::SchedFlagKeepParams => libc::SCHED_FLAG_KEEP_PARAMS,
        LinuxSchedulerFlag::SchedFlagUtilClampMin => libc::SCHED_FLAG_UTIL_CLAMP_MIN,
        LinuxSchedulerFlag::SchedFlagUtilClampMax => libc::SCHED_FLAG_UTIL_CLAMP_MAX,
    };
    let flags = scheduler.flags().iter().flatten().map(flag);
    libc::sched_attr {
        size: size_of::<libc::sched_attr>() as u32,
        sched_policy: policy.cast_unsigned(),
        sched_flags: flags.fold(0, |all, flag| all | flag as u64),
        sched_nice: scheduler.nice().unwrap_or(0),
        sched_priority: scheduler.priority().unwrap_or(0).cast_unsigned(),
        sched_runtime: scheduler.runtime().unwrap_or(0),
        sched_deadline: scheduler.deadline().unwrap_or(0),
        sched_period: scheduler.period().unwrap_or(0),
    }
}

/// For ioprio_set(2): the class above 13 bits of the level, <linux/ioprio.h>.
fn io_priority(priority: &LinuxIOPriority) -> u32 {
    let class = match priority.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    let level = u32::try_from(priority.priority()).unwrap_or(0);
    (class << 13) | level
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scheduler_becomes_a_sched_attr() {
        let json = r#"{"policy":"SCHED_DEADLINE","flags":["SCHED_RESET_ON_FORK","SCHED_FLAG_RECLAIM"],
            "runtime":1,"deadline":2,"period":3}"#;
        let scheduler = serde_json::from_str(json).expect("a scheduler");
        let attributes = scheduler_attributes(&scheduler);
        assert_eq!((attributes.size, attributes.sched_policy), (48, 6));
        assert_eq!(attributes.sched_flags, 3);
        let times = (attributes.sched_runtime, attributes.sched_deadline);
        assert_eq!((times, attributes.sched_period), ((1, 2), 3));
    }

    #[test]
    fn an_io_priority_has_its_class_above_its_level() {
        let json = r#"{"class":"IOPRIO_CLASS_BE","priority":7}"#;
        let priority = serde_json::from_str(json).expect("a priority");
        assert_eq!(io_priority(&priority), 0x4007);
    }

    #[test]
    fn a_list_of_cpus_is_read_or_refused() {
        let set = cpu_set("0-2, 8").expect("a list");
        let cpus: Vec<_> = (0..16).filter(|cpu| set.is_set(*cpu)).collect();
        assert_eq!(cpus, [0, 1, 2, 8]);
        assert!(cpu_set("a").is_none() && cpu_set("0-99999").is_none());
    }
}
