//! The threads of a process, as the kernel shows them: what each has open, and what it may do.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// One thread.
#[derive(Debug)]
pub struct Thread {
    /// Its name.
    pub name: String,
    /// Its number.
    pub tid: i32,
    /// What it has open, by descriptor.
    pub open: BTreeMap<u32, PathBuf>,
    status: String,
}

impl Thread {
    /// A line of its status (proc(5)), without the field's name.
    pub fn status(&self, field: &str) -> &str {
        let line = self
            .status
            .lines()
            .find_map(|line| line.strip_prefix(field));
        let line = line.unwrap_or_else(|| panic!("{}: no {field}", self.name));
        line.trim_start_matches(':').trim()
    }

    /// Whether it has the file at this path open.
    pub fn has(&self, path: &Path) -> bool {
        self.open.values().any(|open| open == path)
    }

    /// What it has open beside the three standard streams, without the kernel's numbers: `socket`,
    /// `eventfd`, or a path. Each kind once.
    pub fn kinds(&self) -> Vec<String> {
        let kind = |open: &PathBuf| {
            let open = open.display().to_string();
            let open = open.strip_prefix("anon_inode:").unwrap_or(&open);
            match open.split_once(':') {
                Some((kind, _)) => kind.to_owned(),
                None => open.trim_matches(['[', ']']).to_owned(),
            }
        };
        let mut kinds: Vec<_> = self.open.range(3..).map(|(_, open)| kind(open)).collect();
        kinds.sort();
        kinds.dedup();
        kinds
    }
}

/// A name that is a number, as the kernel gives them.
fn number<T: FromStr>(name: &OsStr) -> T {
    let number = name.to_str().and_then(|name| name.parse().ok());
    number.unwrap_or_else(|| panic!("{} is no number", name.display()))
}

/// What KVM begins the names of its own threads with, which it has in the process whose VM it runs: they never
/// leave the kernel.
const OF_THE_KERNEL: &str = "kvm-";

/// All threads of process `pid`, the first one first, without the kernel's.
pub fn of(pid: i32) -> Vec<Thread> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the process");
    let mut tids: Vec<i32> = tasks
        .map(|task| number(&task.expect("a thread").file_name()))
        .collect();
    tids.sort_unstable();
    let thread = |tid| {
        let task = PathBuf::from(format!("/proc/{pid}/task/{tid}"));
        let read = |file| fs::read_to_string(task.join(file)).expect("a thread that lives");
        let open = fs::read_dir(task.join("fd")).expect("what it has open");
        let open = open.map(|fd| {
            let fd = fd.expect("a descriptor");
            let number = number(&fd.file_name());
            (
                number,
                fs::read_link(fd.path()).expect("a descriptor that stays"),
            )
        });
        Thread {
            name: read("comm").trim().to_owned(),
            tid,
            open: open.collect(),
            status: read("status"),
        }
    };
    let threads = tids.into_iter().map(thread);
    threads
        .filter(|thread| !thread.name.starts_with(OF_THE_KERNEL))
        .collect()
}
