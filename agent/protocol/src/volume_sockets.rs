//! Connections of the guest's processes to UNIX sockets of the host that lie in their shares.
//!
//! The guest's kernel asks the host to connect, by a request to the virtio-fs device that is none of FUSE's
//! (guest-kernel/patches/volume-sockets.patch). The host's answer names a stream, at which the agent finds the host's
//! end. The kernel then connects the process to the agent's socket [`NAME`], where the agent reads that answer first.

/// The abstract name, in the guest's own network namespace, of the socket at which the agent listens; the kernel knows it
/// too. It is the agent's alone: the kernel looks who listens.
pub const NAME: &[u8] = b"hull/volume-sockets";

/// The length of an answer: the port, a little-endian u32, and the stream's token, in bytes.
pub const LENGTH: usize = 20;

/// Where the agent finds the host's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The host's vsock port.
    pub port: u32,
    /// What is sent there first.
    pub token: [u8; 16],
}

impl Answer {
    /// The answer in what was read.
    #[must_use]
    pub fn decode([p0, p1, p2, p3, token @ ..]: [u8; LENGTH]) -> Self {
        let port = u32::from_le_bytes([p0, p1, p2, p3]);
        Self { port, token }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_a_port_and_a_token() {
        let bytes = std::array::from_fn(|n| u8::try_from(n).unwrap_or_default());
        let answer = Answer::decode(bytes);
        assert_eq!(answer.port, 0x0302_0100);
        assert_eq!(answer.token[..2], [4, 5]);
        assert_eq!(answer.token[15], 19);
    }
}
