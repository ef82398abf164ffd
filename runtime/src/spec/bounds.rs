//! The bounds of values: what the guest's kernel would refuse without a word about the field.

use oci_spec::runtime::{
    Linux, LinuxCpu, LinuxIdMapping, LinuxMemory, LinuxNamespaceType, LinuxResources,
    LinuxTimeOffset, PosixRlimitType, Process, Spec,
};

use super::SpecError;

/// The longest host name and domain name, `__NEW_UTS_LEN` of <linux/utsname.h>, in bytes.
const LONGEST_NAME: usize = 64;

/// NGROUPS_MAX of linux/limits.h.
const MOST_GROUPS: usize = 65536;

/// The most lines in a uid_map, user_namespaces(7).
const MOST_MAPPINGS: usize = 340;

/// The most open files that a kernel can be told to allow, `sysctl_nr_open_max` of fs/file.c; the agent
/// tells the guest's.
const MOST_FILES: u64 = 2_147_483_584;

/// The pages that x86-64 has beside the small ones, as the cgroup's files name them.
const HUGE_PAGES: [&str; 2] = ["2MB", "1GB"];

/// The least quota and period of CPU time, and the longest period (kernel/sched/core.c), in microseconds.
const LEAST_CPU_TIME: u64 = 1000;
const LONGEST_PERIOD: u64 = 1_000_000;

/// With less memory, in bytes, only the smallest of programs come to life.
const SCANT_MEMORY: i64 = 2 << 20;

/// Checks a config.json, but for its process.
///
/// # Errors
/// Names the first field that is out of bounds.
pub fn check(spec: &Spec) -> Result<(), SpecError> {
    name("hostname", spec.hostname().as_deref())?;
    name("domainname", spec.domainname().as_deref())?;
    let Some(linux) = spec.linux() else {
        return Ok(());
    };
    for (clock, offset) in linux.time_offsets().iter().flatten() {
        time_offset(clock, offset)?;
    }
    if let Some(resources) = linux.resources() {
        check_resources(resources)?;
    }
    let own_users = |namespace: &oci_spec::runtime::LinuxNamespace| {
        namespace.typ() == LinuxNamespaceType::User && namespace.path().is_none()
    };
    if linux.namespaces().iter().flatten().any(own_users) {
        ids(linux, spec.process().as_ref())?;
    }
    Ok(())
}

/// Checks a `process` object.
///
/// # Errors
/// Names the first field that is out of bounds.
pub fn check_process(process: &Process) -> Result<(), SpecError> {
    if let Some(score) = process.oom_score_adj()
        && !(-1000..=1000).contains(&score)
    {
        let why = format!("{score} is not between -1000 and 1000");
        return Err(SpecError::invalid("process.oomScoreAdj", why));
    }
    for (index, entry) in process.env().iter().flatten().enumerate() {
        if entry.find('=').is_none_or(|end| end == 0) {
            let field = format!("process.env[{index}]");
            return Err(SpecError::invalid(
                field,
                format!("{entry:?} is not NAME=VALUE"),
            ));
        }
    }
    let user = process.user();
    somebody("process.user.uid", user.uid())?;
    somebody("process.user.gid", user.gid())?;
    let groups = user.additional_gids().as_deref().unwrap_or_default();
    if groups.len() > MOST_GROUPS {
        let why = format!("{} groups are more than {MOST_GROUPS}", groups.len());
        return Err(SpecError::invalid("process.user.additionalGids", why));
    }
    for (index, gid) in groups.iter().enumerate() {
        somebody(&format!("process.user.additionalGids[{index}]"), *gid)?;
    }
    for (index, limit) in process.rlimits().iter().flatten().enumerate() {
        let invalid = |field: &str, why: String| {
            SpecError::invalid(format!("process.rlimits[{index}].{field}"), why)
        };
        if limit.soft() > limit.hard() {
            let why = format!("{} is more than the hard limit", limit.soft());
            return Err(invalid("soft", why));
        }
        if limit.typ() == PosixRlimitType::RlimitNofile && limit.hard() > MOST_FILES {
            let why = format!("{} is more than a kernel allows", limit.hard());
            return Err(invalid("hard", why));
        }
    }
    Ok(())
}

/// To setresuid(2), the id of all ones means that it stays as it is: root.
fn somebody(field: &str, id: u32) -> Result<(), SpecError> {
    if id == u32::MAX {
        return Err(SpecError::invalid(field, format!("{id} is nobody's id")));
    }
    Ok(())
}

fn name(field: &str, name: Option<&str>) -> Result<(), SpecError> {
    match name {
        Some(name) if name.len() > LONGEST_NAME => {
            let why = format!("{name:?} is longer than {LONGEST_NAME} bytes");
            Err(SpecError::invalid(field, why))
        }
        _ => Ok(()),
    }
}

fn time_offset(clock: &str, offset: &LinuxTimeOffset) -> Result<(), SpecError> {
    let field = |key: &str| format!("linux.timeOffsets.{clock}.{key}");
    if offset.secs().unwrap_or(0) < 0 {
        let why = "a guest's clocks begin at 0 with it, and cannot be set back";
        return Err(SpecError::invalid(field("secs"), why));
    }
    if offset.nanosecs().unwrap_or(0) >= 1_000_000_000 {
        return Err(SpecError::invalid(
            field("nanosecs"),
            "it is a second or more",
        ));
    }
    Ok(())
}

fn check_resources(resources: &LinuxResources) -> Result<(), SpecError> {
    if let Some(cpu) = resources.cpu() {
        check_cpu(cpu)?;
    }
    if let Some(memory) = resources.memory() {
        check_memory(memory)?;
    }
    for (index, limit) in resources.hugepage_limits().iter().flatten().enumerate() {
        if !HUGE_PAGES.contains(&limit.page_size().as_str()) {
            let why = format!(
                "{:?} is not a size of huge pages: they are {} and {}",
                limit.page_size(),
                HUGE_PAGES[0],
                HUGE_PAGES[1],
            );
            let field = format!("linux.resources.hugepageLimits[{index}].pageSize");
            return Err(SpecError::invalid(field, why));
        }
    }
    Ok(())
}

/// -1 is no limit, 0 is unset. Too little ends the container's process before its program can say a word, and its
/// exit status alone, 137, explains nothing.
fn check_memory(memory: &LinuxMemory) -> Result<(), SpecError> {
    let field = |name: &str| format!("linux.resources.memory.{name}");
    let bounds = [
        ("limit", memory.limit()),
        ("reservation", memory.reservation()),
    ];
    for (name, bound) in bounds {
        if bound.is_some_and(|bound| bound < -1) {
            let why = "it is negative (-1 means unlimited)";
            return Err(SpecError::invalid(field(name), why));
        }
    }
    if let Some(limit @ 1..SCANT_MEMORY) = memory.limit() {
        log::warn!(
            "config.json: {}: {limit} bytes are hardly enough for a program: one that ends with 137 at once was \
             OOM-killed",
            field("limit")
        );
    }
    Ok(())
}

/// 0 is unset, and a quota below it none.
fn check_cpu(cpu: &LinuxCpu) -> Result<(), SpecError> {
    let invalid =
        |field: &str, why: String| SpecError::invalid(format!("linux.resources.cpu.{field}"), why);
    let quota = cpu.quota().and_then(|quota| u64::try_from(quota).ok());
    if let Some(quota) = quota.filter(|quota| (1..LEAST_CPU_TIME).contains(quota)) {
        let why = format!("{quota} is less than {LEAST_CPU_TIME} microseconds");
        return Err(invalid("quota", why));
    }
    if let Some(period) = cpu.period().filter(|period| *period != 0)
        && !(LEAST_CPU_TIME..=LONGEST_PERIOD).contains(&period)
    {
        let why =
            format!("{period} is not between {LEAST_CPU_TIME} and {LONGEST_PERIOD} microseconds");
        return Err(invalid("period", why));
    }
    match cpu.idle() {
        None | Some(0 | 1) => Ok(()),
        Some(other) => Err(invalid("idle", format!("{other} is neither 0 nor 1"))),
    }
}

/// The ids of a new user namespace, and those of the process in it.
fn ids(linux: &Linux, process: Option<&Process>) -> Result<(), SpecError> {
    let uids = linux.uid_mappings().as_deref().unwrap_or_default();
    let gids = linux.gid_mappings().as_deref().unwrap_or_default();
    mappings("linux.uidMappings", uids)?;
    mappings("linux.gidMappings", gids)?;
    let Some(user) = process.map(Process::user) else {
        return Ok(());
    };
    mapped("process.user.uid", "linux.uidMappings", user.uid(), uids)?;
    mapped("process.user.gid", "linux.gidMappings", user.gid(), gids)?;
    for (index, gid) in user.additional_gids().iter().flatten().enumerate() {
        let field = format!("process.user.additionalGids[{index}]");
        mapped(&field, "linux.gidMappings", *gid, gids)?;
    }
    Ok(())
}

/// What map_write() of kernel/user_namespace.c asks of the lines.
fn mappings(field: &str, maps: &[LinuxIdMapping]) -> Result<(), SpecError> {
    if maps.len() > MOST_MAPPINGS {
        let why = format!("{} mappings are more than {MOST_MAPPINGS}", maps.len());
        return Err(SpecError::invalid(field, why));
    }
    for (index, map) in maps.iter().enumerate() {
        let invalid = |why: &str| SpecError::invalid(format!("{field}[{index}]"), why);
        let end = |first: u32| first.checked_add(map.size());
        if map.size() == 0 {
            return Err(invalid("its size is 0"));
        }
        let (Some(inside), Some(outside)) = (end(map.container_id()), end(map.host_id())) else {
            return Err(invalid("its last id is more than 32 bits can say"));
        };
        let overlaps = |other: &LinuxIdMapping| {
            let last = |first: u32| first.saturating_add(other.size());
            let within =
                map.container_id() < last(other.container_id()) && other.container_id() < inside;
            let without = map.host_id() < last(other.host_id()) && other.host_id() < outside;
            within || without
        };
        if maps.iter().take(index).any(overlaps) {
            return Err(invalid("it overlaps with an earlier one"));
        }
    }
    Ok(())
}

fn mapped(
    field: &str,
    maps_field: &str,
    id: u32,
    maps: &[LinuxIdMapping],
) -> Result<(), SpecError> {
    let within =
        |map: &LinuxIdMapping| id >= map.container_id() && id - map.container_id() < map.size();
    if maps.iter().any(within) {
        return Ok(());
    }
    Err(SpecError::invalid(
        field,
        format!("{id} is not in {maps_field}"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// What is said of a config.json with this `linux` object and user.
    fn said(linux: Value, user: Value) -> String {
        let config = json!({
            "ociVersion": "1.2.0",
            "process": {"cwd": "/", "args": ["a"], "user": user},
            "linux": linux,
        });
        let spec = serde_json::from_value(config).expect("a config.json");
        check(&spec).map_or_else(|e| e.to_string(), |()| "taken".to_owned())
    }

    fn said_of_maps(uids: Value) -> String {
        let linux = json!({
            "namespaces": [{"type": "user"}],
            "uidMappings": uids,
            "gidMappings": [{"containerID": 0, "hostID": 0, "size": 10}],
        });
        said(linux, json!({"uid": 1, "gid": 1}))
    }

    #[test]
    fn mappings_that_the_kernel_takes_are_taken() {
        let swapped = json!([
            {"containerID": 0, "hostID": 1, "size": 1},
            {"containerID": 1, "hostID": 0, "size": 1},
        ]);
        assert_eq!(said_of_maps(swapped), "taken");
        let all = json!([{"containerID": 0, "hostID": 0, "size": u32::MAX}]);
        assert_eq!(said_of_maps(all), "taken");
    }

    #[test]
    fn mappings_that_it_does_not_take_are_named() {
        let two = |container: u32, host: u32, size: u32| {
            said_of_maps(json!([
                {"containerID": 0, "hostID": 100, "size": 10},
                {"containerID": container, "hostID": host, "size": size},
            ]))
        };
        for (container, host, size) in
            [(9, 200, 1), (10, 109, 1), (10, 200, 0), (10, 200, u32::MAX)]
        {
            let said = two(container, host, size);
            assert!(said.contains("linux.uidMappings[1]: it"), "{said}");
        }
        assert_eq!(two(10, 110, 10), "taken");
    }

    #[test]
    fn a_user_has_to_be_mapped() {
        let linux = json!({
            "namespaces": [{"type": "user"}],
            "uidMappings": [{"containerID": 0, "hostID": 0, "size": 10}],
            "gidMappings": [{"containerID": 0, "hostID": 0, "size": 10}],
        });
        let of = |user| said(linux.clone(), user);
        assert!(of(json!({"uid": 10, "gid": 0})).contains("process.user.uid: 10 is not in"));
        let groups = of(json!({"uid": 9, "gid": 9, "additionalGids": [1, 11]}));
        assert!(
            groups.contains("process.user.additionalGids[1]: 11"),
            "{groups}"
        );
    }

    #[test]
    fn an_id_that_would_leave_the_process_root_is_refused() {
        for field in ["uid", "gid"] {
            let mut process = json!({"cwd": "/", "args": ["a"], "user": {"uid": 1, "gid": 1}});
            process["user"][field] = json!(u32::MAX);
            let process = serde_json::from_value(process).expect("a process");
            let said = check_process(&process).expect_err("refused").to_string();
            assert!(
                said.contains(&format!("process.user.{field}: 4294967295")),
                "{said}"
            );
        }
    }

    #[test]
    fn what_is_unset_is_in_bounds() {
        let cpu = json!({"resources": {"cpu": {"quota": -1, "period": 0, "shares": 0}}});
        assert_eq!(said(cpu, json!({"uid": 0, "gid": 0})), "taken");
    }

    #[test]
    fn a_limit_of_memory_is_not_negative() {
        let check = |memory: serde_json::Value| {
            check_memory(&serde_json::from_value(memory).expect("memory"))
        };
        for fine in [
            json!({"limit": -1, "reservation": -1}),
            json!({"limit": 1}),
            json!({}),
        ] {
            assert!(check(fine).is_ok());
        }
        assert!(check(json!({"limit": -5})).is_err());
        assert!(check(json!({"reservation": -2})).is_err());
    }
}
