//! UNIX sockets of the host that lie in bind mounts, with `volume_sockets` in the configuration.

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use hull_tests::runtime::is_hull;
use hull_tests::{Bundle, Container, only_hull};
use rustix::net::sockopt::socket_peercred;
use serde_json::json;

use crate::{joined, rootless};

/// A server on the host, which anybody may connect to.
struct Server {
    path: PathBuf,
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// One that does this on each connection, on a thread of its own.
    fn new(path: &Path, serve: fn(UnixStream) -> io::Result<()>) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o666)).unwrap();
        let stopped = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&stopped);
        let accept = move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                // A peer that is gone is the peer's affair.
                thread::spawn(move || serve(stream?));
            }
        };
        Self {
            path: path.to_owned(),
            stopped,
            thread: Some(thread::spawn(accept)),
        }
    }

    /// One that says again what it is told, and ends its side when the peer has.
    fn echo(path: &Path) -> Self {
        Self::new(path, |mut stream| {
            io::copy(&mut stream.try_clone()?, &mut stream)?;
            stream.shutdown(Shutdown::Write)
        })
    }

    /// One that says who the peer is.
    fn who(path: &Path) -> Self {
        Self::new(path, |mut stream| {
            let peer = socket_peercred(&stream)?;
            let (uid, gid) = (peer.uid.as_raw(), peer.gid.as_raw());
            writeln!(stream, "{uid} {gid} {}", peer.pid.as_raw_nonzero())
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        // It may have been unlinked: then its thread ends with the tests.
        if UnixStream::connect(&self.path).is_ok() {
            let _ = self.thread.take().map(JoinHandle::join);
        }
        let _ = fs::remove_file(&self.path);
    }
}

/// A container whose runtime lets it reach sockets of the host.
fn allowed(bundle: Bundle) -> Container {
    configured(bundle, "volume_sockets = true\n")
}

fn configured(bundle: Bundle, toml: &str) -> Container {
    let file = bundle.file("hull.toml", toml).display().to_string();
    match is_hull() {
        true => Container::new(bundle).with_further_global(&["--config", &file]),
        false => Container::new(bundle),
    }
}

/// A bundle that waits, with a folder that its container has at /shared.
fn sharing() -> (Bundle, PathBuf) {
    let bundle = Bundle::new().shell("echo ready; exec sleep 3600");
    let shared = bundle.folder("shared");
    fs::set_permissions(&shared, Permissions::from_mode(0o755)).unwrap();
    (bundle.bind(&shared, "/shared", &[]), shared)
}

#[test]
fn bytes_go_both_ways_through_a_socket_in_a_folder_and_through_one_by_itself() {
    let (bundle, shared) = sharing();
    let alone = bundle.beside("alone.sock");
    let _servers = [&shared.join("s"), &alone].map(|path| Server::echo(path));
    let container = allowed(bundle.bind(&alone, "/run/alone.sock", &["ro"]));
    let _running = container.run_until_ready();
    for path in ["/shared/s", "/run/alone.sock"] {
        for bytes in ["0", "10", "1048576"] {
            let done = container.exec(&["probe", "exchange", path, bytes]).ok();
            assert_eq!(done.out(), format!("{bytes} bytes came back"), "{path}");
        }
    }
}

#[test]
fn many_connections_are_open_at_once() {
    let (bundle, shared) = sharing();
    // It never closes its end. So each round has room only if those of the one before have ended all the same.
    let _server = Server::new(&shared.join("s"), |mut stream| {
        io::copy(&mut stream.try_clone()?, &mut stream)?;
        std::mem::forget(stream);
        Ok(())
    });
    let container = allowed(bundle);
    let _running = container.run_until_ready();
    for _ in 0..3 {
        let done = container.exec(&["probe", "exchange-on-many", "/shared/s", "200"]);
        assert_eq!(done.ok().out(), "200 connections");
    }
}

/// Nothing in the guest may remember the socket that was there before.
#[test]
fn a_server_that_begins_anew_is_reached_at_once() {
    let (bundle, shared) = sharing();
    let path = shared.join("s");
    let container = allowed(bundle);
    let _running = container.run_until_ready();
    let exchange = || container.exec(&["probe", "exchange", "/shared/s", "10"]);
    for _ in 0..3 {
        let server = Server::echo(&path);
        let _ = exchange().ok();
        drop(server);
        let _ = exchange().exits(1).fails_saying("No such file");
    }
    // A socket that is left, with nobody behind it.
    drop(UnixListener::bind(&path).unwrap());
    let _ = exchange().exits(1).fails_saying("Connection refused");
}

#[test]
fn the_server_sees_the_user_and_may_shut_him_out() {
    let (bundle, shared) = sharing();
    let _servers = [
        Server::who(&shared.join("who")),
        Server::who(&shared.join("roots")),
    ];
    fs::set_permissions(shared.join("roots"), Permissions::from_mode(0o600)).unwrap();
    let mut container = allowed(bundle);
    container.create();
    let _ = container.start().ok();
    let pid = container.state().pid;
    let who = |options: &[&str], path| {
        let command = &mut container.exec_command(options, &["probe", "read-socket", path]);
        hull_tests::Running::spawn(command).finish()
    };
    let said = who(&[], "/shared/who").ok().out();
    assert!(said.starts_with("0 0 "), "{said}");
    if is_hull() {
        assert_eq!(said, format!("0 0 {pid}"), "the pid that engines know");
    }
    let said = who(&["--user", "1000:100"], "/shared/who").ok().out();
    assert!(said.starts_with("1000 100 "), "{said}");
    let _ = who(&[], "/shared/roots").ok();
    let refused = who(&["--user", "1000:100"], "/shared/roots");
    let _ = refused.exits(1).fails_saying("Permission denied");
}

#[test]
fn a_user_namespaces_root_is_who_it_is_on_the_host() {
    let (bundle, shared) = sharing();
    let _server = Server::who(&shared.join("who"));
    let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 1000 }]);
    let container = allowed(bundle.in_user_namespace(map));
    let _running = container.run_until_ready();
    let said = container.exec(&["probe", "read-socket", "/shared/who"]);
    let said = said.ok().out();
    assert!(said.starts_with("100000 100000 "), "{said}");
}

#[test]
fn an_ordinary_users_container_connects_as_the_user() {
    let (bundle, shared) = sharing();
    let file = bundle.file("hull.toml", "volume_sockets = true\n");
    let container = rootless::of_user(rootless::rootless(bundle));
    let container = match is_hull() {
        true => container.with_further_global(&["--config", file.to_str().unwrap()]),
        false => container,
    };
    let _server = Server::who(&shared.join("who"));
    let _running = container.run_until_ready();
    let said = container.exec(&["probe", "read-socket", "/shared/who"]);
    let said = said.ok().out();
    assert!(said.starts_with("1000 1000 "), "{said}");
}

#[test]
fn without_the_operators_word_a_socket_is_refused_and_nobody_is_behind_one_in_a_folder() {
    only_hull!("with runc both are the host's");
    let (bundle, shared) = sharing();
    let alone = bundle.beside("alone.sock");
    let _servers = [&shared.join("s"), &alone].map(|path| Server::echo(path));
    let container = configured(bundle, "volume_sockets = false\n");
    let _running = container.run_until_ready();
    let _ = (container.exec(&["probe", "exchange", "/shared/s", "10"]))
        .exits(1)
        .fails_saying("Connection refused");

    let bound = Bundle::new().bind(&alone, "/run/alone.sock", &[]);
    let index = bound.config()["mounts"].as_array().unwrap().len() - 1;
    let field = format!("mounts[{index}].source");
    let container = Container::new(bound);
    let refused = container.run().exits(1).fails_saying(&field);
    let _ = refused.fails_saying("volume_sockets = true");
    let audited = container.call(&["spec", "--audit", "--bundle", container.bundle_path()]);
    assert!(audited.out().contains(&field), "{}", audited.out());
}

#[test]
fn a_further_container_reaches_what_its_sandboxs_first_one_may() {
    only_hull!("runc has no VM to share");
    for allowed in [true, false] {
        let toml = format!("volume_sockets = {allowed}\n");
        let first = configured(Bundle::new().shell("echo ready; exec sleep 3600"), &toml);
        let _running = first.run_until_ready();
        let (bundle, shared) = sharing();
        let alone = bundle.beside("alone.sock");
        let _servers = [&shared.join("s"), &alone].map(|path| Server::echo(path));
        // The operator has changed his mind meanwhile.
        let file = bundle.file("hull.toml", "volume_sockets = true\n");
        let bundle = bundle.bind(&alone, "/run/alone.sock", &[]);
        let second = joined::beside(&first, bundle);
        let second = second.with_further_global(&["--config", file.to_str().unwrap()]);
        if !allowed {
            let _ = second.run().exits(1).fails_saying("volume_sockets");
            continue;
        }
        let _second_running = second.run_until_ready();
        for path in ["/shared/s", "/run/alone.sock"] {
            let _ = second.exec(&["probe", "exchange", path, "10"]).ok();
        }
    }
}

#[test]
fn a_link_in_a_share_leads_nowhere_on_the_host() {
    let (bundle, shared) = sharing();
    let beside = bundle.beside("not-shared.sock");
    let _server = Server::echo(&beside);
    symlink(&beside, shared.join("s")).unwrap();
    let container = allowed(bundle);
    let _running = container.run_until_ready();
    let _ = (container.exec(&["probe", "exchange", "/shared/s", "10"]))
        .exits(1)
        .fails_saying("No such file");
}

/// Two processes of the guest: one puts a link to another share's socket in the place of the socket, again and again.
#[test]
fn a_socket_that_is_swapped_for_a_link_is_never_another() {
    only_hull!("with runc a link is followed in the container, as here");
    let (bundle, shared) = sharing();
    let _server = Server::new(&shared.join("s"), |mut stream| writeln!(stream, "shared"));
    let container = allowed(bundle);
    let _running = container.run_until_ready();
    let swap = "cd /shared; mv s kept; (for i in $(seq 300); do \
                ln -s /etc/passwd s; rm s; ln kept s; rm s; done) & \
                for i in $(seq 100); do probe read-socket s 2>&1; done | sort -u; wait";
    let said = container.exec_shell(swap).ok().out();
    for line in said.lines() {
        let expected = line == "shared"
            || ["No such file", "Connection refused", "Stale"]
                .iter()
                .any(|text| line.contains(text));
        assert!(expected, "{said}");
    }
}

#[test]
fn the_agents_name_is_nobody_elses() {
    only_hull!("runc has no agent");
    // In the guest's own network namespace, where the agent listens.
    let (bundle, shared) = sharing();
    let _server = Server::echo(&shared.join("s"));
    let kinds = ["pid", "ipc", "uts", "mount"].map(|kind| json!({ "type": kind }));
    let container = allowed(bundle.set("/linux/namespaces", json!(kinds)));
    let _running = container.run_until_ready();
    let said = container.exec(&["probe", "take-agents-name"]).ok().out();
    let mut lines = said.lines();
    assert!(lines.next().unwrap().contains("in use"), "{said}");
    assert!(lines.next().unwrap().starts_with("0 bytes"), "{said}");
    let _ = (container.exec(&["probe", "exchange", "/shared/s", "10"])).ok();
}
