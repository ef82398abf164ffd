//! `update`: a `linux.resources` object that changes a running container's.
//!
//! It goes the way of config.json: what nobody enforces is refused by its path, and what results must
//! be a config.json that hull takes.

use std::io::Read;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType, LinuxResources, Spec};
use serde_json::{Map, Value, json};

use super::cpulist::CpuList;
use super::guest_linux::{guest_resources, is_hosts_alone};
use super::read::{normalize, refuse, typed};
use super::refuse::is_unset;
use super::sizing::{Demand, Host, TooSmall, has_memory_limit, memory_limit};
use super::validate::validate;
use super::{SpecError, json};
use crate::config::Config;
use crate::types::Sizing;

/// The largest description of changes, in bytes.
const MAX_CHANGES: u64 = 1 << 20;

/// The parts of `linux.resources` that can be changed.
const CHANGEABLE: [&str; 5] = ["memory", "cpu", "pids", "blockIO", "unified"];

/// What is done about changed limits.
#[derive(Debug)]
pub struct Update {
    /// The config.json from now on.
    pub config: Spec,
    /// `linux.resources` for the agent: whatever the changes touch.
    pub guest: Vec<u8>,
    /// The same for the VM's cgroup on the host.
    pub host: LinuxResources,
    /// The host's CPUs that the VM is to run on from now on.
    pub cpus: Option<CpuList>,
    /// The memory that the VM is to have from now on, if it can grow.
    pub vm_memory: Option<VmMemory>,
}

/// The memory that a VM is to have for its container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VmMemory {
    /// In all, in MiB.
    pub mib: u32,
    /// Whether one that has more gives that back: not where the container's limit is lifted.
    pub may_shrink: bool,
}

/// Reads a description of changes.
///
/// # Errors
/// When it can't be read, isn't JSON, or has a key twice.
pub fn read_changes(from: impl Read) -> std::io::Result<Value> {
    let mut text = Vec::new();
    from.take(MAX_CHANGES).read_to_end(&mut text)?;
    Ok(json::parse(&text)?)
}

/// Works out what to do about changes to a container with this config.json, in a VM of this size.
///
/// # Errors
/// When a limit is refused, can't be changed, makes no sense, or is more than the VM has.
pub fn update(
    spec: &Spec,
    sizing: Sizing,
    config: &Config,
    mut changes: Value,
) -> Result<Update, SpecError> {
    normalize(&mut changes, "")?;
    without_meaning(&mut changes);
    let before = spec.linux().as_ref();
    let before = before.and_then(|linux| linux.resources().clone());
    let before = before.unwrap_or_default();
    keep_swap(&mut changes, &before);
    refuse(&json!({ "linux": { "resources": changes } }))?;
    let Value::Object(changed) = &mut changes else {
        return Err(SpecError::invalid("linux.resources", "it is not an object"));
    };
    without_unchanged(changed, &before);
    let fixed = |name: &&String| !CHANGEABLE.contains(&name.as_str());
    changed.retain(|name, value| match value {
        Value::Object(fields) if fields.is_empty() => false,
        value => !fixed(&name) || !is_unset(value),
    });
    if let Some(name) = changed.keys().find(fixed) {
        let field = format!("linux.resources.{name}");
        let why = "it cannot be changed while the container exists";
        return Err(SpecError::invalid(field, why));
    }
    let changed = changed.clone();

    let mut merged = serde_json::to_value(spec).map_err(|source| SpecError::Type {
        field: "(top level)".to_owned(),
        source,
    })?;
    merge(&mut merged, &json!({ "linux": { "resources": changes } }));
    let spec: Spec = typed(&merged, "")?;
    validate(&spec)?;
    let resources = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.resources().clone());
    let resources = resources.unwrap_or_default();
    fits(sizing, &without_kept(&resources, &before), config)?;

    let resizes = sizing.growth_mib > 0 && changed.contains_key("memory");
    let vm_memory = resizes.then(|| VmMemory {
        mib: sizing.memory_for(&resources, Host::read(), config),
        may_shrink: has_memory_limit(&resources),
    });
    let cpus = changes.pointer("/cpu/cpus").and_then(Value::as_str);
    let failed = |source| SpecError::Type {
        field: "linux.resources".to_owned(),
        source,
    };
    let host = serde_json::to_value(&resources).map_err(failed)?;
    let host = touched(host, &changed, |_| true);
    let guest = serde_json::to_value(guest_resources(resources)).map_err(failed)?;
    let guest = touched(guest, &changed, |file| !is_hosts_alone(file));
    Ok(Update {
        config: spec,
        guest: serde_json::to_vec(&guest).map_err(failed)?,
        host: serde_json::from_value(host).map_err(failed)?,
        cpus: cpus.and_then(|cpus| cpus.parse().ok()),
        vm_memory,
    })
}

/// Makes of the changes what runc makes of them: zero and the empty list change nothing, and unlimited
/// memory means unlimited swap.
fn without_meaning(changes: &mut Value) {
    let remove = |section: Option<&mut Value>, field: &str| {
        if let Some(Value::Object(section)) = section
            && section.get(field).is_some_and(is_unset)
        {
            section.remove(field);
        }
    };
    for field in ["limit", "reservation", "swap"] {
        remove(changes.get_mut("memory"), field);
    }
    for field in ["quota", "period", "shares", "cpus", "mems"] {
        remove(changes.get_mut("cpu"), field);
    }
    remove(changes.get_mut("pids"), "limit");
    remove(changes.get_mut("blockIO"), "weight");
    if let Some(Value::Object(memory)) = changes.get_mut("memory")
        && memory.get("limit") == Some(&json!(-1))
        && !memory.contains_key("swap")
    {
        memory.insert("swap".to_owned(), json!(-1));
    }
}

/// A new memory limit leaves the swap beside it as it is, unless that is changed too. config.json has the sum of both.
fn keep_swap(changes: &mut Value, before: &LinuxResources) {
    let memory = changes.get_mut("memory").and_then(Value::as_object_mut);
    let Some(memory) = memory.filter(|memory| !memory.contains_key("swap")) else {
        return;
    };
    let limit = memory.get("limit").and_then(Value::as_i64);
    let before = before.memory().as_ref();
    let had = before.and_then(|memory| Some((memory.limit()?, memory.swap()?)));
    if let (Some(limit @ 1..), Some((old_limit @ 1.., old_sum @ 1..))) = (limit, had) {
        let sum = limit.saturating_add(old_sum.saturating_sub(old_limit));
        memory.insert("swap".to_owned(), sum.into());
    }
}

/// Of limits, those that aren't as they were: what a VM was created with stays so, whether it can give that or not.
fn without_kept(resources: &LinuxResources, before: &LinuxResources) -> LinuxResources {
    let mut changed = resources.clone();
    if memory_limit(resources) == memory_limit(before) {
        changed.set_memory(None);
    }
    let quota = |of: &LinuxResources| of.cpu().as_ref().map(|cpu| (cpu.quota(), cpu.period()));
    if quota(resources) == quota(before) {
        changed.set_cpu(None);
    }
    changed
}

/// Takes out what can't be changed and isn't: engines send all that a container has, whatever its user changes.
fn without_unchanged(changes: &mut Map<String, Value>, own: &LinuxResources) {
    let as_told = |resources: &LinuxResources, name: &str| {
        let told = serde_json::to_value(resources).ok()?.get_mut(name)?.take();
        (!told.is_null()).then_some(told)
    };
    changes.retain(|name, value| {
        let one = Map::from_iter([(name.clone(), value.clone())]);
        let Ok(asked) = typed::<LinuxResources>(&one.into(), "linux.resources") else {
            return true;
        };
        CHANGEABLE.contains(&name.as_str())
            || match name.as_str() {
                "devices" => in_effect(asked.devices()) != in_effect(own.devices()),
                name => as_told(&asked, name) != as_told(own, name),
            }
    });
}

/// What rules about devices come to: whether what none of them is about is allowed, and those after the last one that
/// is about all devices and replaces what is before it. The same rule can be written in several ways.
fn in_effect(rules: &Option<Vec<LinuxDeviceCgroup>>) -> (bool, Vec<Rule>) {
    let mut effect = (false, Vec::new());
    for rule in rules.iter().flatten() {
        match rule.typ().unwrap_or_default() {
            LinuxDeviceType::A => effect = (rule.allow(), Vec::new()),
            kind => effect.1.push(Rule::of(rule, kind)),
        }
    }
    effect
}

/// A rule about some devices; no number is every number.
#[derive(PartialEq, Eq)]
struct Rule {
    allow: bool,
    kind: LinuxDeviceType,
    major: Option<i64>,
    minor: Option<i64>,
    access: [bool; 3],
}

impl Rule {
    fn of(rule: &LinuxDeviceCgroup, kind: LinuxDeviceType) -> Self {
        let access = rule.access().as_deref().unwrap_or_default();
        Self {
            allow: rule.allow(),
            kind,
            major: rule.major().filter(|number| *number >= 0),
            minor: rule.minor().filter(|number| *number >= 0),
            access: ['r', 'w', 'm'].map(|letter| access.is_empty() || access.contains(letter)),
        }
    }
}

/// Puts the values of `changes` into `value`, object by object.
fn merge(value: &mut Value, changes: &Value) {
    match (value, changes) {
        (Value::Object(value), Value::Object(changes)) => {
            for (name, change) in changes {
                merge(value.entry(name).or_insert(Value::Null), change);
            }
        }
        (value, change) => *value = change.clone(),
    }
}

/// Of the limits that hold from now on, the parts that have been touched: limits within a part depend
/// on each other.
fn touched(
    mut resources: Value,
    changed: &Map<String, Value>,
    has: impl Fn(&str) -> bool,
) -> Value {
    let mut kept = Map::new();
    for name in changed.keys() {
        if let Some(part) = resources.get_mut(name).map(Value::take) {
            kept.insert(name.clone(), part);
        }
    }
    // These don't, and some of them can be written only once.
    if let Some(Value::Object(unified)) = changed.get("unified") {
        let mut unified = unified.clone();
        unified.retain(|file, _| has(file));
        kept.insert("unified".to_owned(), unified.into());
    }
    Value::Object(kept)
}

/// Whether a VM of this size can give what these limits allow, if it grows as far as it can.
///
/// # Errors
/// Names the limit that is above it.
pub fn fits(sizing: Sizing, resources: &LinuxResources, config: &Config) -> Result<(), SpecError> {
    let (field, why) = match sizing.covers(resources, Host::read(), config) {
        Ok(()) => return Ok(()),
        Err(TooSmall::Memory) if sizing.growth_mib > 0 => (
            "linux.resources.memory.limit",
            format!(
                "it is more than the VM can have ({} MiB by the host's memory and max_memory of hull.toml)",
                sizing.memory_mib + sizing.growth_mib
            ),
        ),
        Err(TooSmall::Memory) => (
            "linux.resources.memory.limit",
            format!(
                "it is more than the VM has ({} MiB), which cannot grow",
                sizing.memory_mib
            ),
        ),
        Err(TooSmall::Cpus) => (
            "linux.resources.cpu.quota",
            format!(
                "it is more than the VM has ({} CPUs), which cannot grow",
                sizing.vcpus
            ),
        ),
    };
    Err(SpecError::invalid(
        field,
        format!("{why}; create the container anew"),
    ))
}

/// Says that a VM of this size can't give a container what its limits let it have.
pub fn warn_if_too_small(sizing: Sizing, resources: &LinuxResources, config: &Config) {
    if let Err(e) = fits(sizing, resources, config) {
        log::warn!("the container has no more than its VM: {e}");
    }
}

/// The memory that a VM of this size is to have for all of its containers.
pub fn memory_for_all(sizing: Sizing, demand: Demand, config: &Config) -> VmMemory {
    VmMemory {
        mib: sizing.memory_for_all(demand, config),
        may_shrink: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::chain;
    use std::num::NonZeroU8;

    const SIZING: Sizing = Sizing {
        vcpus: NonZeroU8::MIN,
        memory_mib: 568,
        growth_mib: 0,
    };

    fn update(spec: &Spec, sizing: Sizing, changes: Value) -> Result<Update, SpecError> {
        super::update(spec, sizing, &Config::default(), changes)
    }

    fn config() -> Spec {
        let config = json!({
            "ociVersion": "1.2.0",
            "process": {"user": {"uid": 0, "gid": 0}, "args": ["sh"], "cwd": "/"},
            "root": {"path": "rootfs"},
            "linux": {"resources": {
                "memory": {"limit": 256 << 20, "swap": 256 << 20},
                "cpu": {"quota": 50_000, "period": 100_000, "cpus": "0"},
                "pids": {"limit": 9}}},
        });
        serde_json::from_value(config).expect("a config.json")
    }

    fn guest(changes: Value) -> Value {
        let update = update(&config(), SIZING, changes).expect("taken");
        serde_json::from_slice(&update.guest).expect("JSON")
    }

    fn refusal(changes: Value) -> String {
        chain(&update(&config(), SIZING, changes).expect_err("refused"))
    }

    #[test]
    fn what_is_changed_joins_what_it_depends_on_and_nothing_else() {
        let memory = guest(json!({"memory": {"limit": 128 << 20}}));
        assert_eq!(
            memory,
            json!({"memory": {"limit": 128 << 20, "swap": 128 << 20}})
        );
        let cpu = guest(json!({"cpu": {"quota": 70_000}}));
        assert_eq!(cpu, json!({"cpu": {"quota": 70_000, "period": 100_000}}));
        let unlimited = guest(json!({"memory": {"limit": -1}}));
        assert_eq!(unlimited, json!({"memory": {"limit": -1, "swap": -1}}));
    }

    #[test]
    fn what_a_vm_cannot_give_holds_as_before_where_nobody_changes_it() {
        let large = json!({"linux": {"resources": {
            "memory": {"limit": 100_i64 << 30, "swap": 100_i64 << 30}, "cpu": {"quota": 800_000, "period": 100_000, "cpus": "0"}}}});
        let mut config = serde_json::to_value(config()).expect("JSON");
        merge(&mut config, &large);
        let config: Spec = serde_json::from_value(config).expect("a config.json");
        for changes in [
            json!({"pids": {"limit": 50}}),
            json!({"pids": {"limit": 50}, "memory": {"limit": 100_i64 << 30}}),
            json!({"memory": {"limit": 64 << 20, "swap": 64 << 20}}),
            json!({"cpu": {"shares": 512}, "memory": {"reservation": 1 << 20}}),
        ] {
            let taken = update(&config, SIZING, changes.clone());
            assert!(taken.is_ok(), "{changes}: {:?}", taken.err());
        }
        let more = json!({"memory": {"limit": 101_i64 << 30}});
        let said = chain(&update(&config, SIZING, more).expect_err("refused"));
        assert!(said.contains("memory.limit: it is more than"), "{said}");
    }

    #[test]
    fn the_swap_beside_a_limit_stays_what_it_was() {
        let swap = |changes| guest(changes)["memory"]["swap"].clone();
        let mib = |mib: i64| json!({"memory": {"limit": mib << 20}});
        assert_eq!(
            [swap(mib(300)), swap(mib(32))],
            [300 << 20, 32 << 20].map(Value::from)
        );
        let given = json!({"memory": {"limit": 32 << 20, "swap": 40 << 20}});
        assert_eq!(swap(given), 40 << 20);
        assert_eq!(swap(json!({"memory": {"swap": 300 << 20}})), 300 << 20);
    }

    #[test]
    fn zero_is_a_value_where_it_means_something() {
        let update = |changes| update(&config(), SIZING, changes).map(|update| update.guest);
        let idle = update(json!({"cpu": {"idle": 0}})).expect("taken");
        assert!(String::from_utf8_lossy(&idle).contains(r#""idle":0"#));
    }

    #[test]
    fn zero_changes_nothing() {
        let changes = json!({"memory": {"limit": 0}, "pids": {"limit": 0}, "cpu": {"cpus": ""},
                             "blockIO": {"weight": 0}});
        let update = update(&config(), SIZING, changes).expect("taken");
        assert_eq!(update.config, config());
        assert!(update.cpus.is_none());
    }

    #[test]
    fn the_config_keeps_what_was_changed() {
        let update = update(
            &config(),
            SIZING,
            json!({"pids": {"limit": 5}, "cpu": {"cpus": "0-1"}}),
        );
        let update = update.expect("taken");
        let kept = serde_json::to_value(&update.config).expect("JSON");
        assert_eq!(kept["linux"]["resources"]["pids"]["limit"], 5);
        assert_eq!(kept["linux"]["resources"]["cpu"]["cpus"], "0-1");
        assert_eq!(update.cpus.map(|cpus| cpus.count()), Some(2));
    }

    #[test]
    fn rules_of_devices_may_be_told_again_and_not_changed() {
        let with = |rules: Value| {
            let mut config = serde_json::to_value(config()).expect("JSON");
            config["linux"]["resources"]["devices"] = rules;
            serde_json::from_value::<Spec>(config).expect("a config.json")
        };
        let fuse = json!({"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rwm"});
        let deny = json!({"allow": false, "access": "rwm"});
        let (own, none) = (with(json!([deny, fuse])), with(json!([])));
        let told = |spec: &Spec, rules: Value| {
            let changes = json!({"devices": rules, "pids": {"limit": 5}});
            update(spec, SIZING, changes).map_err(|e| chain(&e))
        };
        let again = json!([{"allow": false, "type": "a", "major": -1, "minor": -1, "access": "rwm"},
                           {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "mrw"}]);
        let update = told(&own, again).expect("taken");
        assert!(!String::from_utf8_lossy(&update.guest).contains("devices"));
        assert!(told(&none, json!([deny])).is_ok());
        for rules in [json!([deny]), json!([fuse, deny]), json!([{"allow": true}])] {
            let said = told(&own, rules).expect_err("refused");
            assert!(
                said.contains("linux.resources.devices: it cannot be changed"),
                "{said}"
            );
        }
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let cases = [
            (
                json!({"blockIO": {"leafWeight": 10}}),
                "linux.resources.blockIO.leafWeight",
            ),
            (
                json!({"cpu": {"realtimePeriod": 1}}),
                "linux.resources.cpu.realtimePeriod",
            ),
            (
                json!({"devices": [{"allow": true}]}),
                "linux.resources.devices: it cannot be",
            ),
            (
                json!({"memory": {"limit": 1 << 30, "swap": -1}}),
                "memory.limit: it is more than",
            ),
            (
                json!({"memory": {"limit": 512 << 20, "swap": 256 << 20}}),
                "memory.swap: it includes",
            ),
            (
                json!({"cpu": {"quota": "much"}}),
                "linux.resources.cpu.quota: invalid type",
            ),
            (json!([1]), "linux.resources: it is not an object"),
        ];
        for (changes, expected) in cases {
            let said = refusal(changes);
            assert!(said.contains(expected), "{said}");
        }
    }
}
