//! Deleting by force a container whose state can't be read, or whose folder is gone: whatever is on disk, its process
//! ends, and goes with its cgroup: its VM, or its stand-in, and with that the container's own in the VM of another.
//!
//! A process that no state names is found by its arguments. Its `poststop` hooks don't run: nobody knows what
//! to tell them.

use super::Error;
use super::delete::kill_process;
use super::follower;
use super::network::{disconnect_interfaces, disconnect_namespace};
use crate::cgroup::HostCgroup;
use crate::chain::chain;
use crate::host::Privilege;
use crate::sandbox::{Purpose, RunningProcess, SandboxError, remove_shares, running_processes};
use crate::spec;
use crate::store::{ContainerDir, Store, StoreError};
use crate::types::ContainerId;

/// Deletes what is there of a container.
///
/// # Errors
/// When its process doesn't end, or something of it can't be removed.
pub fn delete(store: &Store, id: &ContainerId) -> Result<(), Error> {
    let dir = match store.find(id) {
        Ok(dir) => dir,
        Err(StoreError::Missing(_)) => return end_processes(store, id).map(drop),
        Err(e) => return Err(e.into()),
    };
    // Also an older hull's, whose process isn't found otherwise.
    let remains = dir.own_sandbox().remains();
    let ended = end_processes(store, id)?;
    if let Some(vmm) = remains.vmm {
        kill_process(vmm, remains.cgroup.as_ref())?;
    }
    follower::end(remains.follower)?;
    match &remains.network {
        Some(network) => disconnect_interfaces(Some(network), &dir.own_sandbox())?,
        None => disconnect_named(&dir)?,
    }
    let cgroup = match remains.cgroup {
        None if !ended => asked_for(&dir),
        cgroup => cgroup,
    };
    if let Some(cgroup) = cgroup {
        cgroup.remove(true)?;
    }
    remove(dir)
}

/// Ends the processes of a container that run, and removes their cgroups, or what a stand-in's container has in the VM of
/// another: the shares; its process goes with the stand-in. Returns whether there were any.
fn end_processes(store: &Store, id: &ContainerId) -> Result<bool, Error> {
    let all = of_store(store)?;
    let (found, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|one| one.id == *id);
    let mut cgroups = Vec::new();
    for running in &found {
        let cgroup = match running.purpose {
            Purpose::Vmm { own_cgroup: true }
            | Purpose::StandIn {
                own_cgroup: true, ..
            } => HostCgroup::around(running.process.pid).ok(),
            _ => None,
        };
        kill_process(running.process, cgroup.as_ref())?;
        log::warn!(
            "container {id}: its process {} ran without a readable state, and was ended",
            running.process.pid
        );
        cgroups.extend(cgroup);
        if let Purpose::StandIn {
            sandbox, folder, ..
        } = &running.purpose
        {
            let is_vm = |one: &&RunningProcess| {
                one.id == *sandbox && matches!(one.purpose, Purpose::Vmm { .. })
            };
            if let Some(vm) = others.iter().find(is_vm) {
                remove_shares(vm.process, folder)?;
            }
        }
    }
    // The VM's has its follower in it, too.
    for cgroup in cgroups {
        cgroup.remove(true)?;
    }
    Ok(!found.is_empty())
}

/// The processes of a store's containers that run.
///
/// # Errors
/// When nobody can know.
pub fn of_store(store: &Store) -> Result<Vec<RunningProcess>, Error> {
    let look = SandboxError::host("look for containers' processes in /proc");
    Ok(running_processes(store.key()?).map_err(look)?)
}

/// Disconnects what VMs that are gone have left in the network namespace that the kept config.json names, where that
/// is readable: nobody knows any more which of its interfaces this container had.
fn disconnect_named(dir: &ContainerDir) -> Result<(), Error> {
    let Ok(config) = dir.load_config() else {
        return Ok(());
    };
    match spec::network_path(&config) {
        Some((_, path)) => disconnect_namespace(path),
        None => Ok(()),
    }
}

/// The cgroup that the kept config.json asks for, where that is readable. Others in it keep it.
fn asked_for(dir: &ContainerDir) -> Option<HostCgroup> {
    let config = dir.load_config().ok()?;
    HostCgroup::of(&config, dir.id(), false, Privilege::own()).ok()?
}

fn remove(mut dir: ContainerDir) -> Result<(), Error> {
    match dir.lock() {
        Ok(()) => {}
        // `create` was at work, and has cleaned up.
        Err(StoreError::Missing(_)) => return Ok(()),
        Err(e @ StoreError::Locked { .. }) => return Err(e.into()),
        // No lock of hull's: nobody holds it.
        Err(e) => log::warn!("{}", chain(&e)),
    }
    Ok(dir.remove()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    /// A folder that somebody has done this to can be deleted.
    fn deleted(damage: impl FnOnce(&Path)) {
        let root = tempfile::tempdir().expect("a folder");
        let store = Store::open(root.path()).expect("a store");
        let folder = root.path().join("web");
        fs::create_dir(&folder).expect("a folder");
        damage(&folder);
        let id = "web".parse().expect("id");
        let loaded = store.find(&id).expect("found").load();
        assert!(
            matches!(loaded, Err(StoreError::Damaged { .. })),
            "{loaded:?}"
        );
        let listed = store.list().expect("a list");
        assert_eq!(listed.damaged, std::slice::from_ref(&id));

        delete(&store, &id).expect("deleted");

        let left: Vec<_> = fs::read_dir(root.path()).expect("a list").collect();
        assert!(left.is_empty(), "{left:?}");
        delete(&store, &id).expect("nothing to do");
    }

    #[test]
    fn whatever_is_in_a_containers_folder_it_can_be_deleted() {
        let state = |folder: &Path| folder.join("state.json");
        deleted(|_| ());
        deleted(|folder| fs::write(state(folder), "").expect("write"));
        deleted(|folder| fs::write(state(folder), "{\"id\":").expect("write"));
        deleted(|folder| fs::create_dir_all(state(folder).join("a/b")).expect("mkdir"));
        deleted(|folder| symlink("/etc/passwd", state(folder)).expect("a link"));
        deleted(|folder| {
            let mode = rustix::fs::Mode::from_raw_mode(0o600);
            let fifo = rustix::fs::FileType::Fifo;
            rustix::fs::mknodat(rustix::fs::CWD, state(folder), fifo, mode, 0).expect("a FIFO");
        });
        deleted(|folder| {
            fs::create_dir(folder.join("sandbox.json")).expect("mkdir");
            fs::write(folder.join("foreign"), "").expect("write");
        });
    }
}
