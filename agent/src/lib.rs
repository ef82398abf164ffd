//! PID 1 of the guest: it prepares the guest, makes containers and processes when the host asks for
//! them, carries their stdio, and reports what becomes of them.
//!
//! It is a library so that the tests can run it over UNIX sockets, outside a VM; the binary beside it
//! is only the choice between PID 1 and a helper. What must happen in a process with one thread and
//! nothing else in it (entering namespaces, changing credentials) happens in such a
//! [`helper`], which is this same program once more.

pub mod boot;
pub mod cgroup;
pub mod clock;
pub mod console;
pub mod container;
pub mod containers;
pub mod error;
pub mod exec;
pub mod helper;
pub mod limits;
pub mod notices;
pub mod process;
pub mod processes;
pub mod reaper;
pub mod sandbox;
pub mod server;
pub mod stdio;
mod sys;
pub mod transport;
