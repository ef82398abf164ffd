//! What a process of a container does with UNIX sockets.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::thread;

use hull_tests::pattern;

/// The name at which the guest's kernel looks for the agent.
const AGENTS: &str = "hull/volume-sockets";

/// Connects, and prints what the server says until it ends the connection.
pub fn read(path: &str) -> io::Result<()> {
    let mut said = String::new();
    UnixStream::connect(path)?.read_to_string(&mut said)?;
    print!("{said}");
    Ok(())
}

/// Sends so many bytes to a server that says them again, ends its side, and takes them back to the end.
pub fn exchange(path: &str, bytes: u64) -> io::Result<()> {
    let mut stream = UnixStream::connect(path)?;
    let mut sending = stream.try_clone()?;
    let sent = thread::spawn(move || {
        pattern::write(&mut sending, bytes)?;
        sending.shutdown(Shutdown::Write)
    });
    pattern::check(&mut stream, bytes)?;
    sent.join().map_err(|_| io::Error::other("a panic"))??;
    match stream.read(&mut [0])? {
        0 => println!("{bytes} bytes came back"),
        _ => return Err(io::Error::other("more than was sent")),
    }
    Ok(())
}

/// Has so many connections open at once, and exchanges a word on each, the last one first.
pub fn exchange_on_many(path: &str, count: u64) -> io::Result<()> {
    let open: Vec<_> = (0..count)
        .map(|_| UnixStream::connect(path))
        .collect::<Result<_, _>>()?;
    for (number, mut stream) in open.iter().enumerate().rev() {
        let word = format!("{number:08}");
        stream.write_all(word.as_bytes())?;
        let mut again = [0; 8];
        stream.read_exact(&mut again)?;
        assert_eq!(again, word.as_bytes(), "of connection {number}");
    }
    println!("{count} connections");
    Ok(())
}

/// Takes the agent's name, or else connects to who has it, and says what came of it.
pub fn take_agents_name() -> io::Result<()> {
    let address = SocketAddr::from_abstract_name(AGENTS)?;
    match UnixListener::bind_addr(&address) {
        Ok(_listener) => {
            println!("taken");
            thread::park();
            return Ok(());
        }
        Err(error) => println!("{error}"),
    }
    let mut stream = UnixStream::connect_addr(&address)?;
    // A port of the host, and a token. The agent may be quicker, and have hung up.
    let _ = stream.write_all(&[0; 20]);
    let mut said = Vec::new();
    let end = stream.read_to_end(&mut said);
    println!("{} bytes, {}", said.len(), end.is_ok());
    Ok(())
}
