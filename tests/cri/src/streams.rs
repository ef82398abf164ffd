//! Streams of commands and of ports: a WebSocket at the URL that the runtime has named, in whose messages the first byte
//! says which stream it is of. The protocols are Kubernetes': `v4.channel.k8s.io`, and `v5`, in which input can end.

use anyhow::{Context as _, Result, bail};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use http::header::{HeaderValue, SEC_WEBSOCKET_PROTOCOL};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;
/// v5: the stream that the next byte names has ended.
const CLOSE: u8 = 255;

/// A port's data; what goes wrong with it comes on the stream after it.
const PORT: u8 = 0;
const PORT_ERROR: u8 = 1;

type Socket = WebSocketStream<TcpStream>;

/// Passes standard input on if `stdin` says so, and prints what comes, until the command or container ends. Gives its
/// exit status; 0 where the runtime tells none.
pub async fn follow(url: &str, stdin: bool, size: Option<(u16, u16)>) -> Result<i32> {
    let (socket, protocol) = connect(url).await?;
    let (mut to, from) = socket.split();
    if let Some((columns, rows)) = size {
        let size = json!({"Width": columns, "Height": rows}).to_string();
        to.send(message(RESIZE, size.as_bytes())).await?;
    }
    let passing = async {
        if stdin {
            pass_input(&mut to, STDIN, protocol.starts_with("v5")).await?;
        }
        std::future::pending().await
    };
    tokio::select! {
        status = print_output(from) => status,
        failure = passing => failure,
    }
}

/// Passes standard input on to a port, and prints what comes from there, until it is closed from there.
pub async fn forward(url: &str) -> Result<i32> {
    let (mut to, mut from) = connect(url).await?.0.split();
    let passing = async {
        pass_input(&mut to, PORT, false).await?;
        std::future::pending().await
    };
    let printing = async {
        // Each stream begins with the number of its port, in two bytes.
        let mut begun = [false; 2];
        while let Some((stream, bytes)) = next(&mut from).await? {
            let first = begun
                .get_mut(usize::from(stream))
                .context("a stream that no port has")?;
            match (std::mem::replace(first, true), stream) {
                (false, _) => {}
                (true, PORT_ERROR) => bail!("{}", String::from_utf8_lossy(&bytes)),
                (true, _) => print(std::io::stdout(), &bytes)?,
            }
        }
        Ok(0)
    };
    tokio::select! {
        status = printing => status,
        failure = passing => failure,
    }
}

/// Connects, and gives the protocol that the runtime has chosen.
async fn connect(url: &str) -> Result<(Socket, String)> {
    let mut request = url.replacen("http://", "ws://", 1).into_client_request()?;
    let protocols = HeaderValue::from_static("v5.channel.k8s.io, v4.channel.k8s.io");
    request
        .headers_mut()
        .insert(SEC_WEBSOCKET_PROTOCOL, protocols);
    let host = request
        .uri()
        .authority()
        .context("a URL without a host")?
        .to_string();
    let connection = TcpStream::connect(&host)
        .await
        .with_context(|| format!("no streams at {host}"))?;
    let (socket, answer) = tokio_tungstenite::client_async(request, connection).await?;
    let protocol = answer
        .headers()
        .get(SEC_WEBSOCKET_PROTOCOL)
        .context("the runtime has chosen no protocol")?;
    let protocol = protocol.to_str()?.to_owned();
    Ok((socket, protocol))
}

/// A message of a stream.
fn message(stream: u8, bytes: &[u8]) -> Message {
    Message::binary([&[stream], bytes].concat())
}

/// The next message of any stream; none once the runtime has closed them.
async fn next(from: &mut SplitStream<Socket>) -> Result<Option<(u8, Vec<u8>)>> {
    while let Some(received) = from.next().await {
        match received? {
            Message::Binary(bytes) => {
                let (stream, bytes) = bytes.split_first().context("a message of no stream")?;
                return Ok(Some((*stream, bytes.to_vec())));
            }
            Message::Close(_) => break,
            _ => {}
        }
    }
    Ok(None)
}

/// Passes standard input on, and its end where the protocol has one for it.
async fn pass_input(to: &mut SplitSink<Socket, Message>, stream: u8, can_end: bool) -> Result<()> {
    let mut input = read_input();
    while let Some(bytes) = input.recv().await {
        to.send(message(stream, &bytes)).await?;
    }
    if can_end {
        to.send(message(CLOSE, &[stream])).await?;
    }
    Ok(())
}

/// Standard input, piece by piece.
fn read_input() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut buffer = vec![0; 16 << 10];
        while let Ok(length @ 1..) = tokio::io::stdin().read(&mut buffer).await {
            if sender
                .send(buffer.iter().take(length).copied().collect())
                .await
                .is_err()
            {
                break;
            }
        }
    });
    receiver
}

/// Prints both outputs, and gives the status that comes at the end.
async fn print_output(mut from: SplitStream<Socket>) -> Result<i32> {
    let mut status = 0;
    while let Some((stream, bytes)) = next(&mut from).await? {
        match stream {
            STDOUT => print(std::io::stdout(), &bytes)?,
            STDERR => print(std::io::stderr(), &bytes)?,
            STATUS if !bytes.is_empty() => status = exit_status(&bytes)?,
            _ => {}
        }
    }
    Ok(status)
}

fn print(mut to: impl std::io::Write, bytes: &[u8]) -> Result<()> {
    to.write_all(bytes)?;
    Ok(to.flush()?)
}

/// The exit status in Kubernetes' `Status`. Fails with its message where it tells of something else.
fn exit_status(status: &[u8]) -> Result<i32> {
    let status: Value = serde_json::from_slice(status).context("the status is no JSON")?;
    if status["status"] == "Success" {
        return Ok(0);
    }
    let causes = status["details"]["causes"].as_array();
    let code = causes.and_then(|causes| causes.iter().find(|cause| cause["reason"] == "ExitCode"));
    match code.and_then(|cause| cause["message"].as_str()) {
        Some(code) => Ok(code.parse()?),
        None => bail!(
            "{}",
            status["message"]
                .as_str()
                .unwrap_or("the runtime failed, and did not say why")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_tells_the_exit_code() {
        let failed = br#"{"status": "Failure", "details": {"causes": [{"reason": "ExitCode", "message": "5"}]}}"#;
        assert_eq!(exit_status(failed).ok(), Some(5));
        assert_eq!(exit_status(br#"{"status": "Success"}"#).ok(), Some(0));
    }

    #[test]
    fn a_status_of_another_failure_is_an_error() {
        let failed = exit_status(br#"{"status": "Failure", "message": "no such container"}"#);
        assert_eq!(
            failed.map_err(|error| error.to_string()),
            Err("no such container".to_owned())
        );
    }
}
