//! Several sandboxes on one host at the same time.

use std::io::Write;
use std::process::Stdio;

use hull_tests::process::limit;
use hull_tests::runtime::is_hull;
use hull_tests::{Bundle, Container, Running};
use tempfile::TempDir;

/// How long the slowest of them may take to boot.
const BOOT_TOGETHER: &[&str] = &["--boot-timeout", "240"];

/// Runs this many containers that all live at the same time, in one state folder.
fn together(count: usize) {
    let root = TempDir::new().unwrap();
    let script = "hostname >/own; echo ready; read word; echo $word $(cat /own); exit 9";
    let containers: Vec<_> = (0..count)
        .map(|n| {
            let bundle = Bundle::new()
                .shell(script)
                .set("/hostname", format!("box{n}").into());
            let container = Container::below(root.path(), bundle);
            // They all boot at once, perhaps on a single emulated processor.
            if is_hull() {
                container.with_global(BOOT_TOGETHER)
            } else {
                container
            }
        })
        .collect();

    let mut running: Vec<_> = containers
        .iter()
        .map(|container| {
            let mut command = container.run_command();
            Running::spawn_within(command.stdin(Stdio::piped()), 5 * limit())
        })
        .collect();
    for run in &mut running {
        assert_eq!(run.line_within(5 * limit()), "ready");
    }
    let listed = containers[0].call(&["list", "--quiet"]).ok();
    assert_eq!(listed.out().lines().count(), count);
    let seen = containers[count - 1].exec(&["hostname"]).ok();
    assert_eq!(seen.out(), format!("box{}", count - 1));

    for (n, mut run) in running.into_iter().enumerate() {
        run.stdin.as_mut().unwrap().write_all(b"bye\n").unwrap();
        let done = run.finish().exits(9);
        assert_eq!(done.out(), format!("ready\nbye box{n}"));
    }
    for container in &containers {
        let _ = container.delete_force().ok();
    }
    let listed = containers[0].call(&["list", "--quiet"]).ok();
    assert_eq!(listed.out(), "");
}

#[test]
fn two_at_once() {
    together(2);
}

#[test]
fn twenty_at_once() {
    together(20);
}
