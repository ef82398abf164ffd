//! Why a bundle is not taken.

use std::io;
use std::path::PathBuf;

use super::audit::{Finding, Verdict};
use super::seccomp::SeccompProfileError;

/// A bundle, or its config.json, that hull does not take.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// The folder can't be opened.
    #[error("bundle {}", path.display())]
    Bundle {
        /// As the user named it.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The folder's path can't be told in JSON.
    #[error("bundle {}: its path is not UTF-8, as a container's state must be", path.display())]
    BundleName {
        /// Where it really is.
        path: PathBuf,
    },
    /// The folder is there, and has no config.json.
    #[error("bundle {}: it has no config.json (`hull spec` writes one to start from)", path.display())]
    NoConfig {
        /// The folder.
        path: PathBuf,
    },
    /// config.json can't be read.
    #[error("{}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// config.json, or a process's description, is no file, or too large to be one.
    #[error("{}: {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// It isn't JSON; the source says where it ceases to be.
    #[error("{}: not valid JSON", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column.
        #[source]
        source: serde_json::Error,
    },
    /// An object has a key twice, and readers differ in what they make of that; the source says where.
    #[error("{}: a key may stand only once in an object", path.display())]
    RepeatedKey {
        /// The file.
        path: PathBuf,
        /// Which key, with line and column.
        #[source]
        source: serde_json::Error,
    },
    /// A field has the wrong type, or a value that its type doesn't have.
    #[error("config.json: {field}")]
    Type {
        /// The field's JSON path.
        field: String,
        /// What was expected.
        #[source]
        source: serde_json::Error,
    },
    /// A field that must be there isn't.
    #[error("config.json: {0}: it is missing")]
    Missing(&'static str),
    /// A field whose value makes no sense.
    #[error("config.json: {field}: {why}")]
    Invalid {
        /// The field's JSON path.
        field: String,
        /// What is wrong with the value.
        why: String,
    },
    /// Fields that hull does not support; never empty.
    #[error("{}", refused(.0))]
    Refused(Vec<Finding>),
    /// The CPUs that config.json lists aren't this host's.
    #[error("config.json: linux.resources.cpu.cpus")]
    Cpus {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A seccomp profile that can't be compiled.
    #[error(transparent)]
    Seccomp(#[from] SeccompProfileError),
    /// A file or folder that config.json names can't be opened.
    #[error("config.json: {field}: {}", path.display())]
    Source {
        /// The field's JSON path.
        field: String,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A network namespace that config.json names isn't one, or has an interface that can't be a VM's.
    #[error("config.json: {field}: {}", path.display())]
    Network {
        /// The field's JSON path.
        field: String,
        /// The namespace's path.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: crate::network::Error,
    },
}

impl SpecError {
    /// A field whose value makes no sense.
    pub(crate) fn invalid(field: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Invalid {
            field: field.into(),
            why: why.into(),
        }
    }

    /// What the audit says of a field whose value makes no sense; nothing for other errors.
    pub(super) fn finding(self) -> Option<Finding> {
        let (path, why) = match self {
            Self::Type { field, source } => (field, source.to_string()),
            Self::Missing(field) => (field.to_owned(), "it is missing".to_owned()),
            Self::Invalid { field, why } => (field, why),
            _ => return None,
        };
        let verdict = Verdict::Invalid(why);
        Some(Finding { path, verdict })
    }
}

/// One line for all refusals: the first in full, the others by their path.
fn refused(findings: &[Finding]) -> String {
    let mut refusals = findings
        .iter()
        .filter_map(|finding| match &finding.verdict {
            Verdict::Refused(refusal) => Some((&finding.path, refusal)),
            _ => None,
        });
    let Some((path, first)) = refusals.next() else {
        return "config.json: refused".to_owned();
    };
    let mut text = format!("config.json: {path}: {}; {}", first.reason, first.remedy);
    let others: Vec<_> = refusals.map(|(path, _)| path.as_str()).collect();
    if !others.is_empty() {
        text.push_str(" (also refused: ");
        text.push_str(&others.join(", "));
        text.push(')');
    }
    text
}
