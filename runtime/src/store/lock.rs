//! A container's lock: flock(2) of its folder, with the time limit that it lacks, and a way past a command that
//! never lets go of it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock, major, minor};

use crate::host::ProcessId;

/// How long a command waits for another one on the same container. Longer than a slow boot.
pub const LOCK_TIMEOUT: Duration = Duration::from_secs(60);

/// How long it waits at most if the other one is killed after half of that time.
pub const FORCE_TIMEOUT: Duration = Duration::from_secs(6);

/// Waits for the lock that another command has.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`] after [`LOCK_TIMEOUT`].
pub fn wait(lock: File) -> io::Result<File> {
    Waiting::new(lock).within(LOCK_TIMEOUT)
}

/// Waits for it, and kills a command that keeps it for too long: one that waits for a hook without a time
/// limit, say. What a killed command leaves is what a `delete` removes.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`] when it isn't let go of all the same.
pub fn take(lock: File) -> io::Result<File> {
    let name = Name::of(&lock)?;
    let waiting = Waiting::new(lock);
    match waiting.within(FORCE_TIMEOUT / 2) {
        Err(e) if e.kind() == io::ErrorKind::TimedOut => {}
        result => return result,
    }
    if let Some(holder) = name.holder() {
        log::warn!(
            "another hull command, pid {}, is killed: it kept the container locked",
            holder.pid
        );
        holder.kill(FORCE_TIMEOUT / 2)?;
    }
    waiting.within(FORCE_TIMEOUT / 2)
}

/// flock(2) knows no timeout, so a thread of its own waits for the lock.
struct Waiting(mpsc::Receiver<rustix::io::Result<File>>);

impl Waiting {
    fn new(lock: File) -> Self {
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            let result = flock(&lock, FlockOperation::LockExclusive).map(|()| lock);
            let _ = sender.send(result);
        });
        Self(receiver)
    }

    fn within(&self, timeout: Duration) -> io::Result<File> {
        match self.0.recv_timeout(timeout) {
            Ok(result) => Ok(result?),
            Err(RecvTimeoutError::Timeout) => Err(io::ErrorKind::TimedOut.into()),
            Err(RecvTimeoutError::Disconnected) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

/// A file as /proc/locks names it (proc(5)): its file system's device and its inode.
#[derive(Debug, PartialEq, Eq)]
struct Name(String);

impl Name {
    fn of(file: &File) -> io::Result<Self> {
        let meta = file.metadata()?;
        let (major, minor) = (major(meta.dev()), minor(meta.dev()));
        Ok(Self(format!("{major:02x}:{minor:02x}:{}", meta.ino())))
    }

    /// The process that has the lock, if it is one that can be seen from here.
    fn holder(&self) -> Option<ProcessId> {
        let pid = || self.find_in(&fs::read_to_string("/proc/locks").ok()?);
        let holder = ProcessId::of(pid()?).ok()?;
        // It was there all the while, so its pid isn't another's by now.
        (pid() == Some(holder.pid)).then_some(holder)
    }

    /// The pid of who has a flock, not of those who wait for it.
    fn find_in(&self, locks: &str) -> Option<i32> {
        locks.lines().find_map(|line| {
            let fields: Vec<_> = line.split_ascii_whitespace().collect();
            match fields[..] {
                [_, "FLOCK", _, _, pid, file, ..] if file == self.0 => {
                    pid.parse().ok().filter(|pid| *pid > 0)
                }
                _ => None,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn who_waits_for_a_lock_does_not_have_it() {
        let locks = "1: POSIX  ADVISORY  WRITE 11 00:1a:77 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 12 00:1a:77 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 13 00:1a:77 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 0 00:1a:78 0 EOF\n";
        let find = |name: &str| Name(name.to_owned()).find_in(locks);
        assert_eq!(find("00:1a:77"), Some(12));
        assert_eq!(find("00:1a:78"), None, "it can't be seen");
        assert_eq!(find("00:1a:79"), None);
    }

    #[test]
    fn a_process_that_keeps_it_is_killed() {
        // Some file systems have one number for stat(2) and another for this list.
        let folder = tempfile::tempdir_in("/dev/shm").expect("a folder");
        let path = folder.path().join("lock");
        let mut keeper = Command::new("flock")
            .args(["--no-fork".as_ref(), path.as_os_str()])
            .args(["sh", "-c", "echo locked; exec sleep 600"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("flock");
        let mut said = keeper.stdout.take().expect("a pipe");
        std::io::Read::read_exact(&mut said, &mut [0; 6]).expect("it has the lock");

        let lock = File::open(&path).expect("the lock");
        let _lock = take(lock).expect("it is let go of");

        use std::os::unix::process::ExitStatusExt;
        let end = keeper.wait().expect("our own child");
        assert_eq!(end.signal(), Some(libc::SIGKILL));
    }
}
