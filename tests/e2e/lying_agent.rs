//! An agent that has been taken over: whatever it says, it costs the host next to nothing, and once its
//! container has ended the guest does nothing more.

use std::fs::{self, File};
use std::time::{Duration, Instant};

use hull_tests::{Bundle, Container, Running, bundle, only_hull};

/// A container whose guest has the liar (`src/bin/liar`) in the agent's place, which tells this lie.
fn lied_to(lie: &str) -> Container {
    let bundle = Bundle::new().args(&[lie]);
    let initramfs = bundle.beside("initramfs");
    let liar = fs::read(bundle::program("liar")).unwrap();
    hull_rootfs_builder::initramfs::write(&liar, File::create(&initramfs).unwrap()).unwrap();
    let initramfs = initramfs.display().to_string();
    Container::new(bundle).with_global(&["--initramfs", &initramfs])
}

/// What the guest has written to the root file system since its container's end, in bytes.
fn afterlife(container: &Container) -> u64 {
    let file = container.bundle.rootfs().join("afterlife");
    file.metadata().unwrap().len()
}

#[test]
fn a_guest_does_nothing_after_its_containers_end_while_its_output_is_not_read() {
    only_hull!("runc has no virtual machine");
    let mut container = lied_to("end-and-go-on");
    let (reader, writer) = std::io::pipe().unwrap();
    let mut create = container.create_command();
    let mut created = Running::spawn(create.stdout(writer));
    assert!(created.exit().success());
    container.stderr = created.stderr.take();

    let _ = container.start().ok();

    let deadline = Instant::now() + hull_tests::process::limit();
    while container.state().status != "stopped" {
        assert!(Instant::now() < deadline, "it never stopped");
        std::thread::sleep(Duration::from_millis(100));
    }
    let before = afterlife(&container);
    std::thread::sleep(Duration::from_secs(3)); // in which it would write
    assert_eq!(afterlife(&container), before);
    drop(reader);
    let _ = container.delete().ok();
}

#[test]
fn a_list_of_processes_that_is_too_long_is_refused_before_it_takes_memory() {
    only_hull!("runc has no agent");
    let mut container = lied_to("processes-without-number");
    container.create();

    let _ = container
        .call(&["ps", &container.id])
        .fails_saying("bytes is too long");
}

#[test]
fn processes_that_cannot_be_are_not_listed() {
    only_hull!("runc has no agent");
    let mut container = lied_to("processes-that-cannot-be");
    container.create();

    let _ = container
        .call(&["ps", &container.id])
        .fails_saying("the guest's agent tells processes that can't be");
}

#[test]
fn a_list_without_end_is_cut() {
    only_hull!("runc has no agent");
    let mut container = lied_to("processes-without-end");
    container.create();

    let listed = container.call(&["ps", &container.id]).ok();

    // Below the head.
    assert_eq!(listed.out().lines().skip(1).count(), 4096);
    assert!(
        listed.err().contains("there may be more"),
        "{}",
        listed.err()
    );
}
