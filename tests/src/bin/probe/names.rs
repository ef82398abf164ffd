//! Names of the DNS: asking for one, and answering as a resolver does.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket};
use std::time::Duration;

/// The length of a message's header (RFC 1035, 4.1.1).
const HEADER: usize = 12;
/// The type and the class of an IPv4 address, which end a question.
const ADDRESS_IN: [u8; 4] = [0, 1, 0, 1];
const TIMEOUT: Duration = Duration::from_secs(20);

/// Asks for the addresses of names, each in a message of its own before any answer is read, and prints them in the order
/// in which they come.
pub fn ask_by_datagrams(resolver: &str, names: &[&str]) -> io::Result<()> {
    let resolver: SocketAddrV4 = resolver.parse().map_err(io::Error::other)?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.connect(resolver)?;
    for (name, id) in names.iter().zip(1..) {
        socket.send(&question(id, name))?;
    }
    for _ in names {
        let mut message = [0; 1500];
        let length = socket.recv(&mut message)?;
        println!("{}", describe(&message[..length], names)?);
    }
    Ok(())
}

/// Asks for the address of a name on a connection, and prints it.
pub fn ask_on_a_connection(resolver: &str, name: &str) -> io::Result<()> {
    let mut stream = TcpStream::connect(resolver)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let question = question(1, name);
    let length = u16::try_from(question.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), &question[..]].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut message)?;
    println!("{}", describe(&message, &[name])?);
    Ok(())
}

/// Answers questions at that address, and prints the port. Each name's address ends with the length of its first label.
pub fn answer(at: &str, network: &str) -> io::Result<()> {
    let at: SocketAddrV4 = at.parse().map_err(io::Error::other)?;
    let network: Ipv4Addr = network.parse().map_err(io::Error::other)?;
    let socket = UdpSocket::bind(at)?;
    println!("{}", socket.local_addr()?.port());
    let mut message = [0; 1500];
    loop {
        let (length, client) = socket.recv_from(&mut message)?;
        if let Some(answer) = answer_to(&message[..length], network) {
            socket.send_to(&answer, client)?;
        }
    }
}

fn question(id: u16, name: &str) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    // Recursion is desired, of one question.
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        message.push(label.len().to_le_bytes()[0]);
        message.extend(label.as_bytes());
    }
    message.push(0);
    message.extend(ADDRESS_IN);
    message
}

fn answer_to(question: &[u8], network: Ipv4Addr) -> Option<Vec<u8>> {
    let first_label = *question.get(HEADER)?;
    let mut answer = question.to_vec();
    answer[2] |= 0x80;
    answer[7] = 1;
    // The name is that at the header's end; it holds for no time.
    answer.extend([0xc0, HEADER.to_le_bytes()[0]]);
    answer.extend(ADDRESS_IN);
    answer.extend([0, 0, 0, 0, 0, 4]);
    let [a, b, c, _] = network.octets();
    answer.extend([a, b, c, first_label]);
    Some(answer)
}

/// Which name it is about, and its address.
fn describe(message: &[u8], names: &[&str]) -> io::Result<String> {
    let id = message.first_chunk().map(|id| u16::from_be_bytes(*id));
    let name = id.and_then(|id| names.get(usize::from(id).checked_sub(1)?));
    let (name, address) = name
        .zip(message.last_chunk::<4>())
        .ok_or_else(|| io::Error::other(format!("no answer to the question: {message:?}")))?;
    Ok(format!("{name} {}", Ipv4Addr::from(*address)))
}
