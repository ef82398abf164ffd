//! What the shim says of itself: its version, and what the runtime supports (`containerd.types.RuntimeInfo`).

use std::io::Write;

use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};

use super::error::Error;
use super::{BINARY, RUNTIME};
use crate::cli::features;

/// The URL of the runtime-spec's features structure, as containerd registers its JSON.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// `-v`.
///
/// # Errors
/// When standard output is closed.
pub fn print_version() -> Result<(), Error> {
    let version = env!("CARGO_PKG_VERSION");
    print_bytes(format!("{BINARY}:\n  Version:  {version}\n").as_bytes())
}

/// `-info`: the message in its binary form.
///
/// # Errors
/// When standard output is closed.
pub fn print() -> Result<(), Error> {
    let features = serde_json::to_vec(&features::features()).map_err(|source| Error::Json {
        what: "the features",
        source,
    })?;
    let info = RuntimeInfo {
        name: RUNTIME.to_owned(),
        version: Some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        })
        .into(),
        features: Some(Any {
            type_url: FEATURES.to_owned(),
            value: features,
            ..Default::default()
        })
        .into(),
        ..Default::default()
    };
    let bytes = info.write_to_bytes().map_err(|source| Error::Message {
        what: "the runtime's description",
        source,
    })?;
    print_bytes(&bytes)
}

/// Writes to standard output.
///
/// # Errors
/// When it is closed.
pub fn print_bytes(bytes: &[u8]) -> Result<(), Error> {
    let mut stdout = std::io::stdout();
    let written = stdout.write_all(bytes).and_then(|()| stdout.flush());
    written.map_err(Error::host("write to standard output"))
}
