//! The protocol between the host and the agent in the guest: RPC stubs, vsock ports, the handshake.
//!
//! Both sides are built from one tree and shipped in one file, so versions aren't negotiated: the handshake only
//! detects a mismatch.

pub mod answers;
pub mod hello;
pub mod network;
pub mod notices;
pub mod paths;
pub mod ports;
pub mod resolver;
pub mod terminal;
pub mod volume_sockets;

/// The messages of `agent.proto`.
pub mod agent {
    #![allow(warnings, clippy::all, rustdoc::all)] // generated
    include!(concat!(env!("OUT_DIR"), "/agent.rs"));
}

/// The client and the server of `agent.proto`'s service.
pub mod agent_ttrpc {
    #![allow(warnings, clippy::all, rustdoc::all)] // generated
    include!(concat!(env!("OUT_DIR"), "/agent_ttrpc.rs"));
}
