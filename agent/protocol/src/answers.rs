//! How long the agent's answers are. What the host decodes of them may need fifty times as much memory, and a
//! guest that has been taken over sends what it likes.

/// The longest answer that the host takes, in bytes, with the envelope that ttrpc puts around it.
pub const LONGEST: usize = 64 << 10;

/// The longest reason for a refusal, in bytes; the rest is cut off.
pub const LONGEST_REASON: usize = 16 << 10;

/// The most processes in one answer; whoever wants more asks for those after the last one.
///
/// A process takes its command's 512 bytes, each of which may have become U+FFFD of three, and some sixty
/// for the rest.
pub const PROCESSES: usize = 32;

const _: () = assert!(PROCESSES * (3 * 512 + 128) + 1024 < LONGEST);
const _: () = assert!(LONGEST_REASON + 1024 < LONGEST);
