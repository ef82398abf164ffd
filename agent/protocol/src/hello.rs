//! The handshake: what the agent sends on [`ports::READY`](crate::ports::READY) once it serves.
//!
//! Eight bytes: the magic `hull`, and the protocol's version as a little-endian u32.

/// The protocol's version. Raise it with every change of `agent.proto` or of the ports.
pub const VERSION: u32 = 9;

/// The length of a hello, in bytes.
pub const LENGTH: usize = 8;

const MAGIC: [u8; 4] = *b"hull";

/// Why a hello was not accepted.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// It doesn't begin with the magic.
    #[error("the guest's greeting is not an agent's")]
    Magic,
    /// An agent of another version.
    #[error(
        "the guest's agent speaks protocol {found}, this hull speaks {VERSION}; rebuild the initramfs"
    )]
    Version {
        /// The agent's version.
        found: u32,
    },
}

/// The hello of this version.
pub fn encode() -> [u8; LENGTH] {
    let mut bytes = [0; LENGTH];
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4..].copy_from_slice(&VERSION.to_le_bytes());
    bytes
}

/// Checks a hello that came from a guest.
///
/// # Errors
/// When it is no hello, or has another version.
pub fn check(bytes: [u8; LENGTH]) -> Result<(), HelloError> {
    let [m0, m1, m2, m3, v0, v1, v2, v3] = bytes;
    if [m0, m1, m2, m3] != MAGIC {
        return Err(HelloError::Magic);
    }
    match u32::from_le_bytes([v0, v1, v2, v3]) {
        VERSION => Ok(()),
        found => Err(HelloError::Version { found }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_of_this_version_is_accepted() {
        assert_eq!(check(encode()), Ok(()));
    }

    #[test]
    fn another_version_is_named() {
        let mut bytes = encode();
        bytes[4] ^= 0x80;
        assert_eq!(
            check(bytes),
            Err(HelloError::Version {
                found: VERSION ^ 0x80
            })
        );
    }

    #[test]
    fn garbage_is_refused() {
        assert_eq!(check([0; LENGTH]), Err(HelloError::Magic));
    }
}
