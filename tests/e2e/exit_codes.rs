//! The container's exit code is the command's own; what can't be run fails as with runc.

use std::fs;

use hull_tests::{Bundle, Container};
use serde_json::json;

use crate::lifecycle::waiting;

#[test]
fn success_is_0() {
    let done = Container::new(Bundle::new()).run().ok();
    assert_eq!((done.out(), done.err()), (String::new(), String::new()));
}

#[test]
fn any_code_is_passed_on() {
    let _ = Container::new(Bundle::new().shell("exit 7")).run().exits(7);
}

#[test]
fn sigkill_is_137() {
    let container = Container::new(waiting());
    let running = container.run_until_ready();

    let _ = container.kill("KILL").ok();

    let _ = running.finish().exits(137);
}

#[test]
fn a_command_that_is_not_in_path() {
    let done = Container::new(Bundle::new().args(&["nonsense"])).run();
    let _ = done
        .exits(1)
        .fails_saying("exec: \"nonsense\": executable file not found in $PATH");
}

#[test]
fn a_command_that_does_not_exist() {
    let done = Container::new(Bundle::new().args(&["/bin/nonsense"])).run();
    let _ = done
        .exits(1)
        .fails_saying("exec: \"/bin/nonsense\": stat /bin/nonsense: no such file or directory");
}

#[test]
fn a_command_that_may_not_be_executed() {
    let bundle = Bundle::new().args(&["/etc/plain"]);
    fs::write(bundle.rootfs().join("etc/plain"), "text").unwrap();
    let done = Container::new(bundle).run();
    let _ = done
        .exits(1)
        .fails_saying("exec: \"/etc/plain\": permission denied");
}

#[test]
fn a_working_directory_that_is_a_file() {
    let bundle = Bundle::new().set("/process/cwd", json!("/etc/passwd"));
    let done = Container::new(bundle).run();
    let _ = done.exits(1).fails_saying("/etc/passwd");
}
