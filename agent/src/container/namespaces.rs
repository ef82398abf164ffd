//! The namespaces of a container, and their id maps and time offsets, which the helper writes from outside. They are
//! new, or those of other containers in the sandbox ([`Shared`]).
//!
//! The pid and user namespaces are made by the clone that makes the first process: a pid namespace applies only to
//! processes born in it, and the user namespace must own all others. The first process unshares the others once it
//! is root in the user namespace: a cgroup namespace's root is the cgroup of the process that makes it, and the
//! message queues of an IPC namespace (mq_overview(7)) belong to the user that makes it. The time namespace is
//! unshared before that: its offsets are written from outside, and only while no process is in it.

use std::fmt::Write;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespaceType, Spec};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Gid, Uid};
use rustix::system::{setdomainname, sethostname};
use rustix::thread::{
    LinkNameSpaceType, ThreadNameSpaceType, move_into_link_name_space,
    move_into_thread_name_spaces, set_thread_res_gid, set_thread_res_uid,
};
use serde::{Deserialize, Serialize};

use crate::error::Failure;
use crate::sys;

/// The namespaces that are made by the clone of the first process.
const AT_CLONE: u32 = (libc::CLONE_NEWUSER | libc::CLONE_NEWPID).cast_unsigned();

const NEWTIME: u32 = libc::CLONE_NEWTIME.cast_unsigned();

const NEWUSER: u32 = libc::CLONE_NEWUSER.cast_unsigned();

/// Namespaces of another container that a container's first process enters, for the helper that makes it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Shared {
    /// The number of a pidfd of that one's first process.
    pub process: RawFd,
    /// Their kinds, `CLONE_NEW*`.
    pub kinds: u32,
}

/// The namespaces of a container.
#[derive(Debug, Default)]
pub struct Namespaces {
    /// `CLONE_NEW*`.
    flags: u32,
    /// Those of the flags that are other containers'.
    shared: u32,
    uid_map: String,
    gid_map: String,
    time_offsets: String,
    host_name: Option<String>,
    domain_name: Option<String>,
}

impl Namespaces {
    /// The namespaces of a config.json.
    pub fn of(spec: &Spec) -> Self {
        let mut found = Self {
            host_name: spec.hostname().clone(),
            domain_name: spec.domainname().clone(),
            ..Self::default()
        };
        if let Some(linux) = spec.linux() {
            let kinds = linux.namespaces().iter().flatten();
            found.flags = kinds.fold(0, |flags, kind| flags | clone_flag(kind.typ()));
            found.uid_map = id_map(linux.uid_mappings().as_deref().unwrap_or_default());
            found.gid_map = id_map(linux.gid_mappings().as_deref().unwrap_or_default());
            found.time_offsets = time_offsets(linux);
        }
        found
    }

    /// Enters other containers' namespaces, which are the container's, with the calling thread: its first process is to
    /// be born in them. The helper has the rights to do so, and that process wouldn't in a user namespace of its own.
    ///
    /// A user namespace comes last, as the helper then has no rights in the guest any more. The first process makes its own
    /// namespaces there, so that they belong to it.
    ///
    /// # Errors
    /// When one has ended.
    pub fn enter_shared(&mut self, shared: &[Shared]) -> Result<(), Failure> {
        let mut users = None;
        for Shared { process, kinds } in shared {
            let process = sys::take_inherited_fd(*process)
                .map_err(Failure::io("use another container's pidfd"))?;
            self.shared |= kinds;
            enter(process.as_fd(), kinds & !NEWUSER)?;
            if kinds & NEWUSER != 0 {
                users = Some(process);
            }
        }
        users.map_or(Ok(()), |process| enter(process.as_fd(), NEWUSER))
    }

    /// The flags of the namespaces that are made by the clone of the first process.
    pub fn clone_flags(&self) -> u32 {
        self.new_ones() & AT_CLONE
    }

    fn new_ones(&self) -> u32 {
        self.flags & !self.shared
    }

    /// Whether the container has a namespace of this type other than the guest's own.
    pub fn has(&self, kind: LinuxNamespaceType) -> bool {
        self.flags & clone_flag(kind) != 0
    }

    /// Called by the first process: becomes root of its user namespace, and unshares the remaining namespaces.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn unshare(&self, helper: &SyncSocket) -> Result<(), Failure> {
        sys::unshare(self.new_ones() & NEWTIME).map_err(Failure::field("linux.namespaces"))?;
        helper.notify().map_err(Failure::io("notify the helper"))?;
        helper.wait().map_err(Failure::io("wait for the helper"))?;
        if self.has(LinuxNamespaceType::User) {
            set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)
                .and_then(|()| set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT))
                .map_err(Failure::io("become the container's root"))?;
        }
        let remaining = self.new_ones() & !(AT_CLONE | NEWTIME);
        sys::unshare(remaining).map_err(Failure::field("linux.namespaces"))?;
        if self.has(LinuxNamespaceType::Time) {
            enter_time_namespace().map_err(Failure::io("enter the time namespace"))?;
        }
        self.set_host_names()
            .map_err(Failure::io("set the host name"))
    }

    /// Called by the helper, as the process lacks the privileges: writes the process's id maps and time offsets.
    /// Does nothing if the process has ended, which reports why by itself.
    ///
    /// # Errors
    /// Names the field that the kernel refuses.
    pub fn write_mappings(&self, process: i32, socket: &SyncSocket) -> Result<(), Failure> {
        if socket.wait().is_err() {
            return Ok(());
        }
        let write = |file: &str, text: &str, field: &str| match text {
            "" => Ok(()),
            text => {
                fs::write(format!("/proc/{process}/{file}"), text).map_err(Failure::field(field))
            }
        };
        if self.new_ones() & NEWUSER != 0 {
            write("uid_map", &self.uid_map, "linux.uidMappings")?;
            write("gid_map", &self.gid_map, "linux.gidMappings")?;
        }
        write("timens_offsets", &self.time_offsets, "linux.timeOffsets")?;
        socket.notify().map_err(Failure::io("notify the process"))
    }

    /// As with runc, also where others share them.
    fn set_host_names(&self) -> Result<(), rustix::io::Errno> {
        if !self.has(LinuxNamespaceType::Uts) {
            return Ok(());
        }
        if let Some(name) = &self.host_name {
            sethostname(name.as_bytes())?;
        }
        if let Some(name) = &self.domain_name {
            setdomainname(name.as_bytes())?;
        }
        Ok(())
    }
}

fn enter(process: BorrowedFd<'_>, kinds: u32) -> Result<(), Failure> {
    if kinds == 0 {
        return Ok(());
    }
    let kinds = ThreadNameSpaceType::from_bits_retain(kinds);
    move_into_thread_name_spaces(process, kinds).map_err(Failure::field(
        "linux.namespaces: enter another container's",
    ))
}

/// Enters the time namespace that unshare(2) has made for children, as execve(2) would do.
fn enter_time_namespace() -> Result<(), rustix::io::Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let path = "/proc/self/ns/time_for_children";
    let namespace = openat(CWD, path, flags, Mode::empty())?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Time))
}

/// A socket by which a helper and the process that it makes wait for each other.
#[derive(Debug)]
pub struct SyncSocket(OwnedFd);

impl SyncSocket {
    /// Both ends.
    ///
    /// # Errors
    /// When there are too many open files.
    pub fn pair() -> io::Result<(Self, Self)> {
        let flags = SocketFlags::CLOEXEC;
        let (one, other) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        Ok((Self(one), Self(other)))
    }

    /// Lets the other end's [`wait`](Self::wait) return.
    ///
    /// # Errors
    /// When it has ended.
    pub fn notify(&self) -> io::Result<()> {
        let flags = rustix::net::SendFlags::NOSIGNAL;
        rustix::net::send(&self.0, &[1], flags)?;
        Ok(())
    }

    /// Waits until the other end calls [`notify`](Self::notify).
    ///
    /// # Errors
    /// When it has ended.
    pub fn wait(&self) -> io::Result<()> {
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.0, &mut [0]))? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

/// The flag `CLONE_NEW*` of a type of namespace.
pub fn clone_flag(kind: LinuxNamespaceType) -> u32 {
    let flag = match kind {
        LinuxNamespaceType::User => libc::CLONE_NEWUSER,
        LinuxNamespaceType::Pid => libc::CLONE_NEWPID,
        LinuxNamespaceType::Uts => libc::CLONE_NEWUTS,
        LinuxNamespaceType::Ipc => libc::CLONE_NEWIPC,
        LinuxNamespaceType::Network => libc::CLONE_NEWNET,
        LinuxNamespaceType::Cgroup => libc::CLONE_NEWCGROUP,
        LinuxNamespaceType::Mount => libc::CLONE_NEWNS,
        LinuxNamespaceType::Time => libc::CLONE_NEWTIME,
    };
    flag.cast_unsigned()
}

/// The lines of a uid_map or gid_map, user_namespaces(7).
fn id_map(mappings: &[LinuxIdMapping]) -> String {
    mappings.iter().fold(String::new(), |mut lines, map| {
        let (inside, outside) = (map.container_id(), map.host_id());
        let _ = writeln!(lines, "{inside} {outside} {}", map.size());
        lines
    })
}

/// The lines of a timens_offsets, time_namespaces(7).
fn time_offsets(linux: &Linux) -> String {
    let offsets = linux.time_offsets().iter().flatten();
    offsets.fold(String::new(), |mut lines, (clock, offset)| {
        let (seconds, rest) = (offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0));
        let _ = writeln!(lines, "{clock} {seconds} {rest}");
        lines
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_range_and_each_clock_is_a_line() {
        let spec = json!({"ociVersion": "1.2.0", "linux": {
            "namespaces": [{"type": "user"}, {"type": "time"}, {"type": "cgroup"}],
            "uidMappings": [{"containerID": 0, "hostID": 1000, "size": 1},
                            {"containerID": 1, "hostID": 100_000, "size": 9}],
            "timeOffsets": {"boottime": {"secs": 7, "nanosecs": 8}}}});
        let spec = serde_json::from_value(spec).expect("a config.json");
        let found = Namespaces::of(&spec);
        assert_eq!(found.uid_map, "0 1000 1\n1 100000 9\n");
        assert_eq!(found.time_offsets, "boottime 7 8\n");
        assert_eq!(found.gid_map, "");
        let user = clone_flag(LinuxNamespaceType::User);
        assert_eq!(found.clone_flags(), user);
        assert!(found.has(LinuxNamespaceType::Time) && !found.has(LinuxNamespaceType::Uts));
    }
}
