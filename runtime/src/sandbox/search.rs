//! The arguments of VMM processes and stand-ins, and finding such a process by them where no readable state names it.
//!
//! A file in the container's folder could be damaged or gone with the state; what a process was executed with
//! can't, and costs the start nothing. An id is unique below one `--root` only, so the arguments also name that
//! folder as the kernel does.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::fs::MetadataExt;

use crate::host::ProcessId;
use crate::store::StoreKey;
use crate::types::ContainerId;

const ID: &str = "--id=";
const STORE: &str = "--store=";
const OWN_CGROUP: &str = "--own-cgroup";

/// What a process is executed for: hull's hidden verbs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// It runs a VM.
    Vmm,
    /// It stands for a container in another's sandbox.
    StandIn,
}

impl Purpose {
    const ALL: [Self; 2] = [Self::Vmm, Self::StandIn];

    fn verb(self) -> &'static str {
        match self {
            Self::Vmm => "vmm",
            Self::StandIn => "stand-in",
        }
    }
}

/// A container's process that runs.
#[derive(Debug)]
pub struct RunningProcess {
    /// The container's id.
    pub id: ContainerId,
    /// The process.
    pub process: ProcessId,
    /// Whether the cgroup that it is in was made for it, and has to be removed by hand.
    pub own_cgroup: bool,
}

/// What the process of a container is executed with. Its id may begin with a dash.
///
/// # Errors
/// When one has a zero byte in it, which none has.
pub fn arguments(
    purpose: Purpose,
    store: StoreKey,
    id: &ContainerId,
    own_cgroup: bool,
    config: RawFd,
) -> io::Result<Vec<CString>> {
    let mut words = vec!["hull".to_owned(), purpose.verb().to_owned()];
    words.push(format!("{ID}{id}"));
    words.push(format!("{STORE}{store}"));
    words.extend(own_cgroup.then(|| OWN_CGROUP.to_owned()));
    words.push(format!("--config-fd={config}"));
    let words = words.into_iter().map(CString::new);
    Ok(words.collect::<Result<_, _>>()?)
}

/// The processes of a store's containers that run, whatever is left of the containers' folders. For an
/// ordinary user, this user's.
///
/// # Errors
/// When /proc can't be read.
pub fn running(store: StoreKey) -> io::Result<Vec<RunningProcess>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        if let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) {
            found.extend(look_at(pid, store));
        }
    }
    Ok(found)
}

fn look_at(pid: i32, store: StoreKey) -> Option<RunningProcess> {
    let user = rustix::process::geteuid();
    let owner = fs::metadata(format!("/proc/{pid}")).ok()?.uid();
    if !user.is_root() && owner != user.as_raw() {
        return None;
    }
    // First: whose arguments are read later than that is this process, or is never signalled.
    let process = ProcessId::of(pid).ok()?;
    let (id, own_cgroup) = parse(&fs::read(format!("/proc/{pid}/cmdline")).ok()?, store)?;
    Some(RunningProcess {
        id,
        process,
        own_cgroup,
    })
}

/// Whose process it is that was executed with these arguments, if it is one of the store's containers'.
fn parse(arguments: &[u8], store: StoreKey) -> Option<(ContainerId, bool)> {
    let words = std::str::from_utf8(arguments).ok()?;
    let mut words = words.split_terminator('\0').skip(1);
    let verb = words.next()?;
    if !Purpose::ALL.iter().any(|purpose| purpose.verb() == verb) {
        return None;
    }
    let words: Vec<&str> = words.collect();
    let value = |name: &str| words.iter().find_map(|word| word.strip_prefix(name));
    let is_ours = value(STORE) == Some(&*store.to_string());
    let id = value(ID).filter(|_| is_ours)?.parse().ok()?;
    Some((id, words.contains(&OWN_CGROUP)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    #[test]
    fn a_vmm_process_is_known_by_its_arguments() {
        let root = tempfile::tempdir().expect("a folder");
        let store = |name| {
            Store::open(&root.path().join(name))
                .and_then(|store| store.key())
                .expect("a store")
        };
        let (ours, others) = (store("ours"), store("others"));
        for (id, own_cgroup) in [("web", true), ("-a", false)] {
            let id: ContainerId = id.parse().expect("id");
            let purpose = if own_cgroup {
                Purpose::Vmm
            } else {
                Purpose::StandIn
            };
            let words = arguments(purpose, ours, &id, own_cgroup, 7).expect("arguments");
            let words: Vec<u8> = words
                .iter()
                .flat_map(|word| word.as_bytes_with_nul())
                .copied()
                .collect();
            assert_eq!(parse(&words, ours), Some((id, own_cgroup)));
            assert_eq!(parse(&words, others), None);
        }
        for other in ["", "hull\0", "hull\0run\0--id=web\0"] {
            assert_eq!(parse(other.as_bytes(), ours), None);
        }
    }

    #[test]
    fn a_process_is_found_without_any_file_of_its_container() {
        let root = tempfile::tempdir().expect("a folder");
        let key = Store::open(root.path()).and_then(|store| store.key());
        let key = key.expect("a store");
        let words =
            arguments(Purpose::Vmm, key, &"web".parse().expect("id"), true, 7).expect("arguments");
        // A shell that reads a script called "vmm", and passes over the other words.
        fs::write(root.path().join("vmm"), "read line").expect("a script");
        let words = words.iter().map(|word| word.to_string_lossy().into_owned());
        let mut child = Command::new("/bin/sh")
            .arg0("hull")
            .args(words.skip(1))
            .current_dir(root.path())
            .stdin(Stdio::piped())
            .spawn()
            .expect("a process");

        let found = running(key).expect("/proc");
        let [vmm] = &found[..] else {
            panic!("{found:?}");
        };
        assert_eq!((vmm.id.as_str(), vmm.own_cgroup), ("web", true));
        assert_eq!(vmm.process.pid, child.id().cast_signed());

        vmm.process.kill(Duration::from_secs(5)).expect("killed");
        child.wait().expect("wait");
        assert!(running(key).expect("/proc").is_empty());
    }
}
