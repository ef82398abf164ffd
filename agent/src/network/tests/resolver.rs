//! The relay to the host's resolver, in a container's network namespace, with a host that the test is.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use hull_protocol::resolver::{ADDRESS, PORT};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::setup::Namespace;
use crate::network::resolver::Resolver;

const QUESTION: &[u8] = b"\xab\xcd\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00what is it?";
const ANSWER: &[u8] = b"\xab\xcd\x81\x80\x00\x01\x00\x01\x00\x00\x00\x00it is this";

const TIMEOUT: Option<Duration> = Some(Duration::from_secs(20));

/// Whom a container's process asks, and what it does about its answer.
type Client = fn() -> Vec<u8>;

fn by_datagram() -> Vec<u8> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a socket");
    socket.set_read_timeout(TIMEOUT).expect("a time limit");
    // From then on it takes answers of that address and port alone.
    socket.connect((ADDRESS, PORT)).expect("an address");
    socket.send(QUESTION).expect("sent");
    let mut answer = vec![0; 600];
    let length = socket.recv(&mut answer).expect("an answer");
    answer.truncate(length);
    answer
}

fn on_a_connection() -> Vec<u8> {
    let mut stream = TcpStream::connect((ADDRESS, PORT)).expect("a connection");
    stream.set_read_timeout(TIMEOUT).expect("a time limit");
    let length = [0, QUESTION.len().to_le_bytes()[0]];
    let mut answer = vec![0; 2 + ANSWER.len()];
    for _ in 0..2 {
        stream.write_all(&length).expect("sent");
        stream.write_all(QUESTION).expect("sent");
        stream.read_exact(&mut answer).expect("an answer");
    }
    answer.split_off(2)
}

async fn hear(host: &mut DuplexStream) -> Vec<u8> {
    let length = host.read_u16().await.expect("a length");
    let mut message = vec![0; length.into()];
    host.read_exact(&mut message).await.expect("a message");
    message
}

async fn say(host: &mut DuplexStream, message: &[u8]) {
    let length = u16::try_from(message.len()).expect("a length");
    host.write_u16(length).await.expect("sent");
    host.write_all(message).await.expect("sent");
}

/// Has a client ask `times` times, and answers, after something that is no answer.
async fn serve(container: &Arc<Namespace>, host: &mut DuplexStream, client: Client, times: usize) {
    let inside = Arc::clone(container);
    let client = tokio::task::spawn_blocking(move || inside.with(client));
    for _ in 0..times {
        let question = hear(host).await;
        assert_eq!(question[2..], QUESTION[2..]);
        say(host, b"?").await;
        say(host, &[&question[..2], &ANSWER[2..]].concat()).await;
    }
    assert_eq!(client.await.expect("no panic"), ANSWER);
}

#[test]
fn a_container_reaches_it_beside_a_server_of_its_own() {
    let Some(container) = Namespace::new() else {
        return;
    };
    let container = Arc::new(container);
    let everywhere = (Ipv4Addr::UNSPECIFIED, PORT);
    let server = container.with(|| UdpSocket::bind(everywhere).expect("a socket"));
    server.set_read_timeout(TIMEOUT).expect("a time limit");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(async {
        let (agents, mut host) = duplex(1000);
        let namespace = container.fd.try_clone().expect("a descriptor");
        let resolver = Resolver::start(Some(Arc::new(namespace)), Box::new(agents)).await;
        let resolver = resolver.expect("sockets");
        serve(&container, &mut host, by_datagram, 1).await;
        serve(&container, &mut host, on_a_connection, 2).await;
        drop(resolver);
        assert_eq!(host.read(&mut [0]).await.expect("its end"), 0);
    });
    container.with(|| {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
        let sent = socket.send_to(QUESTION, (ADDRESS, PORT));
        assert_eq!(sent.expect("sent"), QUESTION.len());
    });
    let received = server.recv(&mut [0; 100]);
    assert_eq!(received.expect("the first question"), QUESTION.len());
}
