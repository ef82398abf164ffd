//! Converts `linux.resources` into settings of a cgroup's files, and writes them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxResources};

use crate::block_io;

/// A value for a file of a cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The field of config.json that asks for it.
    pub field: String,
    /// The cgroup's file.
    pub file: String,
    /// What to write to it.
    pub value: String,
}

impl Setting {
    /// A setting for a field of config.json.
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
    /// It is invalid.
    #[error("{problem}")]
    Invalid {
        /// The field of config.json.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The kernel refuses it, or doesn't have it.
    #[error("cannot set {} to {:?}", .setting.file, .setting.value)]
    Write {
        /// The setting that was to be written.
        setting: Setting,
        /// Why it couldn't be.
        #[source]
        source: io::Error,
    },
}

impl LimitError {
    /// The field of config.json that asks for the limit. The error's text doesn't name it.
    #[must_use]
    pub fn field(&self) -> &str {
        match self {
            Self::Invalid { field, .. } => field,
            Self::Write { setting, .. } => &setting.field,
        }
    }
}

/// What [`apply`] has changed.
#[derive(Debug)]
pub struct Applied {
    directory: PathBuf,
    /// The files and their previous values, in the order in which they were changed.
    previous: Vec<(String, String)>,
}

impl Applied {
    /// The files and their previous values, in the order in which they were changed.
    #[must_use]
    pub fn previous(&self) -> &[(String, String)] {
        &self.previous
    }

    /// Restores the previous values.
    pub fn undo(self) {
        for (file, value) in self.previous.iter().rev() {
            if let Err(e) = write(&self.directory, file, value) {
                log::warn!("restore {file}: {e}");
            }
        }
    }
}

/// Writes settings to the cgroup with this directory: all of them or none.
///
/// # Errors
/// When the kernel refuses one; the limits are then as they were.
pub fn apply(directory: &Path, settings: &[Setting]) -> Result<Applied, LimitError> {
    let mut applied = Applied {
        directory: directory.to_owned(),
        previous: Vec::new(),
    };
    for setting in settings {
        let Setting { file, value, .. } = setting;
        let old = match file.starts_with("io.") {
            true => block_io::previous(directory, file, value),
            false => read(directory, file),
        };
        if let Err(source) = write(directory, file, value) {
            applied.undo();
            let setting = setting.clone();
            return Err(LimitError::Write { setting, source });
        }
        applied.previous.extend(old.map(|old| (file.clone(), old)));
    }
    Ok(applied)
}

/// The text of a file of a cgroup; `None` if it doesn't exist.
pub(crate) fn read(directory: &Path, file: &str) -> Option<String> {
    let text = fs::read_to_string(directory.join(file)).ok()?;
    Some(text.trim_end().to_owned())
}

fn write(directory: &Path, file: &str, value: &str) -> io::Result<()> {
    // Without O_CREAT: no file must be made if the directory isn't a cgroup's.
    let mut file = fs::File::options().write(true).open(directory.join(file))?;
    io::Write::write_all(&mut file, value.as_bytes())
}

/// The settings for a `linux.resources` object, for the cgroup with this directory, without the device rules.
///
/// # Errors
/// When a limit is invalid.
pub fn settings(directory: &Path, resources: &LinuxResources) -> Result<Vec<Setting>, LimitError> {
    let mut settings = Vec::new();
    if let Some(memory) = resources.memory() {
        memory_settings(memory, &mut settings)?;
    }
    if let Some(cpu) = resources.cpu() {
        cpu_settings(directory, cpu, &mut settings);
    }
    // As with runc, 0 means no limit.
    if let Some(pids) = resources.pids().as_ref().filter(|pids| pids.limit() != 0) {
        let field = "linux.resources.pids.limit";
        settings.push(Setting::new(field, "pids.max", or_max(pids.limit())));
    }
    if let Some(io) = resources.block_io() {
        block_io::settings(directory, io, &mut settings);
    }
    for (index, pages) in resources.hugepage_limits().iter().flatten().enumerate() {
        hugetlb_settings(directory, index, pages, &mut settings)?;
    }
    let mut unified: Vec<_> = resources.unified().iter().flatten().collect();
    // In reverse order, so that `cpu.weight` comes before `cpu.idle`, after which the kernel refuses a weight.
    unified.sort_unstable_by(|a, b| b.cmp(a));
    for (file, value) in unified {
        if !is_file_name(file) {
            return Err(LimitError::Invalid {
                field: "linux.resources.unified",
                problem: format!("{file:?} is not a file of a cgroup"),
            });
        }
        let field = format!("linux.resources.unified[{file:?}]");
        settings.push(Setting::new(field, file, value));
    }
    Ok(settings)
}

/// Whether this can be the name of a file in a cgroup's directory.
fn is_file_name(file: &str) -> bool {
    !file.contains('/') && !file.starts_with('.')
}

/// A negative limit of the spec is the kernel's `max`.
fn or_max(value: i64) -> String {
    if value < 0 {
        "max".to_owned()
    } else {
        value.to_string()
    }
}

/// In the spec, `swap` is the limit of memory and swap together; cgroup2 has a limit for each. A `swap` of 0 means
/// no swap.
fn memory_settings(memory: &LinuxMemory, settings: &mut Vec<Setting>) -> Result<(), LimitError> {
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
        settings.push(Setting::new(SWAP, "memory.swap.max", or_max(swap)));
    }
    if let Some(limit) = limit {
        let field = "linux.resources.memory.limit";
        settings.push(Setting::new(field, "memory.max", or_max(limit)));
    }
    if let Some(reservation) = memory.reservation().filter(|value| *value != 0) {
        let field = "linux.resources.memory.reservation";
        settings.push(Setting::new(field, "memory.low", or_max(reservation)));
    }
    Ok(())
}

fn cpu_settings(directory: &Path, cpu: &LinuxCpu, settings: &mut Vec<Setting>) {
    let mut set = |field: &str, file: &str, value: String| {
        settings.push(Setting::new(
            format!("linux.resources.cpu.{field}"),
            file,
            value,
        ));
    };
    if let Some(idle) = cpu.idle() {
        set("idle", "cpu.idle", idle.to_string());
    }
    // The kernel refuses a weight for an idle cgroup.
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

/// As with runc, reservations are limited as well, if the kernel supports that.
fn hugetlb_settings(
    directory: &Path,
    index: usize,
    pages: &LinuxHugepageLimit,
    settings: &mut Vec<Setting>,
) -> Result<(), LimitError> {
    let size = pages.page_size();
    if !is_file_name(size) {
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
        settings.extend(file.map(|file| Setting::new(&field, file, pages.limit())));
    }
    Ok(())
}

/// Converts the shares of cgroup v1 (2 to 262144, 1024 by default) into a weight of cgroup2 (1 to 10000, 100 by
/// default), by runc's formula since 1.3.2, which maps the limits and defaults to each other.
fn weight(shares: u64) -> u64 {
    match shares {
        ..=2 => 1,
        262_144.. => 10_000,
        _ => {
            // Exact: an f64 has every integer up to 262144.
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
        let settings = settings(directory.path(), &resources).expect("valid");
        settings.into_iter().map(|v| (v.file, v.value)).collect()
    }

    fn assert_settings(found: &[(String, String)], expected: &[(&str, &str)]) {
        let found: Vec<_> = found
            .iter()
            .map(|(f, v)| (f.as_str(), v.as_str()))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn swap_is_the_limit_without_memory() {
        let both = written(json!({"memory": {"limit": 1000, "swap": 1500, "reservation": -1}}));
        assert_settings(
            &both,
            &[
                ("memory.swap.max", "500"),
                ("memory.max", "1000"),
                ("memory.low", "max"),
            ],
        );
        let same = written(json!({"memory": {"limit": 1000, "swap": 1000}}));
        assert_settings(&same, &[("memory.swap.max", "0"), ("memory.max", "1000")]);
        for none in [json!({"swap": 0}), json!({"swap": 0, "limit": 0})] {
            assert_settings(
                &written(json!({"memory": none})),
                &[("memory.swap.max", "0")],
            );
        }
        let unlimited = written(json!({"memory": {"limit": -1}}));
        assert_settings(
            &unlimited,
            &[("memory.swap.max", "max"), ("memory.max", "max")],
        );
    }

    #[test]
    fn a_period_alone_keeps_the_quota() {
        assert_settings(
            &written(json!({"cpu": {"period": 200_000}})),
            &[("cpu.max", "50000 200000")],
        );
        assert_settings(
            &written(json!({"cpu": {"quota": -1}})),
            &[("cpu.max", "max")],
        );
        let both = written(json!({"cpu": {"quota": 7, "period": 9, "burst": 3}}));
        assert_settings(&both, &[("cpu.max", "7 9"), ("cpu.max.burst", "3")]);
    }

    #[test]
    fn an_idle_cgroup_has_no_weight() {
        assert_settings(
            &written(json!({"cpu": {"idle": 1, "shares": 1024}})),
            &[("cpu.idle", "1")],
        );
        assert_settings(
            &written(json!({"cpu": {"shares": 1024}})),
            &[("cpu.weight", "100")],
        );
    }

    #[test]
    fn shares_are_converted_to_weights() {
        assert_eq!([2, 1024, 262_144].map(weight), [1, 100, 10_000]);
    }

    #[test]
    fn a_failed_apply_changes_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let low = directory.path().join("pids.max");
        fs::write(&low, "5\n").expect("write");
        let value = |file: &str| Setting::new(format!("field of {file}"), file, 9);
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
            settings(Path::new("/nonexistent"), &resources).is_err()
        };
        assert!(refused(json!({"unified": {"../pids.max": "1"}})));
        let pages = json!([{"pageSize": "/../pids", "limit": 1}]);
        assert!(refused(json!({ "hugepageLimits": pages })));
    }

    #[test]
    fn each_setting_names_its_field() {
        let resources = json!({
            "memory": {"limit": 1000, "swap": 1000}, "cpu": {"shares": 2, "period": 9},
            "pids": {"limit": 5}, "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
            "unified": {"cpu.idle": "1", "memory.high": "1", "cpu.weight": "9"},
        });
        let resources = serde_json::from_value(resources).expect("resources");
        let settings = settings(Path::new("/nonexistent"), &resources).expect("valid");
        let found: Vec<_> = settings.iter().map(|v| (&*v.file, &*v.field)).collect();
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
