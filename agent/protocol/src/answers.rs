//! The maximum length of the agent's answers. Decoded, an answer may take fifty times as much memory on the host, and
//! a compromised guest may send anything.

/// The longest answer that the host accepts, in bytes, including ttrpc's response message around it.
pub const MAX_LENGTH: usize = 64 << 10;

/// The longest error message in an answer, in bytes; the rest is cut off.
pub const MAX_REASON_LENGTH: usize = 16 << 10;

/// How many processes an answer has at most; for more, the host asks for those after the last one.
///
/// A process takes the 512 bytes of its command, each of which may have become a U+FFFD of three bytes, and about
/// sixty bytes for the other fields.
pub const MAX_PROCESSES: usize = 32;

const _: () = assert!(MAX_PROCESSES * (3 * 512 + 128) + 1024 < MAX_LENGTH);
const _: () = assert!(MAX_REASON_LENGTH + 1024 < MAX_LENGTH);
