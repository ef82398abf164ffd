//! `delete`: removes what is left of a container whose server doesn't answer any more. containerd executes it in the
//! bundle, and tells its clients how the container has ended.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::Message;
use hull_runtime::chain::chain;
use hull_runtime::lifecycle;
use hull_runtime::types::ContainerId;

use super::arguments::Arguments;
use super::error::Error;
use super::info::print_bytes;
use super::process::KILLED;
use super::{context, options, rootfs, task};

/// Ends and removes the container, and unmounts its root file system.
///
/// # Errors
/// When something of it can't be removed: containerd keeps the bundle then.
pub fn delete(arguments: &Arguments) -> Result<(), Error> {
    let bundle = arguments
        .bundle
        .clone()
        .unwrap_or_else(|| PathBuf::from("."));
    let root = options::kept_root(&bundle);
    let context = context(&arguments.namespace, root.as_deref(), arguments.debug, None);
    let id: ContainerId = arguments.id.parse()?;
    // Of one that was never made there is nothing.
    let pid = lifecycle::state(&context, &id).map_or(0, |state| state.pid);
    lifecycle::delete(&context, &id, true)?;
    if let Err(e) = rootfs::unmount(&rootfs::of(&bundle)) {
        eprintln!("{}", chain(&e));
    }
    if let Some(socket) = own_socket(&bundle) {
        // Nobody serves there.
        let _ = std::fs::remove_file(socket);
    }
    let response = DeleteResponse {
        pid: pid.unsigned_abs(),
        exit_status: KILLED,
        exited_at: Some(task::timestamp(SystemTime::now())).into(),
        ..Default::default()
    };
    let bytes = response.write_to_bytes().map_err(|source| Error::Message {
        what: "the answer to containerd",
        source,
    })?;
    print_bytes(&bytes)
}

/// The socket that the bundle names, if nobody serves there any more: that of a pod may serve others.
fn own_socket(bundle: &Path) -> Option<PathBuf> {
    let address = std::fs::read_to_string(bundle.join("address")).ok()?;
    let path = PathBuf::from(address.strip_prefix("unix://")?);
    let refused = std::os::unix::net::UnixStream::connect(&path).err()?;
    (refused.kind() == std::io::ErrorKind::ConnectionRefused).then_some(path)
}
