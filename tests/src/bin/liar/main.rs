//! The liar: an agent that has been taken over. It is PID 1 of a guest, in the agent's place, and gives the
//! host answers that no agent gives. The container's first argument says which lie it tells.
//!
//! It makes no container and runs no program. What a guest can do below the agent's protocol, with its
//! devices, is done by `hull_tests::guest`.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use hull_agent::transport::{self, Vsock};
use hull_protocol::agent::{
    CreateContainerRequest, CreateContainerResponse, Empty, HostStream, ListProcessesRequest,
    ListProcessesResponse, ProcessInfo, SignalProcessRequest, StartContainerRequest,
};
use hull_protocol::{agent_ttrpc, answers, paths, ports};
use rustix::mount::{MountFlags, mount};
use tokio::io::AsyncWriteExt;
use ttrpc::asynchronous::{Server, TtrpcContext};
use ttrpc::{Code, get_status};

/// More output than the host takes in while nobody reads it.
const MUCH_OUTPUT: usize = 4 << 20;

/// How much output is surely with the host when the status follows.
const SOME_OUTPUT: usize = 64 << 10;

fn main() -> ExitCode {
    if std::process::id() == 1 {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        if let Err(error) = runtime.map(|runtime| runtime.block_on(live())) {
            eprintln!("liar: {error}");
        }
    }
    eprintln!("liar: this is PID 1 of a guest, and of no use elsewhere");
    ExitCode::FAILURE
}

async fn live() -> std::io::Result<()> {
    let service = agent_ttrpc::create_agent(Arc::new(Liar::default()));
    let mut server = Server::new()
        .add_listener(Vsock::listen()?)
        .register_service(service);
    server.start().await.map_err(std::io::Error::other)?;
    let _notices = transport::dial(&Vsock, ports::NOTICES).await?;
    transport::greet(&Vsock).await?;
    std::future::pending().await
}

#[derive(Default)]
struct Liar {
    told: Mutex<Option<Told>>,
}

/// What it needs to know of the container that it was asked for.
#[derive(Clone)]
struct Told {
    lie: String,
    rootfs: PathBuf,
    stdout: HostStream,
    exit_status: HostStream,
}

impl Told {
    fn of(request: CreateContainerRequest) -> Option<Self> {
        let spec: serde_json::Value = serde_json::from_slice(&request.spec_json).ok()?;
        Some(Self {
            lie: spec.pointer("/process/args/0")?.as_str()?.to_owned(),
            rootfs: spec.pointer("/root/path")?.as_str()?.into(),
            stdout: request.stdio.into_option()?.stdout.into_option()?,
            exit_status: request.exit_status.into_option()?,
        })
    }

    /// Says that the container has ended, while there is output that nobody reads, and goes on writing to its
    /// root file system.
    async fn end_and_go_on(self) -> std::io::Result<()> {
        let shared = Path::new(paths::SHARE);
        std::fs::create_dir_all(shared)?;
        mount(
            ports::SHARE_TAG,
            shared,
            "virtiofs",
            MountFlags::empty(),
            None,
        )?;
        let mut afterlife = File::create(self.rootfs.join("afterlife"))?;
        let mut stdout = transport::open(&Vsock, &self.stdout, &[]).await?;
        stdout.write_all(&vec![b'x'; SOME_OUTPUT]).await?;
        tokio::spawn(async move { stdout.write_all(&vec![b'x'; MUCH_OUTPUT]).await });
        let _status = transport::open(&Vsock, &self.exit_status, &[0]).await?;
        loop {
            afterlife.write_all(b"it lives\n")?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[async_trait]
impl agent_ttrpc::Agent for Liar {
    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> ttrpc::Result<CreateContainerResponse> {
        let told = Told::of(request).ok_or_else(|| {
            ttrpc::Error::RpcStatus(get_status(Code::INVALID_ARGUMENT, "no lie is named"))
        })?;
        *self.told.lock().expect("no panic") = Some(told);
        Ok(CreateContainerResponse::default())
    }

    async fn start_container(
        &self,
        _: &TtrpcContext,
        _: StartContainerRequest,
    ) -> ttrpc::Result<Empty> {
        let told = self.told.lock().expect("no panic").clone();
        if let Some(told) = told.filter(|told| told.lie == "end-and-go-on") {
            tokio::spawn(async {
                if let Err(error) = told.end_and_go_on().await {
                    eprintln!("liar: {error}");
                }
            });
        }
        Ok(Empty::new())
    }

    /// Lists processes that can't be, or more of them than fit into the host's memory.
    async fn list_processes(
        &self,
        _: &TtrpcContext,
        request: ListProcessesRequest,
    ) -> ttrpc::Result<ListProcessesResponse> {
        let told = self.told.lock().expect("no panic").clone();
        let of = |pid| ProcessInfo {
            pid,
            ..Default::default()
        };
        let pids: Vec<i32> = match told.as_ref().map(|told| told.lie.as_str()) {
            Some("processes-without-number") => vec![0; 1 << 20],
            Some("processes-that-cannot-be") => vec![-1],
            Some("processes-without-end") => {
                (request.after + 1..).take(answers::MAX_PROCESSES).collect()
            }
            _ => Vec::new(),
        };
        Ok(ListProcessesResponse {
            processes: pids.into_iter().map(of).collect(),
            ..Default::default()
        })
    }

    /// Claims to have delivered it.
    async fn signal_process(
        &self,
        _: &TtrpcContext,
        _: SignalProcessRequest,
    ) -> ttrpc::Result<Empty> {
        Ok(Empty::new())
    }
}
