//! What a process of a container tries with the guest's vsock: to reach the agent, to dial the host in
//! the agent's place. Each attempt that succeeds is a line.
#![allow(unsafe_code)] // std has no vsock

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

/// The guest's port that the agent serves.
const AGENT: u32 = 1024;
/// The host's port for the exit status, and the first of those for streams.
const EXIT_STATUS: u32 = 2;
const FIRST_STREAM: u32 = 0x1_0000;

/// Nobody, this guest by loopback, the host, this guest, anybody.
const CONTEXTS: [u32; 5] = [0, libc::VMADDR_CID_LOCAL, HOST, 3, libc::VMADDR_CID_ANY];
const HOST: u32 = libc::VMADDR_CID_HOST;

/// Tries every kind of socket and every way to the agent, and the host's ports. Ends with how many were tried.
pub fn reach() -> io::Result<()> {
    let mut tried = 0;
    for kind in [libc::SOCK_STREAM, libc::SOCK_SEQPACKET, libc::SOCK_DGRAM] {
        tried += 1;
        if socket(kind).is_ok() {
            println!("a vsock socket of type {kind}");
        }
    }
    let agents = CONTEXTS.map(|context| (context, AGENT));
    let ports = (0..16).chain(FIRST_STREAM..FIRST_STREAM + 16);
    for (context, port) in agents.into_iter().chain(ports.map(|port| (HOST, port))) {
        tried += 1;
        if connect(context, port).is_ok() {
            println!("port {port} of context {context}");
        }
    }
    println!("tried {tried}");
    Ok(())
}

/// Sends an exit status in the agent's place.
pub fn forge_exit_status(status: u8) -> io::Result<()> {
    let mut host = connect(HOST, EXIT_STATUS)?;
    host.write_all(&[status])?;
    thread::park();
    Ok(())
}

/// For some seconds, dials the ports at which streams to come will be, and says what came of it.
pub fn take_streams(seconds: u64) -> io::Result<()> {
    println!("ready");
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut taken = Vec::new();
    while Instant::now() < end {
        for port in FIRST_STREAM..FIRST_STREAM + 64 {
            let Ok(mut stream) = connect(HOST, port) else {
                continue;
            };
            println!("took port {port}");
            let _ = stream.write_all(b"forged\n");
            taken.push(stream);
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Makes so many connections to the agent, as far as it goes, keeps them, and says how many there are.
pub fn flood(count: usize) -> io::Result<()> {
    let made: Vec<_> = (0..count)
        .map_while(|n| connect([libc::VMADDR_CID_LOCAL, 3][n % 2], AGENT).ok())
        .collect();
    println!("{} connections", made.len());
    // They end with this process.
    thread::park();
    Ok(())
}

fn socket(kind: libc::c_int) -> io::Result<OwnedFd> {
    // SAFETY: socket takes no pointers.
    let fd = unsafe { libc::socket(libc::AF_VSOCK, kind | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was made just now, for nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn connect(context: u32, port: u32) -> io::Result<File> {
    let socket = socket(libc::SOCK_STREAM)?;
    // SAFETY: sockaddr_vm is plain old data for which all zeroes is a value.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as libc::sa_family_t;
    address.svm_cid = context;
    address.svm_port = port;
    // SAFETY: the pointer and the size are those of an address that outlives the call.
    let result = unsafe {
        libc::connect(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    };
    match result {
        0 => Ok(File::from(socket)),
        _ => Err(io::Error::last_os_error()),
    }
}
