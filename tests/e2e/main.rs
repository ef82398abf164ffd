//! What a user of hull sees: the whole runtime, driven by its command line, on a KVM host.
//!
//! `tests/run` builds and runs this; see README.md for one test alone. Every test holds for runc too,
//! unless it says that only hull can pass it.
#![allow(clippy::unwrap_used)] // a failed test is a panic

mod bad_input;
mod cli;
mod clock;
mod config;
mod damaged;
mod devices;
mod disk_mounts;
mod ends;
mod engines_config;
mod exec;
mod exit_codes;
mod fields;
mod files;
mod hooks;
mod host_cgroup;
mod host_namespaces;
mod hostile_guest;
mod inherited;
mod jail;
mod joined;
mod joined_attacks;
mod kills;
mod lifecycle;
mod lying_agent;
mod many;
mod memory;
mod mount_options;
mod mounts;
mod namespaces;
mod network;
mod network_changes;
mod notify;
mod oom;
mod overlays;
mod pod;
mod poor_hosts;
mod privileges;
mod process;
mod resolver;
mod rootless;
mod rootless_engine;
mod seccomp;
mod selinux;
mod starved;
mod states;
mod stdio;
mod systemd;
mod systemd_user;
mod terminal;
mod verbs;
mod view;
mod volume_sockets;
mod walls;
