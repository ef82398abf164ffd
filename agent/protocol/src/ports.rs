//! The vsock ports, and who dials whom.
//!
//! The ports below [`FIRST_STREAM`] are fixed. From there on the host allocates a port for each stream that it
//! connects to a file descriptor, and none twice in a sandbox's life.

/// The agent listens here, in the guest, and serves ttrpc.
pub const AGENT: u32 = 1024;

/// The agent dials this port of the host once it serves, and sends a [`hello`](crate::hello). Unlike all other ports,
/// this one and [`NOTICES`] take no token: no container exists yet whose processes could dial them first.
pub const READY: u32 = 1;

/// The agent dials this port of the host to send the exit status of the container that the sandbox ends with.
pub const EXIT_STATUS: u32 = 2;

/// The agent dials this port of the host to receive [`notices`](crate::notices). It does so once, before it sends the
/// hello, and so before there is a container.
pub const NOTICES: u32 = 3;

/// The first of the host's ports for stdio streams.
pub const FIRST_STREAM: u32 = 0x1_0000;

/// The name by which the guest mounts the shared tree (the virtio-fs tag).
pub const SHARE_TAG: &str = "hull";
