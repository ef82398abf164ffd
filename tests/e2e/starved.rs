//! A container that lacks something, and its commands, which answer all the same: `state`, `ps`, `exec`,
//! `kill` and `delete` within their usual time limit.

use std::fs::File;
use std::io::Write;

use hull_tests::mount::HostMount;
use hull_tests::{Bundle, Container, Running, only_hull};
use serde_json::json;

/// Tells that it is ready, starves, and would go on for ever.
fn starving(setup: &str) -> Bundle {
    let script = format!("trap '' TERM; {setup}\necho ready\nexec sleep 1000000");
    Bundle::new().shell(&script)
}

/// Every command has its answer, and the container its end.
fn answers(container: &Container, mut running: Running) {
    assert_eq!(container.state().status, "running");
    assert_eq!(
        container.exec_shell("echo alive; exit 7").exits(7).out(),
        "alive"
    );
    let listed = container.call(&["ps", &container.id]).ok();
    assert!(listed.out().lines().count() >= 2, "{}", listed.out());
    let _ = container.kill("KILL").ok();
    assert_eq!(running.exit().code(), Some(137));
    let _ = container.delete_force().ok();
}

#[test]
fn out_of_memory() {
    // As soon as one is killed for it, the next begins to fill the memory.
    let bundle = starving("(while :; do tail /dev/zero 2>/dev/null; done) &").set(
        "/linux/resources/memory",
        json!({ "limit": 32 << 20, "swap": 32 << 20 }),
    );
    let container = Container::new(bundle);
    answers(&container, container.run_until_ready());
}

#[test]
fn of_too_little_memory_for_its_first_process() {
    let bundle = Bundle::new().set("/linux/resources/memory", json!({ "limit": 1 }));
    let refused = Container::new(bundle).run().exits(1);
    let _ = refused.fails_saying("OOM-killed (memory limit too low?)");
}

#[test]
fn of_too_little_memory_for_its_program() {
    only_hull!("runc's own part of the container's process needs more than that");
    let bundle = Bundle::new()
        .shell("tail /dev/zero")
        .set("/linux/resources/memory", json!({ "limit": 512 << 10 }));
    let killed = Container::new(bundle).run().exits(137);
    let _ = killed.fails_saying("linux.resources.memory.limit: 524288 bytes are hardly enough");
}

#[test]
fn out_of_all_the_machines_memory() {
    only_hull!("without a limit of its own, a container of runc's can take the host's memory");
    let bundle = starving("(while :; do tail /dev/zero 2>/dev/null; done) &");
    let file = bundle.file("hull.toml", "boot_timeout = 120\ndefault_memory = 192\n");
    let file = file.display().to_string();
    let container = Container::new(bundle).with_global(&["--config", &file]);
    answers(&container, container.run_until_ready());
}

#[test]
fn out_of_pids() {
    only_hull!("runc's own part of an exec has several threads, which count among the container's");
    let bundle = starving("(for n in 1 2 3 4 5 6 7 8 9; do sleep 1000 & done) 2>/dev/null || true")
        .set("/linux/resources/pids", json!({ "limit": 6 }));
    let container = Container::new(bundle);
    answers(&container, container.run_until_ready());
}

#[test]
fn out_of_processor_time() {
    let bundle = starving("for n in 1 2 3 4; do (while :; do :; done) & done").set(
        "/linux/resources/cpu",
        json!({ "shares": 2, "quota": 20000, "period": 100000 }),
    );
    let container = Container::new(bundle);
    answers(&container, container.run_until_ready());
}

#[test]
fn out_of_disk() {
    let bundle = starving("dd if=/dev/zero of=/full/filler bs=4096 2>/dev/null || true");
    let disk = bundle.folder("disk");
    let mount = HostMount::tmpfs(&disk, "size=256k");
    let bundle = bundle.bind(&disk, "/full", &[]);
    let container = Container::new(bundle);

    answers(&container, container.run_until_ready());

    let mut more = File::create(disk.join("more")).unwrap();
    assert!(more.write_all(&[1; 8192]).is_err(), "the disk wasn't full");
    drop(more);
    mount.unmount();
}
