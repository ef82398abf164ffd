//! Hooks: when they run, where, what they are told, and what becomes of a container whose hook fails.

use std::fs;
use std::path::Path;
use std::process::Command;

use hull_tests::process::{limit, wait_for_death};
use hull_tests::{Bundle, Container, Running, only_hull};
use serde_json::{Value, json};

/// A hook that is a shell script on the host.
fn hook(script: &str) -> Value {
    json!([{ "path": "/bin/sh", "args": ["sh", "-c", script] }])
}

/// A hook that writes down what it is told.
fn record(file: &Path) -> Value {
    hook(&format!("cat >{}", file.display()))
}

fn recorded(file: &Path) -> Value {
    let text = fs::read(file).unwrap_or_else(|e| panic!("{} did not run: {e}", file.display()));
    serde_json::from_slice(&text).expect("a hook is told JSON")
}

#[test]
fn each_stage_sees_the_state_it_is_for() {
    only_hull!("runc 1.1 runs poststart hooks in create");
    let bundle = Bundle::new()
        .shell("echo ready; exec sleep 3600")
        .set("/annotations", json!({ "org.example.color": "green" }));
    let file = |stage: &str| bundle.beside(stage);
    let of_create = ["prestart", "createRuntime", "createContainer"];
    let files = ["poststart", "poststop"].map(&file);
    let create_files = of_create.map(&file);
    let mut bundle = bundle;
    for (stage, file) in of_create.iter().zip(&create_files) {
        bundle = bundle.set(&format!("/hooks/{stage}"), record(file));
    }
    let [poststart, poststop] = &files;
    let bundle = bundle
        .set("/hooks/poststart", record(poststart))
        .set("/hooks/poststop", record(poststop));
    let mut container = Container::new(bundle);

    container.create();
    let pid = container.state().pid;
    for file in &create_files {
        let told = recorded(file);
        assert_eq!(told["status"], "creating", "{told}");
        assert_eq!(told["pid"], pid);
        assert_eq!(told["id"], container.id);
        assert_eq!(told["bundle"], container.bundle_path());
        assert_eq!(told["annotations"]["org.example.color"], "green");
        assert!(
            told["ociVersion"]
                .as_str()
                .is_some_and(|v| v.starts_with("1."))
        );
    }
    assert!(!poststart.exists());

    let _ = container.start().ok();
    assert_eq!(recorded(poststart)["status"], "running");
    assert_eq!(recorded(poststart)["pid"], pid);

    let _ = container.kill("KILL").ok();
    assert!(wait_for_death(pid, limit()));
    assert!(!poststop.exists());
    // What was created counts, not what became of the bundle.
    fs::write(container.bundle.path().join("config.json"), "{}").unwrap();
    let _ = container.delete().ok();
    assert_eq!(recorded(poststop)["status"], "stopped");
}

#[test]
fn they_run_in_order_before_and_after_the_process() {
    let bundle = Bundle::new().shell("echo process >>/order");
    let order = bundle.rootfs().join("order");
    let step = |word: &str| hook(&format!("echo {word} >>{}", order.display()));
    // In create the bundle is the working folder.
    let first = hook("echo first >>rootfs/order");
    let both = json!([first[0], step("second")[0]]);
    let bundle = bundle
        .set("/hooks/prestart", both)
        .set("/hooks/createRuntime", step("createRuntime"))
        .set("/hooks/poststop", step("poststop"));
    let container = Container::new(bundle);

    let _ = container.run().ok();

    let order = fs::read_to_string(order).unwrap();
    assert_eq!(order, "first\nsecond\ncreateRuntime\nprocess\npoststop\n");
}

#[test]
fn start_container_runs_inside_just_before_the_process() {
    let inside = json!([{
        "path": "/bin/sh",
        "args": ["sh", "-c", "cat >/told; hostname >/where; id -u >/who; ls -d /tmp >>/where"],
        "env": ["PATH=/bin"],
    }]);
    let bundle = Bundle::new()
        .shell("cat /where /who; grep -c '\"status\":\"created\"' /told")
        .set("/hooks/startContainer", inside);
    let container = Container::new(bundle);

    let done = container.run().ok();

    assert_eq!(done.out(), "box\n/tmp\n0\n1");
}

#[test]
fn start_container_is_no_more_privileged_than_the_process() {
    let inside = json!([{
        "path": "/bin/sh",
        "args": ["sh", "-c", "grep -E 'CapEff|CapBnd|NoNewPrivs' /proc/self/status >/hook"],
    }]);
    let bundle = Bundle::new()
        .shell("grep -E 'CapEff|CapBnd|NoNewPrivs' /proc/self/status | cmp - /hook && echo same")
        .set("/hooks/startContainer", inside);

    assert_eq!(Container::new(bundle).run().ok().out(), "same");
}

#[test]
fn a_failure_in_create_undoes_everything() {
    for stage in ["prestart", "createRuntime", "createContainer"] {
        let bundle = Bundle::new().shell("echo never");
        let poststop = bundle.beside("poststop");
        let bundle = bundle
            .set(&format!("/hooks/{stage}"), hook("echo because >&2; exit 3"))
            .set("/hooks/poststop", record(&poststop));
        let container = Container::new(bundle);

        let failed = container.run();

        assert_ne!(failed.out(), "never");
        let _ = failed.exits(1).fails_saying("because");
        assert_eq!(recorded(&poststop)["status"], "stopped", "after {stage}");
        let _ = container.call(&["state", &container.id]).exits(1);
        let left = container.leaks();
        assert!(left.is_empty(), "{stage}: {left:#?}");
    }
}

#[test]
fn one_that_takes_too_long_is_killed() {
    only_hull!("runc waits for the hook's children");
    let bundle = Bundle::new();
    // The token in its arguments lets the search for leaks find it.
    let script = format!("sleep 600; : {}", bundle.token());
    let mut slow = hook(&script);
    slow[0]["timeout"] = json!(1);
    let container = Container::new(bundle.set("/hooks/prestart", slow));

    let failed = container.run();

    let _ = failed
        .exits(1)
        .fails_saying("past specified timeout of 1.0s");
    let left = container.leaks();
    assert!(left.is_empty(), "{left:#?}");
}

#[test]
fn a_failing_poststart_ends_the_container() {
    only_hull!("runc 1.1 runs poststart hooks in create");
    let bundle = Bundle::new()
        .shell("exec sleep 3600")
        .set("/hooks/poststart", hook("exit 1"));
    let mut container = Container::new(bundle);
    container.create();
    let pid = container.state().pid;

    let started = container.start();

    let _ = started.exits(1).fails_saying("poststart hook #0");
    assert!(wait_for_death(pid, limit()));
    assert_eq!(container.state().status, "stopped");
}

#[test]
fn a_failing_start_container_ends_the_container() {
    let inside = json!([{ "path": "/bin/false" }]);
    let bundle = Bundle::new()
        .shell("echo never")
        .set("/hooks/startContainer", inside);

    let done = Container::new(bundle).run();

    assert!(!done.status.success());
    assert_ne!(done.out(), "never");
}

#[test]
fn a_failing_poststop_keeps_nothing_from_going() {
    only_hull!("runc 1.1 stops at the first that fails");
    let bundle = Bundle::new();
    let second = bundle.beside("second");
    let both = json!([hook("exit 1")[0], record(&second)[0]]);
    let container = Container::new(bundle.set("/hooks/poststop", both));

    let _ = container.run().ok();

    assert!(second.exists());
    let _ = container.call(&["state", &container.id]).exits(1);
}

#[test]
fn the_mounts_of_create_container_end_with_it() {
    let bundle = Bundle::new();
    let (folder, seen) = (bundle.folder("folder"), bundle.beside("seen"));
    let script = format!(
        "mount -t tmpfs hook {0} && touch {0}/in-it && ls {0} >{1}",
        folder.display(),
        seen.display()
    );
    let container = Container::new(bundle.set("/hooks/createContainer", hook(&script)));

    let _ = container.run().ok();

    assert_eq!(fs::read_to_string(seen).unwrap(), "in-it\n");
    assert_eq!(fs::read_dir(folder).unwrap().count(), 0);
    let left = container.leaks();
    assert!(left.is_empty(), "{left:#?}");
}

#[test]
fn a_killed_create_takes_its_hook_along() {
    only_hull!("runc leaves the hook running");
    let bundle = Bundle::new();
    let started = bundle.beside("started");
    let status = Command::new("mkfifo").arg(&started).status();
    assert!(status.is_ok_and(|status| status.success()));
    let script = format!("echo $$ >{}; exec sleep 600", started.display());
    let container = Container::new(bundle.set("/hooks/prestart", hook(&script)));

    let mut create = Running::spawn(&mut container.create_command());
    let pid: i32 = fs::read_to_string(&started)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    create.kill();
    let _ = create.exit();

    assert!(wait_for_death(pid, limit()), "hook {pid} lives on");
}

#[test]
fn delete_by_force_ends_a_create_that_waits_for_its_hook() {
    only_hull!("runc waits for the hook");
    let bundle = Bundle::new();
    let started = bundle.beside("started");
    let status = Command::new("mkfifo").arg(&started).status();
    assert!(status.is_ok_and(|status| status.success()));
    let script = format!("echo $$ >{}; exec sleep 600", started.display());
    let container = Container::new(bundle.set("/hooks/createRuntime", hook(&script)));
    let mut create = Running::spawn(&mut container.create_command());
    let _ = fs::read_to_string(&started).unwrap();

    let _ = container.delete_force().ok();

    assert_eq!(create.exit().code(), Some(1));
    let left = container.leaks();
    assert!(left.is_empty(), "{left:#?}");
}

#[test]
fn an_exec_needs_no_bundle() {
    only_hull!("runc 1.1 reads the bundle again");
    let container = Container::new(crate::lifecycle::waiting());
    let _running = container.run_until_ready();
    fs::write(container.bundle.path().join("config.json"), "{}").unwrap();

    assert_eq!(container.exec_shell("hostname").ok().out(), "box");
}

#[test]
fn features_name_every_hook() {
    let container = Container::new(Bundle::new());
    let done = container.call(&["features"]).ok();
    let features: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(features["hooks"].as_array().map(Vec::len), Some(6));
}
