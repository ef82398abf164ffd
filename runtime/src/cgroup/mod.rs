//! The host's cgroup of a VM: where its process runs, as `cgroupsPath` says, so that engines limit, count
//! and find the VM as they do any container.
//!
//! [`HostCgroup::of`] works out the name, which the container's state keeps from before the cgroup is
//! made until after it is gone. The VM's process is born in it ([`HostCgroup::make`] gives the
//! descriptor), or put there by systemd before it does anything ([`HostCgroup::adopt`]).
//!
//! cgroup2 only. libcgroups could make and remove cgroups as well, but it also moves the process there,
//! which costs milliseconds on most kernels, filters its devices, and waits by sleeping; and it knows of
//! a cgroup neither whether it was made nor whether somebody else uses it.

mod error;
mod fs;
mod limits;
mod oom_kill;
mod path;
mod systemd;

use std::fs::File;
use std::path::{Path, PathBuf};

use hull_cgroup::limits::Applied;
use oci_spec::runtime::{LinuxResources, Spec};
use serde::{Deserialize, Serialize};

pub use error::CgroupError;
pub use fs::{MOUNT, is_cgroup2};

use crate::chain::chain;
use crate::config::Config;
use crate::host::Privilege;
use crate::types::ContainerId;
use crate::types::Sizing;
use limits::is_from_the_start;
pub use limits::needs_host;
pub use oom_kill::{OomKill, OomKillError};
use systemd::Scope;

/// The most processes that hull has in a VM's cgroup: the VM's, its follower and its out-of-memory reporter.
const OWN_PROCESSES: usize = 3;

/// A cgroup that is a VM's own; there or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostCgroup {
    /// From the mount's root: absolute, without `..`. With systemd, not known before it is made.
    path: PathBuf,
    /// With the systemd driver, the unit that the cgroup is of.
    scope: Option<Scope>,
}

impl HostCgroup {
    /// The cgroup for a container. There is none where none is asked for and the host has no cgroup2, or
    /// lets hull's user, who isn't its root, make none.
    ///
    /// # Errors
    /// When config.json asks for something that this host or this driver hasn't.
    pub fn of(
        spec: &Spec,
        id: &ContainerId,
        systemd: bool,
        privilege: Privilege,
    ) -> Result<Option<Self>, CgroupError> {
        let linux = spec.linux().as_ref();
        let asked = Self::asked_for(spec);
        if !is_cgroup2() && asked.is_some() {
            let field = "linux.cgroupsPath";
            return Err(CgroupError::NoCgroup2 { field });
        }
        let cgroup = if !is_cgroup2() {
            None
        } else if systemd {
            Some(Self::of_scope(Scope::of(asked, id)?))
        } else {
            let cgroup = Self::at(path::resolve(asked, id, &fs::own_path()?)?);
            let may =
                asked.is_some() || privilege.is_host_root() || fs::may_make(&cgroup.directory());
            may.then_some(cgroup)
        };
        match cgroup {
            // Before any state names it.
            Some(cgroup) => {
                // As runc 1.1 does, one that is in use is taken.
                fs::count_processes(&cgroup.directory(), &cgroup.path)?;
                Ok(Some(cgroup))
            }
            None => {
                let resources = linux.and_then(|linux| linux.resources().as_ref());
                resources.map_or(Ok(()), without)?;
                if privilege.is_host_root() && resources.is_some() {
                    log::warn!(
                        "there is no cgroup2 at {MOUNT}: linux.resources holds in the guest, and nothing \
                         limits the VM around it but the guest's memory and CPUs"
                    );
                }
                Ok(None)
            }
        }
    }

    /// The path that config.json asks for, if any.
    pub fn asked_for(spec: &Spec) -> Option<&Path> {
        let asked = spec.linux().as_ref()?.cgroups_path().as_deref();
        asked.filter(|path| !path.as_os_str().is_empty())
    }

    /// The one that a process is in, where it is known to have been made for it, without systemd.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn around(pid: i32) -> Result<Self, CgroupError> {
        fs::path_of(pid).map(Self::at)
    }

    fn at(path: PathBuf) -> Self {
        Self { path, scope: None }
    }

    fn of_scope(scope: Scope) -> Self {
        Self {
            scope: Some(scope.clone()),
            ..Self::at(scope.expected_path())
        }
    }

    /// Warns of those who are there before the VM's process.
    pub fn warn_if_shared(&self) {
        let count = fs::count_processes(&self.directory(), &self.path).unwrap_or_default();
        if count > 0 {
            let path = self.path.display();
            log::warn!(
                "container's cgroup is not empty: {count} process(es) found in {path}; the limits are \
                 for all of them, and the cgroup stays as long as one of them is there"
            );
        }
    }

    /// Its directory.
    pub fn directory(&self) -> PathBuf {
        let relative = self.path.strip_prefix("/").unwrap_or(&self.path);
        Path::new(MOUNT).join(relative)
    }

    /// Opens its directory, for a further process of hull's to be born in it.
    ///
    /// # Errors
    /// When it is gone.
    pub fn open(&self) -> Result<File, CgroupError> {
        fs::open(&self.directory())
    }

    /// How kills for want of memory are made to count in it, by a process that is in it.
    ///
    /// # Errors
    /// When what is above it is gone.
    pub fn oom_kill(&self) -> Result<OomKill, CgroupError> {
        let directory = self.directory();
        let above = directory.parent().unwrap_or(Path::new(MOUNT));
        Ok(OomKill {
            parent: fs::open(above)?.into(),
            name: oom_kill::name_beside(&self.path),
        })
    }

    /// Whether systemd makes it, around a process that is there.
    pub fn is_scope(&self) -> bool {
        self.scope.is_some()
    }

    /// Makes it, and sets the limits that hold from the start. The descriptor is for the VM's process to
    /// be born there; there is none for a scope.
    ///
    /// # Errors
    /// When it can't be made, or a limit is refused. What was made is gone then.
    pub fn make(&self, limits: &Limits<'_>) -> Result<Option<File>, CgroupError> {
        if self.scope.is_some() {
            return Ok(None);
        }
        let directory = self.directory();
        fs::make(&directory, &self.path)?;
        let opened = fs::open(&directory).and_then(|file| {
            self.apply(&self.values(limits, is_from_the_start)?)?;
            Ok(file)
        });
        if opened.is_err() {
            // Where others are in it, the kernel refuses.
            let _ = std::fs::remove_dir(&directory);
        }
        opened.map(Some)
    }

    /// Has systemd make it around a process, which must not have done anything yet.
    ///
    /// # Errors
    /// When there is no systemd, or it refuses.
    pub fn adopt(&mut self, pid: i32, limits: &Limits<'_>) -> Result<(), CgroupError> {
        let values = self.values(limits, is_from_the_start)?;
        let Some(scope) = &mut self.scope else {
            return Ok(());
        };
        systemd::wait(systemd::start(scope, pid, &values))?;
        self.path = fs::path_of(pid)?;
        self.apply(&values).map(drop)
    }

    /// Sets the limits that hold once the container is made: its quota of CPU time. Until then it isn't
    /// the container that runs, but a boot that would take longer by as much.
    ///
    /// # Errors
    /// When one is refused.
    pub fn limit_container(&self, limits: &Limits<'_>) -> Result<(), CgroupError> {
        let values = self.values(limits, |file| !is_from_the_start(file))?;
        self.apply(&values)?;
        self.announce(&values)
    }

    /// Sets limits. Dropped, what is returned leaves them; it can take them back as well.
    ///
    /// # Errors
    /// When one is refused; then all are as they were.
    pub fn limit(&self, limits: &Limits<'_>) -> Result<Limited<'_>, CgroupError> {
        let values = self.values(limits, |_| true)?;
        let limited = Limited {
            cgroup: self,
            applied: self.apply(&values)?,
        };
        match self.announce(&values) {
            Ok(()) => Ok(limited),
            Err(e) => {
                limited.applied.undo();
                Err(e)
            }
        }
    }

    fn apply(&self, values: &[limits::Setting]) -> Result<Applied, CgroupError> {
        let directory = self.directory();
        let values: Vec<_> = limits::there(&directory, values).cloned().collect();
        Ok(hull_cgroup::limits::apply(&directory, &values)?)
    }

    /// Tells systemd of limits that are in force, so that it doesn't undo them one day.
    fn announce(&self, values: &[limits::Setting]) -> Result<(), CgroupError> {
        match &self.scope {
            Some(scope) => Ok(systemd::wait(systemd::set(scope, values))?),
            None => Ok(()),
        }
    }

    fn values(
        &self,
        limits: &Limits<'_>,
        which: impl Fn(&str) -> bool,
    ) -> Result<Vec<limits::Setting>, CgroupError> {
        let mut values = limits::values(&self.directory(), limits)?;
        values.retain(|limit| which(&limit.file));
        Ok(values)
    }

    /// Lifts the limits of CPU time, where the VM is alone in it, but for its follower: a process that is killed needs some to end, and on
    /// a busy host what a container may have is too little for it to end soon.
    pub fn lift_cpu_limits(&self) {
        let directory = self.directory();
        let count = fs::count_processes(&directory, &self.path);
        if count.is_ok_and(|count| count <= OWN_PROCESSES) {
            for (file, value) in [("cpu.max", "max"), ("cpu.idle", "0"), ("cpu.weight", "100")] {
                // Where there is no such limit, there is no such file.
                let _ = std::fs::write(directory.join(file), value);
            }
        }
    }

    /// Removes it once the VM's process in it has ended: `own_ended`, if that is known. If others are in
    /// it, it is left to them.
    ///
    /// # Errors
    /// When the dead don't leave it, or systemd doesn't stop it.
    pub fn remove(&self, own_ended: bool) -> Result<(), CgroupError> {
        // Left where a process was killed that was about to have a kill counted. No container's has this name, and one
        // in which somebody is all the same can't be removed.
        let beside = oom_kill::name_beside(&self.path);
        let _ = std::fs::remove_dir(self.directory().with_file_name(beside));
        match &self.scope {
            Some(scope) => Ok(systemd::wait(systemd::stop(scope))?),
            None => fs::remove(&self.directory(), &self.path, own_ended),
        }
    }
}

/// Limits that were set, and can be taken back.
#[derive(Debug)]
pub struct Limited<'a> {
    cgroup: &'a HostCgroup,
    applied: Applied,
}

impl Limited<'_> {
    /// Has the cgroup, and systemd, know the limits that were there before.
    pub fn undo(self) {
        let previous = self.applied.previous().iter();
        let previous: Vec<_> = previous
            .map(|(file, value)| limits::Setting::new("", file, value))
            .collect();
        self.applied.undo();
        if let Err(e) = self.cgroup.announce(&previous) {
            log::warn!("systemd is not told the limits of before: {}", chain(&e));
        }
    }
}

/// Whether a VM without a cgroup can have these limits.
///
/// # Errors
/// Names the first that it can't.
pub fn without(resources: &LinuxResources) -> Result<(), CgroupError> {
    match limits::needs_host(resources) {
        Some(field) if is_cgroup2() => Err(CgroupError::NotAllowed { field }),
        Some(field) => Err(CgroupError::NoCgroup2 { field }),
        None => Ok(()),
    }
}

/// What the host's limits follow from.
#[derive(Clone, Copy, Debug)]
pub struct Limits<'a> {
    /// The container's own, or those of them that change.
    pub resources: &'a LinuxResources,
    /// The VM's size.
    pub sizing: Sizing,
    /// The memory that the guest has beside that which it was booted with, in MiB, or is to get.
    pub plugged_mib: u32,
    /// How much the VM gets beside its guest's memory.
    pub config: &'a Config,
}
