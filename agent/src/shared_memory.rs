//! File systems in the guest's memory that several containers have: the /dev/shm of a pod. Each is mounted in the guest's
//! own mount namespace, for containers to bind, from the first of its containers to the last one.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use hull_protocol::agent::SharedMemory as Asked;
use hull_protocol::paths::{SHARED_MEMORY, is_valid_id};
use rustix::mount::{UnmountFlags, unmount};

use crate::container::mounts::mount_tmpfs;
use crate::error::{Error, Failure};

/// Those that are mounted, by their names.
#[derive(Debug, Default)]
pub struct SharedMemory(Mutex<HashMap<String, Weak<MountedMemory>>>);

/// One that is mounted. Dropped, it is unmounted.
#[derive(Debug)]
pub struct MountedMemory(PathBuf);

impl SharedMemory {
    /// Mounts what isn't mounted yet of what a container asks for, which keeps what is returned.
    ///
    /// # Errors
    /// When a name is none, or the kernel refuses the options.
    pub fn mount(&self, asked: &[Asked]) -> Result<Vec<Arc<MountedMemory>>, Error> {
        let mut mounted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        mounted.retain(|_, memory| memory.strong_count() > 0);
        let mut of_container = Vec::new();
        for Asked { name, options, .. } in asked {
            if let Some(memory) = mounted.get(name).and_then(Weak::upgrade) {
                of_container.push(memory);
                continue;
            }
            let memory = Arc::new(MountedMemory::new(name, options.clone())?);
            mounted.insert(name.clone(), Arc::downgrade(&memory));
            of_container.push(memory);
        }
        Ok(of_container)
    }
}

impl MountedMemory {
    fn new(name: &str, options: Vec<String>) -> Result<Self, Error> {
        if !is_valid_id(name) {
            return Err(Error::InvalidRequest {
                field: "shared_memory.name",
                problem: format!("{name:?} can't be the name of a directory"),
            });
        }
        let path = Path::new(SHARED_MEMORY).join(name);
        fs::create_dir_all(&path).map_err(Error::io(format!("make {}", path.display())))?;
        let memory = Self(path);
        mount_tmpfs(&memory.0, options)
            .map_err(|e| Failure::config(format!("mounts: the guest's {name}: {e}")))?;
        Ok(memory)
    }
}

impl Drop for MountedMemory {
    fn drop(&mut self) {
        // A container with users of its own may have had a clone mounted on top of it.
        while unmount(&self.0, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).is_ok() {}
        if let Err(e) = fs::remove_dir(&self.0) {
            log::warn!("remove {}: {e}", self.0.display());
        }
    }
}
