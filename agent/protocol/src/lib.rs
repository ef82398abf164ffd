//! The contract between the host and the agent in the guest: RPC stubs, vsock ports, the handshake.
//!
//! Both sides are built from one tree and shipped in one file, so there is one version and no
//! negotiation: the handshake only makes a mismatch loud.

pub mod answers;
pub mod hello;
pub mod notices;
pub mod paths;
pub mod ports;
pub mod terminal;

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
