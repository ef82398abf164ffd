//! From `linux.resources` to the files of a cgroup.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxResources};

use crate::block_io;

/// What to write to a file of a cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// The field of config.json that asks for it.
    pub field: String,
    /// The cgroup's file.
    pub file: String,
    /// What to write to it.
    pub value: String,
}

impl Value {
    /// A value for a file, as a field asks for it.
    pub fn new(
        field: impl Into<String>,
        file: impl Into<String>,
        value: impl std::fmt::Display,
    ) -> Self {
        Self {
            field: field.into(),
            file: file.into(),
            value: value.to_string(),
        }
    }
}

/// A limit that can't be set.
#[derive(Debug, thiserror::Error)]
pub enum LimitError {
    /// It makes no sense.
    #[error("{problem}")]
    Invalid {
        /// The field of config.json.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The kernel refuses it, or doesn't have it.
    #[error("cannot set {} to {:?}", .limit.file, .limit.value)]
    Write {
        /// What was to be written.
        limit: Value,
        /// Why it couldn't be.
        #[source]
        source: io::Error,
    },
}

impl LimitError {
    /// The field of config.json that asks for the limit. The error's own words don't name it.
    #[must_use]
    pub fn field(&self) -> &str {
        match self {
            Self::Invalid { field, .. } => field,
            Self::Write { limit, .. } => &limit.field,
        }
    }
}

/// What [`apply`] has changed.
#[derive(Debug)]
pub struct Applied {
    directory: PathBuf,
    /// The files with what was in them, in the order in which they were changed.
    previous: Vec<(String, String)>,
}

impl Applied {
    /// The files with what was in them before, in the order in which they were changed.
    #[must_use]
    pub fn previous(&self) -> &[(String, String)] {
        &self.previous
    }

    /// Takes it back.
    pub fn undo(self) {
        for (file, value) in self.previous.iter().rev() {
            if let Err(e) = write(&self.directory, file, value) {
                log::warn!("take back {file}: {e}");
            }
        }
    }
}

/// Writes values to the files of the cgroup with this directory: all of them or none.
///
/// # Errors
/// When the kernel refuses one; the limits are then as they were.
pub fn apply(directory: &Path, values: &[Value]) -> Result<Applied, LimitError> {
    let mut applied = Applied {
        directory: directory.to_owned(),
        previous: Vec::new(),
    };
    for limit in values {
        let Value { file, value, .. } = limit;
        let old = match file.starts_with("io.") {
            true => block_io::previous(directory, file, value),
            false => read(directory, file),
        };
        if let Err(source) = write(directory, file, value) {
            applied.undo();
            let limit = limit.clone();
            return Err(LimitError::Write { limit, source });
        }
        applied.previous.extend(old.map(|old| (file.clone(), old)));
    }
    Ok(applied)
}

/// What a file of a cgroup says; nothing if it isn't there.
pub(crate) fn read(directory: &Path, file: &str) -> Option<String> {
    let text = fs::read_to_string(directory.join(file)).ok()?;
    Some(text.trim_end().to_owned())
}

fn write(directory: &Path, file: &str, value: &str) -> io::Result<()> {
    // Opened as it is: a file that isn't there must not be made where the directory isn't a cgroup.
    let mut file = fs::File::options().write(true).open(directory.join(file))?;
    io::Write::write_all(&mut file, value.as_bytes())
}

/// What to write for a `linux.resources` object, for the cgroup with this directory. Devices are not among
/// it.
///
/// # Errors
/// When a limit makes no sense.
pub fn values(directory: &Path, resources: &LinuxResources) -> Result<Vec<Value>, LimitError> {
    let mut values = Vec::new();
    if let Some(memory) = resources.memory() {
        memory_values(memory, &mut values)?;
    }
    if let Some(cpu) = resources.cpu() {
        cpu_values(directory, cpu, &mut values);
    }
    // To runc, a limit of no processes is none.
    if let Some(pids) = resources.pids().as_ref().filter(|pids| pids.limit() != 0) {
        let field = "linux.resources.pids.limit";
        values.push(Value::new(field, "pids.max", or_max(pids.limit())));
    }
    if let Some(io) = resources.block_io() {
        block_io::values(directory, io, &mut values);
    }
    for (index, pages) in resources.hugepage_limits().iter().flatten().enumerate() {
        hugetlb_values(directory, index, pages, &mut values)?;
    }
    let mut unified: Vec<_> = resources.unified().iter().flatten().collect();
    // Not by chance: `cpu.weight` comes before `cpu.idle`, after which the kernel takes no weight.
    unified.sort_unstable_by(|a, b| b.cmp(a));
    for (file, value) in unified {
        if !is_name(file) {
            return Err(LimitError::Invalid {
                field: "linux.resources.unified",
                problem: format!("{file:?} is not a file of a cgroup"),
            });
        }
        let field = format!("linux.resources.unified[{file:?}]");
        values.push(Value::new(field, file, value));
    }
    Ok(values)
}

/// Whether there can be a file of this name in a cgroup's directory.
fn is_name(file: &str) -> bool {
    !file.contains('/') && !file.starts_with('.')
}

/// The spec's -1 is the kernel's `max`.
fn or_max(value: i64) -> String {
    if value < 0 {
        "max".to_owned()
    } else {
        value.to_string()
    }
}

/// In the spec, swap is memory and swap together; cgroup2 has a limit for each. 0 is less than any memory:
/// no swap is meant.
fn memory_values(memory: &LinuxMemory, values: &mut Vec<Value>) -> Result<(), LimitError> {
    const SWAP: &str = "linux.resources.memory.swap";
    let limit = memory.limit().filter(|limit| *limit != 0);
    let invalid = |problem: &str| LimitError::Invalid {
        field: SWAP,
        problem: problem.to_owned(),
    };
    let swap = match (memory.swap(), limit) {
        (None, Some(-1)) | (Some(-1), _) => Some(-1),
        (None, _) => None,
        (Some(0), _) => Some(0),
        (Some(_), None | Some(-1)) => return Err(invalid("it needs memory.limit")),
        (Some(swap), Some(limit)) if swap < limit => {
            return Err(invalid("it is less than memory.limit"));
        }
        (Some(swap), Some(limit)) => Some(swap - limit),
    };
    if let Some(swap) = swap {
        values.push(Value::new(SWAP, "memory.swap.max", or_max(swap)));
    }
    if let Some(limit) = limit {
        let field = "linux.resources.memory.limit";
        values.push(Value::new(field, "memory.max", or_max(limit)));
    }
    if let Some(reservation) = memory.reservation().filter(|value| *value != 0) {
        let field = "linux.resources.memory.reservation";
        values.push(Value::new(field, "memory.low", or_max(reservation)));
    }
    Ok(())
}

fn cpu_values(directory: &Path, cpu: &LinuxCpu, values: &mut Vec<Value>) {
    let mut set = |field: &str, file: &str, value: String| {
        values.push(Value::new(
            format!("linux.resources.cpu.{field}"),
            file,
            value,
        ));
    };
    if let Some(idle) = cpu.idle() {
        set("idle", "cpu.idle", idle.to_string());
    }
    // The kernel takes no weight for what runs only when nobody else wants to.
    let shares = cpu.shares().filter(|shares| *shares != 0);
    if let (Some(shares), None | Some(0)) = (shares, cpu.idle()) {
        set("shares", "cpu.weight", weight(shares).to_string());
    }
    let quota = cpu.quota().filter(|quota| *quota != 0);
    let period = cpu.period().filter(|period| *period != 0);
    match (quota.map(or_max), period) {
        (Some(quota), Some(period)) => set("quota", "cpu.max", format!("{quota} {period}")),
        (Some(quota), None) => set("quota", "cpu.max", quota),
        (None, Some(period)) => {
            let now = read(directory, "cpu.max").unwrap_or_default();
            let quota = now.split(' ').next().filter(|quota| !quota.is_empty());
            let quota = quota.unwrap_or("max");
            set("period", "cpu.max", format!("{quota} {period}"));
        }
        (None, None) => {}
    }
    if let Some(burst) = cpu.burst() {
        set("burst", "cpu.max.burst", burst.to_string());
    }
}

/// As runc, where the kernel can it also limits what is only reserved.
fn hugetlb_values(
    directory: &Path,
    index: usize,
    pages: &LinuxHugepageLimit,
    values: &mut Vec<Value>,
) -> Result<(), LimitError> {
    let size = pages.page_size();
    if !is_name(size) {
        return Err(LimitError::Invalid {
            field: "linux.resources.hugepageLimits",
            problem: format!("{size:?} is not a size of pages, like 2MB"),
        });
    }
    let field = format!("linux.resources.hugepageLimits[{index}]");
    let reserved = format!("hugetlb.{size}.rsvd.max");
    let has_reserved = directory.join(&reserved).exists();
    for file in [
        Some(format!("hugetlb.{size}.max")),
        has_reserved.then_some(reserved),
    ] {
        values.extend(file.map(|file| Value::new(&field, file, pages.limit())));
    }
    Ok(())
}

/// The weight of cgroup2 (1 to 10000, usually 100) for the shares of cgroup v1 (2 to 262144, usually
/// 1024): runc's curve through the three, since its 1.3.2.
fn weight(shares: u64) -> u64 {
    match shares {
        ..=2 => 1,
        262_144.. => 10_000,
        _ => {
            // Exact: there are fewer shares than an f64 has integers.
            #[allow(clippy::cast_precision_loss)]
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            // Between 1 and 10000.
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let weight = 10_f64.powf(exponent).ceil() as u64;
            weight.clamp(1, 10_000)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn written(resources: serde_json::Value) -> Vec<(String, String)> {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join("cpu.max"), "50000 100000\n").expect("write");
        let resources = serde_json::from_value(resources).expect("resources");
        let values = values(directory.path(), &resources).expect("valid");
        values.into_iter().map(|v| (v.file, v.value)).collect()
    }

    fn is(found: &[(String, String)], expected: &[(&str, &str)]) {
        let found: Vec<_> = found
            .iter()
            .map(|(f, v)| (f.as_str(), v.as_str()))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn swap_is_what_is_beyond_memory() {
        let both = written(json!({"memory": {"limit": 1000, "swap": 1500, "reservation": -1}}));
        is(
            &both,
            &[
                ("memory.swap.max", "500"),
                ("memory.max", "1000"),
                ("memory.low", "max"),
            ],
        );
        let same = written(json!({"memory": {"limit": 1000, "swap": 1000}}));
        is(&same, &[("memory.swap.max", "0"), ("memory.max", "1000")]);
        for none in [json!({"swap": 0}), json!({"swap": 0, "limit": 0})] {
            is(
                &written(json!({"memory": none})),
                &[("memory.swap.max", "0")],
            );
        }
        let unlimited = written(json!({"memory": {"limit": -1}}));
        is(
            &unlimited,
            &[("memory.swap.max", "max"), ("memory.max", "max")],
        );
    }

    #[test]
    fn a_period_alone_keeps_the_quota() {
        is(
            &written(json!({"cpu": {"period": 200_000}})),
            &[("cpu.max", "50000 200000")],
        );
        is(
            &written(json!({"cpu": {"quota": -1}})),
            &[("cpu.max", "max")],
        );
        let both = written(json!({"cpu": {"quota": 7, "period": 9, "burst": 3}}));
        is(&both, &[("cpu.max", "7 9"), ("cpu.max.burst", "3")]);
    }

    #[test]
    fn an_idle_cgroup_has_no_weight() {
        is(
            &written(json!({"cpu": {"idle": 1, "shares": 1024}})),
            &[("cpu.idle", "1")],
        );
        is(
            &written(json!({"cpu": {"shares": 1024}})),
            &[("cpu.weight", "100")],
        );
    }

    #[test]
    fn shares_meet_the_weights_that_they_stand_for() {
        assert_eq!([2, 1024, 262_144].map(weight), [1, 100, 10_000]);
    }

    #[test]
    fn what_fails_changes_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let low = directory.path().join("pids.max");
        fs::write(&low, "5\n").expect("write");
        let value = |file: &str| Value::new(format!("field of {file}"), file, 9);
        let failed = apply(directory.path(), &[value("pids.max"), value("no.such")]);
        let error = failed.expect_err("no.such isn't there");
        assert_eq!(error.field(), "field of no.such");
        assert_eq!(error.to_string(), "cannot set no.such to \"9\"");
        assert_eq!(fs::read_to_string(low).expect("read"), "5\n");
    }

    #[test]
    fn no_file_outside_of_the_cgroup_is_written() {
        let refused = |resources| {
            let resources = serde_json::from_value(resources).expect("resources");
            values(Path::new("/nonexistent"), &resources).is_err()
        };
        assert!(refused(json!({"unified": {"../pids.max": "1"}})));
        let pages = json!([{"pageSize": "/../pids", "limit": 1}]);
        assert!(refused(json!({ "hugepageLimits": pages })));
    }

    #[test]
    fn each_value_knows_the_field_that_asks_for_it() {
        let resources = json!({
            "memory": {"limit": 1000, "swap": 1000}, "cpu": {"shares": 2, "period": 9},
            "pids": {"limit": 5}, "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
            "unified": {"cpu.idle": "1", "memory.high": "1", "cpu.weight": "9"},
        });
        let resources = serde_json::from_value(resources).expect("resources");
        let values = values(Path::new("/nonexistent"), &resources).expect("valid");
        let found: Vec<_> = values.iter().map(|v| (&*v.file, &*v.field)).collect();
        let expected = [
            ("memory.swap.max", "memory.swap"),
            ("memory.max", "memory.limit"),
            ("cpu.weight", "cpu.shares"),
            ("cpu.max", "cpu.period"),
            ("pids.max", "pids.limit"),
            ("hugetlb.2MB.max", "hugepageLimits[0]"),
            ("memory.high", "unified[\"memory.high\"]"),
            ("cpu.weight", "unified[\"cpu.weight\"]"),
            ("cpu.idle", "unified[\"cpu.idle\"]"),
        ];
        let expected = expected.map(|(file, field)| (file, format!("linux.resources.{field}")));
        assert_eq!(found.len(), expected.len());
        for (found, (file, field)) in found.iter().zip(&expected) {
            assert_eq!(*found, (*file, &**field));
        }
    }
}
