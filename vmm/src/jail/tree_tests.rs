//! The shared tree's mounts: what is read-only, what the host's later mounts do, whose files are whose.
#![allow(unsafe_code)] // a mount namespace for the test's own mounts

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::test_child::{End, is_root, run};
use super::tests::{o_path, share_of};
use super::tree::{
    self, AccessTimes, BindMount, FileSystem, Owners, ReadOnly, Share, Source, Times,
};
use super::userns::IdMap;
use super::view_tests::{Entered, READ_ONLY, errno};

/// Gives this child a mount namespace, with a tmpfs of its own at `at`, on which is a directory `below`.
fn own_tmpfs(at: &Path) {
    // SAFETY: the child has one thread.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.expect("a mount namespace");
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change(c"/", private).expect("private");
    tmpfs(at);
    fs::create_dir(at.join("below")).expect("a directory");
}

fn tmpfs(at: &Path) {
    mount(c"none", at, c"tmpfs", MountFlags::empty(), None).expect("tmpfs");
}

#[test]
fn one_mount_can_be_read_only_and_those_below_not() {
    if !is_root() {
        return;
    }
    let source = tempfile::tempdir().expect("a directory");
    let end = run(|| {
        own_tmpfs(source.path());
        tmpfs(&source.path().join("below"));
        let with = |target, read_only| {
            let mounted = BindMount::new(o_path(source.path()));
            share_of(
                target,
                BindMount {
                    read_only,
                    ..mounted
                },
            )
        };
        tree::enter(vec![
            with("itself", ReadOnly::Itself(true)),
            with("all", ReadOnly::All(true)),
        ])
        .expect("the tree");
        assert_eq!(errno("/itself/new"), READ_ONLY);
        assert_eq!(errno("/itself/below/new"), None);
        assert_eq!(errno("/all/below/new"), READ_ONLY);
    });
    assert_eq!(end, End::Returned);
}

#[test]
fn access_times_are_kept_as_is_asked_for() {
    if !is_root() {
        return;
    }
    let source = tempfile::tempdir().expect("a directory");
    let end = run(|| {
        own_tmpfs(source.path());
        tmpfs(&source.path().join("below"));
        fs::write(source.path().join("file"), "text").expect("a file");
        fs::write(source.path().join("below/file"), "text").expect("a file");
        let with = |target, times| {
            let mounted = BindMount::new(o_path(source.path()));
            share_of(target, BindMount { times, ..mounted })
        };
        let to = |set| {
            Some(Times {
                set,
                clear: libc::MOUNT_ATTR__ATIME,
            })
        };
        let (every, none) = (libc::MOUNT_ATTR_STRICTATIME, libc::MOUNT_ATTR_NOATIME);
        let times = |itself, all| AccessTimes { itself, all };
        tree::enter(vec![
            with("every", times(to(every), None)),
            with("none", times(to(every), to(none))),
        ])
        .expect("the tree");
        let noted = |path: &str| {
            let time = || fs::metadata(path).map(|about| (about.atime(), about.atime_nsec()));
            // Longer ago than any clock's tick; and written since, or `relatime` would note it too.
            let old = rustix::fs::Timespec {
                tv_sec: 2_000_000_000,
                tv_nsec: 0,
            };
            let times = rustix::fs::Timestamps {
                last_access: old,
                last_modification: rustix::fs::Timespec { tv_sec: 1, ..old },
            };
            let file = fs::File::options().write(true).open(path).expect("a file");
            rustix::fs::futimens(&file, &times).expect("its times");
            let before = time().expect("a time");
            fs::read(path).expect("it is read");
            before != time().expect("a time")
        };
        assert!(noted("/every/file"));
        assert!(!noted("/every/below/file"), "as the mount below does");
        assert!(!noted("/none/file") && !noted("/none/below/file"));
    });
    assert_eq!(end, End::Returned);
}

#[test]
fn the_hosts_later_mounts_appear_where_they_are_to() {
    if !is_root() {
        return;
    }
    let source = tempfile::tempdir().expect("a directory");
    let end = run(|| {
        own_tmpfs(source.path());
        mount_change(source.path(), MountPropagationFlags::SHARED).expect("shared");
        let with = |target, receives_propagation| {
            let mounted = BindMount::new(o_path(source.path()));
            share_of(
                target,
                BindMount {
                    receives_propagation,
                    ..mounted
                },
            )
        };
        let shares = vec![with("follows", true), with("stays", false)];
        // The host goes on in another process, in this namespace.
        let (ready, tell) = rustix::pipe::pipe().expect("a pipe");
        let (told, done) = rustix::pipe::pipe().expect("a pipe");
        let byte = [0];
        // SAFETY: the child has one thread; both go on with what they have.
        match unsafe { libc::fork() } {
            0 => {
                let _ = rustix::io::read(&ready, &mut [0]);
                tmpfs(&source.path().join("below"));
                fs::write(source.path().join("below/later"), "").expect("a file");
                let _ = rustix::io::write(&done, &byte);
                // SAFETY: nothing of the parent's is to be run here.
                unsafe { libc::_exit(0) }
            }
            host => assert!(host > 0),
        }
        tree::enter(shares).expect("the tree");
        rustix::io::write(&tell, &byte).expect("told");
        rustix::io::read(&told, &mut [0]).expect("done");
        assert!(fs::metadata("/follows/below/later").is_ok());
        assert!(fs::metadata("/stays/below/later").is_err());
    });
    assert_eq!(end, End::Returned);
}

#[test]
fn owners_are_mapped_in_the_tree_and_stay_on_disk() {
    if !is_root() {
        return;
    }
    let source = tempfile::tempdir().expect("a directory");
    let end = run(|| {
        own_tmpfs(source.path());
        fs::write(source.path().join("file"), "").expect("a file");
        chown(source.path().join("file"), Some(3), Some(4)).expect("chown");
        let range = |inside, outside, count| IdMap {
            inside,
            outside,
            count,
        };
        let owners = Some(Owners {
            name: "the owners".into(),
            uids: vec![range(0, 1000, 10)],
            gids: vec![range(4, 2000, 1)],
            recursive: false,
        });
        let mounted = BindMount::new(o_path(source.path()));
        let plain = share_of("plain", BindMount::new(o_path(source.path())));
        tree::enter(vec![
            share_of("mapped", BindMount { owners, ..mounted }),
            plain,
        ])
        .expect("the tree");
        let owner = |path| {
            let metadata = fs::metadata(path).expect("a file");
            (metadata.uid(), metadata.gid())
        };
        assert_eq!(owner("/mapped/file"), (1003, 2000));
        chown("/mapped/file", Some(1005), None).expect("chown");
        assert_eq!(owner("/plain/file"), (5, 4));
    });
    assert_eq!(end, End::Returned);
}

#[test]
fn owners_of_a_file_system_without_them_are_refused_by_name() {
    if !is_root() {
        return;
    }
    let end = run(|| {
        let ids = vec![IdMap {
            inside: 0,
            outside: 0,
            count: 1,
        }];
        let owners = Some(Owners {
            name: "the owners".into(),
            uids: ids.clone(),
            gids: ids,
            recursive: false,
        });
        let mounted = BindMount::new(o_path(Path::new("/proc/self/fd")));
        let shares = vec![share_of("proc", BindMount { owners, ..mounted })];
        let error = tree::enter(shares).expect_err("proc has no id mappings");
        assert!(error.to_string().starts_with("the owners: "), "{error}");
    });
    assert_eq!(end, End::Returned);
}

#[test]
fn a_file_system_is_mounted_for_the_tree_alone() {
    if !is_root() {
        return;
    }
    let source = tempfile::tempdir().expect("a directory");
    fs::write(source.path().join("outside"), "").expect("a file");
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let share = |kind: &str| Share {
        name: "mounts[0]".into(),
        source: Source::FileSystem(FileSystem {
            kind: kind.into(),
            device: "none".into(),
            flags: MountFlags::NOEXEC.bits(),
            options: "size=64k,mode=711".into(),
        }),
        target: "c1/0".into(),
    };
    let end = run(|| {
        tree::enter(vec![share("tmpfs")]).expect("the tree");
        assert_eq!(fs::metadata("/c1/0").expect("it").mode() & 0o777, 0o711);
        assert_eq!(errno("/c1/0/new"), None);
        let flags = rustix::fs::statvfs("/c1/0").expect("statvfs").f_flag;
        let wanted = rustix::fs::StatVfsMountFlags::NOEXEC | rustix::fs::StatVfsMountFlags::NODEV;
        assert!(flags.contains(wanted), "{flags:?}");
    });
    assert_eq!(end, End::Returned);
    let end = run(|| {
        let error = tree::enter(vec![share("nosuchfs")]).expect_err("no such type");
        assert!(error.to_string().starts_with("mounts[0]: "), "{error}");
    });
    assert_eq!(end, End::Returned);
    let after = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    assert_eq!(mounts, after, "nothing is mounted on the host");
}

#[test]
fn a_share_can_be_made_read_only_from_outside() {
    if !is_root() {
        return;
    }
    let source = tempfile::tempdir().expect("a directory");
    let end = run(|| {
        let mut entered = Entered::new(source.path(), |number| match number {
            0 => errno("/c1/rootfs/before").is_none(),
            _ => errno("/c1/rootfs/after") == READ_ONLY,
        });
        assert!(entered.ask(0));
        let process = entered.process();
        tree::make_read_only(process.as_fd(), Path::new("c1/rootfs"), false).expect("made");
        assert!(entered.ask(1), "it was not refused");
        entered.kill();
    });
    assert_eq!(end, End::Returned);
    assert!(source.path().join("before").exists() && !source.path().join("after").exists());
}

#[test]
fn shares_join_the_tree_of_a_process_that_runs_and_leave_it() {
    if !is_root() {
        return;
    }
    let source = tempfile::tempdir().expect("a directory");
    fs::write(source.path().join("file"), "text").expect("a file");
    let end = run(|| {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default() == "text";
        let mut entered = Entered::new(source.path(), |number| match number {
            0 => fs::read_dir("/").expect("a list").count() == 1 && text("/c1/rootfs/file"),
            1 => text("/c2/rootfs/file") && text("/c2/mounts/0") && text("/c1/rootfs/file"),
            2 => errno("/c2/mounts/1/new").is_none() && errno("/c2/rootfs/new") == READ_ONLY,
            _ => errno("/c2/new") == READ_ONLY && errno("/new") == READ_ONLY,
        });
        assert!(entered.ask(0));
        let process = entered.process();
        // The second time, what the first has left is in the way.
        for _ in 0..2 {
            let read_only = BindMount {
                read_only: ReadOnly::All(true),
                ..BindMount::new(o_path(source.path()))
            };
            let tmpfs = FileSystem {
                kind: "tmpfs".into(),
                device: "none".into(),
                ..FileSystem::default()
            };
            let shares = vec![
                share_of("c2/rootfs", read_only),
                share_of(
                    "c2/mounts/0",
                    BindMount::new(o_path(&source.path().join("file"))),
                ),
                Share {
                    name: "a tmpfs".into(),
                    target: "c2/mounts/1".into(),
                    source: Source::FileSystem(tmpfs),
                },
            ];
            tree::add_shares(process.as_fd(), "c2", shares).expect("they join");
            assert!(entered.ask(1) && entered.ask(2) && entered.ask(3));
        }
        tree::remove_shares(process.as_fd(), "c2").expect("they leave");
        assert!(entered.ask(0));
        tree::remove_shares(process.as_fd(), "c2").expect("nothing to do");
        let stray = vec![share_of("c1/x", BindMount::new(o_path(source.path())))];
        tree::add_shares(process.as_fd(), "c2", stray).expect_err("another folder's");
        assert!(entered.ask(0));
        entered.kill();
    });
    assert_eq!(end, End::Returned);
    assert!(!source.path().join("new").exists());
}
