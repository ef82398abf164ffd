//! sd_notify(3) of a container's processes: the socket that NOTIFY_SOCKET names for them, in the place where
//! runc has it. What they say stays here, but for that they are ready.

use std::fs::{self, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount;
use tokio::net::UnixDatagram;

use super::spec::Prepared;
use crate::error::Error;

/// Where the container sees the socket's folder.
const FOLDER: &str = "/run/notify";

const NAME: &str = "notify.sock";

/// As many bytes of a message are read as systemd(1) takes.
const LONGEST_MESSAGE: usize = 4096;

/// The socket.
#[derive(Debug)]
pub struct NotifySocket {
    socket: UnixDatagram,
    folder: PathBuf,
}

impl NotifySocket {
    /// Makes the socket, in a folder of its own in the container's.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn make(bundle: &Path) -> Result<Self, Error> {
        let folder = bundle.join("notify");
        let failed = || Error::io(format!("make {}", folder.join(NAME).display()));
        fs::create_dir(&folder).map_err(failed())?;
        let directory = fs::File::open(&folder).map_err(failed())?;
        // The folder's own path may be longer than a socket's address can be.
        let path = format!("/proc/self/fd/{}/{NAME}", directory.as_raw_fd());
        let socket = UnixDatagram::bind(&path).map_err(failed())?;
        // For every user of the container.
        fs::set_permissions(&path, Permissions::from_mode(0o777)).map_err(failed())?;
        Ok(Self { socket, folder })
    }

    /// Lets a container that is to be made have the socket.
    pub fn offer(&self, container: &mut Prepared) {
        let options = ["bind", "nosuid", "noexec", "nodev", "ro"];
        let mut mount = Mount::default();
        mount
            .set_destination(FOLDER.into())
            .set_source(Some(self.folder.clone()))
            .set_options(Some(options.map(str::to_owned).to_vec()));
        let mut mounts = container.spec.mounts().clone().unwrap_or_default();
        mounts.push(mount);
        container.spec.set_mounts(Some(mounts));
        let process = &mut container.launch.process;
        let mut environment = process.env().clone().unwrap_or_default();
        environment.push(format!("NOTIFY_SOCKET={FOLDER}/{NAME}"));
        process.set_env(Some(environment));
    }

    /// Waits until a process says that the container is ready.
    ///
    /// # Errors
    /// When the socket can't be read.
    pub async fn ready(&self) -> Result<(), Error> {
        let mut message = [0; LONGEST_MESSAGE];
        loop {
            let length = self.socket.recv(&mut message).await;
            let length = length.map_err(Error::io("read the notify socket"))?;
            if says_ready(&message[..length]) {
                return Ok(());
            }
        }
    }
}

/// Whether a message, a line for each variable, says so.
fn says_ready(message: &[u8]) -> bool {
    message
        .split(|byte| *byte == b'\n')
        .any(|line| line == b"READY=1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_of_a_message_says_it() {
        assert!(says_ready(b"STATUS=up\nREADY=1\n") && says_ready(b"READY=1"));
        assert!(!says_ready(b"READY=10\nSTATUS=READY=1") && !says_ready(b""));
    }

    #[tokio::test]
    async fn the_socket_hears_what_is_said_to_it() {
        let bundle = tempfile::tempdir().expect("temporary directory");
        let socket = NotifySocket::make(bundle.path()).expect("made");
        let client = UnixDatagram::unbound().expect("a socket");
        let path = bundle.path().join("notify").join(NAME);
        for message in ["STATUS=not yet", "READY=1"] {
            client
                .send_to(message.as_bytes(), &path)
                .await
                .expect("sent");
        }
        socket.ready().await.expect("ready");
    }
}
