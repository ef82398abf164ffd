//! What engines and people ask of the command line itself.

use std::fs::{self, File};

use hull_tests::{Bundle, Container, Running, only_hull};
use serde_json::{Value, json};

#[test]
fn spec_writes_a_config_that_runs() {
    let container = Container::new(Bundle::new());
    let config = container.bundle.path().join("config.json");
    fs::remove_file(&config).unwrap();

    let _ = container
        .call(&["spec", "--bundle", container.bundle_path()])
        .ok();

    let mut written: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    assert_eq!(written["process"]["terminal"], true);
    written["process"]["terminal"] = json!(false);
    written["process"]["args"] = json!(["echo", "it runs"]);
    fs::write(&config, written.to_string()).unwrap();
    assert_eq!(container.run().ok().out(), "it runs");
}

#[test]
fn spec_overwrites_nothing() {
    let container = Container::new(Bundle::new());
    let config = container.bundle.path().join("config.json");
    let before = fs::read(&config).unwrap();

    let _ = container
        .call(&["spec", "--bundle", container.bundle_path()])
        .exits(1);

    assert_eq!(fs::read(&config).unwrap(), before);
}

#[test]
fn errors_reach_the_log_as_json() {
    let container = Container::new(Bundle::new().args(&["nonsense"]));
    let log = container.bundle.beside("log");
    let container =
        container.with_global(&["--log", log.to_str().unwrap(), "--log-format", "json"]);

    let _ = container.run().exits(1);

    let lines = fs::read_to_string(log).unwrap();
    let last: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!(last["level"], "error");
    let message = last["msg"].as_str().unwrap();
    assert!(
        message.contains("executable file not found in $PATH"),
        "{message}"
    );
}

/// What podman shows of a runtime that it doesn't know, within a sentence of its own.
#[test]
fn on_standard_error_a_failure_is_a_sentence() {
    only_hull!("runc puts the frame of a log line around it, unless the log is a file");
    let container = Container::new(Bundle::new().args(&["nonsense"]));
    let log = container.bundle.beside("log");
    for log in [&[][..], &["--log", log.to_str().unwrap()]] {
        let run = ["run", "--bundle", container.bundle_path(), &container.id];
        let said = container.call(&[log, &run].concat());
        assert_eq!(
            said.exits(1).err(),
            "unable to start container process: exec: \"nonsense\": executable file not found in $PATH"
        );
    }
    assert!(
        fs::read_to_string(log)
            .unwrap()
            .contains(" level=error msg=\"unable to")
    );
}

#[test]
fn features_are_the_specifications_structure() {
    let container = Container::new(Bundle::new());
    let done = container.call(&["features"]).ok();
    let features: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert!(features["ociVersionMin"].is_string(), "{features}");
    let options = features["mountOptions"].as_array().unwrap();
    assert!(options.contains(&json!("ro")), "{options:?}");
}

#[test]
fn the_audit_says_who_enforces_what_and_what_is_refused() {
    only_hull!("runc has no audit");
    let audit = |container: &Container| {
        let bundle = container.bundle_path();
        container.call(&["spec", "--audit", "--format", "json", bundle])
    };
    let rows = |stdout: &[u8]| serde_json::from_slice::<Vec<Value>>(stdout).unwrap();

    let taken = audit(&Container::new(Bundle::new())).ok();
    assert!(rows(&taken.stdout).contains(&json!({ "path": "process.cwd", "enforcer": "guest" })));

    // Neither is a config.json that `create` takes, and the audit speaks of both.
    let bundle = Bundle::new()
        .set("/windows", json!({ "servicing": true }))
        .set("/process/args", json!("not a list"))
        .set("/colour", json!("red"));
    let refused = audit(&Container::new(bundle)).exits(1);
    let said = |path: &str| {
        let row = rows(&refused.stdout)
            .into_iter()
            .find(|row| row["path"] == path);
        row.unwrap()["enforcer"].clone()
    };
    let words = ["windows", "process.args", "colour"].map(said);
    assert_eq!(words, ["refused", "invalid", "unknown"]);
}

#[test]
fn an_audit_needs_a_config_json() {
    only_hull!("runc has no audit");
    let container = Container::new(Bundle::new());
    fs::remove_file(container.bundle.path().join("config.json")).unwrap();
    let _ = container
        .call(&["spec", "--audit", container.bundle_path()])
        .exits(1)
        .fails_saying("it has no config.json");
}

#[test]
fn version_names_the_specifications_too() {
    let container = Container::new(Bundle::new());
    let said = container.call(&["--version"]).ok().out();
    assert!(
        said.lines().any(|line| line.starts_with("spec: 1.")),
        "{said}"
    );
    // docker takes the last line with the word for the runtime's version.
    let version = said
        .lines()
        .filter(|line| line.contains(" version "))
        .count();
    assert_eq!(version, 1, "{said}");
}

#[test]
fn check_finds_this_host_good_enough() {
    only_hull!("runc has no `check`");
    let container = Container::new(Bundle::new());
    let said = container.call(&["check"]).ok().out();
    assert!(said.contains("/dev/kvm"), "{said}");
}

#[test]
fn a_reader_who_has_had_enough_is_told_nothing() {
    let container = Container::new(Bundle::new());
    let shell = ["sh", "-c", "\"$@\"; exit $?", "sh"];
    let container = container.wrapped(&shell);
    for verb in ["list", "features"] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let run = Running::spawn(container.command(&[verb]).stdout(writer));
        let done = run.finish().exits(141);
        assert_eq!(done.err(), "", "{verb}");
    }
}

#[test]
fn a_standard_error_that_takes_nothing_changes_no_exit_code() {
    let container = Container::new(Bundle::new());
    let log = container.bundle.beside("log");
    for log in [log.to_str().unwrap(), "/nonexistent/log"] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut command = container.command(&["--log", log, "state", &container.id]);
        let _ = Running::spawn(command.stderr(full)).finish().exits(1);
    }
}

#[test]
fn a_command_line_that_makes_no_sense_ends_with_runcs_exit_code() {
    let container = Container::new(Bundle::new());
    for (words, code) in [
        (&["run"][..], 1),
        (&["run", "--nonsense", "c"], 1),
        (&["--nonsense", "list"], 1),
        (&["exec"], 1),
        (&["kill"], 1),
        (&["nonsense"], 3),
        (&["help"], 0),
        (&["run", "--help"], 0),
    ] {
        let _ = container.call(words).exits(code);
    }
}
