//! The host's kernel, as far as hull itself is concerned: what hull's user may do there, processes that are named so that
//! no other is taken for them, what a process inherits and is passed, its SELinux label, waiting, files that are replaced
//! whole, and whether two are one.

pub mod inherited;
mod pass_fds;
mod privilege;
mod process_id;
mod same_file;
mod selinux;
mod staged;
mod wait;

pub use pass_fds::send_with_fds;
pub use privilege::Privilege;
pub use process_id::{ENDED, ProcessId};
pub use same_file::is_same_file;
pub use selinux::{NextLabel, is_enabled as is_selinux_enabled};
pub use staged::Staged;
pub use wait::{async_readable, wait_for_any, wait_readable};
