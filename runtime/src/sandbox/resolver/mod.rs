//! The resolver of a container's network, as far as it is reached from the guest: docker's, which listens at 127.0.0.11 in
//! the container's network namespace on the host.
//!
//! The agent stands for it in the guest, and passes questions and answers on a stream of its own
//! ([`hull_protocol::resolver`]). The VM process relays between that stream and sockets that are connected to the
//! resolver; it may make none itself. So a command makes them in the namespace, with a pair of sockets for the stream: one
//! end goes with them to the VM process (`RESOLVER`, see [`relay`]), the other to a vsock port (`ATTACH`).

mod frame;
pub(super) mod relay;

use std::io::BufReader;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::agent::printable;
use super::socket::{self, CALL_TIMEOUT};
use super::stdio::attach_streams;
use super::{AgentError, HostStream};
use crate::host::send_with_fds;
use relay::{MOST_SOCKETS, VERB};

/// How many sockets the VM process is handed: one to use, and one for when the resolver has begun anew at another port.
pub const SOCKETS: usize = MOST_SOCKETS;

/// The longest line that a VMM answers with, in bytes.
const LONGEST_ANSWER: usize = 100;

/// A relay that waits for the agent.
#[derive(Debug)]
pub struct WaitingRelay {
    stream: HostStream,
    /// While it is open, the port stays on offer.
    _offered: BufReader<UnixStream>,
}

impl WaitingRelay {
    /// Has the VM process with this control socket relay to a resolver by sockets that are connected to it.
    ///
    /// # Errors
    /// When it doesn't answer, or refuses.
    pub fn make(control: &Path, sockets: &[OwnedFd]) -> Result<Self, AgentError> {
        let failed = |what| socket::failed(what, CALL_TIMEOUT);
        let (vmms, guests) = UnixStream::pair().map_err(AgentError::Client)?;
        let mut vmm = socket::dial(control, CALL_TIMEOUT)?;
        let handed: Vec<_> = std::iter::once(vmms.as_fd())
            .chain(sockets.iter().map(AsFd::as_fd))
            .collect();
        send_with_fds(&mut vmm, format!("{VERB}\n").as_bytes(), &handed)
            .map_err(failed("take a resolver's sockets"))?;
        let timeout = Some(CALL_TIMEOUT);
        let line = socket::answer(&mut BufReader::new(vmm), LONGEST_ANSWER, timeout);
        let line = line.map_err(failed("relay to a resolver"))?;
        if line.trim_end() != "OK" {
            let why = match line.trim_end() {
                "" => "it is of an earlier version of hull".to_owned(),
                why => printable(why, LONGEST_ANSWER),
            };
            let what = "resolver";
            return Err(AgentError::NotTaken { what, why });
        }
        let (offered, streams) = attach_streams(control, b"ATTACH d--\n", &[guests.into()])?;
        let [Some(stream), ..] = streams else {
            return Err(AgentError::NotServing);
        };
        Ok(Self {
            stream,
            _offered: offered,
        })
    }

    /// Where the agent finds it.
    pub fn stream(&self) -> HostStream {
        self.stream
    }
}
