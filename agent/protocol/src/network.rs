//! The limits of a container's network, which the host describes and the agent sets up. Both refuse what exceeds them.

/// The most interfaces of a container.
pub const MAX_INTERFACES: usize = 64;

/// The most addresses of an interface.
pub const MAX_ADDRESSES: usize = 256;

/// The most sysctls of an interface.
pub const MAX_SYSCTLS: usize = 128;

/// The most routes of a container, in all tables together.
pub const MAX_ROUTES: usize = 4096;

/// The most neighbours of a container.
pub const MAX_NEIGHBOURS: usize = 1024;

/// The most rules of a container.
pub const MAX_RULES: usize = 1024;

/// Stands for the interface's name in the key of a sysctl.
pub const IFNAME: &str = "IFNAME";
