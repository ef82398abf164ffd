//! The results: as JSON for machines, and as a table with ratios to runc for people.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;

/// What ratios are relative to.
const BASELINE: &str = "runc";

/// What a value counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Unit {
    /// Seconds.
    #[serde(rename = "s")]
    Seconds,
    /// Bytes.
    #[serde(rename = "B")]
    Bytes,
}

impl Unit {
    /// A ratio to less than this tells nothing.
    fn least(self) -> f64 {
        match self {
            Self::Seconds => 0.001,
            Self::Bytes => 0.0,
        }
    }

    fn show(self, value: f64) -> String {
        match self {
            Self::Seconds => format!("{value:.3} s"),
            Self::Bytes => format!("{:.1} MiB", value / f64::from(1 << 20)),
        }
    }
}

/// One figure of one runtime.
#[derive(Clone, Debug, Serialize)]
pub struct Measurement {
    case: &'static str,
    runtime: String,
    unit: Unit,
    /// The median, where there are several.
    value: f64,
    /// All that were measured, in order.
    values: Vec<f64>,
    /// The medians of its parts, in seconds; each was measured by itself.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    phases: BTreeMap<String, f64>,
}

impl Measurement {
    /// A figure that was measured several times.
    pub fn times(case: &'static str, runtime: &str, times: &[Duration]) -> Self {
        let values: Vec<f64> = times.iter().map(Duration::as_secs_f64).collect();
        Self {
            case,
            runtime: runtime.into(),
            unit: Unit::Seconds,
            value: median(&values),
            values,
            phases: BTreeMap::new(),
        }
    }

    /// A figure that was measured once.
    #[allow(clippy::cast_precision_loss)] // bytes of memory and of files stay far below 2^53
    pub fn once(case: &'static str, runtime: &str, unit: Unit, value: u64) -> Self {
        let value = value as f64;
        Self {
            case,
            runtime: runtime.into(),
            unit,
            value,
            values: vec![value],
            phases: BTreeMap::new(),
        }
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

/// All figures of one run.
#[derive(Debug, Serialize)]
pub struct Report {
    clock: String,
    host: String,
    results: Vec<Measurement>,
}

impl Report {
    /// An empty report.
    pub fn new(clock: &str, host: &str) -> Self {
        Self {
            clock: clock.into(),
            host: host.into(),
            results: Vec::new(),
        }
    }

    /// Adds a figure.
    pub fn add(&mut self, measurement: Measurement) {
        self.results.push(measurement);
    }

    /// Whether there is no figure.
    pub fn is_empty(&self) -> bool {
        self.results.is_empty()
    }

    /// The report as JSON.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        serde_json::to_vec_pretty(self).context("write the report as JSON")
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
                result.case.to_owned(),
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
        write!(f, "{:<18}", "")?;
        for runtime in &runtimes {
            write!(f, "{runtime:>20}")?;
        }
        writeln!(f)?;
        for (label, unit, values) in self.rows() {
            write!(f, "{label:<18}")?;
            for runtime in &runtimes {
                let cell = match (values.get(runtime), values.get(BASELINE)) {
                    (None, _) => "-".to_owned(),
                    (Some(value), Some(base)) if *base > unit.least() => {
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
    fn the_table_shows_medians_phases_and_ratios() {
        let ms = Duration::from_millis;
        let mut report = Report::new("wall", "here");
        let phases = BTreeMap::from([("create", vec![ms(50)])]);
        report.add(
            Measurement::times("run-true", "hull", &[ms(900), ms(200), ms(100)])
                .with_phases(&phases),
        );
        report.add(Measurement::times("run-true", "runc", &[ms(100)]));
        let text = report.to_string();
        assert!(text.contains("0.200 s (2.00)"), "{text}");
        assert!(text.contains("  create"), "{text}");
        let json: serde_json::Value =
            serde_json::from_slice(&report.to_json().expect("JSON")).expect("JSON");
        assert_eq!(json["results"][0]["value"], 0.2);
        assert_eq!(json["results"][0]["phases"]["create"], 0.05);
    }
}
