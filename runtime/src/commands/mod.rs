//! One file a verb: its options as runc has them, and what it does. [`foreground`] is what `run` and
//! `exec` share while they wait, [`colour`] what reports share, [`damaged`] what `delete` does without a state.

pub mod check;
pub mod checkpoint;
pub mod colour;
pub mod completion;
pub mod config;
pub mod create;
pub mod damaged;
pub mod delete;
pub mod events;
pub mod exec;
pub mod features;
pub mod foreground;
pub mod kill;
pub mod list;
pub mod notify;
pub mod pause;
pub mod process;
pub mod ps;
pub mod run;
pub mod signal;
pub mod spec;
pub mod start;
pub mod state;
pub mod terminal;
pub mod update;
pub mod vmm;
