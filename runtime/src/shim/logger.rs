//! The shim's log: the fifo `log` in the bundle, which containerd reads into its own. A line that nobody reads for long is
//! dropped, as containerd may be gone for a while and no container is to wait for it.

use std::fs::File;
use std::path::Path;

use log::LevelFilter;
use rustix::fs::{CWD, Mode, OFlags, openat};

use super::error::Error;
use crate::cli::logging;

/// The fifo's name.
const NAME: &str = "log";

/// Logs into the fifo of this bundle.
///
/// # Errors
/// When there is none.
pub fn init(bundle: &Path, debug: bool) -> Result<(), Error> {
    let path = bundle.join(NAME);
    // For reading too: the fifo stays open while containerd is started again.
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fifo = openat(CWD, &path, flags, Mode::empty());
    let fifo = fifo.map_err(|e| Error::file("open", path)(e.into()))?;
    let level = if debug {
        LevelFilter::Debug
    } else {
        LevelFilter::Info
    };
    logging::init_in(File::from(fifo), level);
    Ok(())
}
