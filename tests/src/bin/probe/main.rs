//! The probe: what the end-to-end tests run inside a container to look around and to try things,
//! and outside where they need a process of their own making. One sub-command a question.

mod adopt;
mod files;
mod identity;
mod locks;
mod names;
mod privileges;
mod report;
mod sockets;
mod syscall;
mod trace;
mod vsock;

use std::fs::{self, File};
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use hull_tests::pattern;

const USAGE: &str =
    "probe identity | report PATH… | files DIR | big-file FILE BYTES | small-files DIR COUNT |
      pattern-out BYTES | pattern-in BYTES | adopt PID-FILE CMD… | try-lock flock|fcntl FILE |
      acls DIR | set-id DIR | trusted DIR |
      notify MESSAGE… | syscall NUMBER ARGUMENT | syscall32 NUMBER ARGUMENT | signal PID SIGNAL… | reserve BYTES | reach-vsock |
      forge-exit-status STATUS | take-streams SECONDS | flood-agent COUNT | into-init |
      hold-thread TID SECONDS | ask-names ADDRESS:PORT NAME… | ask-name-connected ADDRESS:PORT NAME |
      answer-names ADDRESS:PORT NETWORK | read-socket PATH | exchange PATH BYTES |
      exchange-on-many PATH COUNT | take-agents-name";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["identity"] => identity::print(),
        ["report", ref paths @ ..] => report::print(paths),
        ["files", dir] => return files::check_all(Path::new(dir)),
        ["big-file", file, bytes] => big_file(Path::new(file), number(bytes)),
        ["small-files", dir, count] => small_files(Path::new(dir), number(count)),
        ["pattern-out", bytes] => pattern::write(&mut io::stdout(), number(bytes)),
        ["pattern-in", bytes] => pattern::check(&mut io::stdin(), number(bytes)),
        ["adopt", pid_file, ..] => adopt::run(Path::new(pid_file), &words[2..]),
        ["try-lock", kind, file] => locks::try_lock(kind, Path::new(file)),
        ["acls", dir] => privileges::acls(Path::new(dir)),
        ["set-id", dir] => privileges::set_id(Path::new(dir)),
        ["trusted", dir] => privileges::trusted(Path::new(dir)),
        ["notify", ref messages @ ..] => notify(messages),
        ["syscall", call, argument] => {
            syscall::native(number(call).cast_signed(), number(argument));
            Ok(())
        }
        ["syscall32", call, argument] => {
            syscall::of_32_bits(number(call), number(argument));
            Ok(())
        }
        ["signal", pid, ref signals @ ..] => {
            let signals: Vec<i32> = signals.iter().map(|text| number(text) as i32).collect();
            syscall::signal(number(pid) as i32, &signals);
            Ok(())
        }
        ["reserve", bytes] => {
            let mut memory = Vec::<u8>::new();
            let reserved = memory.try_reserve_exact(number(bytes) as usize);
            std::hint::black_box(&memory);
            reserved.map_err(io::Error::other)
        }
        ["reach-vsock"] => vsock::reach(),
        ["forge-exit-status", status] => vsock::forge_exit_status(number(status) as u8),
        ["take-streams", seconds] => vsock::take_streams(number(seconds)),
        ["flood-agent", count] => vsock::flood(number(count) as usize),
        ["ask-names", resolver, ref names @ ..] => names::ask_by_datagrams(resolver, names),
        ["ask-name-connected", resolver, name] => names::ask_on_a_connection(resolver, name),
        ["answer-names", at, network] => names::answer(at, network),
        ["read-socket", path] => sockets::read(path),
        ["exchange", path, bytes] => sockets::exchange(path, number(bytes)),
        ["exchange-on-many", path, count] => sockets::exchange_on_many(path, number(count)),
        ["take-agents-name"] => sockets::take_agents_name(),
        ["into-init"] => trace::into_init(),
        ["hold-thread", thread, seconds] => {
            trace::hold(number(thread) as i32, Duration::from_secs(number(seconds)))
        }
        _ => {
            eprintln!("usage: {USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("probe {}: {error}", words.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn number(word: &str) -> u64 {
    word.parse().expect("a number")
}

/// Says something to the service manager, sd_notify(3).
fn notify(messages: &[&str]) -> io::Result<()> {
    let path = std::env::var_os("NOTIFY_SOCKET");
    let path = path.ok_or_else(|| io::Error::other("no NOTIFY_SOCKET"))?;
    let socket = UnixDatagram::unbound()?;
    for message in messages {
        socket.send_to(message.as_bytes(), &path)?;
    }
    Ok(())
}

/// Writes a file, reads it back, and leaves it to be looked at from the host.
fn big_file(path: &Path, bytes: u64) -> io::Result<()> {
    let start = Instant::now();
    let mut file = File::create(path)?;
    pattern::write(&mut file, bytes)?;
    println!("written after {:?}", start.elapsed());
    file.sync_all()?;
    println!("synced after {:?}", start.elapsed());
    pattern::check(&mut File::open(path)?, bytes)?;
    println!("read after {:?}", start.elapsed());
    Ok(())
}

/// Makes files, lists them, reads them, and removes every second one.
fn small_files(dir: &Path, count: u64) -> io::Result<()> {
    let start = Instant::now();
    fs::create_dir(dir)?;
    for n in 0..count {
        fs::write(dir.join(n.to_string()), format!("file {n}"))?;
        if n % 1000 == 999 {
            println!("{} made after {:?}", n + 1, start.elapsed());
        }
    }
    let listed = fs::read_dir(dir)?.count() as u64;
    if listed != count {
        return Err(io::Error::other(format!(
            "{listed} of {count} files listed"
        )));
    }
    println!("listed after {:?}", start.elapsed());
    for n in 0..count {
        let path = dir.join(n.to_string());
        let text = fs::read_to_string(&path)?;
        if text != format!("file {n}") {
            return Err(io::Error::other(format!("file {n} has {text:?}")));
        }
        if n % 2 == 1 {
            fs::remove_file(path)?;
        }
    }
    println!("read and removed after {:?}", start.elapsed());
    Ok(())
}
