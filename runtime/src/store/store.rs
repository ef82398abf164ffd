//! The folder under `--root`: one folder a container, with its record, the config.json that it was created from
//! and its lock, and with the record, the control socket and the console log of the sandbox that was made for
//! it. Beside them is `.seccomp`, which is `spec`'s.
//!
//! A container's folder appears whole and goes whole: it is made under a hidden name, locked (flock(2) of the
//! folder itself), filled and renamed; `delete` renames it back before it empties it. What a SIGKILL leaves under
//! a hidden name is recognised by its free lock and by the process that its name tells, and swept by the next
//! command that creates or deletes.
//!
//! So a folder under a container's name without whole records in it has been damaged by somebody else, or by
//! a host that lost power: every verb says so, and `delete --force` (`lifecycle/damaged.rs`) removes it.

use std::fmt;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;

use super::folder::{self, Folder, failed};
use super::{ContainerDir, State, StoreError};
use crate::chain::chain;
use crate::types::{ContainerId, RESERVED};

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

impl StoreKey {
    pub(super) fn of(folder: &OwnedFd) -> rustix::io::Result<Self> {
        let stat = rustix::fs::fstat(folder)?;
        Ok(Self {
            device: stat.st_dev,
            inode: stat.st_ino,
        })
    }
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

impl Store {
    /// Opens `root`, and makes it first where it isn't there.
    ///
    /// # Errors
    /// When the folder can't be made or opened.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        use std::os::unix::fs::DirBuilderExt;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(root)
            .map_err(|source| StoreError::Root {
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

    /// Makes the folder of a new container, locked, with its first record in it, and its sandbox's if that is its own.
    ///
    /// # Errors
    /// When the id is taken, or the disk is full.
    pub fn create(&self, state: &State) -> Result<ContainerDir, StoreError> {
        self.sweep();
        let id = &state.container.id;
        let hidden = folder::hidden(RESERVED.creating, id);
        let hidden_path = self.path.join(&hidden);
        rustix::fs::mkdirat(&self.dir, &hidden, Mode::RWXU)
            .map_err(|e| failed("create", &hidden_path, e))?;
        let made = self.fill(state, &hidden);
        if made.is_err() {
            self.remove_tree(&hidden);
        }
        made
    }

    fn fill(&self, state: &State, hidden: &str) -> Result<ContainerDir, StoreError> {
        let folder = self
            .folder(&state.container.id, hidden)
            .map_err(|e| failed("open", &self.path.join(hidden), e))?;
        let mut dir = ContainerDir::new(folder);
        dir.lock_new()?;
        if let Some(sandbox) = state.own_sandbox() {
            dir.own_sandbox().save(sandbox)?;
        }
        dir.save(&state.container)?;
        dir.appear(hidden)?;
        Ok(dir)
    }

    /// How a process can name this store.
    ///
    /// # Errors
    /// When the kernel can't tell.
    pub fn key(&self) -> Result<StoreKey, StoreError> {
        StoreKey::of(&self.dir).map_err(|e| failed("look at", &self.path, e))
    }

    /// The folder of an existing container, not locked.
    ///
    /// # Errors
    /// When there is no such container.
    pub fn find(&self, id: &ContainerId) -> Result<ContainerDir, StoreError> {
        Folder::find(&self.dir, &self.path, id).map(ContainerDir::new)
    }

    /// The states of all containers. One that vanishes meanwhile is left out; a damaged one does not hide the
    /// others.
    ///
    /// # Errors
    /// When the folder can't be read.
    pub fn list(&self) -> Result<Listed, StoreError> {
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
                Err(StoreError::Missing(_)) => {}
                Err(e) => {
                    if matches!(e, StoreError::Damaged { .. }) {
                        listed.damaged.push(id);
                    }
                    log::warn!("{}", chain(&e));
                }
            }
        }
        let id = |state: &State| state.container.id.clone();
        listed.states.sort_by_cached_key(id);
        Ok(listed)
    }

    fn folder(&self, id: &ContainerId, name: &str) -> Result<Folder, Errno> {
        Folder::open(&self.dir, &self.path, id, name)
    }

    /// Removes what commands that were killed have left under hidden names.
    pub fn sweep(&self) {
        let Ok(entries) = fs::read_dir(&self.path) else {
            return;
        };
        let names = entries
            .flatten()
            .filter_map(|e| e.file_name().into_string().ok());
        for name in names.filter(|name| folder::is_hidden(name)) {
            self.sweep_one(&name);
        }
    }

    fn sweep_one(&self, name: &str) {
        let Ok(dir) = folder::open_dir(&self.dir, name) else {
            return;
        };
        // The lock may be free still, with a `create` that has just made the folder. It tells of processes that
        // can't be seen from here: another pid namespace's.
        let is_free = || flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok();
        if !folder::is_at_work(name) && is_free() {
            self.remove_tree(name);
        }
    }

    fn remove_tree(&self, name: &str) {
        folder::remove(&self.dir, name, &self.path.join(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    use oci_spec::runtime::Spec;

    use crate::store::Phase;

    fn state(id: &str) -> State {
        State::in_tests(id, Phase::Creating, None)
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
                .container
                .phase,
            Phase::Creating
        );
        dir.remove().expect("removed");
        assert!(matches!(
            store.find(&"a".parse().expect("id")),
            Err(StoreError::Missing(_))
        ));
        assert!(names(&store).is_empty());
    }

    #[test]
    fn a_root_that_cannot_be_made_is_told_with_the_option_for_another() {
        let failed = Store::open(Path::new("/dev/null/hull")).expect_err("no directory");
        let said = chain(&failed);
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
        assert!(matches!(late.lock(), Err(StoreError::Missing(_))));
    }

    #[test]
    fn an_id_in_use_is_refused_and_left_alone() {
        let (_root, store) = store();
        let _dir = store.create(&state("a")).expect("create");
        assert!(matches!(
            store.create(&state("a")),
            Err(StoreError::Exists(_))
        ));
        assert_eq!(names(&store), ["a"]);
    }

    #[test]
    fn the_rest_of_a_killed_create_is_swept_but_not_a_living_one() {
        let (_root, store) = store();
        let dead = [
            ".creating-dead-1.0",
            ".deleting-dead-0.0",
            ".creating-old-7",
        ];
        let alive = folder::hidden(RESERVED.creating, &"alive".parse().expect("id"));
        let elsewhere = ".creating-elsewhere-1.0.locked";
        let kept = [&alive, ".seccomp", elsewhere];
        for name in dead.iter().chain(&kept) {
            fs::create_dir(store.path.join(name)).expect("mkdir");
        }
        fs::write(store.path.join(".creating-dead-1.0/state.json"), "").expect("write");
        let locked = fs::File::open(store.path.join(elsewhere)).expect("open");
        flock(&locked, FlockOperation::LockExclusive).expect("locked");
        store.sweep();
        let mut left = names(&store);
        left.sort();
        let mut kept = kept.map(str::to_owned);
        kept.sort();
        assert_eq!(left, kept);
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
    fn a_damaged_record_names_its_file() {
        for name in ["state.json", "sandbox.json"] {
            let (_root, store) = store();
            let dir = store.create(&state("a")).expect("create");
            fs::write(store.path.join("a").join(name), "{").expect("write");
            let damaged = dir.load().expect_err("damaged");
            assert!(chain(&damaged).contains(name), "{damaged}");
            assert!(matches!(damaged, StoreError::Damaged { .. }));
            assert!(store.list().expect("list").states.is_empty());
        }
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
        dir.own_sandbox()
            .create_console_log()
            .expect("log")
            .write_all(b"one\n\ntwo\nthree\n")
            .expect("write");
        assert_eq!(dir.own_sandbox().console_tail(2), ["two", "three"]);
    }
}
