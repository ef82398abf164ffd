//! Runs an agent outside a VM, and plays the host's side.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio as ChildStdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use hull_agent::reaper::Reaper;
use hull_agent::sandbox::Sandbox;
use hull_agent::transport::{self, Dial, Stream};
use hull_agent::{cgroup, server};
use hull_protocol::agent::{
    CreateContainerRequest, DeleteContainerRequest, ExecProcessRequest, HostStream, Network,
    SeccompFilter, SignalProcessRequest, StartContainerRequest, Stdio, UpdateNetworkRequest,
    WaitProcessRequest,
};
use hull_protocol::agent_ttrpc::AgentClient;
use hull_protocol::{hello, ports};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;
use ttrpc::asynchronous::transport::Listener;
use ttrpc::{Code, context};

/// How long a single step of a test may take.
const STEP_TIMEOUT: Duration = Duration::from_secs(60);

/// The environment variable with the directory of the sockets, for [`agent`].
const DIRECTORY: &str = "HULL_AGENT_TEST_DIRECTORY";

/// Not a test, but the agent that the tests start, in a process of its own as it reaps all children.
#[test]
fn agent() {
    let Some(directory) = std::env::var_os(DIRECTORY).map(PathBuf::from) else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let host = UnixDial(directory.clone());
        let program = PathBuf::from(env!("CARGO_BIN_EXE_hull-agent"));
        let reaper = Reaper::start().expect("listen to SIGCHLD");
        let prepare = Box::new(cgroup::prepare);
        let sandbox = Sandbox::new(program, Box::new(host.clone()), reaper, prepare);
        let address = directory.join("agent").display().to_string();
        let listener = Listener::bind(format!("unix://{address}")).expect("listen");
        let _server = server::serve(sandbox, listener).await.expect("serve");
        transport::greet(&host).await.expect("greet");
        std::future::pending::<()>().await;
    });
}

#[derive(Clone)]
struct UnixDial(PathBuf);

#[async_trait]
impl Dial for UnixDial {
    async fn dial(&self, port: u32) -> std::io::Result<Box<dyn Stream>> {
        Ok(Box::new(
            UnixStream::connect(self.0.join(port.to_string())).await?,
        ))
    }
}

/// A running agent, and the host's connections to it.
pub struct Guest {
    directory: TempDir,
    agent: Child,
    client: AgentClient,
    next_port: AtomicU32,
    exit_status: UnixListener,
    pub sandbox_owner: bool,
    /// The seccomp filter of containers that are created from now on.
    pub seccomp: Option<SeccompFilter>,
    /// The network of containers that are created from now on.
    pub network: Option<Network>,
}

impl Drop for Guest {
    fn drop(&mut self) {
        // It is PID 1 of its pid namespace, so all of its processes end with it.
        let _ = self.agent.kill();
        let _ = self.agent.wait();
    }
}

impl Guest {
    /// `None` if this machine lacks what the tests need.
    pub async fn start() -> Option<Self> {
        let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers");
        let able = controllers.is_ok_and(|list| list.contains("memory"));
        if !able || !Path::new("/bin/busybox").exists() {
            eprintln!("skipped: it needs root, cgroup2 at /sys/fs/cgroup and /bin/busybox");
            return None;
        }
        let directory = tempfile::Builder::new()
            .prefix("hull-agent")
            .tempdir()
            .expect("a directory");
        make_rootfs(&directory.path().join("rootfs"));
        let ready =
            UnixListener::bind(directory.path().join(ports::READY.to_string())).expect("bind");
        let status = directory.path().join(ports::EXIT_STATUS.to_string());
        let exit_status = UnixListener::bind(status).expect("bind");
        let agent = Command::new("unshare")
            .args([
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "--",
                "sh",
                "-ec",
            ])
            .arg("mount -t tmpfs run /run; exec \"$0\" --exact support::agent --nocapture")
            .arg(std::env::current_exe().expect("the test's own path"))
            .env(DIRECTORY, directory.path())
            .stdout(ChildStdio::null())
            .spawn()
            .expect("start the agent");
        let (mut stream, _) = in_time("the agent's greeting", ready.accept())
            .await
            .expect("accept");
        let mut greeting = [0; hello::LENGTH];
        stream
            .read_exact(&mut greeting)
            .await
            .expect("read the greeting");
        hello::check(greeting).expect("a greeting");
        let address = format!("unix://{}", directory.path().join("agent").display());
        let client = ttrpc::asynchronous::Client::connect(&address)
            .await
            .expect("connect");
        Some(Self {
            directory,
            agent,
            client: AgentClient::new(client),
            next_port: AtomicU32::new(ports::FIRST_STREAM),
            exit_status,
            sandbox_owner: false,
            seccomp: None,
            network: None,
        })
    }

    pub async fn create(&self, id: &str, spec: &Value) -> Process {
        self.try_create(id, spec).await.expect("create")
    }

    pub async fn try_create(&self, id: &str, spec: &Value) -> Result<Process, (Code, String)> {
        let mut spec = spec.clone();
        spec["root"]["path"] = json!(self.directory.path().join("rootfs"));
        let (stdio, listeners) = self.stdio(&spec["process"]);
        let request = CreateContainerRequest {
            container_id: id.to_owned(),
            spec_json: spec.to_string().into_bytes(),
            stdio: Some(stdio).into(),
            exit_status: self
                .sandbox_owner
                .then(|| host_stream(ports::EXIT_STATUS))
                .into(),
            seccomp: self.seccomp.clone().into(),
            network: self.network.clone().into(),
            ..Default::default()
        };
        let made = self
            .client
            .create_container(context::with_timeout(0), &request)
            .await;
        let pid = made.map_err(status)?.pid;
        Ok(self.process(id, "", pid, listeners).await)
    }

    pub async fn exec(&self, id: &str, exec_id: &str, process: &Value) -> Process {
        self.try_exec(id, exec_id, process).await.expect("exec")
    }

    pub async fn try_exec(
        &self,
        id: &str,
        exec_id: &str,
        process: &Value,
    ) -> Result<Process, (Code, String)> {
        let (stdio, listeners) = self.stdio(process);
        let request = ExecProcessRequest {
            container_id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            process_json: process.to_string().into_bytes(),
            stdio: Some(stdio).into(),
            ..Default::default()
        };
        let made = self
            .client
            .exec_process(context::with_timeout(0), &request)
            .await;
        let pid = made.map_err(status)?.pid;
        Ok(self.process(id, exec_id, pid, listeners).await)
    }

    pub async fn start_container(&self, id: &str) -> Result<(), Code> {
        let request = StartContainerRequest {
            container_id: id.to_owned(),
            ..Default::default()
        };
        let result = self
            .client
            .start_container(context::with_timeout(0), &request)
            .await;
        result.map(drop).map_err(|e| status(e).0)
    }

    pub async fn update_network(&self, id: &str, network: Option<Network>) -> Result<(), Code> {
        let request = UpdateNetworkRequest {
            container_id: id.to_owned(),
            network: network.into(),
            ..Default::default()
        };
        let result = self
            .client
            .update_network(context::with_timeout(0), &request)
            .await;
        result.map(drop).map_err(|e| status(e).0)
    }

    pub async fn signal(
        &self,
        id: &str,
        exec_id: &str,
        signal: u32,
        all: bool,
    ) -> Result<(), Code> {
        let request = SignalProcessRequest {
            container_id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            signal,
            all,
            ..Default::default()
        };
        let result = self
            .client
            .signal_process(context::with_timeout(0), &request)
            .await;
        result.map(drop).map_err(|e| status(e).0)
    }

    pub async fn delete(&self, id: &str, force: bool) -> Result<(), Code> {
        let request = DeleteContainerRequest {
            container_id: id.to_owned(),
            force,
            ..Default::default()
        };
        let result = self
            .client
            .delete_container(context::with_timeout(0), &request)
            .await;
        result.map(drop).map_err(|e| status(e).0)
    }

    pub async fn exit_status(&self) -> u8 {
        let mut stream = accept(&self.exit_status).await;
        stream.read_u8().await.expect("one byte")
    }

    fn stdio(&self, process: &Value) -> (Stdio, Vec<UnixListener>) {
        let terminal = process["terminal"] == true;
        let streams = if terminal { 1 } else { 3 };
        let mut offered = [const { None }; 3];
        let mut listeners = Vec::new();
        for stream in offered.iter_mut().take(streams) {
            let port = self.next_port.fetch_add(1, Ordering::Relaxed);
            let path = self.directory.path().join(port.to_string());
            listeners.push(UnixListener::bind(path).expect("bind"));
            *stream = Some(host_stream(port));
        }
        let [stdin, stdout, stderr] = offered;
        let stdio = Stdio {
            stdin: stdin.into(),
            stdout: stdout.into(),
            stderr: stderr.into(),
            terminal,
            ..Default::default()
        };
        (stdio, listeners)
    }

    async fn process(
        &self,
        id: &str,
        exec_id: &str,
        pid: i32,
        listeners: Vec<UnixListener>,
    ) -> Process {
        let mut streams = Vec::new();
        for listener in listeners {
            streams.push(Some(accept(&listener).await));
        }
        let client = self.client.clone();
        let request = WaitProcessRequest {
            container_id: id.to_owned(),
            exec_id: exec_id.to_owned(),
            ..Default::default()
        };
        let waiter = tokio::spawn(async move {
            let answer = client
                .wait_process(context::with_timeout(0), &request)
                .await;
            answer.map(|answer| answer.exit_status)
        });
        Process {
            pid,
            streams,
            waiter: Some(waiter),
        }
    }
}

/// The stream of a port, each with a token of its own.
fn host_stream(port: u32) -> HostStream {
    HostStream {
        port,
        token: port.to_le_bytes().repeat(4),
        ..Default::default()
    }
}

/// Accepts a stream, which must begin with the token of its port.
async fn accept(listener: &UnixListener) -> UnixStream {
    let (mut stream, _) = in_time("a stream", listener.accept())
        .await
        .expect("accept");
    let mut token = [0; 16];
    in_time("a token", stream.read_exact(&mut token))
        .await
        .expect("read");
    let address = listener.local_addr().expect("an address");
    let port = address.as_pathname().and_then(Path::file_name);
    let port = port.and_then(|name| name.to_str()?.parse().ok());
    assert_eq!(host_stream(port.expect("a port")).token, token);
    stream
}

/// A process, and the host's ends of its stdio.
pub struct Process {
    pub pid: i32,
    streams: Vec<Option<UnixStream>>,
    waiter: Option<tokio::task::JoinHandle<ttrpc::Result<i32>>>,
}

impl Process {
    pub async fn wait(&mut self) -> i32 {
        let waiter = self.waiter.take().expect("waited for once");
        in_time("the process's end", waiter)
            .await
            .expect("no panic")
            .expect("an answer")
    }

    pub async fn output(&mut self) -> String {
        String::from_utf8(self.all(1).await).expect("text")
    }

    pub async fn errors(&mut self) -> String {
        String::from_utf8(self.all(2).await).expect("text")
    }

    /// Reads `length` bytes of stdout.
    pub async fn read(&mut self, length: usize) -> Vec<u8> {
        let stream = self.streams[1].as_mut().expect("stdout");
        let mut bytes = vec![0; length];
        in_time("the output", stream.read_exact(&mut bytes))
            .await
            .expect("all of it");
        bytes
    }

    pub async fn read_line(&mut self) -> String {
        let stream = self.streams[1].as_mut().expect("stdout");
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            line.push(in_time("a line", stream.read_u8()).await.expect("a byte"));
        }
        String::from_utf8(line).expect("text")
    }

    /// Writes to stdin, whether or not anybody reads it.
    pub async fn write_stdin(&mut self, bytes: &[u8]) {
        let stream = self.streams[0].as_mut().expect("stdin");
        let _ = in_time("stdin", stream.write_all(bytes)).await;
    }

    /// Writes all of stdin, closes it, and reads all of stdout at the same time.
    pub async fn write_and_read(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut stdin = self.streams[0].take().expect("stdin");
        let write = async {
            stdin.write_all(bytes).await.expect("write stdin");
            stdin.shutdown().await.expect("close stdin");
        };
        let (read, ()) = tokio::join!(self.all(1), write);
        read
    }

    /// Writes to the terminal, and reads its output until the last process has closed it.
    pub async fn write_and_read_terminal(&mut self, bytes: &[u8]) -> Vec<u8> {
        let stream = self.streams[0].as_mut().expect("the terminal");
        stream.write_all(bytes).await.expect("type");
        self.all(0).await
    }

    async fn all(&mut self, stream: usize) -> Vec<u8> {
        let mut stream = self.streams[stream].take().expect("read once");
        let mut bytes = Vec::new();
        in_time("the end of a stream", stream.read_to_end(&mut bytes))
            .await
            .expect("read");
        bytes
    }
}

/// A config.json with all the usual namespaces and mounts.
pub fn config(args: &[&str]) -> Value {
    json!({
        "ociVersion": "1.2.0",
        "process": process(args),
        "root": {"path": "", "readonly": false},
        "hostname": "guest",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"}],
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"},
                           {"type": "mount"}, {"type": "cgroup"}],
            "maskedPaths": ["/proc/kcore"], "readonlyPaths": ["/proc/sys"]}})
}

/// A `process` object.
pub fn process(args: &[&str]) -> Value {
    let all = json!([
        "CAP_KILL",
        "CAP_CHOWN",
        "CAP_SETUID",
        "CAP_SETGID",
        "CAP_DAC_OVERRIDE"
    ]);
    json!({
        "user": {"uid": 0, "gid": 0}, "cwd": "/", "args": args, "env": ["PATH=/bin", "TERM=xterm"],
        "capabilities": {"bounding": all, "effective": all, "permitted": all}})
}

/// Puts the fields of one object into another.
pub fn merge(object: &mut Value, fields: &Value) {
    for (name, value) in fields.as_object().into_iter().flatten() {
        object[name] = value.clone();
    }
}

fn make_rootfs(root: &Path) {
    for directory in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
        fs::create_dir_all(root.join(directory)).expect("make a directory");
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("copy busybox");
    for applet in [
        "sh", "cat", "true", "sleep", "echo", "id", "env", "sort", "grep", "readlink", "mkdir",
        "yes", "head", "tty", "stty", "wc", "cut",
    ] {
        symlink("busybox", root.join("bin").join(applet)).expect("link an applet");
    }
    let garbage = root.join("bin/garbage");
    fs::write(&garbage, [0xff; 64]).expect("write");
    fs::set_permissions(garbage, fs::Permissions::from_mode(0o755)).expect("chmod");
    let passwd = "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n";
    fs::write(root.join("etc/passwd"), passwd).expect("write");
    // The containers' users aren't root.
    let world = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o755));
    world(root)
        .and_then(|()| world(root.parent().expect("a parent")))
        .expect("chmod");
}

fn status(error: ttrpc::Error) -> (Code, String) {
    match error {
        ttrpc::Error::RpcStatus(status) => (status.code(), status.message().to_owned()),
        other => (Code::UNKNOWN, other.to_string()),
    }
}

async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    let Ok(done) = timeout(STEP_TIMEOUT, future).await else {
        panic!("{what} took longer than {STEP_TIMEOUT:?}");
    };
    done
}
