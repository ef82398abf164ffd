//! The host's kernel, as far as hull itself is concerned: processes that are named so that no other is taken for
//! them, what a process inherits, its SELinux label, files that are replaced whole.

pub mod inherited;
mod process_id;
mod selinux;
mod staged;

pub use process_id::{ENDED, ProcessId};
pub use selinux::{NextLabel, is_enabled as is_selinux_enabled};
pub use staged::Staged;
