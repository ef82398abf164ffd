//! Puts the guest's kernel and initramfs where `sandbox/assets.rs` includes them from.
//!
//! `HULL_KERNEL` and `HULL_INITRAMFS` name them; the Makefile sets both. Without them the binary is
//! built without a guest, which is all that `cargo check` and the unit tests need; it then says so.

use std::path::Path;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    place("HULL_KERNEL", "vmlinux")?;
    place("HULL_INITRAMFS", "initramfs.cpio")
}

fn place(variable: &str, name: &str) -> io::Result<()> {
    println!("cargo::rerun-if-env-changed={variable}");
    let out = env::var("OUT_DIR").map_err(io::Error::other)?;
    let target = Path::new(&out).join(name);
    match env::var(variable) {
        Ok(source) if !source.is_empty() => {
            println!("cargo::rerun-if-changed={source}");
            fs::copy(&source, &target)
                .map_err(|e| io::Error::new(e.kind(), format!("{variable}={source}: {e}")))?;
        }
        _ => fs::write(&target, "")?,
    }
    Ok(())
}
