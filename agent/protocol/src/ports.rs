//! The vsock ports, and who dials whom.
//!
//! The guest's ports below [`FIRST_STREAM`] are fixed; the host hands out ports from there on, one for
//! each stream that it joins to a file descriptor, and never one twice in a sandbox's life.

/// The agent listens here, in the guest, and serves ttrpc.
pub const AGENT: u32 = 1024;

/// The agent dials this port of the host once it listens, and sends a [`hello`](crate::hello). It and
/// [`NOTICES`] need no token, as every other port does: there is no container yet whose processes could be
/// quicker.
pub const READY: u32 = 1;

/// On this port of the host the exit status of the sandbox's own container is awaited.
pub const EXIT_STATUS: u32 = 2;

/// The agent dials this port of the host to hear what the VM process tells: see [`notices`](crate::notices). It
/// is taken before the host is greeted, so before there is a container, and for good.
pub const NOTICES: u32 = 3;

/// The first of the host's ports for stdio streams.
pub const FIRST_STREAM: u32 = 0x1_0000;

/// The name by which the guest mounts the shared tree (the virtio-fs tag).
pub const SHARE_TAG: &str = "hull";
