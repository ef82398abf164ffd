//! Who may do what to a file, beyond its mode: ACLs, set-id bits, capabilities, trusted attributes. What
//! the host's own file system says is right.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use hull_tests::{Bundle, Container, bundle, only_hull};

/// What a check of the probe prints on the host, then in a container on the root and on a volume.
fn on_the_host_and_in_a_container(check: &str, capabilities: &[&str]) -> (String, String) {
    let script = format!(
        "for place in /var /mnt; do mkdir $place/work && probe {check} $place/work || exit; done"
    );
    let capabilities = [&["CAP_SETUID", "CAP_SETGID"], capabilities].concat();
    let bundle = Bundle::new().shell(&script).capabilities(&capabilities);
    let shared = bundle.folder("shared");
    let folder = bundle.folder("host");
    // ordinary users try files in it, on the host too
    for way in [&folder, folder.parent().unwrap()] {
        fs::set_permissions(way, Permissions::from_mode(0o755)).unwrap();
    }
    let on_host = Command::new(bundle::probe_on_host())
        .args([check.as_ref(), folder.as_os_str()])
        .output()
        .unwrap();
    let container = Container::new(bundle.bind(&shared, "/mnt", &[]));

    let done = container.run().ok();

    let on_host = String::from_utf8(on_host.stdout).unwrap().trim().to_owned();
    (on_host, done.out())
}

#[test]
fn acls_grant_deny_and_are_inherited() {
    let (on_host, in_container) = on_the_host_and_in_a_container("acls", &[]);

    for line in [
        "granted 1000 reads ok, writes ok",
        "granted 1001 reads Permission denied (os error 13), writes Permission denied (os error 13)",
        "denied 1001 reads Permission denied (os error 13), writes Permission denied (os error 13)",
        "denied 1000 reads ok, writes ok",
        "inner hands it on: true",
    ] {
        assert!(on_host.contains(line), "{line:?} isn't in {on_host}");
    }
    assert_eq!(in_container, format!("{on_host}\n{on_host}"));
}

#[test]
fn a_changed_program_keeps_no_privileges() {
    let capabilities = ["CAP_FSETID", "CAP_SETFCAP"];
    let (on_host, in_container) = on_the_host_and_in_a_container("set-id", &capabilities);

    assert_eq!(in_container, format!("{on_host}\n{on_host}"));
    let kept: Vec<_> = in_container
        .lines()
        .filter(|line| line.contains("by 1000") && !line.ends_with("mode 777, capabilities false"))
        .collect();
    assert!(kept.is_empty(), "{kept:#?}");
}

#[test]
fn trusted_attributes_are_the_guests_administrators() {
    only_hull!("runc's containers have the host's");
    let (_, in_container) = on_the_host_and_in_a_container("trusted", &["CAP_SYS_ADMIN"]);

    let expected = r#"0 lists "trusted.overlay.opaque "
0 reads Ok("1")
0 sets ok
0 sets what it is kept as: Operation not permitted (os error 1)
0 reads what it is kept as: No data available (os error 61)
0 removes what it is kept as: Operation not permitted (os error 1)
1000 lists ""
1000 reads Err(Os { code: 61, kind: Uncategorized, message: "No data available" })
1000 sets Operation not permitted (os error 1)
1000 sets what it is kept as: Operation not permitted (os error 1)
1000 reads what it is kept as: No data available (os error 61)
1000 removes what it is kept as: Operation not permitted (os error 1)
on a symbolic link: Operation not permitted (os error 1)
read from one: No data available (os error 61)
on one without a name: ok"#;
    assert_eq!(in_container, format!("{expected}\n{expected}"));
}

#[test]
fn without_the_capability_nobody_has_trusted_attributes() {
    let bundle = Bundle::new().shell("mkdir /var/work; probe trusted /var/work; echo $?");
    let container = Container::new(bundle);

    let done = container.run().ok();

    assert_eq!(done.out(), "1");
    assert!(
        done.err().contains("Operation not permitted"),
        "{}",
        done.err()
    );
}
