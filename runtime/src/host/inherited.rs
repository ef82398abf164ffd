//! What a process of hull's starts with because its caller had it: blocked and ignored signals, and
//! resource limits. Put right before anything else.
//!
//! With runc, a caller's limits are the container's. Here the container's program is in a guest with limits
//! of its own, and those of the caller would only hit hull: a RLIMIT_FSIZE for a program's files ends the VM
//! that writes the container's output. So every command, and the VM process, takes what hull needs, where it
//! may; the host's hooks get back what the caller had.
//!
//! Other ignored signals than SIGCHLD stay so, as the caller wants (nohup); the VM process ignores none (see
//! `sandbox::process`).
#![allow(unsafe_code)] // sigaction

use std::io;
use std::sync::OnceLock;

use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What hull needs, each at least: 8 MiB of stack, as programs are built for; as many threads, open files and
/// signals on their way as the largest VM has; and no bound to what isn't the container's.
const NEEDED: [(Resource, &str, u64); 8] = [
    (Resource::Stack, "RLIMIT_STACK", 8 << 20),
    (Resource::Nproc, "RLIMIT_NPROC", 4096),
    (Resource::Nofile, "RLIMIT_NOFILE", 4096),
    (Resource::Sigpending, "RLIMIT_SIGPENDING", 1024),
    (Resource::Fsize, "RLIMIT_FSIZE", u64::MAX),
    (Resource::Cpu, "RLIMIT_CPU", u64::MAX),
    (Resource::As, "RLIMIT_AS", u64::MAX),
    (Resource::Data, "RLIMIT_DATA", u64::MAX),
];

/// The limits that were changed.
static CHANGED: OnceLock<Vec<Changed>> = OnceLock::new();

struct Changed {
    resource: Resource,
    name: &'static str,
    before: Rlimit,
    /// Whether hull has what it needs now.
    enough: bool,
}

/// Puts signals and limits right. To be called once, before there is a second thread.
pub fn put_right() {
    // It can't fail: a mask may be anything.
    let _ = SigSet::empty().thread_set_mask();
    // The end of a child that is ignored can't be waited for.
    // SAFETY: the default is no handler of this program's.
    let _ = unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl) };
    let changed = NEEDED.into_iter().filter_map(raise).collect();
    let _ = CHANGED.set(changed);
}

/// Raises a limit to what is needed, or as far as this user may; nothing where it is enough.
fn raise((resource, name, needed): (Resource, &'static str, u64)) -> Option<Changed> {
    let before = getrlimit(resource);
    let is_enough = |limit: Option<u64>| limit.is_none_or(|limit| limit >= needed);
    if is_enough(before.current) {
        return None;
    }
    // For rustix, too, none is no limit.
    let needed = Some(needed).filter(|needed| *needed != u64::MAX);
    let hard = match is_enough(before.maximum) {
        true => before.maximum,
        false => needed,
    };
    let whole = Rlimit {
        current: needed,
        maximum: hard,
    };
    let enough = setrlimit(resource, whole).is_ok();
    if !enough {
        let most = Rlimit {
            current: before.maximum,
            maximum: before.maximum,
        };
        // One may always do this.
        let _ = setrlimit(resource, most);
    }
    Some(Changed {
        resource,
        name,
        before,
        enough,
    })
}

/// The names of the limits that stay below what hull needs.
pub fn too_low() -> impl Iterator<Item = &'static str> {
    let changed = CHANGED.get().into_iter().flatten();
    changed
        .filter(|limit| !limit.enough)
        .map(|limit| limit.name)
}

/// Gives a child that is to be somebody else's program the caller's limits. It allocates nothing.
///
/// # Errors
/// When the kernel refuses.
pub fn restore_limits() -> io::Result<()> {
    let mut changed = CHANGED.get().into_iter().flatten();
    changed.try_for_each(|limit| Ok(setrlimit(limit.resource, limit.before)?))
}
