//! What a deleted container left on the host: processes, mounts, cgroups, state, run-time files.
//!
//! All of them are found by one word (the bundle's token) that is part of the container's id and of
//! every path that the runtime was given.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::process::wait_for_death;

/// How long a process may still be on its way out.
const GRACE: Duration = Duration::from_secs(5);

/// Everything with this word in it that is still there; `root` is the runtime's state folder.
pub fn of(token: &str, root: &Path) -> Vec<String> {
    let mut left = Vec::new();
    let end = Instant::now() + GRACE;
    for (pid, trace) in processes(token) {
        if !wait_for_death(pid, end.saturating_duration_since(Instant::now())) {
            left.push(format!("process {pid}: {trace}"));
        }
    }
    left.extend(mounts("/proc/self/mountinfo", token).map(|line| format!("mount {line}")));
    let mut folder = |path: &Path, depth| {
        let mut found = Vec::new();
        names_below(path, token, depth, &mut found);
        left.extend(found.iter().map(|path| path.display().to_string()));
    };
    folder(root, 8);
    folder(Path::new("/sys/fs/cgroup"), 6);
    folder(Path::new("/run"), 4);
    folder(Path::new("/dev/shm"), 2);
    left
}

/// Processes that have the word in their command line, cgroup, mounts, folders or open files, each
/// with where it was found.
pub fn processes(token: &str) -> Vec<(i32, String)> {
    let entries = fs::read_dir("/proc").expect("/proc is mounted").flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|&pid: &i32| pid != std::process::id().cast_signed())
        .filter_map(|pid| Some((pid, trace(pid, token)?)))
        .collect()
}

/// Where process `pid` has the word; `None` also when it has died.
fn trace(pid: i32, token: &str) -> Option<String> {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    for file in ["cmdline", "cgroup"] {
        let bytes = fs::read(proc.join(file)).ok()?;
        let text = String::from_utf8_lossy(&bytes).replace('\0', " ");
        if text.contains(token) {
            return Some(format!("{file} {text}"));
        }
    }
    for link in ["cwd", "root", "exe"] {
        let target = fs::read_link(proc.join(link)).unwrap_or_default();
        if target.to_string_lossy().contains(token) {
            return Some(format!("{link} {}", target.display()));
        }
    }
    for fd in fs::read_dir(proc.join("fd")).ok()?.flatten() {
        let target = fs::read_link(fd.path()).unwrap_or_default();
        if target.to_string_lossy().contains(token) {
            return Some(format!("open file {}", target.display()));
        }
    }
    let mountinfo = proc.join("mountinfo").display().to_string();
    mounts(&mountinfo, token)
        .next()
        .map(|line| format!("mount {line}"))
}

fn mounts(mountinfo: &str, token: &str) -> impl Iterator<Item = String> {
    let text = fs::read_to_string(mountinfo).unwrap_or_default();
    let lines: Vec<_> = text
        .lines()
        .filter(|line| line.contains(token))
        .map(str::to_owned)
        .collect();
    lines.into_iter()
}

/// Paths at most `depth` folders below `path` whose own name has the word.
fn names_below(path: &Path, token: &str, depth: u32, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().contains(token) {
            found.push(entry.path());
        } else if depth > 1 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            names_below(&entry.path(), token, depth - 1, found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Stream;
    use std::process::Command;

    #[test]
    fn a_process_and_a_folder_are_found_and_then_gone() {
        let token = format!("leak-{}", std::process::id());
        let root = tempfile::tempdir().expect("a folder");
        let folder = root.path().join(format!("state-of-{token}"));
        fs::create_dir(&folder).expect("a folder");
        let script = "echo up; read wait";
        let mut child = Command::new("sh")
            .args(["-c", script, &token])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("sh");
        // Only a process that runs has a command line: spawn returns a moment before.
        let stdout = child.stdout.take().expect("a pipe");
        assert_eq!(Stream::new(stdout).line("sh"), "up");

        let found = processes(&token);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].0, child.id().cast_signed());
        drop(child.stdin.take());
        child.wait().expect("our child");
        assert_eq!(of(&token, root.path()), [folder.display().to_string()]);

        fs::remove_dir(&folder).expect("our folder");
        assert_eq!(of(&token, root.path()), Vec::<String>::new());
    }
}
