//! The arguments of VMM processes, stand-ins and followers, and finding such a process by them where no readable state names it.
//!
//! A file in the container's folder could be damaged or gone with the state; what a process was executed with
//! can't, and costs the start nothing. An id is unique below one `--root` only, so the arguments also name that
//! folder as the kernel does.
//!
//! Anybody can execute something with such arguments, and a VM's process in the wrong hands can rewrite its own. So
//! root believes the arguments only where to look: whose process it is, the file says that it was given
//! ([`handover`]). Who isn't root of the host can't have such a file: an ordinary user believes the processes of this
//! user, and root of a user namespace those of its own user that are in that namespace.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::fs::MetadataExt;

use super::handover;
use crate::host::{Privilege, ProcessId};
use crate::store::StoreKey;
use crate::types::ContainerId;

/// hull's hidden verbs.
const VMM: &str = "vmm";
const STAND_IN: &str = "stand-in";
const FOLLOW: &str = "follow";
const ID: &str = "--id=";
const STORE: &str = "--store=";
const OWN_CGROUP: &str = "--own-cgroup";
const SANDBOX: &str = "--sandbox=";
const FOLDER: &str = "--folder=";
const CONFIG_FD: &str = "--config-fd=";

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
        /// As with a VM's.
        own_cgroup: bool,
    },
    /// It passes on what happens on the host or in the guest.
    Follower,
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

/// Whose process it is, as the words that its arguments begin with. The container's id may begin with a dash.
#[derive(Debug)]
pub struct ProcessIdentity(Vec<String>);

impl ProcessIdentity {
    /// That of the process of a container of the store.
    pub fn new(purpose: &Purpose, store: StoreKey, id: &ContainerId) -> Self {
        let with_cgroup = |own_cgroup: &bool| own_cgroup.then(|| OWN_CGROUP.to_owned());
        let (verb, own) = match purpose {
            Purpose::Vmm { own_cgroup } => (VMM, Vec::from_iter(with_cgroup(own_cgroup))),
            Purpose::StandIn {
                sandbox,
                folder,
                own_cgroup,
            } => {
                let mut own = vec![format!("{SANDBOX}{sandbox}"), format!("{FOLDER}{folder}")];
                own.extend(with_cgroup(own_cgroup));
                (STAND_IN, own)
            }
            Purpose::Follower => (FOLLOW, Vec::new()),
        };
        let mut words = vec!["hull".to_owned(), verb.to_owned()];
        words.push(format!("{ID}{id}"));
        words.push(format!("{STORE}{store}"));
        words.extend(own);
        Self(words)
    }

    /// For the file that the process is given.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.join("\0").into_bytes()
    }

    /// What the process is executed with, that file among it.
    ///
    /// # Errors
    /// When one has a zero byte in it, which none has.
    pub fn arguments(&self, config: RawFd) -> io::Result<Vec<CString>> {
        let last = format!("{CONFIG_FD}{config}");
        let words = self.0.iter().map(String::as_str).chain([&*last]);
        Ok(words.map(CString::new).collect::<Result<_, _>>()?)
    }
}

/// The processes of a store's containers that run, whatever is left of the containers' folders. For who isn't
/// root of the host, this user's.
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
    // First: whose arguments are read later than that is this process, or is never signalled.
    let process = ProcessId::of(pid).ok()?;
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let (mut id, mut purpose) = parse(&arguments, store)?;
    let is_believed = match Privilege::own() {
        Privilege::HostRoot => {
            let config = value(&arguments, CONFIG_FD)?.parse().ok()?;
            (id, purpose) = parse(&handover::identity(pid, config).ok()?, store)?;
            true
        }
        Privilege::NamespaceRoot => is_own_users(pid)? && is_in_own_user_namespace(pid)?,
        Privilege::User => is_own_users(pid)?,
    };
    if !is_believed {
        return None;
    }
    Some(RunningProcess {
        id,
        process,
        purpose,
    })
}

/// Whether a process is one of this process's user.
fn is_own_users(pid: i32) -> Option<bool> {
    let process = fs::metadata(format!("/proc/{pid}")).ok()?;
    Some(process.uid() == rustix::process::geteuid().as_raw())
}

fn is_in_own_user_namespace(pid: i32) -> Option<bool> {
    let namespace = |process: &str| {
        let file = fs::metadata(format!("/proc/{process}/ns/user")).ok()?;
        Some((file.dev(), file.ino()))
    };
    Some(namespace(&pid.to_string())? == namespace("self")?)
}

/// The words after the program's name.
fn words(arguments: &[u8]) -> impl Iterator<Item = &str> {
    let text = std::str::from_utf8(arguments).unwrap_or_default();
    text.split_terminator('\0').skip(1)
}

/// The value of an option, as `--id=` is one.
fn value<'a>(arguments: &'a [u8], name: &str) -> Option<&'a str> {
    words(arguments).find_map(|word| word.strip_prefix(name))
}

/// Whose process it is by these arguments, if it is one of the store's containers'.
fn parse(arguments: &[u8], store: StoreKey) -> Option<(ContainerId, Purpose)> {
    let value = |name| value(arguments, name);
    let own_cgroup = words(arguments).any(|word| word == OWN_CGROUP);
    let purpose = match words(arguments).next()? {
        VMM => Purpose::Vmm { own_cgroup },
        STAND_IN => Purpose::StandIn {
            sandbox: value(SANDBOX)?.parse().ok()?,
            folder: value(FOLDER)?.to_owned(),
            own_cgroup,
        },
        FOLLOW => Purpose::Follower,
        _ => return None,
    };
    let is_ours = value(STORE) == Some(&*store.to_string());
    Some((value(ID).filter(|_| is_ours)?.parse().ok()?, purpose))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;
    use std::os::fd::AsRawFd;
    use std::os::unix::process::CommandExt;
    use std::path::Path;
    use std::process::{Child, Command, Stdio};
    use std::time::Duration;

    use rustix::io::FdFlags;

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
            own_cgroup: true,
        };
        let own_cgroup = true;
        let follower = Purpose::Follower;
        for (id, purpose) in [
            ("web", Purpose::Vmm { own_cgroup }),
            ("-a", stand_in),
            ("b", follower),
        ] {
            let id: ContainerId = id.parse().expect("id");
            let identity = ProcessIdentity::new(&purpose, ours, &id);
            let words = identity.arguments(7).expect("arguments");
            let words: Vec<u8> = words
                .iter()
                .flat_map(|word| word.as_bytes_with_nul())
                .copied()
                .collect();
            assert_eq!(value(&words, CONFIG_FD), Some("7"));
            for words in [words, identity.to_bytes()] {
                assert_eq!(parse(&words, others), None);
                assert_eq!(parse(&words, ours), Some((id.clone(), purpose.clone())));
            }
        }
        for other in ["", "hull\0", "hull\0run\0--id=web\0"] {
            assert_eq!(parse(other.as_bytes(), ours), None);
        }
    }

    /// A process that is executed with these words after its name: a shell that reads a script called "vmm" in this
    /// folder, and passes over the other words.
    fn execute(words: &[CString], folder: &Path) -> Child {
        fs::write(folder.join("vmm"), "read line").expect("a script");
        let words = words.iter().map(|word| word.to_string_lossy().into_owned());
        let mut command = Command::new("/bin/sh");
        command.arg0("hull").args(words.skip(1)).current_dir(folder);
        command.stdin(Stdio::piped()).spawn().expect("a process")
    }

    #[test]
    fn a_process_is_found_without_any_file_of_its_container_and_none_that_only_says_so() {
        let root = tempfile::tempdir().expect("a folder");
        let key = Store::open(root.path()).and_then(|store| store.key());
        let key = key.expect("a store");
        let own = Purpose::Vmm { own_cgroup: true };
        let id = "web".parse().expect("id");
        let identity = ProcessIdentity::new(&own, key, &id);
        let file = handover::write(&(), &identity.to_bytes()).expect("a file");
        let words = identity.arguments(file.as_raw_fd()).expect("arguments");
        let mut impostor = execute(&words, root.path());
        rustix::io::fcntl_setfd(&file, FdFlags::empty()).expect("a flag");
        let mut child = execute(&words, root.path());
        drop(file);

        let mut found = running(key).expect("/proc");
        // Others' processes are all this user's.
        if !Privilege::own().is_host_root() {
            found.retain(|one| one.process.pid != impostor.id().cast_signed());
        }
        impostor.kill().expect("killed");
        impostor.wait().expect("wait");
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
