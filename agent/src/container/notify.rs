//! sd_notify(3) for a container's processes: the socket that NOTIFY_SOCKET names, at the path where runc has it.
//! Only READY=1 is passed on to the host; all else is ignored. But it is read, for as long as the container is there: who
//! sends to a socket that nobody reads waits for ever once its queue is full.

use std::fs::{self, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use hull_protocol::paths::{NOTIFY_DIRECTORY, NOTIFY_SOCKET};
use oci_spec::runtime::Mount;
use tokio::net::UnixDatagram;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::spec::SplitConfig;
use crate::error::Error;

/// How much of a message is read, in bytes: as much as systemd(1) takes.
const MAX_MESSAGE_LENGTH: usize = 4096;

/// The socket. It is read until this is dropped.
#[derive(Debug)]
pub struct NotifySocket {
    directory: PathBuf,
    /// Whether a process has reported that the container is ready.
    ready: watch::Receiver<bool>,
    reader: AbortHandle,
}

impl Drop for NotifySocket {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl NotifySocket {
    /// Makes the socket, in a directory of its own below the container's. To be called inside a runtime.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn make(bundle: &Path) -> Result<Self, Error> {
        let directory = bundle.join("notify");
        let failed = || Error::io(format!("make {}", directory.join(NOTIFY_SOCKET).display()));
        fs::create_dir(&directory).map_err(failed())?;
        let opened = fs::File::open(&directory).map_err(failed())?;
        // The directory's path may be longer than a socket address can be.
        let path = format!("/proc/self/fd/{}/{NOTIFY_SOCKET}", opened.as_raw_fd());
        let socket = UnixDatagram::bind(&path).map_err(failed())?;
        // Every user of the container may write to it.
        fs::set_permissions(&path, Permissions::from_mode(0o777)).map_err(failed())?;
        let (sender, ready) = watch::channel(false);
        let reader = tokio::spawn(read(socket, sender)).abort_handle();
        Ok(Self {
            directory,
            ready,
            reader,
        })
    }

    /// Adds the socket's mount and its environment variable to a container's config.json.
    pub fn add_to(&self, config: &mut SplitConfig) {
        let options = ["bind", "nosuid", "noexec", "nodev", "ro"];
        let mut mount = Mount::default();
        mount
            .set_destination(NOTIFY_DIRECTORY.into())
            .set_source(Some(self.directory.clone()))
            .set_options(Some(options.map(str::to_owned).to_vec()));
        let mut mounts = config.spec.mounts().clone().unwrap_or_default();
        mounts.push(mount);
        config.spec.set_mounts(Some(mounts));
        let process = &mut config.launch.process;
        let mut environment = process.env().clone().unwrap_or_default();
        let variable = format!("NOTIFY_SOCKET={NOTIFY_DIRECTORY}/{NOTIFY_SOCKET}");
        // The container's engine may have named it already.
        if !environment.contains(&variable) {
            environment.push(variable);
        }
        process.set_env(Some(environment));
    }

    /// Waits until a process reports that the container is ready.
    ///
    /// # Errors
    /// When the socket can't be read any more.
    pub async fn ready(&self) -> Result<(), Error> {
        let mut ready = self.ready.clone();
        let seen = ready.wait_for(|ready| *ready).await.map(drop);
        seen.map_err(|_| Error::NotFound("a notify socket that can be read".to_owned()))
    }
}

/// Reads what the container's processes say. Who floods the socket pays more for each message than this does: they wait
/// while its queue is full, and tokio has a task that always has something to read take turns with all others.
async fn read(socket: UnixDatagram, ready: watch::Sender<bool>) {
    let mut message = [0; MAX_MESSAGE_LENGTH];
    loop {
        match socket.recv(&mut message).await {
            Ok(length) if says_ready(&message[..length]) => {
                ready.send_replace(true);
            }
            Ok(_) => {}
            Err(e) => {
                log::warn!("a container's notify socket isn't read any more: {e}");
                return;
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
    use std::time::Duration;

    /// More than the queue of a socket holds, net.unix.max_dgram_qlen.
    const MANY: usize = 2000;

    const TIMEOUT: Duration = Duration::from_secs(20);

    #[test]
    fn a_line_of_a_message_says_ready() {
        assert!(says_ready(b"STATUS=up\nREADY=1\n") && says_ready(b"READY=1"));
        assert!(!says_ready(b"READY=10\nSTATUS=READY=1") && !says_ready(b""));
    }

    #[tokio::test]
    async fn all_messages_to_the_socket_are_read_whoever_waits_for_them() {
        let bundle = tempfile::tempdir().expect("temporary directory");
        let socket = NotifySocket::make(bundle.path()).expect("made");
        let client = UnixDatagram::unbound().expect("a socket");
        let path = bundle.path().join("notify").join(NOTIFY_SOCKET);
        client.connect(&path).expect("connected");
        let say = async |message: &str, times| {
            let sent = async {
                for _ in 0..times {
                    client.send(message.as_bytes()).await.expect("sent");
                }
            };
            tokio::time::timeout(TIMEOUT, sent).await.expect("read");
        };
        say("STATUS=not yet", MANY).await;
        assert!(!*socket.ready.borrow());
        say("READY=1", 1).await;
        say("WATCHDOG=1", MANY).await;
        for _caller in 0..2 {
            let ready = tokio::time::timeout(TIMEOUT, socket.ready()).await;
            ready.expect("in time").expect("ready");
        }
    }
}
