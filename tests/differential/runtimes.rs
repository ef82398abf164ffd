//! The two runtimes: one container each of the same bundle.

use std::path::{Path, PathBuf};

use hull_tests::{Bundle, Container};
use serde_json::Value;

use crate::case::Case;
use crate::compare::{Explanations, Verdict, compare};

/// Where the control is looked for besides `HULL_CONTROL`.
const CONTROLS: &[&str] = &["/usr/sbin/runc", "/usr/bin/runc"];

/// What came of a bundle.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The probe's report.
    Report(Value),
    /// There was no container, or no report: the runtime's exit code, and what it or the probe said.
    None {
        /// The exit code; none if a signal killed the runtime.
        code: Option<i32>,
        /// Standard error.
        said: String,
    },
}

impl Outcome {
    /// Whether the runtime crashed: it left a traceback of Go's.
    pub fn is_crash(&self) -> bool {
        let Self::None { said, .. } = self else {
            return false;
        };
        said.lines()
            .any(|line| line.starts_with("goroutine ") && line.contains(" [running"))
    }
}

/// hull, and the runtime that it is held against.
#[derive(Debug)]
pub struct Runtimes {
    control: PathBuf,
}

impl Runtimes {
    /// Unless this machine has no control.
    pub fn find() -> Option<Self> {
        let named = std::env::var_os("HULL_CONTROL").map(PathBuf::from);
        let control = named.or_else(|| {
            let known = CONTROLS.iter().map(PathBuf::from);
            known.into_iter().find(|path| path.exists())
        })?;
        Some(Self { control })
    }

    /// Runs the bundle with both, in a copy each: a runtime makes folders in a root file system.
    pub fn judge(&self, case: &Case, explained: &Explanations) -> Verdict {
        let (bundle, copy) = (case.bundle(), case.bundle());
        let config = bundle.config().clone();
        let hull = outcome(bundle, None);
        let control = outcome(explained.without_the_unknown(copy), Some(&self.control));
        compare(&config, hull, control, explained)
    }
}

fn outcome(bundle: Bundle, control: Option<&Path>) -> Outcome {
    let token = bundle.token().to_owned();
    let mut container = Container::new(bundle);
    if let Some(control) = control {
        container = container.made_by(control);
    }
    let done = container.run();
    // The name is in what a container sees of its keyring and cgroup.
    let out = done.out().replace(&token, "ID");
    match (done.status.success(), serde_json::from_str(&out)) {
        (true, Ok(report)) => Outcome::Report(report),
        _ => Outcome::None {
            code: done.status.code(),
            said: done.err().replace(&token, "ID"),
        },
    }
}
