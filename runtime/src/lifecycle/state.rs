//! A container's state, in the words of the runtime-spec.

use std::collections::HashMap;
use std::path::PathBuf;

use serde::Serialize;

use super::{Context, Error};
use crate::spec::OCI_VERSION;
use crate::store::{self, Status};
use crate::types::ContainerId;

/// A container's state.
///
/// # Errors
/// When there is no such container, or its state is damaged.
pub fn state(context: &Context, id: &ContainerId) -> Result<OciState, Error> {
    Ok(context.find(id)?.load()?.into())
}

/// A container's state as the runtime-spec has it (runtime.md, "State"): runc's fields in runc's order, as
/// `state` and `list` print them and hooks get them.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OciState {
    /// Of the runtime-spec.
    pub oci_version: &'static str,
    /// The container's id.
    pub id: String,
    /// Of the process that stands for the container on the host; 0 when it has stopped.
    pub pid: i32,
    /// The runtime-spec's word, runc's `paused`, or `damaged`.
    pub status: String,
    /// The bundle, absolute; empty where nobody knows.
    pub bundle: PathBuf,
    /// The root file system on the host, absolute.
    pub rootfs: PathBuf,
    /// RFC 3339, UTC.
    pub created: String,
    /// config.json's.
    #[serde(skip_serializing_if = "HashMap::is_empty")]
    pub annotations: HashMap<String, String>,
    /// Who has created it.
    pub owner: String,
}

impl From<store::State> for OciState {
    fn from(state: store::State) -> Self {
        let status = state.status();
        Self::with_status(state, status)
    }
}

/// The state as JSON, as a hook gets it: the status is the one that the hook's stage has.
///
/// # Errors
/// When a path of it is no text.
pub fn for_hook(state: &store::State, status: Status) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(&OciState::with_status(state.clone(), status)).map_err(Error::Describe)
}

impl OciState {
    fn with_status(state: store::State, status: Status) -> Self {
        Self {
            oci_version: OCI_VERSION,
            id: state.container.id.to_string(),
            pid: state.pid(),
            status: status.to_string(),
            bundle: state.container.bundle,
            rootfs: state.container.rootfs,
            created: state.container.created,
            annotations: state.container.annotations,
            owner: state.container.owner,
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
}
