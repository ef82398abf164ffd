//! `hull spec --audit`: who enforces each field of a bundle's config.json, and what is refused.

use std::fmt::Write as _;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use clap::ValueEnum;
use hull_runtime::lifecycle::Context;
use hull_runtime::spec::{self, Finding, Verdict};
use serde::Serialize;

use super::super::colour::{Colour, Palette};
use super::super::{Error, output};

/// The forms of the report.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Format {
    /// A line a field, an array's elements together
    Table,
    /// An array of objects, one a field
    Json,
}

/// Prints the report; the exit code is 1 where `create` would refuse the bundle's config.json.
///
/// # Errors
/// When there is no config.json, or it isn't a JSON object.
pub fn run(context: &Context, bundle: &Path, format: Format) -> Result<ExitCode, Error> {
    let config = context.settings.load()?;
    let findings = spec::audit_bundle(bundle, &config)?;
    match format {
        Format::Json => {
            let rows: Vec<_> = findings.iter().map(Row::from).collect();
            output::json(&rows)?;
        }
        Format::Table => output::text(table(&findings, Palette::of(&io::stdout())))?,
    }
    Ok(
        if findings.iter().any(|finding| finding.verdict.is_fatal()) {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        },
    )
}

/// A finding, as JSON has it.
#[derive(Serialize)]
struct Row<'a> {
    path: &'a str,
    enforcer: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<&'a str>,
}

impl<'a> From<&'a Finding> for Row<'a> {
    fn from(finding: &'a Finding) -> Self {
        let (reason, remedy) = match &finding.verdict {
            Verdict::Enforced(_) => (None, None),
            Verdict::Noted(_, note) => (Some(note.as_str()), None),
            Verdict::Refused(refusal) => (Some(&*refusal.reason), Some(&*refusal.remedy)),
            Verdict::Unknown => (
                Some("the runtime-spec has no such field: it is ignored"),
                None,
            ),
            Verdict::Invalid(why) => (Some(why.as_str()), None),
        };
        Self {
            path: &finding.path,
            enforcer: finding.verdict.word(),
            reason,
            remedy,
        }
    }
}

fn table(findings: &[Finding], palette: Palette) -> String {
    const WIDTH: usize = "refused".len();
    let mut text = String::new();
    for (row, path, count) in folded(findings) {
        let colour = match row.enforcer {
            "refused" | "invalid" => Colour::Red,
            "unknown" => Colour::Yellow,
            "host" | "both" => Colour::Cyan,
            _ => Colour::Green,
        };
        let word = palette.paint(colour, &format!("{:WIDTH$}", row.enforcer));
        let _ = match count {
            1 => writeln!(text, "{word}  {path}"),
            _ => writeln!(text, "{word}  {path} ({count})"),
        };
        if let Some(reason) = row.reason {
            let _ = writeln!(text, "{:WIDTH$}  {reason}", "");
        }
        if let Some(remedy) = row.remedy {
            let _ = writeln!(text, "{:WIDTH$}  to do: {remedy}", "");
        }
    }
    let fatal = findings.iter().filter(|f| f.verdict.is_fatal()).count();
    let _ = match fatal {
        0 => writeln!(text, "\nhull refuses nothing of it."),
        1 => writeln!(text, "\nhull does not take it, for 1 field."),
        _ => writeln!(text, "\nhull does not take it, for {fatal} fields."),
    };
    text
}

/// The rows, with their paths. Those without a reason that differ in indices alone are one; the number
/// says how many.
fn folded(findings: &[Finding]) -> Vec<(Row<'_>, String, usize)> {
    let mut rows: Vec<(Row<'_>, String, usize)> = Vec::new();
    for row in findings.iter().map(Row::from) {
        if row.reason.is_some() {
            let path = row.path.to_owned();
            rows.push((row, path, 1));
            continue;
        }
        let path = without_indices(row.path);
        let same = rows
            .iter_mut()
            .find(|(other, at, _)| other.enforcer == row.enforcer && *at == path);
        match same {
            Some((.., count)) => *count += 1,
            None => rows.push((row, path, 1)),
        }
    }
    rows
}

/// `mounts[2].type` is `mounts[].type`.
fn without_indices(path: &str) -> String {
    let mut parts = path.split('[');
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        text.push('[');
        text.push_str(part.trim_start_matches(|c: char| c.is_ascii_digit()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use hull_runtime::config::Config;
    use serde_json::{Value, json};

    fn audited(config: Value) -> (Vec<Finding>, String) {
        let bundle = tempfile::tempdir().expect("a folder");
        let path = bundle.path().join("config.json");
        std::fs::write(path, config.to_string()).expect("written");
        let findings = spec::audit_bundle(bundle.path(), &Config::default()).expect("audited");
        let text = table(&findings, Palette { colourful: false });
        (findings, text)
    }

    #[test]
    fn each_field_has_its_line() {
        let (_, text) = audited(json!({
            "ociVersion": "1.2.0",
            "process": {"cwd": "/", "args": ["sh"], "colour": "red",
                "rlimits": [
                    {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
                    {"type": "RLIMIT_CPU", "soft": 1, "hard": 1}]},
            "root": {"path": "rootfs"},
            "solaris": {"milestone": "x"},
        }));
        assert_eq!(
            text,
            "host     ociVersion\n\
             guest    process.cwd\n\
             guest    process.args\n\
             unknown  process.colour\n         \
                      the runtime-spec has no such field: it is ignored\n\
             guest    process.rlimits[].type (2)\n\
             guest    process.rlimits[].soft (2)\n\
             guest    process.rlimits[].hard (2)\n\
             host     root.path\n\
             refused  solaris\n         \
                      it is for another platform than Linux containers\n         \
                      to do: remove it\n\
             guest    linux.namespaces\n         \
                      it lists no namespace of type network: the container has the guest's, with lo alone\n\
             \nhull does not take it, for 1 field.\n"
        );
    }

    #[test]
    fn a_value_that_makes_no_sense_is_named_beside_what_is_refused() {
        let (findings, text) = audited(json!({
            "ociVersion": "1.2.0",
            "process": {"cwd": "/", "args": "sh"},
            "linux": {"intelRdt": {"closID": 1}},
        }));
        let fatal: Vec<_> = findings
            .iter()
            .filter(|finding| finding.verdict.is_fatal())
            .map(|finding| (finding.verdict.word(), finding.path.as_str()))
            .collect();
        assert_eq!(
            fatal,
            [("refused", "linux.intelRdt"), ("invalid", "process.args")]
        );
        assert!(text.contains("invalid type: string"), "{text}");
    }

    #[test]
    fn json_has_all_that_is_known() {
        let (findings, _) = audited(json!({"linux": {"intelRdt": {"closID": "x"}}}));
        let rows: Vec<_> = findings.iter().map(Row::from).collect();
        let rows = serde_json::to_value(rows).expect("JSON");
        assert_eq!(rows[0]["path"], "linux.intelRdt");
        assert_eq!(rows[0]["enforcer"], "refused");
        assert!(rows[0]["reason"].is_string() && rows[0]["remedy"].is_string());
    }

    #[test]
    fn indices_alone_are_folded() {
        assert_eq!(without_indices("a[10].b[0]"), "a[].b[]");
        assert_eq!(without_indices("u[\"io.max\"]"), "u[\"io.max\"]");
    }
}
