//! Files as ordinary programs use them: on the root, on a bind mount, on tmpfs.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use hull_tests::process::limit;
use hull_tests::{Bundle, Container, Running, bundle, pattern};
use serde_json::json;

const GIB: u64 = 1 << 30;

#[test]
fn operations_of_every_kind() {
    let bundle = Bundle::new()
        .shell(
            "for place in /var /mnt /dev/shm; do
                 mkdir $place/work && echo in $place && probe files $place/work
             done; true",
        )
        // the link from /proc/self/fd that gives a temporary file its name asks for it
        .add_capability("CAP_DAC_READ_SEARCH");
    let shared = bundle.folder("shared");
    let on_host = Command::new(bundle::probe_on_host())
        .arg("files")
        .arg(bundle.folder("host"))
        .output()
        .unwrap();
    let on_host = String::from_utf8(on_host.stdout).unwrap();
    assert!(
        !on_host.contains("failed"),
        "the host itself can't: {on_host}"
    );
    let container = Container::new(bundle.bind(&shared, "/mnt", &[]));

    let done = container.run().ok();

    let expected = format!("in /var\n{on_host}in /mnt\n{on_host}in /dev/shm\n{on_host}");
    assert_eq!(done.out(), expected.trim());
    // what was made by the container is really there
    let link = fs::read_link(shared.join("work/symbolic_links/link")).unwrap();
    assert_eq!(link.to_str(), Some("target"));
    let file = container.bundle.rootfs().join("var/work/rename_over/old");
    assert_eq!(fs::read_to_string(file).unwrap(), "new");
}

#[test]
fn a_capability_over_modes_holds_on_the_hosts_files() {
    let bundle = Bundle::new()
        .shell("mkdir /closed/folder && echo text >/closed/folder/file && ln -s file /closed/link")
        .set("/process/user", json!({ "uid": 1000, "gid": 1000 }))
        .ambient_capabilities(&["CAP_DAC_OVERRIDE"]);
    let closed = bundle.rootfs().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, Permissions::from_mode(0o500)).unwrap();
    let container = Container::new(bundle);

    let _ = container.run().ok();

    assert_eq!(
        fs::metadata(closed.join("folder/file")).unwrap().uid(),
        1000
    );
}

#[test]
fn a_file_of_one_gibibyte() {
    let container =
        Container::new(Bundle::new().probe(&["big-file", "/var/big", &GIB.to_string()]));
    let mut run = container.run_command();

    let done = Running::spawn_within(&mut run, 4 * limit()).finish();

    let _ = done.ok();
    let mut file = File::open(container.bundle.rootfs().join("var/big")).unwrap();
    pattern::check(&mut file, GIB).unwrap();
}

#[test]
fn ten_thousand_small_files() {
    let bundle = Bundle::new().probe(&["small-files", "/mnt/many", "10000"]);
    let shared = bundle.folder("shared");
    let container = Container::new(bundle.bind(&shared, "/mnt", &[]));
    let mut run = container.run_command();

    let done = Running::spawn_within(&mut run, 4 * limit()).finish();

    let _ = done.ok();
    let many = shared.join("many");
    assert_eq!(fs::read_dir(&many).unwrap().count(), 5000);
    assert_eq!(fs::read_to_string(many.join("4242")).unwrap(), "file 4242");
}

/// The kernel knows the call: it looks for the descriptor.
#[test]
fn cachestat_is_there() {
    const CACHESTAT: &str = "451";
    let container = Container::new(Bundle::new().probe(&["syscall", CACHESTAT, "9999"]));

    let done = container.run().ok();

    assert_eq!(done.out(), format!("errno {}", libc::EBADF));
}
