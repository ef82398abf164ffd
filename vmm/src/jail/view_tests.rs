//! What is seen by who enters the mount namespace of the process, and what its other threads see.
#![allow(unsafe_code)] // fork

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::mpsc;

use rustix::fs::{StatVfsMountFlags, statvfs};
use rustix::process::{Pid, PidfdFlags, Signal, getpid, kill_process, pidfd_open};

use super::test_child::{End, is_root, run};
use super::tests::{names, o_path, share_of};
use super::tree::{self, BindMount, Content, Processes, View, ViewMount};

/// The errno of writing a new file.
pub(super) fn errno(path: &str) -> Option<i32> {
    fs::write(path, "x").err().and_then(|e| e.raw_os_error())
}

pub(super) const READ_ONLY: Option<i32> = Some(libc::EROFS);

/// A view of `c1/rootfs` with these mounts.
fn view_of<const N: usize>(mounts: [(&str, Content); N]) -> View {
    let mount = |(destination, content): (&str, Content)| ViewMount {
        destination: destination.into(),
        content,
    };
    View {
        root: "c1/rootfs".into(),
        mounts: mounts.into_iter().map(mount).collect(),
        ..View::default()
    }
}

/// Enters a tree with a root and two more shares, a directory and a file, and runs `in_tree` in a thread that stays in
/// it when this one has left it for the view.
fn show(sources: &Path, view: View, in_tree: impl FnOnce() + Send + 'static) {
    let at = |name: &str| BindMount::new(o_path(&sources.join(name)));
    let shares = vec![
        share_of("c1/rootfs", at("rootfs")),
        share_of("c1/mounts/0", at("volume")),
        share_of("c1/mounts/1", at("file")),
    ];
    let processes = Processes::mount();
    let tree = tree::enter(shares).expect("the tree");
    tree.task_dir.open_thread_fds().expect("the directory");
    let (shown, wait) = mpsc::channel::<()>();
    let other = std::thread::spawn(move || {
        wait.recv().expect("the view");
        in_tree();
    });
    view.show(processes).expect("the view");
    shown.send(()).expect("it waits");
    other.join().expect("the other thread");
}

fn sources() -> tempfile::TempDir {
    let sources = tempfile::tempdir().expect("a directory");
    let make = |name: &str| fs::create_dir_all(sources.path().join(name)).expect("a directory");
    let write = |name: &str, text: &str| {
        fs::write(sources.path().join(name), text).expect("a file");
    };
    make("rootfs/data");
    write("rootfs/data/below", "covered");
    make("volume");
    write("volume/inside", "of the volume");
    write("file", "one file");
    write("secret", "not shared");
    sources
}

#[test]
fn it_has_the_root_with_its_mounts_and_nothing_else() {
    if !is_root() {
        return;
    }
    let sources = sources();
    let end = run(|| {
        let view = view_of([
            ("/proc", Content::Processes),
            ("/data", Content::Share("c1/mounts/0".into())),
            ("/etc/made/file", Content::Share("c1/mounts/1".into())),
            ("/dev", Content::EmptyDirectory),
            ("/dev/pts", Content::EmptyDirectory),
            ("/masked", Content::EmptyFile),
        ]);
        show(sources.path(), view, || ());
        assert_eq!(names("/"), ["data", "dev", "etc", "masked", "proc"]);
        assert_eq!(names("/data"), ["inside"]);
        assert_eq!(fs::read("/etc/made/file").expect("a file"), b"one file");
        fs::write("/data/new", "by the host").expect("a file");
        fs::write("/new", "by the host").expect("a file");
        assert_eq!(names("/dev"), ["pts"]);
        for empty in ["/dev/new", "/dev/pts/new", "/masked"] {
            assert_eq!(errno(empty), READ_ONLY, "{empty}");
        }
        for outside in ["/secret", "/../secret", "/data/../../secret", "/c1"] {
            assert!(fs::metadata(outside).is_err(), "{outside}");
        }
        let flags =
            StatVfsMountFlags::NOEXEC | StatVfsMountFlags::NOSUID | StatVfsMountFlags::NODEV;
        for mount in [
            "/",
            "/data",
            "/etc/made/file",
            "/dev",
            "/dev/pts",
            "/masked",
            "/proc",
        ] {
            let of_mount = statvfs(mount).expect(mount).f_flag;
            assert!(of_mount.contains(flags), "{mount}: {of_mount:?}");
        }
        let own = getpid().as_raw_nonzero();
        let mounts = fs::read_to_string(format!("/proc/{own}/mountinfo")).expect("the mounts");
        assert_eq!(mounts.lines().count(), 7, "{mounts}");
    });
    assert_eq!(end, End::Returned);
    assert!(
        sources.path().join("volume/new").exists() && sources.path().join("rootfs/new").exists()
    );
    let made = fs::metadata(sources.path().join("rootfs/etc/made")).expect("it was made");
    assert_eq!(made.permissions().mode() & 0o7777, 0o755);
}

#[test]
fn no_link_of_its_proc_leads_to_what_the_process_has_open() {
    if !is_root() {
        return;
    }
    let sources = sources();
    symlink("/proc/1/root", sources.path().join("rootfs/link")).expect("a link");
    let end = run(|| {
        show(
            sources.path(),
            view_of([("/proc", Content::Processes)]),
            || (),
        );
        let own = format!("/proc/{}", getpid().as_raw_nonzero());
        fs::read_link(format!("{own}/exe")).expect("it can be read");
        for link in ["exe", "root", "cwd", "fd/0"].map(|name| format!("{own}/{name}")) {
            let followed = fs::metadata(&link).err().and_then(|e| e.raw_os_error());
            assert_eq!(followed, Some(libc::ELOOP), "{link}");
        }
        assert!(fs::metadata("/link/bin").is_err());
        assert_eq!(errno(&format!("{own}/comm")), READ_ONLY);
    });
    assert_eq!(end, End::Returned);
}

#[test]
fn no_link_in_the_root_leads_a_mount_point_out_of_it() {
    if !is_root() {
        return;
    }
    let sources = sources();
    let outside = sources.path().join("volume/outside");
    symlink(&outside, sources.path().join("rootfs/absolute")).expect("a link");
    symlink("../../..", sources.path().join("rootfs/up")).expect("a link");
    fs::create_dir_all(
        sources
            .path()
            .join("rootfs")
            .join(outside.strip_prefix("/").expect("absolute")),
    )
    .expect("a directory of that name");
    let end = run(|| {
        let view = view_of([
            ("/absolute", Content::Share("c1/mounts/0".into())),
            ("/up/up/made", Content::EmptyDirectory),
            ("/data/below/none", Content::EmptyDirectory),
        ]);
        show(sources.path(), view, || ());
        assert_eq!(names(outside.to_str().expect("text")), ["inside"]);
        assert!(names("/").contains(&"made".to_owned()));
        assert_eq!(
            fs::read("/data/below").expect("what can't be made is left out"),
            b"covered"
        );
    });
    assert_eq!(end, End::Returned);
    assert!(!outside.exists() && sources.path().join("rootfs/made").is_dir());
}

#[test]
fn a_read_only_root_has_its_mount_points_first_and_its_volumes_stay() {
    if !is_root() {
        return;
    }
    let sources = sources();
    let end = run(|| {
        let view = View {
            read_only: true,
            owner: (7, 8),
            ..view_of([("/made/here", Content::Share("c1/mounts/0".into()))])
        };
        show(sources.path(), view, || {
            assert_eq!(errno("/c1/rootfs/by-the-guest"), None);
        });
        assert_eq!((errno("/new"), errno("/made/here/new")), (READ_ONLY, None));
    });
    assert_eq!(end, End::Returned);
    let made = fs::metadata(sources.path().join("rootfs/made")).expect("it was made");
    assert_eq!((made.uid(), made.gid()), (7, 8));
}

#[test]
fn the_other_threads_stay_in_the_tree() {
    if !is_root() {
        return;
    }
    let sources = sources();
    let end = run(|| {
        let view = view_of([("/proc", Content::Processes)]);
        show(sources.path(), view, || {
            for root in ["/", "/..", "/c1/rootfs/../..", "/c1/mounts/../../../.."] {
                assert_eq!(names(root), ["c1"], "{root}");
            }
            assert!(
                fs::read_dir("/c1/rootfs/proc")
                    .expect("a mount point")
                    .next()
                    .is_none()
            );
            assert!(fs::metadata("/proc").is_err());
        });
    });
    assert_eq!(end, End::Returned);
}

/// A child that has entered a tree with one share, `c1/rootfs`, with the view of it, and a thread in the tree that
/// answers questions about it.
pub(super) struct Entered {
    pub child: Pid,
    question: fs::File,
    answer: fs::File,
}

impl Entered {
    /// `answer` is asked in the child, by the question's number.
    pub fn new(source: &Path, answer: impl Fn(u8) -> bool + Send) -> Self {
        let (asked, question) = rustix::pipe::pipe().expect("a pipe");
        let (told, tell) = rustix::pipe::pipe().expect("a pipe");
        // SAFETY: the child has one thread; both go on with what they have.
        let child = match unsafe { libc::fork() } {
            0 => {
                drop(question);
                let share = share_of("c1/rootfs", BindMount::new(o_path(source)));
                let entered =
                    tree::enter(vec![share]).and_then(|tree| tree.task_dir.open_thread_fds());
                let (shown, wait) = mpsc::channel::<()>();
                std::thread::scope(|scope| {
                    scope.spawn(move || {
                        let mut number = [0];
                        let is_shown = entered.is_ok() && wait.recv().is_ok();
                        while is_shown && rustix::io::read(&asked, &mut number) == Ok(1) {
                            let _ = rustix::io::write(&tell, &[u8::from(answer(number[0]))]);
                        }
                    });
                    if view_of([]).show(None).is_ok() {
                        let _ = shown.send(());
                    }
                    // Without an answer it waits for nobody.
                    drop(shown);
                });
                // SAFETY: nothing of the parent's is to be run here.
                unsafe { libc::_exit(0) }
            }
            child => Pid::from_raw(child).expect("a pid"),
        };
        drop((asked, tell));
        let (question, answer) = (question.into(), told.into());
        Self {
            child,
            question,
            answer,
        }
    }

    pub fn ask(&mut self, number: u8) -> bool {
        self.question.write_all(&[number]).expect("it lives");
        let mut answer = [0];
        self.answer.read_exact(&mut answer).expect("an answer");
        answer == [1]
    }

    pub fn process(&self) -> OwnedFd {
        pidfd_open(self.child, PidfdFlags::empty()).expect("a pidfd")
    }

    pub fn kill(self) {
        kill_process(self.child, Signal::KILL).expect("killed");
    }
}

#[test]
fn a_tree_that_no_thread_is_in_has_no_shares_to_remove() {
    if !is_root() {
        return;
    }
    let source = tempfile::tempdir().expect("a directory");
    let end = run(|| {
        let mut sleep = std::process::Command::new("sleep");
        let mut child = sleep.arg("60").spawn().expect("sleep");
        let pid = Pid::from_raw(child.id().cast_signed()).expect("a pid");
        let process = pidfd_open(pid, PidfdFlags::empty()).expect("a pidfd");
        let removed = tree::remove_shares(process.as_fd(), "c2").expect("nothing to do");
        assert!(removed.is_empty());
        let share = share_of("c2/x", BindMount::new(o_path(source.path())));
        tree::add_shares(process.as_fd(), "c2", vec![share]).expect_err("no tree");
        child.kill().expect("killed");
        child.wait().expect("wait");
    });
    assert_eq!(end, End::Returned);
}
