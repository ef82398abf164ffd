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

/// hull's hidden verbs.
const VMM: &str = "vmm";
const STAND_IN: &str = "stand-in";
const ID: &str = "--id=";
const STORE: &str = "--store=";
const OWN_CGROUP: &str = "--own-cgroup";
const SANDBOX: &str = "--sandbox=";
const FOLDER: &str = "--folder=";

/// What a process is executed for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// It runs a VM.
    Vmm {
        /// Whether the cgroup that it is in was made for it, and has to be removed by hand.
        own_cgroup: bool,
    },
    /// It stands for a container in another's sandbox.
    StandIn {
        /// That sandbox.
        sandbox: ContainerId,
        /// The folder of the container's shares in the VM's tree.
        folder: String,
    },
}

/// A container's process that runs.
#[derive(Debug)]
pub struct RunningProcess {
    /// The container's id.
    pub id: ContainerId,
    /// The process.
    pub process: ProcessId,
    /// What it is executed for.
    pub purpose: Purpose,
}

/// What the process of a container is executed with. Its id may begin with a dash.
///
/// # Errors
/// When one has a zero byte in it, which none has.
pub fn arguments(
    purpose: &Purpose,
    store: StoreKey,
    id: &ContainerId,
    config: RawFd,
) -> io::Result<Vec<CString>> {
    let (verb, own) = match purpose {
        Purpose::Vmm { own_cgroup } => {
            let own_cgroup = own_cgroup.then(|| OWN_CGROUP.to_owned());
            (VMM, own_cgroup.into_iter().collect::<Vec<_>>())
        }
        Purpose::StandIn { sandbox, folder } => {
            let own = vec![format!("{SANDBOX}{sandbox}"), format!("{FOLDER}{folder}")];
            (STAND_IN, own)
        }
    };
    let mut words = vec!["hull".to_owned(), verb.to_owned()];
    words.push(format!("{ID}{id}"));
    words.push(format!("{STORE}{store}"));
    words.extend(own);
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
    let (id, purpose) = parse(&fs::read(format!("/proc/{pid}/cmdline")).ok()?, store)?;
    Some(RunningProcess {
        id,
        process,
        purpose,
    })
}

/// Whose process it is that was executed with these arguments, if it is one of the store's containers'.
fn parse(arguments: &[u8], store: StoreKey) -> Option<(ContainerId, Purpose)> {
    let words = std::str::from_utf8(arguments).ok()?;
    let mut words = words.split_terminator('\0').skip(1);
    let verb = words.next()?;
    let words: Vec<&str> = words.collect();
    let value = |name: &str| words.iter().find_map(|word| word.strip_prefix(name));
    let purpose = match verb {
        VMM => Purpose::Vmm {
            own_cgroup: words.contains(&OWN_CGROUP),
        },
        STAND_IN => Purpose::StandIn {
            sandbox: value(SANDBOX)?.parse().ok()?,
            folder: value(FOLDER)?.to_owned(),
        },
        _ => return None,
    };
    let is_ours = value(STORE) == Some(&*store.to_string());
    Some((value(ID).filter(|_| is_ours)?.parse().ok()?, purpose))
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
        let stand_in = Purpose::StandIn {
            sandbox: "pod".parse().expect("id"),
            folder: "f".to_owned(),
        };
        let own_cgroup = true;
        for (id, purpose) in [("web", Purpose::Vmm { own_cgroup }), ("-a", stand_in)] {
            let id: ContainerId = id.parse().expect("id");
            let words = arguments(&purpose, ours, &id, 7).expect("arguments");
            let words: Vec<u8> = words
                .iter()
                .flat_map(|word| word.as_bytes_with_nul())
                .copied()
                .collect();
            assert_eq!(parse(&words, others), None);
            assert_eq!(parse(&words, ours), Some((id, purpose)));
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
        let own = Purpose::Vmm { own_cgroup: true };
        let id = "web".parse().expect("id");
        let words = arguments(&own, key, &id, 7).expect("arguments");
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
        assert_eq!((vmm.id.as_str(), &vmm.purpose), ("web", &own));
        assert_eq!(vmm.process.pid, child.id().cast_signed());

        vmm.process.kill(Duration::from_secs(5)).expect("killed");
        child.wait().expect("wait");
        assert!(running(key).expect("/proc").is_empty());
    }
}
