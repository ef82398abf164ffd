//! `hull state`: a container's state, as runtime.md ("State") has it.

use std::collections::HashMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use crate::cli::Global;
use crate::container::{self, ContainerId, Status, Store};
use crate::error::Error;
use crate::spec::OCI_VERSION;

/// `hull state`.
#[derive(Debug, clap::Args)]
pub struct State {
    /// The container's id
    #[arg(value_name = "CONTAINER-ID")]
    id: String,
}

/// What `state` and `list` print of a container: runc's fields in runc's order.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Shown {
    oci_version: &'static str,
    id: String,
    pid: i32,
    status: String,
    bundle: PathBuf,
    rootfs: PathBuf,
    created: String,
    #[serde(skip_serializing_if = "HashMap::is_empty")]
    annotations: HashMap<String, String>,
    owner: String,
}

impl From<container::State> for Shown {
    fn from(state: container::State) -> Self {
        let status = state.status();
        Self::with_status(state, status)
    }
}

/// The state as JSON, as a hook gets it: the status is the one that the hook's stage has.
///
/// # Errors
/// When there is no memory for it.
pub fn for_hook(state: &container::State, status: Status) -> Result<Vec<u8>, Error> {
    let shown = Shown::with_status(state.clone(), status);
    Ok(serde_json::to_vec(&shown).map_err(std::io::Error::from)?)
}

impl Shown {
    fn with_status(state: container::State, status: Status) -> Self {
        Self {
            oci_version: OCI_VERSION,
            pid: state.pid(),
            status: status.to_string(),
            id: state.id.into(),
            bundle: state.bundle,
            rootfs: state.rootfs,
            created: state.created,
            annotations: state.annotations,
            owner: state.owner,
        }
    }

    /// A container whose state can't be read, and the pid of its VM, or 0.
    pub fn damaged(id: ContainerId, pid: i32) -> Self {
        Self {
            oci_version: OCI_VERSION,
            id: id.into(),
            pid,
            status: "damaged".to_owned(),
            bundle: PathBuf::new(),
            rootfs: PathBuf::new(),
            created: String::new(),
            annotations: HashMap::new(),
            owner: String::new(),
        }
    }

    /// The columns of `list`'s table.
    pub fn row(&self) -> [String; 6] {
        [
            self.id.clone(),
            self.pid.to_string(),
            self.status.clone(),
            self.bundle.display().to_string(),
            self.created.clone(),
            self.owner.clone(),
        ]
    }
}

/// Prints a container's state as JSON.
///
/// # Errors
/// When there is no such container.
pub fn run(global: &Global, args: &State) -> Result<ExitCode, Error> {
    let state = Store::open(&global.root)?.find(&args.id.parse()?)?.load()?;
    let mut out = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, &Shown::from(state)).map_err(std::io::Error::from)?;
    writeln!(out)?;
    Ok(ExitCode::SUCCESS)
}
