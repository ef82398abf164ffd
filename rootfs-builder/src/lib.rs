//! Builds root file systems: for now only the guest's initramfs, which has only the agent. The same input
//! gives the same bytes, on every machine and at every time.

pub mod agent;
pub mod initramfs;
