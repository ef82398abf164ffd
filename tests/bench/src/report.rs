//! The results: as JSON for machines, and as a table with ratios to runc for people.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// What ratios are relative to.
const BASELINE: &str = "runc";

/// What a value counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    /// Seconds.
    #[serde(rename = "s")]
    Seconds,
    /// Bytes.
    #[serde(rename = "B")]
    Bytes,
    /// Bytes in a second: more is better.
    #[serde(rename = "B/s")]
    BytesPerSecond,
    /// Seconds from a request to its answer.
    #[serde(rename = "s/request")]
    SecondsPerRequest,
}

impl Unit {
    /// A ratio to less than this tells nothing.
    fn least(self) -> f64 {
        match self {
            Self::Seconds => 0.001,
            Self::Bytes | Self::BytesPerSecond | Self::SecondsPerRequest => 0.0,
        }
    }

    fn show(self, value: f64) -> String {
        match self {
            Self::Seconds => format!("{value:.3} s"),
            Self::Bytes => format!("{:.1} MiB", value / f64::from(1 << 20)),
            Self::BytesPerSecond => format!("{:.0} MiB/s", value / f64::from(1 << 20)),
            Self::SecondsPerRequest => format!("{:.0} µs", value * 1e6),
        }
    }
}

/// One figure of one runtime.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    case: String,
    runtime: String,
    /// The case of the baseline that this is compared with, where it isn't the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    beside: Option<String>,
    unit: Unit,
    /// The median, where there are several.
    value: f64,
    /// All that were measured, in order.
    values: Vec<f64>,
    /// The medians of its parts, in seconds; each was measured by itself.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    phases: BTreeMap<String, f64>,
}

impl Measurement {
    /// A figure that was measured several times.
    pub fn times(case: &str, runtime: &str, times: &[Duration]) -> Self {
        let values = times.iter().map(Duration::as_secs_f64).collect();
        Self::values(case, runtime, Unit::Seconds, values)
    }

    /// The same, of any unit.
    pub fn values(case: &str, runtime: &str, unit: Unit, values: Vec<f64>) -> Self {
        Self {
            case: case.into(),
            runtime: runtime.into(),
            beside: None,
            unit,
            value: median(&values),
            values,
            phases: BTreeMap::new(),
        }
    }

    /// A figure that was measured once.
    #[allow(clippy::cast_precision_loss)] // bytes of memory and of files stay far below 2^53
    pub fn once(case: &str, runtime: &str, unit: Unit, value: u64) -> Self {
        Self::values(case, runtime, unit, vec![value as f64])
    }

    /// The same, to be compared with this case of the baseline.
    pub fn beside(self, case: &str) -> Self {
        let beside = (self.case != case).then(|| case.to_owned());
        Self { beside, ..self }
    }

    /// The same with its parts.
    pub fn with_phases(mut self, phases: &BTreeMap<&str, Vec<Duration>>) -> Self {
        self.phases = phases
            .iter()
            .map(|(name, times)| {
                let values: Vec<f64> = times.iter().map(Duration::as_secs_f64).collect();
                ((*name).to_owned(), median(&values))
            })
            .collect();
        self
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Writes what was measured on one host, for [`Report::join`]: whole, or not at all.
pub fn write_fragment(path: &Path, measurements: &[Measurement]) -> Result<()> {
    write_json(path, &measurements)
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let json = serde_json::to_vec_pretty(value).context("write the results as JSON")?;
    let unfinished = path.with_extension("new");
    std::fs::write(&unfinished, json)
        .and_then(|()| std::fs::rename(&unfinished, path))
        .with_context(|| format!("write {}", path.display()))
}

/// All figures of one run.
#[derive(Debug, Serialize)]
pub struct Report {
    clock: String,
    host: String,
    results: Vec<Measurement>,
}

impl Report {
    /// The report of what [`write_fragment`] has written into these files, in their order.
    pub fn join(clock: &str, host: &str, fragments: &[impl AsRef<Path>]) -> Result<Self> {
        let mut results = Vec::new();
        for path in fragments.iter().map(AsRef::as_ref) {
            let json = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
            let measurements: Vec<Measurement> = serde_json::from_slice(&json)
                .with_context(|| format!("{} holds no measurements", path.display()))?;
            results.extend(measurements);
        }
        Ok(Self {
            clock: clock.into(),
            host: host.into(),
            results,
        })
    }

    /// Writes the report as JSON.
    pub fn write(&self, path: &Path) -> Result<()> {
        write_json(path, self)
    }

    /// The table's rows: a label, its unit, and each runtime's value. A case's phases follow it.
    fn rows(&self) -> Vec<(String, Unit, BTreeMap<&str, f64>)> {
        let mut rows: Vec<(String, Unit, BTreeMap<&str, f64>)> = Vec::new();
        let mut put = |label: String, unit, runtime, value| match rows
            .iter_mut()
            .find(|row| row.0 == label)
        {
            Some(row) => drop(row.2.insert(runtime, value)),
            None => rows.push((label, unit, BTreeMap::from([(runtime, value)]))),
        };
        for result in &self.results {
            put(
                result.case.clone(),
                result.unit,
                &result.runtime,
                result.value,
            );
            for phase in ["create", "start", "exit", "delete"] {
                if let Some(value) = result.phases.get(phase) {
                    put(format!("  {phase}"), Unit::Seconds, &result.runtime, *value);
                }
            }
        }
        rows
    }
}

impl Report {
    /// The baseline's value of the other case with which this one is compared, if it is.
    fn baseline(&self, case: &str) -> Option<f64> {
        let compared = self.results.iter().find(|result| result.case == case)?;
        let beside = compared.beside.as_ref()?;
        let is_base = |result: &&Measurement| result.runtime == BASELINE && result.case == *beside;
        self.results.iter().find(is_base).map(|result| result.value)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut runtimes: Vec<&str> = Vec::new();
        for result in &self.results {
            if !runtimes.contains(&result.runtime.as_str()) {
                runtimes.push(&result.runtime);
            }
        }
        writeln!(
            f,
            "clock: {}; host: {}; in brackets: times {BASELINE}'s",
            self.clock, self.host
        )?;
        write!(f, "{:<27}", "")?;
        for runtime in &runtimes {
            write!(f, "{runtime:>20}")?;
        }
        writeln!(f)?;
        for (label, unit, values) in self.rows() {
            write!(f, "{label:<27}")?;
            let base = self.baseline(&label).or(values.get(BASELINE).copied());
            for runtime in &runtimes {
                let cell = match (values.get(runtime), base) {
                    (None, _) => "-".to_owned(),
                    (Some(value), Some(base)) if base > unit.least() => {
                        format!("{} ({:.2})", unit.show(*value), value / base)
                    }
                    (Some(value), _) => format!("{}       ", unit.show(*value)),
                };
                write!(f, "{cell:>20}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fragments_become_one_table_with_medians_phases_and_ratios() {
        let ms = Duration::from_millis;
        let phases = BTreeMap::from([("create", vec![ms(50)])]);
        let hull = Measurement::times("run-true", "hull", &[ms(900), ms(200), ms(100)])
            .with_phases(&phases);
        let runc = Measurement::times("run-true", "runc", &[ms(100)]);
        let folder = std::env::temp_dir().join(format!("hull-bench-{}", std::process::id()));
        std::fs::create_dir(&folder).expect("a folder");
        let fragments = [folder.join("hull.json"), folder.join("runc.json")];
        write_fragment(&fragments[0], std::slice::from_ref(&hull)).expect("a fragment");
        write_fragment(&fragments[1], std::slice::from_ref(&runc)).expect("a fragment");

        let report = Report::join("wall", "here", &fragments).expect("a report");
        let results = folder.join("results.json");
        report.write(&results).expect("results");
        let json = std::fs::read(&results).expect("results");
        std::fs::remove_dir_all(&folder).expect("remove the folder");

        assert_eq!(report.results, [hull, runc]);
        let text = report.to_string();
        assert!(text.contains("0.200 s (2.00)"), "{text}");
        assert!(text.contains("  create"), "{text}");
        let json: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
        assert_eq!(json["results"][0]["value"], 0.2);
        assert_eq!(json["results"][0]["phases"]["create"], 0.05);
    }
}
