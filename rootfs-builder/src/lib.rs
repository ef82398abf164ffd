//! Builds root file systems: for now the guest's initramfs, from the agent alone. The same input gives
//! the same bytes, on every machine and every day.

pub mod agent;
pub mod initramfs;
