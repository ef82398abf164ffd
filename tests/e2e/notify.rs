//! sd_notify(3): what the service manager that the runtime runs under hears of a container.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};

use hull_tests::bundle::PROBE;
use hull_tests::process::limit;
use hull_tests::{Bundle, Container};
use serde_json::json;

/// A service manager, and what it has been told.
struct Manager {
    path: PathBuf,
    lines: Receiver<String>,
}

impl Manager {
    fn beside(bundle: &Bundle) -> Self {
        Self::at(bundle.beside("notify"))
    }

    fn at(path: PathBuf) -> Self {
        // The path may be longer than a socket's address can be.
        let folder = File::open(path.parent().unwrap()).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        let socket = format!("/proc/self/fd/{}/{name}", folder.as_raw_fd());
        let socket = UnixDatagram::bind(socket).unwrap();
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            let mut message = [0; 4096];
            while let Ok(length) = socket.recv(&mut message) {
                let text = String::from_utf8_lossy(&message[..length]);
                if text.lines().any(|l| sender.send(l.to_owned()).is_err()) {
                    return;
                }
            }
        });
        Self { path, lines }
    }

    /// Has the runtime run as a service of this manager.
    fn runs(&self, container: Container) -> Container {
        let variable = format!("NOTIFY_SOCKET={}", self.path.display());
        container.wrapped(&["env", &variable])
    }

    /// Has `create` alone run as a service of this manager, as engines do.
    fn creates(&self, container: Container) -> Container {
        let path = self.path.display();
        let script = format!(
            "case \" $* \" in *\" create \"*) export NOTIFY_SOCKET={path} ;; esac; exec \"$@\""
        );
        container.wrapped(&["sh", "-c", &script, "sh"])
    }

    #[track_caller]
    fn line(&self) -> String {
        self.lines.recv_timeout(limit()).expect("a message in time")
    }

    fn has_heard_nothing(&self) -> bool {
        self.lines.try_recv().is_err()
    }
}

/// A container that becomes ready once there is a file `go` in its rootfs.
fn slow_to_be_ready() -> Bundle {
    Bundle::new().shell(&format!(
        "{PROBE} notify STATUS=READY=1 &&
         echo ready && until [ -e /go ]; do sleep 0.1; done &&
         {PROBE} notify READY=1 && exec sleep 3600"
    ))
}

#[test]
fn start_ends_and_the_manager_hears_once_the_container_is_ready() {
    let bundle = slow_to_be_ready();
    let manager = Manager::beside(&bundle);
    let mut container = manager.runs(Container::new(bundle));
    container.create();
    let mut start = hull_tests::Running::spawn(&mut container.command(&["start", &container.id]));
    assert_eq!(container.stdout.as_mut().unwrap().line("stdout"), "ready");

    let id = container.id.clone();
    // It is not in others' way.
    let _ = container.call(&["exec", &id, "true"]).ok();
    assert!(manager.has_heard_nothing());
    assert!(!start.exits_within(std::time::Duration::from_millis(200)));
    fs::write(container.bundle.rootfs().join("go"), "").unwrap();

    assert!(start.exit().success());
    assert_eq!(manager.line(), "READY=1");
    assert_eq!(manager.line(), format!("MAINPID={}", container.state().pid));
}

#[test]
fn a_manager_of_create_alone_hears_it_and_start_waits_for_nothing() {
    let bundle = slow_to_be_ready();
    let manager = Manager::beside(&bundle);
    let mut container = manager.creates(Container::new(bundle));
    container.create();

    let _ = container.start().ok();

    assert_eq!(container.stdout.as_mut().unwrap().line("stdout"), "ready");
    assert!(manager.has_heard_nothing());
    fs::write(container.bundle.rootfs().join("go"), "").unwrap();
    // Which process to watch, the engine tells by itself.
    assert_eq!(manager.line(), "READY=1");
    assert!(manager.has_heard_nothing());
}

#[test]
fn an_engines_socket_among_the_mounts_hears_it() {
    let bundle = slow_to_be_ready();
    // So long that the socket's path is no address.
    let folder = bundle.folder(&"userdata".repeat(15));
    let manager = Manager::at(folder.join("notify.sock"));
    let bundle = bundle
        .push(
            "/process/env",
            json!("NOTIFY_SOCKET=/run/notify/notify.sock"),
        )
        .bind(&folder, "/run/notify", &["private"]);
    let mut container = Container::new(bundle);
    container.create();

    let _ = container.start().ok();

    assert_eq!(container.stdout.as_mut().unwrap().line("stdout"), "ready");
    fs::write(container.bundle.rootfs().join("go"), "").unwrap();
    // runc's container has said the rest by itself.
    while manager.line() != "READY=1" {}
}

#[test]
fn whoever_goes_on_talking_after_it_is_ready_is_listened_to() {
    let bundle = Bundle::new().shell(&format!(
        "{PROBE} notify READY=1 $(yes WATCHDOG=1 | head -n 200) && echo said && exec sleep 3600"
    ));
    let manager = Manager::beside(&bundle);
    let container = manager.runs(Container::new(bundle));

    let mut running = container.start_run();

    assert_eq!(running.line(), "said");
    assert_eq!(manager.line(), "READY=1");
}

#[test]
fn a_manager_that_is_gone_keeps_no_container_from_starting() {
    let bundle = slow_to_be_ready();
    let manager = Manager::beside(&bundle);
    let mut container = manager.creates(Container::new(bundle));
    container.create();
    fs::remove_file(&manager.path).unwrap();

    let told = container.start().ok().err();

    assert!(
        told.contains("won't be told when the container is ready"),
        "{told}"
    );
    assert_eq!(container.stdout.as_mut().unwrap().line("stdout"), "ready");
}

#[test]
fn run_tells_the_manager_to_watch_itself() {
    let bundle = slow_to_be_ready();
    fs::write(bundle.rootfs().join("go"), "").unwrap();
    let manager = Manager::beside(&bundle);
    let container = manager.runs(Container::new(bundle));

    let running = container.run_until_ready();

    assert_eq!(manager.line(), "READY=1");
    // `env` has become the runtime
    assert_eq!(manager.line(), format!("MAINPID={}", running.pid()));
}

#[test]
fn a_container_that_ends_without_a_word_ends_start() {
    let bundle = Bundle::new().shell("echo $NOTIFY_SOCKET; exit 3");
    let manager = Manager::beside(&bundle);
    let mut container = manager.runs(Container::new(bundle));
    container.create();

    let _ = container.start().ok();

    let socket = container.stdout.as_mut().unwrap().line("stdout");
    assert_eq!(socket, "/run/notify/notify.sock");
    assert!(manager.has_heard_nothing());
}

#[test]
fn any_user_of_a_user_namespace_can_say_it() {
    let bundle = Bundle::new()
        .shell(&format!(
            "{PROBE} notify READY=1 && echo said; exec sleep 3600"
        ))
        .set("/process/user", json!({ "uid": 7, "gid": 7 }))
        .in_user_namespace(json!([{ "containerID": 0, "hostID": 100_000, "size": 1000 }]));
    // Nobody in there may make it.
    fs::create_dir_all(bundle.rootfs().join("run/notify")).unwrap();
    let manager = Manager::beside(&bundle);
    let container = manager.runs(Container::new(bundle));

    let mut running = container.start_run();

    assert_eq!(running.line(), "said");
    assert_eq!(manager.line(), "READY=1");
}
