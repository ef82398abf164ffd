//! A container on disk: its folder with its record, its config.json and its lock.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use oci_spec::runtime::Spec;
use rustix::fs::{FlockOperation, RenameFlags, flock};
use rustix::io::Errno;

use super::folder::{self, Folder, files};
use super::lock::{self, FORCE_TIMEOUT, LOCK_TIMEOUT};
use super::record::{ContainerRecord, Joined};
use super::{SandboxDir, SandboxRecord, State, StoreError};
use crate::chain::chain;
use crate::host::Staged;
use crate::types::{ContainerId, RESERVED};

/// One container's folder.
#[derive(Debug)]
pub struct ContainerDir {
    folder: Arc<Folder>,
    /// Held until dropped.
    lock: Option<File>,
}

impl ContainerDir {
    pub(super) fn new(folder: Folder) -> Self {
        Self {
            folder: Arc::new(folder),
            lock: None,
        }
    }

    /// The container's id.
    pub fn id(&self) -> &ContainerId {
        &self.folder.id
    }

    /// The files of the sandbox that begins with this container.
    pub fn own_sandbox(&self) -> SandboxDir {
        SandboxDir::new(Arc::clone(&self.folder))
    }

    /// The files of the sandbox that the container is in.
    ///
    /// # Errors
    /// When it is another container's, which is gone, be there a later one of its id or not.
    pub fn sandbox_of(&self, record: &ContainerRecord) -> Result<SandboxDir, StoreError> {
        match &record.joined {
            None => Ok(self.own_sandbox()),
            Some(joined) => self.sandbox_joined(joined),
        }
    }

    fn sandbox_joined(&self, joined: &Joined) -> Result<SandboxDir, StoreError> {
        // A later sandbox of this id has another folder, so what is true of this one's files stays true.
        let sandbox = SandboxDir::new(Arc::new(self.folder.beside(&joined.sandbox)?));
        match sandbox.load()?.vmm {
            Some(vmm) if vmm == joined.vmm => Ok(sandbox),
            _ => Err(StoreError::Missing(joined.sandbox.clone())),
        }
    }

    /// Takes the lock of a folder that nobody else knows yet.
    pub(super) fn lock_new(&mut self) -> Result<(), StoreError> {
        let lock = || -> io::Result<File> {
            let lock = self.folder.open_again()?;
            // A sweep may have it for a moment.
            flock(&lock, FlockOperation::LockExclusive)?;
            Ok(lock)
        };
        self.lock = Some(lock().map_err(|e| folder::failed("lock", &self.folder.path, e))?);
        Ok(())
    }

    /// Takes the container's lock, and keeps it until this value is dropped.
    ///
    /// # Errors
    /// When another command keeps it for longer than a minute, or the container goes away meanwhile.
    pub fn lock(&mut self) -> Result<(), StoreError> {
        self.lock_with(lock::wait, LOCK_TIMEOUT)
    }

    /// As [`ContainerDir::lock`], but another command that keeps the lock for some seconds is killed.
    ///
    /// # Errors
    /// When it keeps the lock all the same, or the container goes away meanwhile.
    pub fn lock_by_force(&mut self) -> Result<(), StoreError> {
        self.lock_with(lock::take, FORCE_TIMEOUT)
    }

    fn lock_with(
        &mut self,
        wait: fn(File) -> io::Result<File>,
        limit: Duration,
    ) -> Result<(), StoreError> {
        let lock = self.folder.open_again().and_then(|lock| {
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK) => wait(lock),
                result => Ok(result.map(|()| lock)?),
            }
        });
        let lock = lock.map_err(|e| match e.kind() {
            io::ErrorKind::TimedOut => StoreError::Locked {
                id: self.id().clone(),
                seconds: limit.as_secs(),
            },
            // In a folder that has been removed, nothing can be opened.
            io::ErrorKind::NotFound => StoreError::Missing(self.id().clone()),
            _ => folder::failed("lock", &self.folder.path, e),
        })?;
        self.lock = Some(lock);
        // Whoever had it may have deleted the container.
        match self.folder.is_there() {
            true => Ok(()),
            false => Err(StoreError::Missing(self.id().clone())),
        }
    }

    /// Lets other commands at the container.
    pub fn unlock(&mut self) {
        self.lock = None;
    }

    /// Reads the container's state, with that of its sandbox.
    ///
    /// # Errors
    /// When the container is gone, or its state damaged.
    pub fn load(&self) -> Result<State, StoreError> {
        let container = self
            .folder
            .read_record(files::CONTAINER, |r: &ContainerRecord| &r.id)?;
        let sandbox = match &container.joined {
            None => self.own_sandbox().load()?,
            // Whatever has become of that one, this one can be told of and deleted.
            Some(joined) => (self.sandbox_joined(joined))
                .and_then(|sandbox| sandbox.load())
                .unwrap_or_else(|_| SandboxRecord::gone(joined.sandbox.clone(), joined.vmm)),
        };
        Ok(State { container, sandbox })
    }

    /// Replaces the container's record: a reader sees the old one or the new one.
    ///
    /// # Errors
    /// When it can't be written; the old one then stays.
    pub fn save(&self, record: &ContainerRecord) -> Result<(), StoreError> {
        self.folder
            .write_record(files::CONTAINER, files::CONTAINER_NEW, record)
    }

    /// Reads the config.json that the container was created from, with later updates. The bundle's own
    /// may have changed since, or be gone.
    ///
    /// # Errors
    /// When the container is gone, or the file damaged.
    pub fn load_config(&self) -> Result<Spec, StoreError> {
        let config = self
            .folder
            .read(files::CONFIG)
            .and_then(|text| Ok(serde_json::from_slice(&text)?));
        config.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => StoreError::Missing(self.id().clone()),
            _ => StoreError::DamagedConfig {
                id: self.id().clone(),
                source,
            },
        })
    }

    /// Keeps a config.json, for this user's eyes only: a process's environment has its secrets.
    ///
    /// # Errors
    /// When it can't be written; an old one then stays.
    pub fn save_config(&self, config: &Spec) -> Result<(), StoreError> {
        self.keep_config(self.stage_config(config)?)
    }

    /// Writes a config.json down that is to be kept once all else is done: what may fail comes first.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn stage_config(&self, config: &Spec) -> Result<Staged<'_>, StoreError> {
        self.folder.stage(files::CONFIG, files::CONFIG_NEW, config)
    }

    /// Keeps it.
    ///
    /// # Errors
    /// When it can't be renamed; the old one then stays.
    pub fn keep_config(&self, staged: Staged<'_>) -> Result<(), StoreError> {
        (staged.keep()).map_err(|e| self.folder.failed("write", files::CONFIG, e))
    }

    /// Gives the folder its own name, under which it appears whole.
    pub(super) fn appear(&self, hidden: &str) -> Result<(), StoreError> {
        let (root, id) = (&self.folder.root, self.id());
        let flags = RenameFlags::NOREPLACE;
        match rustix::fs::renameat_with(root, hidden, root, id.as_str(), flags) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => Err(StoreError::Exists(id.clone())),
            Err(e) => Err(folder::failed("create", &self.folder.path, e)),
        }
    }

    /// Removes the container's folder, which must be locked. The id is free from the first step on.
    ///
    /// # Errors
    /// When it can't be renamed nor removed under its own name.
    pub fn remove(self) -> Result<(), StoreError> {
        let Folder { root, path, .. } = &*self.folder;
        let hidden = folder::hidden(RESERVED.deleting, self.id());
        let id = self.id().as_str();
        match rustix::fs::renameat(root, id, root, &hidden) {
            Ok(()) => folder::remove(root, &hidden, &path.with_file_name(&hidden)),
            Err(Errno::NOENT) => {}
            Err(e) => {
                // The longer name may be what a full disk has no room for.
                folder::remove(root, id, path);
                if self.folder.is_there() {
                    return Err(folder::failed("remove", path, e));
                }
            }
        }
        Ok(())
    }

    /// As [`ContainerDir::remove`], where another error is what the user is to learn.
    pub fn discard(self) {
        if let Err(e) = self.remove() {
            log::warn!("{}", chain(&e));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::ProcessId;
    use crate::store::{Phase, Store};

    #[test]
    fn a_later_sandbox_of_the_same_id_is_not_the_one_that_was_joined() {
        let root = tempfile::tempdir().expect("a folder");
        let store = Store::open(root.path()).expect("a store");
        let vmm = |start_time| ProcessId { pid: 1, start_time };
        let pod = |start_time| State::in_tests("pod", Phase::Running, Some(vmm(start_time)));
        let mut member = State::in_tests("member", Phase::Running, None).container;
        member.joined = Some(Joined {
            sandbox: "pod".parse().expect("id"),
            vmm: vmm(1),
            folder: "f".to_owned(),
            stand_in: None,
            cgroup: None,
        });
        let earlier = store.create(&pod(1)).expect("a sandbox");
        assert!(earlier.sandbox_of(&member).is_ok());
        earlier.remove().expect("removed");
        let later = store.create(&pod(2)).expect("another");
        let of_member = later.sandbox_of(&member);
        assert!(matches!(of_member, Err(StoreError::Missing(_))));
    }
}
