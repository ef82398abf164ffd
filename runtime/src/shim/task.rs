//! The task service (`containerd.task.v3.Task`, and v2, which differs in its name): each request, and what becomes of it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use async_trait::async_trait;
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest,
    PauseRequest, PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest, ResumeRequest,
    ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest,
    StatsResponse, Status as TaskStatus, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::events::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskIO, TaskPaused, TaskResumed, TaskStart,
};
use containerd_shim_protos::protobuf::EnumOrUnknown;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::shim_async::Task;
use containerd_shim_protos::ttrpc::Result;
use containerd_shim_protos::ttrpc::asynchronous::TtrpcContext;
use hull_runtime::lifecycle::{self, Context};
use hull_runtime::spec;
use hull_runtime::store::Status;
use tokio::sync::Notify;

use super::arguments::Arguments;
use super::container::{Container, Request};
use super::error::Error;
use super::events::Events;
use super::options::{self, Options};
use super::process::{Exit, lock};
use super::streams::Names;
use super::{context, stats};

/// By their ids; those that are being made have no more than that yet.
type Containers = HashMap<String, Option<Arc<Container>>>;

/// The server's containers.
pub struct Tasks {
    namespace: String,
    debug: bool,
    containers: Arc<Mutex<Containers>>,
    events: Events,
    /// The server's socket, until nobody is to find it any more.
    socket: Mutex<Option<PathBuf>>,
    /// Notified when containerd needs the server no more.
    pub done: Notify,
}

/// A point in time as protobuf has it.
pub fn timestamp(time: SystemTime) -> Timestamp {
    time.into()
}

impl Tasks {
    /// None yet.
    pub fn new(arguments: &Arguments, events: Events) -> Self {
        Self {
            namespace: arguments.namespace.clone(),
            debug: arguments.debug,
            socket: Mutex::new(arguments.socket.clone()),
            containers: Arc::default(),
            events,
            done: Notify::new(),
        }
    }

    /// Has nobody find this server any more: another one may take its place at once, with the next container of the id.
    pub fn leave_socket(&self) {
        let mut socket = lock(&self.socket);
        if let Some(path) = socket.take() {
            let _ = fs::remove_file(path);
        }
    }

    fn containers(&self) -> MutexGuard<'_, Containers> {
        lock(&self.containers)
    }

    fn find(&self, id: &str) -> std::result::Result<Arc<Container>, Error> {
        let found = self.containers().get(id).cloned().flatten();
        found.ok_or_else(|| Error::NotFound(format!("container {id}")))
    }

    /// Makes a container. Meanwhile its id is taken, and the server isn't to go. That containerd waits no longer changes
    /// nothing: it is made to its end, for `delete` to find.
    async fn add(&self, request: &CreateTaskRequest) -> std::result::Result<Arc<Container>, Error> {
        let (context, what) = self.plan(request)?;
        match self.containers().entry(request.id.clone()) {
            Entry::Occupied(_) => return Err(Error::Exists(format!("container {}", request.id))),
            Entry::Vacant(place) => place.insert(None),
        };
        let (containers, id) = (Arc::clone(&self.containers), request.id.clone());
        let making = Container::create(context, what, self.events.clone());
        let made = tokio::spawn(async move {
            let made = making.await;
            let mut containers = lock(&containers);
            match &made {
                Ok(container) => containers.insert(id, Some(Arc::clone(container))),
                Err(_) => containers.remove(&id),
            };
            made
        });
        made.await
            .unwrap_or_else(|e| Err(Error::host("make the container")(e.into())))
    }

    /// What a request asks to be made.
    fn plan(&self, request: &CreateTaskRequest) -> std::result::Result<(Context, Request), Error> {
        if !request.checkpoint.is_empty() {
            return Err(Error::Unsupported(
                "checkpoint: hull can't restore containers yet",
            ));
        }
        let options = Options::read(request.options.as_ref())?;
        let bundle = PathBuf::from(&request.bundle);
        if let Some(root) = &options.root {
            options::keep_root(&bundle, root)?;
        }
        let root = options.root.as_deref();
        let mut context = context(&self.namespace, root, self.debug, options.config);
        context.systemd_cgroup = options.systemd_cgroup;
        let request = Request {
            id: request.id.parse()?,
            bundle,
            rootfs: request.rootfs.clone(),
            names: Names {
                stdin: request.stdin.clone(),
                stdout: request.stdout.clone(),
                stderr: request.stderr.clone(),
                terminal: request.terminal,
            },
        };
        Ok((context, request))
    }
}

fn task_status(status: Status) -> TaskStatus {
    match status {
        Status::Creating | Status::Created => TaskStatus::CREATED,
        Status::Running => TaskStatus::RUNNING,
        Status::Paused => TaskStatus::PAUSED,
        Status::Stopped => TaskStatus::STOPPED,
    }
}

fn exit_parts(exit: Option<Exit>) -> (u32, Option<Timestamp>) {
    match exit {
        Some(Exit { status, at }) => (status, Some(timestamp(at))),
        None => (0, None),
    }
}

/// A signal's number, as kill(2) has it.
fn signal(number: u32) -> std::result::Result<i32, Error> {
    let number = i32::try_from(number)
        .ok()
        .filter(|number| *number <= libc::SIGRTMAX());
    number.ok_or_else(|| Error::Invalid("signal: there is none of this number".to_owned()))
}

#[async_trait]
impl Task for Tasks {
    async fn create(
        &self,
        _: &TtrpcContext,
        request: CreateTaskRequest,
    ) -> Result<CreateTaskResponse> {
        let container = self.add(&request).await?;
        let pid = container.pid;
        self.events.send(&TaskCreate {
            container_id: request.id,
            bundle: request.bundle,
            rootfs: request.rootfs,
            io: Some(TaskIO {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
                ..Default::default()
            })
            .into(),
            pid,
            ..Default::default()
        });
        Ok(CreateTaskResponse {
            pid,
            ..Default::default()
        })
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> Result<StartResponse> {
        let container = self.find(&request.id)?;
        let pid = container.pid;
        if request.exec_id.is_empty() {
            let event = TaskStart {
                container_id: request.id,
                pid,
                ..Default::default()
            };
            container.start(|events| events.send(&event)).await?;
        } else {
            container.start_exec(&request.exec_id).await?;
        }
        Ok(StartResponse {
            pid,
            ..Default::default()
        })
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> Result<DeleteResponse> {
        let container = self.find(&request.id)?;
        let pid = container.pid;
        let exit = if request.exec_id.is_empty() {
            container.delete().await?;
            self.containers().remove(&request.id);
            container.init.exit()
        } else {
            container.delete_exec(&request.exec_id)?.process.exit()
        };
        let (exit_status, exited_at) = exit_parts(exit);
        if request.exec_id.is_empty() {
            self.events.send(&TaskDelete {
                container_id: request.id,
                pid,
                exit_status,
                exited_at: exited_at.clone().into(),
                ..Default::default()
            });
        }
        Ok(DeleteResponse {
            pid,
            exit_status,
            exited_at: exited_at.into(),
            ..Default::default()
        })
    }

    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> Result<StateResponse> {
        let container = self.find(&request.id)?;
        let process = container.process(&request.exec_id)?;
        let (names, exit) = (process.names.clone(), process.exit());
        let status = match (request.exec_id.as_str(), exit) {
            (_, Some(_)) => Status::Stopped,
            ("", None) => container.status(),
            (id, None) if container.exec(id)?.is_started() => Status::Running,
            _ => Status::Created,
        };
        let (exit_status, exited_at) = exit_parts(exit);
        Ok(StateResponse {
            id: request.id,
            bundle: container.bundle.display().to_string(),
            pid: container.pid,
            status: EnumOrUnknown::new(task_status(status)),
            stdin: names.stdin,
            stdout: names.stdout,
            stderr: names.stderr,
            terminal: names.terminal,
            exit_status,
            exited_at: exited_at.into(),
            exec_id: request.exec_id,
            ..Default::default()
        })
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> Result<PidsResponse> {
        let container = self.find(&request.id)?;
        let runs = container.init.exit().is_none();
        // Those of the guest have numbers that on the host may be somebody else's.
        let processes = runs.then(|| ProcessInfo {
            pid: container.pid,
            ..Default::default()
        });
        Ok(PidsResponse {
            processes: processes.into_iter().collect(),
            ..Default::default()
        })
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> Result<Empty> {
        self.find(&request.id)?.pause().await?;
        self.events.send(&TaskPaused {
            container_id: request.id,
            ..Default::default()
        });
        Ok(Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> Result<Empty> {
        self.find(&request.id)?.resume().await?;
        self.events.send(&TaskResumed {
            container_id: request.id,
            ..Default::default()
        });
        Ok(Empty::new())
    }

    async fn checkpoint(&self, _: &TtrpcContext, request: CheckpointTaskRequest) -> Result<Empty> {
        self.find(&request.id)?;
        Err(Error::Unsupported("checkpoint: hull can't save containers yet").into())
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> Result<Empty> {
        let container = self.find(&request.id)?;
        let number = signal(request.signal)?;
        match request.exec_id.as_str() {
            "" => container.kill(number, request.all).await?,
            id => container.kill_exec(id, number).await?,
        }
        Ok(Empty::new())
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> Result<Empty> {
        let container = self.find(&request.id)?;
        let process = spec::parse_process(&request.spec.value).map_err(lifecycle::Error::from);
        let mut process = process.map_err(Error::from)?;
        process.set_terminal(Some(request.terminal));
        let names = Names {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        container.add_exec(&request.exec_id, process, names)?;
        self.events.send(&TaskExecAdded {
            container_id: request.id,
            exec_id: request.exec_id,
            ..Default::default()
        });
        Ok(Empty::new())
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> Result<Empty> {
        let container = self.find(&request.id)?;
        let process = container.process(&request.exec_id)?;
        process.kept().resize(request.width, request.height)?;
        Ok(Empty::new())
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> Result<Empty> {
        let container = self.find(&request.id)?;
        let process = container.process(&request.exec_id)?;
        if request.stdin {
            process.kept().close_input();
        }
        Ok(Empty::new())
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> Result<Empty> {
        let container = self.find(&request.id)?;
        let changes = serde_json::from_slice(&request.resources.value);
        let changes = changes.map_err(|source| Error::Json {
            what: "resources",
            source,
        })?;
        let update = move |context: &_, id: &_| lifecycle::update(context, id, changes);
        container.verb(update).await?;
        Ok(Empty::new())
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> Result<WaitResponse> {
        let container = self.find(&request.id)?;
        let exit = container.process(&request.exec_id)?.wait().await;
        Ok(WaitResponse {
            exit_status: exit.status,
            exited_at: Some(timestamp(exit.at)).into(),
            ..Default::default()
        })
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> Result<StatsResponse> {
        let container = self.find(&request.id)?;
        let stats = container
            .agent()
            .stats(&container.id)
            .await
            .map_err(Error::from)?;
        Ok(StatsResponse {
            stats: Some(stats::to_any(&stats)?).into(),
            ..Default::default()
        })
    }

    async fn connect(&self, _: &TtrpcContext, request: ConnectRequest) -> Result<ConnectResponse> {
        let found = self.find(&request.id).map_or(0, |container| container.pid);
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: found,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> Result<Empty> {
        // It is asked after every task.
        if self.containers().is_empty() {
            self.leave_socket();
            self.done.notify_one();
        }
        Ok(Empty::new())
    }
}
