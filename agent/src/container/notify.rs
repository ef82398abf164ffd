//! sd_notify(3) for a container's processes: the socket that NOTIFY_SOCKET names, at the path where runc has it.
//! Only READY=1 is passed on to the host; all else is ignored.

use std::fs::{self, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount;
use tokio::net::UnixDatagram;

use super::spec::SplitConfig;
use crate::error::Error;

/// The socket's directory in the container.
const DIRECTORY: &str = "/run/notify";

const SOCKET_NAME: &str = "notify.sock";

/// How much of a message is read, in bytes: as much as systemd(1) takes.
const MAX_MESSAGE_LENGTH: usize = 4096;

/// The socket.
#[derive(Debug)]
pub struct NotifySocket {
    socket: UnixDatagram,
    directory: PathBuf,
}

impl NotifySocket {
    /// Makes the socket, in a directory of its own below the container's.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn make(bundle: &Path) -> Result<Self, Error> {
        let directory = bundle.join("notify");
        let failed = || Error::io(format!("make {}", directory.join(SOCKET_NAME).display()));
        fs::create_dir(&directory).map_err(failed())?;
        let opened = fs::File::open(&directory).map_err(failed())?;
        // The directory's path may be longer than a socket address can be.
        let path = format!("/proc/self/fd/{}/{SOCKET_NAME}", opened.as_raw_fd());
        let socket = UnixDatagram::bind(&path).map_err(failed())?;
        // Every user of the container may write to it.
        fs::set_permissions(&path, Permissions::from_mode(0o777)).map_err(failed())?;
        Ok(Self { socket, directory })
    }

    /// Adds the socket's mount and its environment variable to a container's config.json.
    pub fn add_to(&self, config: &mut SplitConfig) {
        let options = ["bind", "nosuid", "noexec", "nodev", "ro"];
        let mut mount = Mount::default();
        mount
            .set_destination(DIRECTORY.into())
            .set_source(Some(self.directory.clone()))
            .set_options(Some(options.map(str::to_owned).to_vec()));
        let mut mounts = config.spec.mounts().clone().unwrap_or_default();
        mounts.push(mount);
        config.spec.set_mounts(Some(mounts));
        let process = &mut config.launch.process;
        let mut environment = process.env().clone().unwrap_or_default();
        environment.push(format!("NOTIFY_SOCKET={DIRECTORY}/{SOCKET_NAME}"));
        process.set_env(Some(environment));
    }

    /// Waits until a process reports that the container is ready.
    ///
    /// # Errors
    /// When the socket can't be read.
    pub async fn ready(&self) -> Result<(), Error> {
        let mut message = [0; MAX_MESSAGE_LENGTH];
        loop {
            let length = self.socket.recv(&mut message).await;
            let length = length.map_err(Error::io("read the notify socket"))?;
            if says_ready(&message[..length]) {
                return Ok(());
            }
        }
    }
}

/// Whether a message, which has a line for each variable, contains READY=1.
fn says_ready(message: &[u8]) -> bool {
    message
        .split(|byte| *byte == b'\n')
        .any(|line| line == b"READY=1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_a_message_says_ready() {
        assert!(says_ready(b"STATUS=up\nREADY=1\n") && says_ready(b"READY=1"));
        assert!(!says_ready(b"READY=10\nSTATUS=READY=1") && !says_ready(b""));
    }

    #[tokio::test]
    async fn messages_to_the_socket_are_read() {
        let bundle = tempfile::tempdir().expect("temporary directory");
        let socket = NotifySocket::make(bundle.path()).expect("made");
        let client = UnixDatagram::unbound().expect("a socket");
        let path = bundle.path().join("notify").join(SOCKET_NAME);
        for message in ["STATUS=not yet", "READY=1"] {
            client
                .send_to(message.as_bytes(), &path)
                .await
                .expect("sent");
        }
        socket.ready().await.expect("ready");
    }
}
