//! The mount namespaces of another process.

use std::fs::{self, File};

use nix::sched::{CloneFlags, setns, unshare};

/// Runs `work` in the mount namespace of a process, as engines do that copy files into a container.
#[track_caller]
pub fn in_mounts_of<T: Send>(pid: i32, work: impl FnOnce() -> T + Send) -> T {
    let namespace = File::open(format!("/proc/{pid}/ns/mnt")).expect("the process lives");
    let enter = || {
        // Its root and working directory change with it, and are those of all threads otherwise.
        unshare(CloneFlags::CLONE_FS).expect("root may do that");
        setns(namespace, CloneFlags::CLONE_NEWNS).expect("root may do that");
        work()
    };
    let done = std::thread::scope(|scope| scope.spawn(enter).join());
    done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// The mounts (/proc/PID/mounts) of the tree that a VM process serves to its guest: those of each of its threads but the
/// first.
#[track_caller]
pub fn mounts_of_the_tree(vmm: i32) -> String {
    let threads = fs::read_dir(format!("/proc/{vmm}/task")).expect("the process lives");
    let names = threads.map(|thread| thread.expect("an entry").file_name());
    let mut others = names.filter(|name| name.to_str() != Some(&vmm.to_string()));
    let other = others.next().expect("it has several threads");
    let path = format!("/proc/{vmm}/task/{}/mounts", other.display());
    fs::read_to_string(path).expect("the thread lives")
}
