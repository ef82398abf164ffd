//! Every verb in every state: it works, or it fails as with runc and changes nothing.

use hull_tests::process::{limit, wait_for_death};
use hull_tests::{Bundle, Container};

/// What a verb is to do: nothing to complain about, or this exit code and a message.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Outcome {
    Works,
    Fails(i32),
}
use Outcome::{Fails, Works};

const ID: &str = "{id}";
const BUNDLE: &str = "{bundle}";

/// Verbs that change nothing where they fail, and nothing but by a signal that is ignored or a limit
/// that is not met where they work; for each its outcome in the states, in the order of the constants.
const TABLE: &[(&[&str], [Outcome; 5])] = &[
    (&["state", ID], [Works, Works, Works, Works, Fails(1)]),
    (&["list"], [Works, Works, Works, Works, Works]),
    (&["ps", ID], [Works, Works, Works, Works, Fails(1)]),
    (
        &["events", "--stats", ID],
        [Works, Works, Works, Fails(1), Fails(1)],
    ),
    (
        &["update", "--pids-limit", "500", ID],
        [Works, Works, Works, Fails(1), Fails(1)],
    ),
    (
        &["kill", ID, "WINCH"],
        [Works, Works, Works, Fails(1), Fails(1)],
    ),
    (
        &["kill", ID, "0"],
        [Works, Works, Works, Fails(1), Fails(1)],
    ),
    (
        &["exec", ID, "/bin/true"],
        [Works, Works, Fails(255), Fails(255), Fails(255)],
    ),
    (
        &["run", "--bundle", BUNDLE, ID],
        [Fails(1), Fails(1), Fails(1), Fails(1), Works],
    ),
    (
        &["create", "--bundle", BUNDLE, ID],
        [Fails(1), Fails(1), Fails(1), Fails(1), Works],
    ),
];

/// Those that would end the state; only their failures are tried, successes being the way on.
const REFUSALS: &[(&[&str], [bool; 5])] = &[
    (&["start", ID], [false, true, true, true, true]),
    (&["pause", ID], [false, false, true, true, true]),
    (&["resume", ID], [true, true, false, true, true]),
    (&["delete", ID], [false, true, true, false, true]),
];

const CREATED: usize = 0;
const RUNNING: usize = 1;
const PAUSED: usize = 2;
const STOPPED: usize = 3;
const NONEXISTENT: usize = 4;

fn wrong_cells(container: &Container, state: usize) -> Vec<String> {
    let bundle = container.bundle_path();
    let mut cells: Vec<(&[&str], Outcome)> = Vec::new();
    for (verb, outcomes) in TABLE {
        // what makes a container would change the nonexistent one
        if outcomes[state] == Works && ["run", "create"].contains(&verb[0]) {
            continue;
        }
        cells.push((verb, outcomes[state]));
    }
    for (verb, refused) in REFUSALS {
        if refused[state] {
            cells.push((verb, Fails(1)));
        }
    }
    let mut wrong = Vec::new();
    for (verb, expected) in cells {
        let words: Vec<_> = verb
            .iter()
            .map(|&word| match word {
                ID => container.id.as_str(),
                BUNDLE => bundle,
                other => other,
            })
            .collect();
        let done = container.call(&words);
        let said = done.err();
        let right = match expected {
            Works => done.status.success(),
            Fails(code) => done.status.code() == Some(code) && !said.is_empty(),
        };
        if !right {
            wrong.push(format!(
                "{words:?}: {}, not {expected:?}; it says {said:?}",
                done.status
            ));
        }
    }
    wrong
}

#[test]
fn each_verb_in_each_state() {
    let mut container = Container::new(Bundle::new().shell("echo ready; exec sleep 3600"));
    let mut wrong = Vec::new();
    let mut look = |container: &Container, state, name: &str| {
        let cells = wrong_cells(container, state);
        wrong.extend(cells.into_iter().map(|cell| format!("{name}: {cell}")));
    };

    look(&container, NONEXISTENT, "nonexistent");
    container.create();
    look(&container, CREATED, "created");
    assert_eq!(container.state().status, "created");
    let _ = container.start().ok();
    let pid = container.state().pid;
    assert_eq!(container.stdout.as_mut().unwrap().line("stdout"), "ready");
    look(&container, RUNNING, "running");
    assert_eq!(container.state().status, "running");
    let _ = container.call(&["pause", &container.id]).ok();
    look(&container, PAUSED, "paused");
    assert_eq!(container.state().status, "paused");
    let _ = container.call(&["resume", &container.id]).ok();
    assert_eq!(container.state().status, "running");
    let _ = container.kill("KILL").ok();
    assert!(wait_for_death(pid, limit()));
    look(&container, STOPPED, "stopped");
    assert_eq!(container.state().status, "stopped");
    let _ = container.delete().ok();
    look(&container, NONEXISTENT, "deleted");

    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// containerd's shim, podman and CRI-O tell by them that a container has ended, or is gone.
#[test]
fn refusals_have_the_words_that_engines_look_for() {
    let mut container = Container::new(Bundle::new().shell("exec sleep 3600"));
    let says = |container: &Container, verb: &[&str], words: &str| {
        let _ = container
            .call(&[verb, &[&container.id]].concat())
            .fails_saying(words);
    };
    for verb in ["state", "start", "kill", "ps", "pause", "resume", "delete"] {
        says(&container, &[verb], "container does not exist");
    }
    container.create();
    let _ = container.start().ok();
    let pid = container.state().pid;
    says(
        &container,
        &["start"],
        "cannot start an already running container",
    );
    says(&container, &["resume"], "container not paused");
    says(&container, &["delete"], "that is not stopped: running");

    let _ = container.kill("KILL").ok();
    assert!(wait_for_death(pid, limit()));

    says(
        &container,
        &["start"],
        "cannot start a container that has stopped",
    );
    says(&container, &["kill"], "container not running");
    says(&container, &["pause"], "container not running");
    says(&container, &["resume"], "container not paused");
    let stopped = container.exec(&["/bin/true"]);
    let _ = stopped
        .exits(255)
        .fails_saying("cannot exec in a stopped container");
}

#[test]
fn a_created_container_is_deleted_without_force() {
    let mut container = Container::new(Bundle::new());
    container.create();
    let pid = container.state().pid;

    let _ = container.delete().ok();

    assert!(wait_for_death(pid, limit()));
    let _ = container.call(&["state", &container.id]).exits(1);
}

#[test]
fn delete_by_force_of_nothing_is_no_failure() {
    let container = Container::new(Bundle::new());
    let _ = container.delete_force().ok();
}

#[test]
fn a_created_container_is_paused_before_it_starts() {
    let mut container = Container::new(Bundle::new().shell("echo started"));
    container.create();

    let _ = container.call(&["pause", &container.id]).ok();
    assert_eq!(container.state().status, "paused");
    let _ = container.start().exits(1);
    let _ = container.call(&["resume", &container.id]).ok();

    assert_eq!(container.state().status, "created");
    let _ = container.start().ok();
    assert_eq!(container.stdout.as_mut().unwrap().line("stdout"), "started");
}
