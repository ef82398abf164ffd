//! Whatever becomes of a container's folder, its VM is ended or named: nothing runs that nobody can find.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use hull_tests::{Container, only_hull};

use crate::lifecycle::waiting;

/// Damages the folder of a container that runs: every verb says so, and `delete --force` ends the VM and leaves
/// nothing. (That there is no process, cgroup or file of it is looked at when the container is dropped.)
fn is_named_and_ended(damage: impl FnOnce(&Path)) {
    let container = Container::new(waiting());
    let mut running = container.run_until_ready();
    let pid = container.state().pid;
    let folder = container.root().join(&container.id);

    damage(&folder);

    let is_there = folder.exists();
    for verb in ["state", "start", "kill", "pause", "ps", "delete"] {
        let done = container.call(&[verb, &container.id]).exits(1);
        let expected = match is_there {
            true => "state.json); delete it with --force",
            false => "container does not exist",
        };
        assert!(done.err().contains(expected), "{verb}: {}", done.err());
    }
    let listed = container.call(&["list"]).ok();
    let words: Vec<_> = listed.out().lines().last().map_or(Vec::new(), |line| {
        line.split_whitespace().map(str::to_owned).collect()
    });
    assert_eq!(words, [&*container.id, &*pid.to_string(), "damaged"]);
    assert!(listed.err().contains("delete it with --force"));

    let _ = container.delete_force().ok();

    let left = container.leaks();
    assert!(left.is_empty(), "{left:#?}");
    assert_eq!(running.exit().code(), Some(137));
}

fn state_of(folder: &Path) -> PathBuf {
    folder.join("state.json")
}

#[test]
fn an_empty_state() {
    only_hull!("runc doesn't find its container again either, and leaves it");
    is_named_and_ended(|folder| fs::write(state_of(folder), "").unwrap());
}

#[test]
fn a_state_that_is_gone() {
    only_hull!("runc doesn't find its container again either, and leaves it");
    is_named_and_ended(|folder| {
        fs::remove_file(state_of(folder)).unwrap();
    });
}

#[test]
fn a_link_in_the_states_place_and_a_foreign_folder() {
    only_hull!("runc doesn't find its container again either, and leaves it");
    is_named_and_ended(|folder| {
        fs::remove_file(state_of(folder)).unwrap();
        symlink("/etc/hostname", state_of(folder)).unwrap();
        fs::create_dir_all(folder.join("foreign/folder")).unwrap();
    });
}

#[test]
fn a_folder_that_is_gone() {
    only_hull!("runc doesn't find its container again either, and leaves it");
    is_named_and_ended(|folder| fs::remove_dir_all(folder).unwrap());
}
