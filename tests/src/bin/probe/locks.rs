//! Locks on files, between two processes.

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::Command;

use rustix::fs::{FlockOperation, fcntl_lock, flock};

/// Takes a lock without waiting; an error when somebody else has it.
pub fn try_lock(kind: &str, path: &Path) -> io::Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    lock(kind, &file, FlockOperation::NonBlockingLockExclusive)
}

fn lock(kind: &str, file: &File, operation: FlockOperation) -> io::Result<()> {
    match kind {
        "flock" => flock(file, operation)?,
        _ => fcntl_lock(file, operation)?,
    }
    Ok(())
}

/// Holds a lock: another process must not get it until it is let go.
pub fn check(kind: &str, dir: &Path) -> io::Result<()> {
    let path = dir.join(format!("{kind}-lock"));
    let file = File::create_new(&path)?;
    let another_gets_it = || -> io::Result<bool> {
        let output = Command::new("/proc/self/exe")
            .args(["try-lock", kind])
            .arg(&path)
            .output()?;
        Ok(output.status.success())
    };

    if !another_gets_it()? {
        return Err(io::Error::other("a free lock can't be had"));
    }
    lock(kind, &file, FlockOperation::LockExclusive)?;
    if another_gets_it()? {
        return Err(io::Error::other("a held lock can be had a second time"));
    }
    lock(kind, &file, FlockOperation::Unlock)?;
    if !another_gets_it()? {
        return Err(io::Error::other("a lock that was let go can't be had"));
    }
    Ok(())
}
