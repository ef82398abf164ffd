//! Further containers in a sandbox, with somebody hostile beside them: in the sandbox, in its VM process, or on the
//! host.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use hull_tests::captive::Captive;
use hull_tests::namespace::mounts_of_the_tree;
use hull_tests::process::{limit, wait_for_death};
use hull_tests::{Bundle, Container, only_hull, threads};
use serde_json::json;

use crate::joined::{beside, first, goes_on};
use crate::lifecycle::waiting;

#[test]
fn its_stand_in_has_no_rights_and_no_files_on_the_host() {
    only_hull!("runc has no VM to share");
    let (first, _running) = first();
    let second = beside(&first, waiting());
    let _running = second.run_until_ready();
    let pid = second.state().pid;

    let threads = threads::of(pid);
    let [stand_in] = &threads[..] else {
        panic!("{threads:#?}");
    };
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(stand_in.status(set), "0000000000000000", "{set}");
    }
    assert_eq!(stand_in.status("NoNewPrivs"), "1");
    assert_eq!(stand_in.status("Seccomp"), "2");
    let users: Vec<_> = stand_in.status("Uid").split_whitespace().collect();
    assert!(users.iter().all(|user| *user != "0"), "{users:?}");
    let seen: Vec<_> = fs::read_dir(format!("/proc/{pid}/root")).unwrap().collect();
    assert!(seen.is_empty(), "{seen:?}");
    for thread in threads {
        assert_eq!(thread.kinds(), ["/memfd", "eventfd", "eventpoll", "socket"]);
    }
}

#[test]
fn a_read_only_root_is_not_written_by_others_of_its_sandbox() {
    only_hull!("runc has no VM to share");
    // It mounts the shared tree anew and anew, and writes into what it finds there.
    let script = "mkdir -p /all; echo ready; while :; do mount -t virtiofs hull /all 2>/dev/null || continue; \
                  for to in /all /all/*/rootfs; do echo bad >$to/new 2>/dev/null; done; umount /all; done";
    let first = Container::new(Bundle::new().shell(script).add_capability("CAP_SYS_ADMIN"));
    let _running = first.run_until_ready();
    for _ in 0..3 {
        let bundle = Bundle::new().set("/root/readonly", json!(true));
        // Mount points that the root lacks.
        let volume = bundle.folder("volume");
        let file = bundle.file("file", "of the host\n");
        let bundle = bundle
            .bind(&volume, "/made/for/it", &["rw"])
            .bind(&file, "/made/file", &["ro"])
            .set("/process/cwd", json!("/made/cwd"))
            .shell("pwd; cat /made/file; cat /new");
        let second = beside(&first, bundle);

        let done = second.run().exits(1);

        assert_eq!(done.out(), "/made/cwd\nof the host");
        assert!(!second.bundle.rootfs().join("new").exists());
        assert!(second.bundle.rootfs().join("made/for/it").is_dir());
    }
}

/// A process of an ordinary user with these arguments: a shell that reads a script of that name in its folder, and
/// waits.
fn impostor(bundle: &Bundle, words: &[String]) -> Child {
    let folder = bundle.folder(&words[0]);
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(folder.join(&words[0]), "read line").unwrap();
    let mut command = Command::new("/bin/sh");
    command.arg0("hull").args(words).current_dir(folder);
    command
        .uid(1000)
        .gid(1000)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn a_process_that_is_only_called_like_hulls_is_none() {
    only_hull!("runc looks for no process");
    let (first, _running) = first();
    let victim = first.bundle.folder("victim");
    let store = fs::metadata(first.root()).unwrap();
    let store = format!("--store={:x}:{:x}", store.dev(), store.ino());
    let pod = format!("--sandbox={}", first.id);
    let other = format!("--folder={}", victim.display());
    let own = format!("--folder={}", first.id);
    let words = |words: &[&str]| {
        words
            .iter()
            .map(|word| (*word).to_owned())
            .collect::<Vec<_>>()
    };
    let vmm = words(&["vmm", "--id=fake", &store, "--config-fd=0"]);
    let of_fake = words(&[
        "stand-in",
        "--id=gone",
        &store,
        "--sandbox=fake",
        &other,
        "--config-fd=0",
    ]);
    let of_first = words(&["stand-in", "--id=gone", &store, &pod, &own, "--config-fd=0"]);
    let bundles = [waiting(), waiting(), waiting()];
    let all = [vmm, of_fake, of_first];
    let mut impostors: Vec<_> = bundles
        .iter()
        .zip(&all)
        .map(|(bundle, words)| impostor(bundle, words))
        .collect();

    let listed = first.call(&["list", "-q"]).ok();
    let deleted = first.call(&["delete", "--force", "gone"]).ok();

    assert_eq!(
        (listed.out(), listed.err()),
        (first.id.clone(), String::new())
    );
    assert_eq!(deleted.err(), "");
    for impostor in &mut impostors {
        assert!(impostor.try_wait().unwrap().is_none(), "it was ended");
        impostor.kill().unwrap();
        impostor.wait().unwrap();
    }
    assert!(victim.is_dir());
    goes_on(&first);
}

#[test]
fn its_shares_are_taken_from_a_vm_process_that_says_that_it_has_ended() {
    only_hull!("runc has no VM to share");
    let mut first = Container::new(waiting());
    first.create();
    let _ = first.start().ok();
    let mut second = beside(&first, waiting());
    second.create();
    let _ = second.start().ok();
    let (vmm, stand_in) = (first.state().pid, second.state().pid);
    let rename = |name| {
        let mut captive = Captive::take(vmm);
        let name = captive.text(name);
        captive.call(
            libc::SYS_prctl,
            &[libc::PR_SET_NAME.cast_unsigned().into(), name],
        );
    };

    rename(c"hull-ended");
    let _ = second.delete_force().ok();

    assert!(wait_for_death(stand_in, limit()));
    assert_eq!(second.leaks(), Vec::<String>::new());
    let mounts = mounts_of_the_tree(vmm);
    let of_shares = mounts
        .lines()
        .filter(|mount| mount.contains("/rootfs "))
        .count();
    assert_eq!(of_shares, 1, "{mounts}");
    rename(c"hull");
    goes_on(&first);
}
