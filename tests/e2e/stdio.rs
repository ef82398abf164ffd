//! Bytes in and out of the container: unchanged, apart, and ended when either side ends them.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::Duration;

use hull_tests::process::{limit, wait_for_death};
use hull_tests::{Bundle, Container, Running, pattern};

const MIB: u64 = 1 << 20;

#[test]
fn input_comes_from_a_pipe_and_ends_with_it() {
    let container = Container::new(Bundle::new().shell("cat; echo end"));
    let mut run = Running::spawn(container.run_command().stdin(Stdio::piped()));

    let mut stdin = run.stdin.take().unwrap();
    stdin.write_all(b"one\n").unwrap();
    assert_eq!(run.line(), "one");
    stdin.write_all(b"two\n").unwrap();
    assert_eq!(run.line(), "two");
    drop(stdin);

    assert_eq!(run.line(), "end");
    let _ = run.finish().ok();
}

#[test]
fn no_input_is_an_end_at_once() {
    let container = Container::new(Bundle::new().args(&["cat"]));
    assert_eq!(container.run().ok().out(), "");
}

#[test]
fn outputs_stay_apart() {
    let container = Container::new(Bundle::new().shell("echo out; echo err >&2; exit 3"));
    let done = container.run().exits(3);
    assert_eq!((done.out().as_str(), done.err().as_str()), ("out", "err"));
}

#[test]
fn sixty_four_mebibytes_through_cat() {
    let container = Container::new(Bundle::new().args(&["cat"]));
    let mut command = container.run_command();
    let mut run = Running::spawn_within(command.stdin(Stdio::piped()), 3 * limit());

    let mut stdin = run.stdin.take().unwrap();
    let writer = std::thread::spawn(move || pattern::write(&mut stdin, 64 * MIB));
    let done = run.finish().ok();

    writer.join().unwrap().unwrap();
    pattern::check(&mut done.stdout.as_slice(), 64 * MIB).unwrap();
}

#[test]
fn a_container_that_stops_reading_ends_all_the_same() {
    let container = Container::new(Bundle::new().shell("head -c 5"));
    let mut run = Running::spawn(container.run_command().stdin(Stdio::piped()));

    let mut stdin = run.stdin.take().unwrap();
    // ends in an error once nobody reads any more
    let writer = std::thread::spawn(move || pattern::write(&mut stdin, 64 * MIB));
    let done = run.finish().ok();

    assert_eq!(done.stdout.len(), 5);
    assert!(writer.join().unwrap().is_err());
}

#[test]
fn a_slow_reader_gets_all_of_it() {
    let container = Container::new(Bundle::new().probe(&["pattern-out", "8388608"]));
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut run = Running::spawn(container.run_command().stdout(writer));

    let slow = std::thread::spawn(move || {
        let (mut all, mut part) = (Vec::new(), vec![0; 256 << 10]);
        loop {
            std::thread::sleep(Duration::from_millis(20)); // this is how slow
            match reader.read(&mut part).unwrap() {
                0 => return all,
                read => all.extend(&part[..read]),
            }
        }
    });
    assert!(run.exit().success());

    let all = slow.join().unwrap();
    pattern::check(&mut all.as_slice(), 8 * MIB).unwrap();
}

#[test]
fn output_to_a_file_goes_where_the_file_stands() {
    let container = Container::new(Bundle::new().shell("echo two; echo three >&2"));
    let path = container.bundle.file("output", "one\n");
    let output = File::options().append(true).open(&path).unwrap();
    let errors = File::create(container.bundle.beside("errors")).unwrap();

    let mut command = container.run_command();
    let run = Running::spawn(command.stdout(output).stderr(errors));
    drop(command); // and its copies of the files
    let _ = run.finish().ok();

    assert_eq!(fs::read_to_string(path).unwrap(), "one\ntwo\n");
    let errors = fs::read_to_string(container.bundle.beside("errors"));
    assert_eq!(errors.unwrap(), "three\n");
}

#[test]
fn output_to_dev_null() {
    let container = Container::new(Bundle::new().shell("head -c 1000000 /dev/zero; exit 4"));
    let mut command = container.run_command();
    let run = Running::spawn(command.stdout(Stdio::null()).stderr(Stdio::null()));
    let _ = run.finish().exits(4);
}

#[test]
fn a_writer_learns_that_nobody_reads() {
    // the shell goes on and leaves a mark when `yes` has got its error
    let mut container = Container::new(Bundle::new().shell("yes; echo $? >/ended"));
    container.create();
    let pid = container.state().pid;
    container.stdout = None; // which nobody reads from now on

    let _ = container.start().ok();

    assert!(
        wait_for_death(pid, limit()),
        "`yes` goes on writing to nobody"
    );
    let ended = fs::read_to_string(container.bundle.rootfs().join("ended")).unwrap();
    assert_ne!(ended.trim(), "0");
}

#[test]
fn closed_stdio_is_no_obstacle() {
    let container = Container::new(Bundle::new().shell("exit 6"));
    let container = container.wrapped(&["sh", "-c", "exec \"$@\" <&- >&- 2>&-", "sh"]);
    let _ = container.run().exits(6);
}

/// A pair of sockets, on the first of which all has been asked.
fn asking() -> (UnixStream, UnixStream) {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.write_all(b"asked\n").unwrap();
    ours.shutdown(Shutdown::Write).unwrap();
    (ours, theirs)
}

/// As socat, inetd and systemd's `Accept=yes` have it.
#[test]
fn one_socket_is_both_stdin_and_output() {
    let (mut ours, theirs) = asking();
    let container = Container::new(Bundle::new().shell("cat; echo and answered"));
    let stdio = || Stdio::from(OwnedFd::from(theirs.try_clone().unwrap()));

    let mut command = container.run_command();
    let run = Running::spawn(command.stdin(stdio()).stdout(stdio()));
    drop((command, theirs)); // and its copies of the socket
    let _ = run.finish().ok();

    let mut answer = String::new();
    ours.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "asked\nand answered\n");
}

#[test]
fn an_execs_socket_is_both_its_stdin_and_output() {
    let (mut ours, theirs) = asking();
    let container = Container::new(Bundle::new().shell("echo ready; sleep 3600"));
    let _running = container.run_until_ready();
    let stdio = || Stdio::from(OwnedFd::from(theirs.try_clone().unwrap()));

    let mut command = container.exec_command(&[], &["sh", "-c", "cat; echo and answered"]);
    let exec = Running::spawn(command.stdin(stdio()).stdout(stdio()));
    drop((command, theirs));
    let _ = exec.finish().ok();

    let mut answer = String::new();
    ours.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "asked\nand answered\n");
}
