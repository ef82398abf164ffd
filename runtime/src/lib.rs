//! The host side of hull: what a container and its microVM are on the host, and the verbs of their life, for
//! whoever drives them. The command line (`cli`, in the binary) is one such caller; nothing here knows of its
//! options, or prints.
//!
//! The modules are layers. Each uses those above it in this list, and none below:
//!
//! | layer | what it is |
//! | --- | --- |
//! | [`types`] | plain types that every layer speaks of |
//! | [`host`] | the host's kernel, as far as hull itself is concerned |
//! | [`network`] | what is in a container's network namespace on the host, and its ways to the VM |
//! | [`config`] | what an operator can change |
//! | [`spec`] | config.json: read, audited, split into the host's part and the guest's |
//! | [`cgroup`] | the VM's cgroup on the host |
//! | [`store`] | containers and sandboxes on disk |
//! | [`sandbox`] | a microVM: the process that runs it, and the agent in it |
//! | [`lifecycle`] | create, start, exec, kill, delete and the rest |
//!
//! `.ci/layers` fails where one uses a layer below it. How an error is told, with its causes, is the monitor's
//! ([`chain`]).

pub use hull_vmm::chain;

pub mod types;

pub mod host;

pub mod network;

pub mod config;

pub mod spec;

pub mod cgroup;

pub mod store;

pub mod sandbox;

pub mod lifecycle;
