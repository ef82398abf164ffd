//! `hull`: an OCI runtime that gives every container its own KVM microVM.
//!
//! This binary is the command line alone: [`cli`] has a file for each verb. What the verbs do is in the library
//! (`lib.rs`), in `lifecycle`. `docs/architecture.md` has the way from here to the program in the guest.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    hull_runtime::host::inherited::put_right();
    cli::run()
}
