//! Terminals: `run -t`, `exec -t` and engines that get one through a socket.

use std::io::Write;
use std::process::Command;

use hull_tests::process::{limit, wait_for_death};
use hull_tests::terminal::{ConsoleSocket, Terminal, on_terminal};
use hull_tests::{Bundle, Container, Running};
use serde_json::json;

use crate::lifecycle::{signal_pid, waiting};

const MIB: usize = 1 << 20;

/// A bundle with a terminal, of which the process is an interactive shell.
fn interactive() -> Bundle {
    Bundle::new()
        .set("/process/terminal", json!(true))
        .set(
            "/process/env",
            json!(["PATH=/bin", "PS1=ready> ", "HOME=/tmp"]),
        )
        .args(&["/bin/sh", "-i"])
}

/// A command that runs with a terminal of its own.
fn on_new_terminal(command: &Command) -> (Terminal, Running) {
    let (terminal, program) = Terminal::new();
    let running = Running::spawn_within(&mut on_terminal(command, program), 3 * limit());
    (terminal, running)
}

/// `exec` of a shell with a terminal.
fn exec_shell(container: &Container) -> Command {
    let options = ["--tty", "--env", "PS1=ready> "];
    container.exec_command(&options, &["/bin/sh", "-i"])
}

/// What every interactive shell must do. What is typed before a prompt, busybox's may throw away.
fn converse(terminal: &mut Terminal) {
    terminal.shows("ready> ");
    terminal.types("tty\n");
    terminal.shows("/dev/pts/");
    terminal.shows("ready> ");

    for (rows, columns) in [(24, 80), (50, 132)] {
        terminal.resize(rows, columns);
        // A size takes a moment to arrive, and nobody tells when: the shell asks until it is there.
        let wanted = format!("{rows} {columns}");
        terminal.types(format!(
            "until [ \"$(stty size)\" = '{wanted}' ]; do :; done; echo res''ized\n"
        ));
        terminal.shows("resized\r\n");
        terminal.shows("ready> ");
    }

    // Ctrl-C ends what is in the foreground, and not the shell; Ctrl-Z stops it.
    terminal.types("sh -c \"echo asl''eep; exec sleep 1000\"\n");
    terminal.shows("asleep\r\n");
    terminal.types("\x03");
    terminal.shows("ready> ");
    terminal.types("echo status $?; sh -c \"echo ag''ain; exec sleep 1001\"\n");
    terminal.shows("status 130\r\n");
    terminal.shows("again\r\n");
    terminal.types("\x1a");
    terminal.shows("Stopped");
    terminal.shows("ready> ");
    terminal.types("kill -KILL %1; wait; echo al''ive\n");
    terminal.shows("alive\r\n");
    terminal.shows("ready> ");
}

#[test]
fn a_shell_in_the_callers_terminal() {
    let container = Container::new(interactive());
    let (mut terminal, running) = on_new_terminal(&container.run_command());
    let before = format!("{:?}", terminal.mode());
    converse(&mut terminal);
    // A shell that still knows of a stopped job wants to be told twice.
    terminal.types("exit 9\nexit 9\n");
    let _ = running.finish().exits(9);
    assert_eq!(format!("{:?}", terminal.mode()), before);
}

#[test]
fn exec_of_a_shell_in_the_callers_terminal() {
    let mut container = Container::new(waiting());
    container.create();
    let _ = container.start().ok();
    let (mut terminal, running) = on_new_terminal(&exec_shell(&container));
    converse(&mut terminal);
    // Who keeps the terminal open keeps nobody waiting.
    terminal.types("sleep 1000 &\n");
    terminal.shows("ready> ");
    terminal.types("exit 7\nexit 7\n");
    let _ = running.finish().exits(7);
}

#[test]
fn a_mebibyte_is_pasted_whole() {
    let script = format!("stty raw -echo; echo ready; head -c {MIB} | md5sum; stty sane");
    let bundle = Bundle::new()
        .set("/process/terminal", json!(true))
        .shell(&script);
    let container = Container::new(bundle);
    let (mut terminal, running) = on_new_terminal(&container.run_command());
    terminal.shows("ready");
    let text: Vec<u8> = (0..MIB).map(|n| b'!' + (n % 90) as u8).collect();
    let expected = {
        let mut md5 = Running::spawn(
            Command::new("md5sum")
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::piped()),
        );
        let mut stdin = md5.stdin.take().unwrap();
        stdin.write_all(&text).unwrap();
        drop(stdin);
        md5.finish().ok().out()
    };
    let mut keyboard = terminal.keyboard();
    let typist = std::thread::spawn(move || keyboard.write_all(&text));
    terminal.shows(expected.split(' ').next().unwrap());
    typist.join().unwrap().unwrap();
    let _ = running.finish().ok();
}

#[test]
fn an_engine_gets_the_terminal_through_its_socket() {
    let bundle = interactive().set("/process/consoleSize", json!({"height": 24, "width": 80}));
    let container = Container::new(bundle);
    let socket = ConsoleSocket::listen(&container.bundle.beside("console.sock"));
    let words = ["create", "--console-socket", &socket.path(), "--bundle"];
    let words: Vec<_> = words
        .into_iter()
        .chain([container.bundle_path(), &*container.id])
        .collect();
    let _ = container.call(&words).ok();
    let mut terminal = socket.receive();
    let _ = container.start().ok();
    converse(&mut terminal);

    // What the terminal's kernel sends the process that has it isn't a signal for the container; this is.
    for (signal, name) in [(1, "HUP"), (28, "WINCH")] {
        let trap = format!("trap 'got=1; echo {name}''!' {name}");
        let wait = "got=; echo rea''dy; until [ \"$got\" ]; do sleep 0.1; done";
        terminal.types(format!("{trap}; {wait}; trap - {name}\n"));
        terminal.shows("ready\r\n");
        signal_pid(&container, signal);
        terminal.shows(&format!("{name}!\r\n"));
        terminal.shows("ready> ");
    }

    // A further process's terminal comes and goes by itself.
    let further = ConsoleSocket::listen(&container.bundle.beside("further.sock"));
    let path = further.path();
    let options = [
        "--detach",
        "--tty",
        "--console-socket",
        &path,
        "--env",
        "PS1=ready> ",
    ];
    let mut exec = container.exec_command(&options, &["/bin/sh", "-i"]);
    let _ = Running::spawn(&mut exec).finish().ok();
    let mut other = further.receive();
    other.resize(24, 80);
    converse(&mut other);
    other.types("exit\nexit\n");
    let pid = container.state().pid;
    terminal.types("exit\nexit\n");
    assert!(wait_for_death(pid, limit()));
    assert_eq!(container.state().status, "stopped");
}

#[test]
fn a_killed_run_hangs_the_terminal_up() {
    let container = Container::new(interactive());
    let (mut terminal, mut running) = on_new_terminal(&container.run_command());
    terminal.shows("ready> ");
    let pid = container.state().pid;
    running.kill();
    assert!(wait_for_death(pid, limit()));
}

#[test]
fn a_terminal_and_a_socket_come_together() {
    let container = Container::new(interactive());
    let path = container.bundle_path();
    let _ = container
        .call(&["create", "--bundle", path, &container.id])
        .exits(1)
        .fails_saying("without setting console socket");
    let words = [
        "run",
        "--console-socket",
        "/s",
        "--bundle",
        path,
        &container.id,
    ];
    let _ = container
        .call(&words)
        .exits(1)
        .fails_saying("cannot use console socket");
    let words = [
        "create",
        "--console-socket",
        "/no/such",
        "--bundle",
        path,
        &container.id,
    ];
    let _ = container.call(&words).exits(1).fails_saying("/no/such");
    let _ = container.call(&["state", &container.id]).exits(1);
}
