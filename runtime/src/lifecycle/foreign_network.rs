//! A network namespace that config.json names by a process, and that a container of another runtime is in: engines ask so
//! to join it (`--network container:NAME`). A VM can't: it takes all that comes in by the interfaces that it is connected
//! to, and that container would lose its network. Those of hull's own are joined in their VM (`membership`).

use oci_spec::runtime::Spec;
use rustix::fs::stat;

use super::Error;
use super::membership::process_of;
use crate::spec;
use crate::types::ContainerId;

/// Refuses a network namespace that an engine has taken from another process. Who writes a bundle may have a process that
/// keeps a namespace for it.
///
/// # Errors
/// Names whose it is, and says what to do.
pub(super) fn refuse(id: &ContainerId, spec: &Spec) -> Result<(), Error> {
    let Some((index, path)) = spec::network_path(spec) else {
        return Ok(());
    };
    let (Some(process), Ok(namespace)) = (process_of(path), stat(path)) else {
        return Ok(());
    };
    // The host's own is refused for what it is.
    if spec::is_hosts_network(&namespace).unwrap_or(false) {
        return Ok(());
    }
    match spec::is_of_engine(spec, id.as_str()) {
        true => Err(Error::NetworkOfContainer {
            field: format!("linux.namespaces[{index}].path"),
            path: path.to_owned(),
            process,
        }),
        false => Ok(()),
    }
}
