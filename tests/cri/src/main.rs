//! `cri`: calls a container runtime as the kubelet does, over the Container Runtime Interface.
//!
//! `cri call RunPodSandbox '{"config": …}'` makes a call of ../cri.proto, with request and answer as JSON, by the names
//! of the fields there. The other commands are those whose outcome is no JSON: a command's output and status, and streams.
//!
//! It is a tool of the engines' cases (tests/engines), and knows nothing of pods or of what order calls come in.

mod calls;
mod streams;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};
use prost_reflect::Value;
use serde_json::json;

use calls::Runtime;

/// Calls a container runtime as the kubelet does.
#[derive(Parser)]
struct Arguments {
    /// The runtime's socket
    #[arg(long, env = "CRI_SOCKET")]
    socket: PathBuf,
    /// Seconds that a call may take
    #[arg(long, default_value_t = 240)]
    limit: u64,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Makes a call, and prints its answer
    Call {
        /// Its name, such as RunPodSandbox
        method: String,
        /// Its request, as JSON
        #[arg(default_value = "{}")]
        request: String,
    },
    /// Runs a command in a container, and exits as it does
    ExecSync {
        container: String,
        /// Seconds that the runtime is to give it; 0: as long as it takes
        #[arg(long, default_value_t = 0)]
        timeout: i64,
        #[arg(required = true, last = true)]
        command: Vec<String>,
    },
    /// Runs a command in a container with streams of its own, and exits as it does
    Exec {
        #[command(flatten)]
        streams: Streams,
        container: String,
        #[arg(required = true, last = true)]
        command: Vec<String>,
    },
    /// Joins a container's streams, until it ends
    Attach {
        #[command(flatten)]
        streams: Streams,
        container: String,
    },
    /// Connects to a port in a pod
    PortForward { pod: String, port: u16 },
}

#[derive(Args)]
struct Streams {
    /// Pass input on
    #[arg(short = 'i')]
    stdin: bool,
    /// With a terminal
    #[arg(short = 't')]
    tty: bool,
    /// The size that the terminal is given, as COLUMNSxROWS
    #[arg(long, value_parser = parse_size)]
    size: Option<(u16, u16)>,
}

fn parse_size(text: &str) -> Result<(u16, u16)> {
    let (columns, rows) = text.split_once('x').context("expected COLUMNSxROWS")?;
    Ok((columns.parse()?, rows.parse()?))
}

impl Streams {
    /// The fields of a request for streams. A terminal's output has no error stream.
    fn add_to(&self, mut request: serde_json::Value) -> serde_json::Value {
        request["stdin"] = self.stdin.into();
        request["tty"] = self.tty.into();
        request["stdout"] = true.into();
        request["stderr"] = (!self.tty).into();
        request
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let status = run(Arguments::parse()).await.unwrap_or_else(|error| {
        eprintln!("cri: {error:#}");
        1
    });
    // Not by returning: a thread of tokio's may be reading standard input, and would be waited for.
    std::process::exit(status)
}

/// Carries the command out, and gives the exit status.
async fn run(arguments: Arguments) -> Result<i32> {
    let runtime = Runtime::connect(&arguments.socket, arguments.limit).await?;
    match arguments.command {
        Command::Call { method, request } => {
            let request = serde_json::from_str(&request).context("the request is no JSON")?;
            println!("{}", runtime.call(&method, request).await?.to_json()?);
            Ok(0)
        }
        Command::ExecSync {
            container,
            timeout,
            command,
        } => {
            let request = json!({"container_id": container, "cmd": command, "timeout": timeout});
            let answer = runtime.call("ExecSync", request).await?;
            let bytes = |field| answer.field(field).as_bytes().cloned().unwrap_or_default();
            std::io::stdout().write_all(&bytes("stdout"))?;
            std::io::stderr().write_all(&bytes("stderr"))?;
            Ok(answer.field("exit_code").as_i32().unwrap_or_default())
        }
        Command::Exec {
            streams,
            container,
            command,
        } => {
            let request = streams.add_to(json!({"container_id": container, "cmd": command}));
            let url = runtime.url("Exec", request).await?;
            streams::follow(&url, streams.stdin, streams.size).await
        }
        Command::Attach { streams, container } => {
            let url = runtime
                .url("Attach", streams.add_to(json!({"container_id": container})))
                .await?;
            streams::follow(&url, streams.stdin, streams.size).await
        }
        Command::PortForward { pod, port } => {
            let url = runtime
                .url(
                    "PortForward",
                    json!({"pod_sandbox_id": pod, "port": [port]}),
                )
                .await?;
            streams::forward(&url).await
        }
    }
}

/// A string, or none of it.
fn text_of(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
