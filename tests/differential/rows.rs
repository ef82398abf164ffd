//! The results of a long run, a line each as they come: what is there already is not run again.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use serde_json::{Value, json};

use crate::case::Case;
use crate::compare::{Difference, Verdict};

/// A file of results, or none.
#[derive(Debug)]
pub struct Rows {
    file: Option<File>,
    tests: BTreeSet<String>,
    /// The kinds of differences so far.
    kinds: BTreeSet<String>,
}

impl Rows {
    /// Continues a file.
    pub fn open(path: Option<&Path>) -> io::Result<Self> {
        let text = path.map(fs::read_to_string).and_then(Result::ok);
        // A last line that was cut off is none.
        let lines = text.iter().flat_map(|text| text.lines());
        let tests = lines
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter_map(|row| Some(row["test"].as_str()?.to_owned()))
            .collect();
        let file = path.map(|path| File::options().create(true).append(true).open(path));
        Ok(Self {
            file: file.transpose()?,
            tests,
            kinds: BTreeSet::new(),
        })
    }

    /// Whether a seed's result is known.
    pub fn has(&self, seed: u64) -> bool {
        self.tests.contains(&name(seed))
    }

    /// Whether no difference like these has been seen.
    pub fn is_new(&mut self, differences: &[Difference]) -> bool {
        let kind: Vec<_> = differences.iter().map(|one| one.at.join(" > ")).collect();
        self.kinds.insert(kind.join("\n"))
    }

    /// Adds a result.
    pub fn add(
        &mut self,
        seed: u64,
        verdict: &Verdict,
        case: &Case,
        reduced: Option<&Case>,
    ) -> io::Result<()> {
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        let (hull, control) = match verdict {
            Verdict::Same | Verdict::Neither(_) => ("passed", "passed"),
            Verdict::Refused(_) => ("skipped", "passed"),
            Verdict::ControlCrashed(_) => ("skipped", "failed"),
            Verdict::Differs(_) => ("failed", "passed"),
        };
        let mut row = json!({
            "suite": "differential", "test": name(seed), "hull": hull, "runc": control,
            "crun": null, "listed": false,
        });
        if *verdict != Verdict::Same {
            row["why"] = verdict.to_string().into();
            row["case"] = json!(case);
            row["reduced"] = json!(reduced);
        }
        writeln!(file, "{row}")
    }
}

fn name(seed: u64) -> String {
    format!("seed-{seed}")
}
