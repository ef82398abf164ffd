//! Tests in network namespaces made for them. What hull has done is looked at with iproute2, and what iproute2 has
//! set up is looked at with hull.
#![allow(unsafe_code)] // rustix's unshare

mod connecting;
mod local_access;
mod moving;
mod reading;
mod watching;

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;
use std::thread;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use super::{Interface, Namespace, Network, Watch, read, watch};
use crate::chain::chain;

/// How long a test waits for what the kernel does at once.
const SOON: Duration = Duration::from_secs(30);

/// A network namespace that has nothing but `lo`, which is up. It goes when its descriptor does.
struct Net(Namespace);

impl Net {
    /// Makes one; `None` for who may not, with a word about it.
    fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root makes network namespaces");
            return None;
        }
        let make = || -> rustix::io::Result<OwnedFd> {
            // SAFETY: the thread ends with this, and nothing else is in its namespace.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
            Ok(File::open("/proc/thread-self/ns/net")
                .expect("its file")
                .into())
        };
        let made = thread::scope(|scope| scope.spawn(make).join().expect("a thread"));
        match made {
            Ok(namespace) => {
                let net = Self(namespace.into());
                net.ip("link set lo up");
                Some(net)
            }
            Err(e) => {
                eprintln!("skipped: this machine makes no network namespaces: {e}");
                None
            }
        }
    }

    /// Does something on a thread in the namespace.
    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let enter_and_work = || {
            let kind = Some(LinkNameSpaceType::Network);
            let namespace = self.0.try_clone().expect("dup");
            move_into_link_name_space(namespace.as_fd(), kind).expect("setns");
            work()
        };
        thread::scope(|scope| scope.spawn(enter_and_work).join().expect("a thread"))
    }

    /// Runs a program in the namespace, and returns what it says and whether it ended well.
    fn try_run(&self, program: &str, arguments: &str) -> (String, bool) {
        let mut command = Command::new(program);
        command.args(arguments.split_ascii_whitespace());
        let output = self.inside(|| command.output()).expect(program);
        let text = [output.stdout, output.stderr].concat();
        (
            String::from_utf8(text).expect("text"),
            output.status.success(),
        )
    }

    fn run(&self, program: &str, arguments: &str) -> String {
        let (text, is_fine) = self.try_run(program, arguments);
        assert!(is_fine, "{program} {arguments}: {text}");
        text
    }

    fn ip(&self, arguments: &str) -> String {
        self.run("ip", arguments)
    }

    fn tc(&self, arguments: &str) -> String {
        self.run("tc", arguments)
    }

    /// Puts a veth into it whose other end, `peer0`, is in another one; both are up.
    fn add_veth(&self, name: &str, mac: &str, other: &Self) {
        let other_fd = other.0.try_clone().expect("dup");
        let (process, fd) = (std::process::id(), other_fd.as_raw_fd());
        let other_end = format!("name peer0 netns /proc/{process}/fd/{fd}");
        self.ip(&format!(
            "link add {name} address {mac} type veth peer {other_end}"
        ));
        other.ip("link set peer0 up");
        self.ip(&format!("link set {name} up"));
    }

    fn read(&self) -> Network {
        read(&self.0, &[]).expect("read")
    }

    fn interface(&self, name: &str) -> Interface {
        let mut all = self.read().interfaces.into_iter();
        all.find(|interface| interface.name == name).expect(name)
    }

    fn watch(&self) -> Watch {
        watch(&self.0).expect("watch")
    }

    /// Waits until something is so, looking again whenever something changes.
    fn until(&self, is_so: impl Fn() -> bool) {
        let mut watch = self.watch();
        while !is_so() {
            assert!(watch.changed(SOON).expect("watch"), "nothing changed");
        }
    }
}
