//! The states of a machine's parts, as values that serde writes and reads: what a snapshot is to be made of.
//! Each part has its `save` and `restore` beside it; here they have a name outside of this crate.
//!
//! No command saves anything yet, and nothing here writes a file or stops a vCPU.

pub use crate::arch::{Platform, PlatformState, PlatformStateError};
