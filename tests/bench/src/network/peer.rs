//! The two ends of a measurement over TCP. The *peer* runs in a container and does what it is told; the
//! *driver*, in the host's network namespace, tells it what to do and has the clock.
//!
//! There are two connections, one that each side has made. The driver writes a command to one of them: a letter, and
//! a number in eight bytes. What the commands mean is said at [`Command`].

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

/// What is given to one write(2), or asked of one read(2), of a stream: what iperf3 does too.
const CHUNK: usize = 128 << 10;

/// The port at which the driver waits for the peer.
pub const DRIVER_PORT: u16 = 7001;

/// The port at which the peer waits for the driver.
const PEER_PORT: u16 = 7002;

/// What the peer is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    /// Send that many bytes.
    Send,
    /// Receive that many bytes, then answer with one.
    Receive,
    /// Answer so many requests of one byte with one.
    Answer,
    /// Make so many requests of one byte, and wait for the answer of each.
    Ask,
}

impl Command {
    const ALL: [Self; 4] = [Self::Send, Self::Receive, Self::Answer, Self::Ask];

    fn letter(self) -> u8 {
        match self {
            Self::Send => b's',
            Self::Receive => b'r',
            Self::Answer => b'a',
            Self::Ask => b'q',
        }
    }
}

/// What the peer does, until the driver closes both connections.
pub fn run(driver: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", PEER_PORT))
        .with_context(|| format!("listen at port {PEER_PORT}"))?;
    let own = connect(driver)?;
    let others = thread::spawn(move || -> Result<()> {
        let (stream, _) = listener
            .accept()
            .context("accept the driver's connection")?;
        serve(&stream)
    });
    serve(&own)?;
    match others.join() {
        Ok(served) => served,
        Err(_) => bail!("the thread of the driver's connection has panicked"),
    }
}

/// A connection on which nothing waits to be joined by more.
fn connect(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(to).with_context(|| format!("connect to {to}"))?;
    stream.set_nodelay(true).context("set TCP_NODELAY")?;
    Ok(stream)
}

/// Does what is commanded on a connection, to its end.
fn serve(mut stream: &TcpStream) -> Result<()> {
    stream.set_nodelay(true).context("set TCP_NODELAY")?;
    loop {
        let mut letter = [0];
        if stream.read(&mut letter).context("read a command")? == 0 {
            return Ok(());
        }
        let mut number = [0; 8];
        stream.read_exact(&mut number).context("read a command")?;
        let number = u64::from_le_bytes(number);
        let command = Command::ALL.into_iter().find(|c| c.letter() == letter[0]);
        match command {
            Some(Command::Send) => send(stream, number)?,
            Some(Command::Receive) => {
                receive(stream, number)?;
                stream.write_all(&[0]).context("answer")?;
            }
            Some(Command::Answer) => answer(stream, number)?,
            Some(Command::Ask) => ask(stream, number)?,
            None => bail!("there is no command {}", letter[0]),
        }
    }
}

fn send(mut stream: &TcpStream, bytes: u64) -> Result<()> {
    let chunk = vec![0_u8; CHUNK];
    let mut left = bytes;
    while left > 0 {
        let size = chunk.len().min(usize::try_from(left).unwrap_or(CHUNK));
        stream.write_all(&chunk[..size]).context("send")?;
        left -= size as u64;
    }
    Ok(())
}

fn receive(mut stream: &TcpStream, bytes: u64) -> Result<()> {
    let mut chunk = vec![0_u8; CHUNK];
    let mut left = bytes;
    while left > 0 {
        let size = chunk.len().min(usize::try_from(left).unwrap_or(CHUNK));
        let received = stream.read(&mut chunk[..size]).context("receive")?;
        ensure!(received > 0, "the connection ended before all was received");
        left -= received as u64;
    }
    Ok(())
}

fn answer(mut stream: &TcpStream, requests: u64) -> Result<()> {
    let mut byte = [0];
    for _ in 0..requests {
        stream.read_exact(&mut byte).context("read a request")?;
        stream.write_all(&byte).context("answer a request")?;
    }
    Ok(())
}

fn ask(mut stream: &TcpStream, requests: u64) -> Result<()> {
    let mut byte = [0];
    for _ in 0..requests {
        stream.write_all(&byte).context("make a request")?;
        stream.read_exact(&mut byte).context("read an answer")?;
    }
    Ok(())
}

/// The driver's end of the two connections.
#[derive(Debug)]
pub struct Driver {
    /// The connection that the peer has made.
    peers: TcpStream,
    /// The one that the driver has made.
    own: TcpStream,
}

impl Driver {
    /// Takes the peer's connection, which somebody else has seen coming, and makes another.
    /// Nothing that is measured takes as long as `limit`.
    pub fn meet(listener: &TcpListener, limit: Duration) -> Result<Self> {
        let (peers, from) = listener.accept().context("accept the peer's connection")?;
        peers.set_nodelay(true).context("set TCP_NODELAY")?;
        let own = connect(SocketAddr::new(from.ip(), PEER_PORT))?;
        for stream in [&peers, &own] {
            stream
                .set_read_timeout(Some(limit))
                .and_then(|()| stream.set_write_timeout(Some(limit)))
                .context("limit the waits for the peer")?;
        }
        Ok(Self { peers, own })
    }

    fn command(mut stream: &TcpStream, command: Command, number: u64) -> Result<()> {
        let mut words = vec![command.letter()];
        words.extend(number.to_le_bytes());
        stream.write_all(&words).context("tell the peer what to do")
    }

    /// How long the peer takes to send that many bytes, to the arrival of the last.
    pub fn peer_sends(&self, bytes: u64) -> Result<Duration> {
        let start = Instant::now();
        Self::command(&self.peers, Command::Send, bytes)?;
        receive(&self.peers, bytes)?;
        Ok(start.elapsed())
    }

    /// How long it takes to send the peer that many bytes, until it says that it has them.
    pub fn peer_receives(&self, bytes: u64) -> Result<Duration> {
        let start = Instant::now();
        Self::command(&self.own, Command::Receive, bytes)?;
        send(&self.own, bytes)?;
        receive(&self.own, 1)?;
        Ok(start.elapsed())
    }

    /// How long so many requests of the peer's take, on the connection that it has made.
    pub fn peer_asks(&self, requests: u64) -> Result<Duration> {
        let start = Instant::now();
        Self::command(&self.peers, Command::Ask, requests)?;
        answer(&self.peers, requests)?;
        Ok(start.elapsed())
    }

    /// How long so many requests to the peer take, on the connection that it has accepted.
    pub fn peer_answers(&self, requests: u64) -> Result<Duration> {
        let start = Instant::now();
        Self::command(&self.own, Command::Answer, requests)?;
        ask(&self.own, requests)?;
        Ok(start.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peer_does_what_it_is_told_on_both_connections() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let address = listener.local_addr().expect("its address");
        let peer = thread::spawn(move || run(address));
        let driver = Driver::meet(&listener, Duration::from_secs(20)).expect("the peer");
        driver.peer_sends(300_000).expect("all sent");
        driver.peer_receives(300_000).expect("all received");
        driver.peer_asks(3).expect("all asked");
        driver.peer_answers(3).expect("all answered");
        drop(driver);
        peer.join().expect("no panic").expect("no failure");
    }

    #[test]
    fn a_command_that_is_none_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let address = listener.local_addr().expect("its address");
        let mut stream = TcpStream::connect(address).expect("a connection");
        let (served, _) = listener.accept().expect("a connection");
        stream.write_all(&[b'x'; 9]).expect("written");
        assert!(serve(&served).is_err());
    }
}
