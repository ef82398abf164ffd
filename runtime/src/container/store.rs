//! The folder under `--root`: one folder a container, with its state, the config.json that it was
//! created from, its lock, its control socket and its console log. Beside them is `.seccomp`, which is
//! `spec`'s.
//!
//! A container's folder appears whole and goes whole: it is made under a hidden name, with the lock
//! held, and renamed; `delete` renames it back before it empties it. What a SIGKILL leaves under a
//! hidden name is recognised by its free lock, and swept by the next command that creates or deletes.
//!
//! So a folder under a container's name without a whole state in it has been damaged by somebody else, or by
//! a host that lost power: every verb says so, and `delete --force` (`commands/damaged.rs`) removes it.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use oci_spec::runtime::Spec;
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::id::{CREATING, DELETING};
use super::lock::{self, FORCE_TIMEOUT, LOCK_TIMEOUT};
use super::state::Remains;
use super::{ContainerError, ContainerId, State};
use crate::staged::Staged;

const STATE: &str = "state.json";
const STATE_NEW: &str = "state.json.new";
const CONFIG: &str = "config.json";
const CONFIG_NEW: &str = "config.json.new";
const LOCK: &str = "lock";
const LOCK_NEW: &str = "lock.new";
const CONSOLE: &str = "console.log";
const SOCKET: &str = "vsock.sock";

/// Every name that a container's folder can hold.
const FILES: [&str; 8] = [
    STATE_NEW, CONFIG_NEW, LOCK_NEW, SOCKET, CONSOLE, CONFIG, STATE, LOCK,
];

/// The largest state file or config.json that is read, in bytes: annotations are the user's.
const FILE_LIMIT: u64 = 8 << 20;

/// All containers under one `--root`.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    dir: OwnedFd,
}

/// A store as the kernel names its folder, whatever path leads there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreKey {
    device: u64,
    inode: u64,
}

impl fmt::Display for StoreKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}:{:x}", self.device, self.inode)
    }
}

/// What [`Store::list`] finds.
#[derive(Debug, Default)]
pub struct Listed {
    /// The containers' states, by id.
    pub states: Vec<State>,
    /// Those whose state can't be read.
    pub damaged: Vec<ContainerId>,
}

/// One container's folder.
#[derive(Debug)]
pub struct ContainerDir {
    id: ContainerId,
    path: PathBuf,
    root: OwnedFd,
    dir: OwnedFd,
    /// Held until dropped.
    lock: Option<File>,
}

impl Store {
    /// Opens `root`, and makes it first where it isn't there.
    ///
    /// # Errors
    /// When the folder can't be made or opened.
    pub fn open(root: &Path) -> Result<Self, ContainerError> {
        use std::os::unix::fs::DirBuilderExt;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(root)
            .map_err(|source| ContainerError::Root {
                path: root.to_owned(),
                source,
            })?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir =
            rustix::fs::open(root, flags, Mode::empty()).map_err(|e| failed("open", root, e))?;
        Ok(Self {
            path: root.to_owned(),
            dir,
        })
    }

    /// Makes the folder of a new container, locked, with its first state in it.
    ///
    /// # Errors
    /// When the id is taken, or the disk is full.
    pub fn create(&self, state: &State) -> Result<ContainerDir, ContainerError> {
        self.sweep();
        let id = state.id.clone();
        let hidden = hidden(CREATING, &id);
        let hidden_path = self.path.join(&hidden);
        rustix::fs::mkdirat(&self.dir, &hidden, Mode::RWXU)
            .map_err(|e| failed("create", &hidden_path, e))?;
        let made = self.fill(&id, &hidden, state).and_then(|dir| {
            match rustix::fs::renameat_with(
                &self.dir,
                &hidden,
                &self.dir,
                id.as_str(),
                RenameFlags::NOREPLACE,
            ) {
                Ok(()) => Ok(dir),
                Err(Errno::EXIST) => Err(ContainerError::Exists(id.clone())),
                Err(e) => Err(failed("create", &dir.path, e)),
            }
        });
        if made.is_err() {
            self.remove_tree(&hidden);
        }
        made
    }

    /// How a process can name this store.
    ///
    /// # Errors
    /// When the kernel can't tell.
    pub fn key(&self) -> Result<StoreKey, ContainerError> {
        key(&self.dir).map_err(|e| failed("look at", &self.path, e))
    }

    fn fill(
        &self,
        id: &ContainerId,
        hidden: &str,
        state: &State,
    ) -> Result<ContainerDir, ContainerError> {
        let mut dir = self
            .dir(id, hidden)
            .map_err(|e| failed("open", &self.path.join(hidden), e))?;
        // Under its own name the lock is never seen free, or a sweep would take the folder for one
        // that was left behind.
        let lock = dir.open_lock(LOCK_NEW)?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .and_then(|()| rustix::fs::renameat(&dir.dir, LOCK_NEW, &dir.dir, LOCK))
            .map_err(|e| failed("lock", &dir.path.join(LOCK), e))?;
        dir.lock = Some(lock);
        dir.save(state)?;
        Ok(dir)
    }

    /// The folder of an existing container, not locked.
    ///
    /// # Errors
    /// When there is no such container.
    pub fn find(&self, id: &ContainerId) -> Result<ContainerDir, ContainerError> {
        match self.dir(id, id.as_str()) {
            Ok(dir) => Ok(dir),
            Err(Errno::NOENT) => Err(ContainerError::Missing(id.clone())),
            Err(e) => Err(failed("open", &self.path.join(id.as_str()), e)),
        }
    }

    /// The states of all containers. One that vanishes meanwhile is left out; a damaged one does not hide the
    /// others.
    ///
    /// # Errors
    /// When the folder can't be read.
    pub fn list(&self) -> Result<Listed, ContainerError> {
        let mut listed = Listed::default();
        for entry in fs::read_dir(&self.path).map_err(|e| failed("read", &self.path, e))? {
            let entry = entry.map_err(|e| failed("read", &self.path, e))?;
            // What isn't a folder is nobody's state, as with runc.
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let id = entry.file_name().to_str().and_then(|n| n.parse().ok());
            let Some(id) = id.filter(|_| is_folder) else {
                continue;
            };
            match self.find(&id).and_then(|dir| dir.load()) {
                Ok(state) => listed.states.push(state),
                Err(ContainerError::Missing(_)) => {}
                Err(e) => {
                    if matches!(e, ContainerError::Damaged { .. }) {
                        listed.damaged.push(id);
                    }
                    log::warn!("{}", crate::error::chain(&e));
                }
            }
        }
        listed.states.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(listed)
    }

    fn dir(&self, id: &ContainerId, name: &str) -> Result<ContainerDir, Errno> {
        let root = rustix::io::fcntl_dupfd_cloexec(&self.dir, 0)?;
        let dir = open_dir(&root, name)?;
        Ok(ContainerDir {
            id: id.clone(),
            path: self.path.join(id.as_str()),
            root,
            dir,
            lock: None,
        })
    }

    /// Removes what commands that were killed have left under hidden names.
    pub fn sweep(&self) {
        let Ok(entries) = fs::read_dir(&self.path) else {
            return;
        };
        for name in entries
            .flatten()
            .filter_map(|e| e.file_name().into_string().ok())
        {
            if name.starts_with(CREATING) || name.starts_with(DELETING) {
                self.sweep_one(&name);
            }
        }
    }

    fn sweep_one(&self, name: &str) {
        let Ok(dir) = open_dir(&self.dir, name) else {
            return;
        };
        // No lock file: cut off before it was made, or just about to be made by a living `create`.
        // Its pid tells which.
        let free =
            match rustix::fs::openat(&dir, LOCK, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
                Ok(lock) => {
                    rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok()
                }
                Err(_) => name
                    .rsplit_once('-')
                    .and_then(|(_, pid)| pid.parse().ok())
                    .is_none_or(|pid: i32| super::ProcessId::of(pid).is_err()),
            };
        if free {
            self.remove_tree(name);
        }
    }

    fn remove_tree(&self, name: &str) {
        remove_folder(&self.dir, name, &self.path.join(name));
    }
}

impl ContainerDir {
    /// The container's id.
    pub fn id(&self) -> &ContainerId {
        &self.id
    }

    /// Takes the container's lock, and keeps it until this value is dropped.
    ///
    /// # Errors
    /// When another command keeps it for longer than a minute, or the container goes away meanwhile.
    pub fn lock(&mut self) -> Result<(), ContainerError> {
        self.lock_with(lock::wait, LOCK_TIMEOUT)
    }

    /// As [`ContainerDir::lock`], but another command that keeps the lock for some seconds is killed.
    ///
    /// # Errors
    /// When it keeps the lock all the same, or the container goes away meanwhile.
    pub fn lock_by_force(&mut self) -> Result<(), ContainerError> {
        self.lock_with(lock::take, FORCE_TIMEOUT)
    }

    fn lock_with(
        &mut self,
        wait: fn(File) -> io::Result<File>,
        limit: Duration,
    ) -> Result<(), ContainerError> {
        let lock = self.open_lock(LOCK)?;
        let lock = match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => wait(lock),
            result => result.map(|()| lock).map_err(io::Error::from),
        };
        let lock = lock.map_err(|e| match e.kind() {
            io::ErrorKind::TimedOut => ContainerError::Locked {
                id: self.id.clone(),
                seconds: limit.as_secs(),
            },
            _ => failed("lock", &self.path.join(LOCK), e),
        })?;
        self.lock = Some(lock);
        // Whoever had it may have deleted the container.
        match self.is_there() {
            true => Ok(()),
            false => Err(ContainerError::Missing(self.id.clone())),
        }
    }

    /// Whether this is still the folder of that name.
    fn is_there(&self) -> bool {
        let named = rustix::fs::statat(&self.root, self.id.as_str(), AtFlags::SYMLINK_NOFOLLOW);
        let named = named.map(|stat| (stat.st_dev, stat.st_ino));
        let own = rustix::fs::fstat(&self.dir).map(|stat| (stat.st_dev, stat.st_ino));
        named.is_ok() && named == own
    }

    /// How a process can name the store that the container is in.
    ///
    /// # Errors
    /// When the kernel can't tell.
    pub fn store_key(&self) -> io::Result<StoreKey> {
        Ok(key(&self.root)?)
    }

    /// Lets other commands at the container.
    pub fn unlock(&mut self) {
        self.lock = None;
    }

    fn open_lock(&self, name: &str) -> Result<File, ContainerError> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.dir, name, flags, Mode::RUSR | Mode::WUSR) {
            Ok(fd) => Ok(File::from(fd)),
            // In a folder that has been removed, none can be made.
            Err(Errno::NOENT) => Err(ContainerError::Missing(self.id.clone())),
            Err(e) => Err(failed("open", &self.path.join(name), e)),
        }
    }

    /// Reads the container's state.
    ///
    /// # Errors
    /// When the container is gone, or its state damaged.
    pub fn load(&self) -> Result<State, ContainerError> {
        let state: io::Result<State> = self
            .read(STATE)
            .and_then(|text| Ok(serde_json::from_slice(&text)?));
        match state {
            Ok(state) if state.id == self.id => Ok(state),
            Ok(state) => {
                let why = format!("it is the state of container {}", state.id);
                Err(self.unreadable(io::Error::other(why)))
            }
            Err(e) => Err(self.unreadable(e)),
        }
    }

    /// What can still be read of a damaged state; nothing at the worst.
    pub fn remains(&self) -> Remains {
        let text = self.read(STATE).unwrap_or_default();
        let remains: Remains = serde_json::from_slice(&text).unwrap_or_default();
        match &remains.id {
            Some(id) if *id != self.id => Remains::default(),
            _ => remains,
        }
    }

    fn unreadable(&self, source: io::Error) -> ContainerError {
        // These are about who reads.
        const READERS: [Errno; 5] = [
            Errno::ACCESS,
            Errno::PERM,
            Errno::MFILE,
            Errno::NFILE,
            Errno::NOMEM,
        ];
        match Errno::from_io_error(&source) {
            Some(Errno::NOENT) if !self.is_there() => ContainerError::Missing(self.id.clone()),
            Some(errno) if READERS.contains(&errno) => {
                failed("read", &self.path.join(STATE), source)
            }
            _ => ContainerError::Damaged {
                id: self.id.clone(),
                path: self.path.join(STATE),
                source,
            },
        }
    }

    /// Replaces the container's state: a reader sees the old one or the new one.
    ///
    /// # Errors
    /// When it can't be written; the old one then stays.
    pub fn save(&self, state: &State) -> Result<(), ContainerError> {
        let save = || -> io::Result<()> {
            let text = serde_json::to_vec(state)?;
            Staged::write(self.dir.as_fd(), STATE, STATE_NEW, &text)?.keep()
        };
        save().map_err(|e| failed("write", &self.path.join(STATE), e))
    }

    /// Reads the config.json that the container was created from, with later updates. The bundle's own
    /// may have changed since, or be gone.
    ///
    /// # Errors
    /// When the container is gone, or the file damaged.
    pub fn load_config(&self) -> Result<Spec, ContainerError> {
        let config = self
            .read(CONFIG)
            .and_then(|text| Ok(serde_json::from_slice(&text)?));
        config.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => ContainerError::Missing(self.id.clone()),
            _ => ContainerError::DamagedConfig {
                id: self.id.clone(),
                source,
            },
        })
    }

    /// Keeps a config.json, for this user's eyes only: a process's environment has its secrets.
    ///
    /// # Errors
    /// When it can't be written; an old one then stays.
    pub fn save_config(&self, config: &Spec) -> Result<(), ContainerError> {
        self.keep_config(self.stage_config(config)?)
    }

    /// Writes a config.json down that is to be kept once all else is done: what may fail comes first.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn stage_config(&self, config: &Spec) -> Result<Staged<'_>, ContainerError> {
        let stage = || -> io::Result<_> {
            let text = serde_json::to_vec(config)?;
            Staged::write(self.dir.as_fd(), CONFIG, CONFIG_NEW, &text)
        };
        stage().map_err(|e| failed("write", &self.path.join(CONFIG), e))
    }

    /// Keeps it.
    ///
    /// # Errors
    /// When it can't be renamed; the old one then stays.
    pub fn keep_config(&self, staged: Staged<'_>) -> Result<(), ContainerError> {
        (staged.keep()).map_err(|e| failed("write", &self.path.join(CONFIG), e))
    }

    /// Whatever somebody has put there is not waited for, and not read without end.
    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(&self.dir, name, flags, Mode::empty())?);
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        let mut text = Vec::new();
        file.take(FILE_LIMIT).read_to_end(&mut text)?;
        Ok(text)
    }

    /// Makes the file that takes what the guest's kernel and agent say.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn create_console_log(&self) -> Result<File, ContainerError> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&self.dir, CONSOLE, flags, Mode::RUSR | Mode::WUSR)
            .map(File::from)
            .map_err(|e| failed("create", &self.path.join(CONSOLE), e))
    }

    /// The last `lines` lines of the console log; empty where there is none.
    pub fn console_tail(&self, lines: usize) -> Vec<String> {
        // The VMM bounds the log's size.
        let text = self.read(CONSOLE).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let all: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
        all[all.len().saturating_sub(lines)..]
            .iter()
            .map(|l| (*l).to_owned())
            .collect()
    }

    /// A path to the control socket that fits into `sun_path`, however long `--root` is. It works in
    /// this process only, while this value lives.
    pub fn socket_path(&self) -> PathBuf {
        format!("/proc/self/fd/{}/{SOCKET}", self.dir.as_fd().as_raw_fd()).into()
    }

    /// Removes the container's folder, which must be locked. The id is free from the first step on.
    ///
    /// # Errors
    /// When it can't be renamed nor removed under its own name.
    pub fn remove(self) -> Result<(), ContainerError> {
        let hidden = hidden(DELETING, &self.id);
        let id = self.id.as_str();
        match rustix::fs::renameat(&self.root, id, &self.root, &hidden) {
            Ok(()) => remove_folder(&self.root, &hidden, &self.path.with_file_name(&hidden)),
            Err(Errno::NOENT) => {}
            Err(e) => {
                // The longer name may be what a full disk has no room for.
                remove_folder(&self.root, id, &self.path);
                if self.is_there() {
                    return Err(failed("remove", &self.path, e));
                }
            }
        }
        Ok(())
    }

    /// As [`ContainerDir::remove`], where another error is what the user is to learn.
    pub fn discard(self) {
        if let Err(e) = self.remove() {
            log::warn!("{}", crate::error::chain(&e));
        }
    }
}

/// The name of a container's folder while it isn't whole, with the pid of who is at work: a file's name also
/// for the longest id.
fn hidden(prefix: &str, id: &ContainerId) -> String {
    const OF_THE_ID: usize = 200;
    format!("{prefix}{:.OF_THE_ID$}-{}", id.as_str(), std::process::id())
}

/// The lock file goes last of what is a container's, so that whoever waits for it finds the state gone. Then goes
/// what is somebody else's.
fn remove_folder(root: &OwnedFd, name: &str, path: &Path) {
    if let Ok(dir) = open_dir(root, name) {
        for file in FILES {
            let _ = rustix::fs::unlinkat(&dir, file, AtFlags::empty());
        }
    }
    let removed = match rustix::fs::unlinkat(root, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOTEMPTY) => fs::remove_dir_all(path),
        other => other.map_err(io::Error::from),
    };
    match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            log::warn!("cannot remove {}: {e}", path.display());
        }
        _ => {}
    }
}

fn key(root: &OwnedFd) -> rustix::io::Result<StoreKey> {
    let stat = rustix::fs::fstat(root)?;
    Ok(StoreKey {
        device: stat.st_dev,
        inode: stat.st_ino,
    })
}

fn open_dir<P: rustix::path::Arg>(at: impl AsFd, path: P) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, path, flags, Mode::empty())
}

fn failed(what: &'static str, path: &Path, source: impl Into<io::Error>) -> ContainerError {
    ContainerError::Io {
        what,
        path: path.to_owned(),
        source: source.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    use crate::container::Phase;

    fn state(id: &str) -> State {
        State {
            id: id.parse().expect("id"),
            phase: Phase::Creating,
            paused: false,
            sizing: crate::spec::Sizing::SMALLEST,
            vmm: None,
            cgroup: None,
            bundle: "/b".into(),
            rootfs: "/b/rootfs".into(),
            created: String::new(),
            owner: String::new(),
            annotations: Default::default(),
        }
    }

    fn store() -> (tempfile::TempDir, Store) {
        let root = tempfile::tempdir().expect("tempdir");
        let store = Store::open(&root.path().join("hull")).expect("store");
        (root, store)
    }

    fn names(store: &Store) -> Vec<String> {
        let entries = fs::read_dir(&store.path).expect("read");
        entries
            .map(|e| e.expect("entry").file_name().into_string().expect("utf-8"))
            .collect()
    }

    #[test]
    fn what_was_created_is_found_again_and_removed_without_a_trace() {
        let (_root, store) = store();
        let dir = store.create(&state("a")).expect("create");
        assert_eq!(
            store
                .find(dir.id())
                .expect("find")
                .load()
                .expect("load")
                .phase,
            Phase::Creating
        );
        dir.remove().expect("removed");
        assert!(matches!(
            store.find(&"a".parse().expect("id")),
            Err(ContainerError::Missing(_))
        ));
        assert!(names(&store).is_empty());
    }

    #[test]
    fn a_root_that_cannot_be_made_is_told_with_the_option_for_another() {
        let failed = Store::open(Path::new("/dev/null/hull")).expect_err("no directory");
        let said = crate::error::chain(&failed);
        assert!(
            said.contains("/dev/null/hull") && said.contains("--root"),
            "{said}"
        );
    }

    #[test]
    fn a_root_may_be_a_link_and_have_others_files_in_it() {
        let (root, store) = store();
        let link = root.path().join("link");
        std::os::unix::fs::symlink(&store.path, &link).expect("a link");
        fs::write(store.path.join("file"), "").expect("write");
        let linked = Store::open(&link).expect("a store");
        let dir = linked.create(&state("a")).expect("create");
        let listed = store.list().expect("list");
        assert_eq!((listed.states.len(), listed.damaged.len()), (1, 0));
        assert_eq!(linked.key().expect("key"), store.key().expect("key"));
        dir.remove().expect("removed");
    }

    #[test]
    fn one_that_was_removed_before_it_could_be_locked_is_missing() {
        let (_root, store) = store();
        let dir = store.create(&state("a")).expect("create");
        let mut late = store.find(dir.id()).expect("find");
        dir.remove().expect("removed");
        assert!(matches!(late.lock(), Err(ContainerError::Missing(_))));
    }

    #[test]
    fn an_id_in_use_is_refused_and_left_alone() {
        let (_root, store) = store();
        let _dir = store.create(&state("a")).expect("create");
        assert!(matches!(
            store.create(&state("a")),
            Err(ContainerError::Exists(_))
        ));
        assert_eq!(names(&store), ["a"]);
    }

    #[test]
    fn the_rest_of_a_killed_create_is_swept_but_not_a_living_one() {
        let (_root, store) = store();
        fs::create_dir(store.path.join(".creating-dead-0")).expect("mkdir");
        fs::write(store.path.join(".creating-dead-0/lock"), "").expect("write");
        let alive = format!(".creating-alive-{}", std::process::id());
        let filters = ".seccomp".to_owned();
        for kept in [&alive, &filters] {
            fs::create_dir(store.path.join(kept)).expect("mkdir");
        }
        store.sweep();
        let mut left = names(&store);
        left.sort();
        assert_eq!(left, [alive, filters]);
        assert!(store.list().expect("list").states.is_empty());
    }

    #[test]
    fn no_sweep_takes_a_folder_that_is_being_made() {
        let (_root, store) = store();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let store = &store;
                scope.spawn(move || {
                    for n in 0..200 {
                        let id = format!("{thread}-{n}");
                        // Each of these sweeps first.
                        let dir = store.create(&state(&id)).expect("create");
                        dir.remove().expect("removed");
                    }
                });
            }
        });
        assert!(names(&store).is_empty());
    }

    #[test]
    fn a_damaged_state_names_its_file() {
        let (_root, store) = store();
        let dir = store.create(&state("a")).expect("create");
        fs::write(store.path.join("a/state.json"), "{").expect("write");
        assert!(matches!(dir.load(), Err(ContainerError::Damaged { .. })));
        assert!(store.list().expect("list").states.is_empty());
    }

    #[test]
    fn a_config_is_kept_for_its_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let (_root, store) = store();
        let dir = store.create(&state("a")).expect("create");
        let mut config = Spec::default();
        config.set_hostname(Some("box".to_owned()));
        dir.save_config(&config).expect("save");
        assert_eq!(
            dir.load_config().expect("load").hostname(),
            config.hostname()
        );
        let file = fs::metadata(store.path.join("a/config.json")).expect("a file");
        assert_eq!(file.permissions().mode() & 0o777, 0o600);
        dir.remove().expect("removed");
        assert!(names(&store).is_empty());
    }

    #[test]
    fn the_console_log_is_shown_from_its_end() {
        let (_root, store) = store();
        let dir = store.create(&state("a")).expect("create");
        dir.create_console_log()
            .expect("log")
            .write_all(b"one\n\ntwo\nthree\n")
            .expect("write");
        assert_eq!(dir.console_tail(2), ["two", "three"]);
    }
}
