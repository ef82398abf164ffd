//! `hull`: an OCI runtime that gives every container its own KVM microVM.
//!
//! This binary is who drives the library: the command line ([`cli`] has a file for each verb) and, under another name,
//! containerd's shim ([`shim`]). What the verbs do is in the library (`lib.rs`), in `lifecycle`. `docs/architecture.md` has the way from here to the program in the guest.

mod cli;
mod shim;

use std::process::ExitCode;

fn main() -> ExitCode {
    hull_runtime::host::inherited::put_right();
    if shim::is_called() {
        return shim::run();
    }
    cli::run()
}
