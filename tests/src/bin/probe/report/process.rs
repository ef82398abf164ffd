//! The process itself: users, privileges, limits, scheduling, environment, files, keyring.
#![allow(unsafe_code)] // keyctl(2), ioprio_get(2) and most of prctl(2) have no safe wrapper

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use serde_json::{Map, Value, json};

use super::{content, of_text, why};

/// The lines of /proc/self/status that say what a runtime has set (proc_pid_status(5)).
const STATUS: &[&str] = &[
    "Umask",
    "Pid",
    "PPid",
    "TracerPid",
    "Uid",
    "Gid",
    "Groups",
    "NSpid",
    "NSsid",
    "NSpgid",
    "SigBlk",
    "SigIgn",
    "SigCgt",
    "CapInh",
    "CapPrm",
    "CapEff",
    "CapBnd",
    "CapAmb",
    "NoNewPrivs",
    "Seccomp",
    "Seccomp_filters",
];

/// Files below /proc/self with one value.
const FILES: &[&str] = &[
    "oom_score_adj",
    "uid_map",
    "gid_map",
    "setgroups",
    "timens_offsets",
    "cgroup",
    "coredump_filter",
    "timerslack_ns",
];

/// Calls that only ask, and need no pointer.
const QUESTIONS: &[(&str, libc::c_long, [usize; 2])] = &[
    (
        "nice",
        libc::SYS_getpriority,
        [libc::PRIO_PROCESS as usize, 0],
    ),
    ("ioprio", libc::SYS_ioprio_get, [1, 0]), // IOPRIO_WHO_PROCESS
    ("scheduler", libc::SYS_sched_getscheduler, [0, 0]),
    ("personality", libc::SYS_personality, [0xffff_ffff, 0]),
    (
        "dumpable",
        libc::SYS_prctl,
        [libc::PR_GET_DUMPABLE as usize, 0],
    ),
    (
        "securebits",
        libc::SYS_prctl,
        [libc::PR_GET_SECUREBITS as usize, 0],
    ),
    (
        "keepcaps",
        libc::SYS_prctl,
        [libc::PR_GET_KEEPCAPS as usize, 0],
    ),
    (
        "thp_disable",
        libc::SYS_prctl,
        [libc::PR_GET_THP_DISABLE as usize, 0],
    ),
    ("session", libc::SYS_getsid, [0, 0]),
    ("group", libc::SYS_getpgid, [0, 0]),
];

/// All of it.
pub fn report() -> Value {
    let args: Vec<_> = std::env::args_os().collect();
    json!({
        "status": status(),
        "limits": limits(),
        "self": FILES.iter().map(|name| (*name, content(&format!("/proc/self/{name}"))))
            .collect::<Value>(),
        "attributes": QUESTIONS.iter().map(|&(name, call, args)| (name, ask(call, args)))
            .collect::<Value>(),
        "program": args.first().map(|arg| arg.to_string_lossy()),
        "environment": environment(),
        "cwd": std::env::current_dir().map_or_else(why, |cwd| cwd.to_string_lossy().into()),
        "files": open_files(),
        "keyring": keyring(),
    })
}

fn status() -> Value {
    of_text("/proc/self/status", |text| {
        text.lines()
            .filter_map(|line| line.split_once(':'))
            .filter(|(name, _)| STATUS.contains(name))
            .map(|(name, value)| {
                let words: Vec<_> = value.split_whitespace().collect();
                (name, words.join(" "))
            })
            .collect()
    })
}

/// Each limit with its soft and hard value.
fn limits() -> Value {
    of_text("/proc/self/limits", |text| {
        text.lines()
            .skip(1)
            .filter_map(|line| line.split_at_checked(25))
            .map(|(name, values)| {
                let values: Vec<_> = values.split_whitespace().take(2).collect();
                (name.trim(), values.join(" "))
            })
            .collect()
    })
}

/// As the kernel handed it over, in its order.
fn environment() -> Value {
    match fs::read("/proc/self/environ") {
        Err(error) => why(error),
        Ok(bytes) => bytes
            .split(|byte| *byte == 0)
            .filter(|entry| !entry.is_empty())
            .map(|entry| Value::from(String::from_utf8_lossy(entry)))
            .collect(),
    }
}

/// What is open: by number, what kind of file it is, and who owns it.
fn open_files() -> Value {
    let entries = match fs::read_dir("/proc/self/fd") {
        Ok(entries) => entries,
        Err(error) => return why(error),
    };
    let mut files = Map::new();
    for entry in entries.flatten() {
        let target = fs::read_link(entry.path()).unwrap_or_default();
        // the folder that is being read
        if target.ends_with("fd") && target.starts_with("/proc") {
            continue;
        }
        let number = entry.file_name().to_string_lossy().into_owned();
        files.insert(number, open_file(&entry.path(), &target));
    }
    files.into()
}

fn open_file(path: &Path, target: &Path) -> Value {
    match fs::metadata(path) {
        Err(error) => why(error),
        Ok(file) => {
            let kind = match file.file_type() {
                kind if kind.is_fifo() => "pipe".to_owned(),
                kind if kind.is_socket() => "socket".to_owned(),
                _ => target.display().to_string(),
            };
            json!({ "what": kind, "owner": file.uid() })
        }
    }
}

/// The name and owner of the session keyring (keyctl(2), KEYCTL_DESCRIBE).
fn keyring() -> Value {
    const DESCRIBE: usize = 6;
    const SESSION: isize = -3;
    let mut text = [0u8; 256];
    // SAFETY: the kernel writes to the buffer no more than its length.
    let length = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            DESCRIBE,
            SESSION,
            text.as_mut_ptr(),
            text.len(),
        )
    };
    match usize::try_from(length) {
        Ok(length) => {
            let text = text.get(..length.min(text.len())).unwrap_or_default();
            String::from_utf8_lossy(text).trim_end_matches('\0').into()
        }
        Err(_) => why(std::io::Error::last_os_error()),
    }
}

fn ask(number: libc::c_long, args: [usize; 2]) -> Value {
    // SAFETY: the calls of QUESTIONS take numbers and change nothing.
    match unsafe { libc::syscall(number, args[0], args[1], 0, 0, 0) } {
        -1 => why(std::io::Error::last_os_error()),
        answer => answer.into(),
    }
}
