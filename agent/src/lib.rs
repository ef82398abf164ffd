//! PID 1 of the guest: it prepares the guest, makes containers and processes when the host asks for
//! them, forwards their stdio, and reports their exit statuses.
//!
//! It is a library so that the tests can run it over UNIX sockets, outside a VM; the binary only chooses
//! between PID 1 and a helper. What takes a single-threaded process of its own (entering namespaces,
//! changing credentials) is done in a [`helper`]: the same program, executed again.

pub mod boot;
mod bpf;
pub mod cgroup;
pub mod clock;
pub mod console;
pub mod container;
pub mod containers;
pub mod error;
pub mod exec;
pub mod helper;
pub mod limits;
pub mod network;
pub mod notices;
pub mod process;
pub mod procfs;
pub mod reaper;
pub mod sandbox;
pub mod server;
pub mod shared_memory;
mod slots;
pub mod stdio;
mod sys;
pub mod transport;
pub mod volume_sockets;
