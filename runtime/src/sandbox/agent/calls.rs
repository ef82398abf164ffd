//! What can be asked of the agent, a method a call.

use std::path::Path;

use hull_protocol::agent::{
    self as messages, ContainerStatsRequest, CreateContainerRequest, DeleteContainerRequest,
    ExecProcessRequest, ListProcessesRequest, PauseContainerRequest, RelayResolverRequest,
    ResumeContainerRequest, SignalProcessRequest, StartContainerRequest, Stdio,
    UpdateContainerRequest, UpdateNetworkRequest, WaitOomRequest, WaitProcessRequest,
    WaitReadyRequest,
};
use hull_protocol::answers;
use ttrpc::context::Context;

use super::super::socket::{CALL_TIMEOUT, CREATE_TIMEOUT, NETWORK_TIMEOUT};
use super::super::{GuestNetwork, HostStream, Offer};
use super::stats::{HIGHEST_PID, MOST_PROCESSES};
use super::{Agent, AgentError, ProcessInfo, Stats, classify};
use crate::spec::GuestSpec;
use crate::types::ContainerId;

/// What connects a container to the host.
#[derive(Debug)]
pub struct ContainerEnds {
    /// Its process's stdio.
    pub stdio: Offer,
    /// Where its exit status is awaited: the sandbox ends with it then.
    pub exit_status: Option<HostStream>,
    /// Whether it has a socket to say when it is ready.
    pub notify: bool,
    /// Whether it reaches UNIX sockets of the host in its bind mounts.
    pub volume_sockets: bool,
    /// Its network, as far as that is known.
    pub network: GuestNetwork,
}

/// What a shell shows of a process that SIGKILL has ended.
const KILLED: u8 = 128 + 9;

impl Agent {
    /// Makes the container; its process waits to be started. `bundle` is what its hooks are told.
    ///
    /// # Errors
    /// When the agent refuses, with its reason.
    pub async fn create(
        &self,
        id: &ContainerId,
        spec: GuestSpec,
        bundle: &Path,
        ends: ContainerEnds,
    ) -> Result<(), AgentError> {
        let ContainerEnds {
            stdio,
            exit_status,
            notify,
            volume_sockets,
            network,
        } = ends;
        let request = CreateContainerRequest {
            container_id: id.to_string(),
            spec_json: spec.json,
            root_options: spec.root_options,
            block_devices: spec.block_devices,
            seccomp: spec.seccomp.into(),
            shared_memory: spec.shared_memory,
            shared_namespaces: Some(spec.shared_namespaces).into(),
            bundle: bundle.to_string_lossy().into_owned(),
            stdio: Some(stdio_message(stdio)).into(),
            exit_status: exit_status.map(stream_message).into(),
            notify,
            volume_sockets,
            // One without an own network namespace leaves that of the others as it is.
            network: (!network.is_empty()).then(|| network.into_message()).into(),
            ..Default::default()
        };
        self.call(
            "create the container",
            CREATE_TIMEOUT,
            |context, client| async move { client.create_container(context, &request).await },
        )
        .await
        .map(drop)
    }

    /// Starts the container's process.
    ///
    /// # Errors
    /// When the agent refuses.
    pub async fn start(&self, id: &ContainerId) -> Result<(), AgentError> {
        let request = StartContainerRequest {
            container_id: id.to_string(),
            ..Default::default()
        };
        self.call(
            "start the container",
            CALL_TIMEOUT,
            |context, client| async move { client.start_container(context, &request).await },
        )
        .await
        .map(drop)
    }

    /// Makes the container's network what it is on the host.
    ///
    /// # Errors
    /// When the agent refuses, and names what it can't make.
    pub async fn update_network(
        &self,
        id: &ContainerId,
        network: GuestNetwork,
    ) -> Result<(), AgentError> {
        let request = UpdateNetworkRequest {
            container_id: id.to_string(),
            network: Some(network.into_message()).into(),
            ..Default::default()
        };
        self.call(
            "set up the container's network",
            NETWORK_TIMEOUT,
            |context, client| async move { client.update_network(context, &request).await },
        )
        .await
        .map(drop)
    }

    /// Has the container reach the resolver that the host has for it, at that stream.
    ///
    /// # Errors
    /// When the agent refuses.
    pub async fn relay_resolver(
        &self,
        id: &ContainerId,
        stream: HostStream,
    ) -> Result<(), AgentError> {
        let request = RelayResolverRequest {
            container_id: id.to_string(),
            stream: Some(stream_message(stream)).into(),
            ..Default::default()
        };
        self.call(
            "connect the container to the resolver of its network",
            NETWORK_TIMEOUT,
            |context, client| async move { client.relay_resolver(context, &request).await },
        )
        .await
        .map(drop)
    }

    /// Starts a further process in the container.
    ///
    /// # Errors
    /// When the agent refuses.
    pub async fn exec(
        &self,
        id: &ContainerId,
        exec_id: &str,
        process_json: Vec<u8>,
        cgroup: &str,
        stdio: Offer,
    ) -> Result<(), AgentError> {
        let request = ExecProcessRequest {
            container_id: id.to_string(),
            exec_id: exec_id.to_owned(),
            process_json,
            cgroup: cgroup.to_owned(),
            stdio: Some(stdio_message(stdio)).into(),
            ..Default::default()
        };
        self.call(
            "start the process",
            CREATE_TIMEOUT,
            |context, client| async move { client.exec_process(context, &request).await },
        )
        .await
        .map(drop)
    }

    /// Sends a signal to a process, or to all processes of the container; without an id the container's own.
    ///
    /// # Errors
    /// When there is nothing to signal.
    pub async fn signal(
        &self,
        id: &ContainerId,
        exec_id: &str,
        signal: i32,
        all: bool,
    ) -> Result<(), AgentError> {
        let request = SignalProcessRequest {
            container_id: id.to_string(),
            exec_id: exec_id.to_owned(),
            signal: signal.unsigned_abs(),
            all,
            ..Default::default()
        };
        self.call(
            "deliver a signal",
            CALL_TIMEOUT,
            |context, client| async move { client.signal_process(context, &request).await },
        )
        .await
        .map(drop)
    }

    /// Removes what there is of a container in the guest; one that runs is killed.
    ///
    /// # Errors
    /// When there is none, or something of it can't be removed.
    pub async fn delete(&self, id: &ContainerId) -> Result<(), AgentError> {
        let request = DeleteContainerRequest {
            container_id: id.to_string(),
            force: true,
            ..Default::default()
        };
        self.call(
            "delete the container",
            CALL_TIMEOUT,
            |context, client| async move { client.delete_container(context, &request).await },
        )
        .await
        .map(drop)
    }

    /// Waits for the end of a process, however long that takes, and returns its exit status. If this process
    /// ends before, the other one is killed where `stands_for_it`.
    ///
    /// # Errors
    /// When the agent refuses.
    pub async fn wait(
        &self,
        id: &ContainerId,
        exec_id: &str,
        stands_for_it: bool,
    ) -> Result<u8, AgentError> {
        let request = WaitProcessRequest {
            container_id: id.to_string(),
            exec_id: exec_id.to_owned(),
            kill_if_abandoned: stands_for_it,
            ..Default::default()
        };
        let answer = self.client.wait_process(Context::default(), &request).await;
        match answer.map_err(|e| classify(e, "report the process's end", CALL_TIMEOUT)) {
            // Masked as exit(2) masks it, whatever the guest says.
            Ok(answer) => Ok((answer.exit_status & 0xff) as u8),
            // The sandbox has ended, and everything in it was killed.
            Err(AgentError::Lost(_)) => Ok(KILLED),
            Err(e) => Err(e),
        }
    }

    /// Waits until a container made with `notify` says that it is ready, or has ended, however long that
    /// takes. Returns whether it is ready.
    ///
    /// # Errors
    /// When the sandbox goes away first.
    pub async fn wait_ready(&self, id: &ContainerId) -> Result<bool, AgentError> {
        let request = WaitReadyRequest {
            container_id: id.to_string(),
            ..Default::default()
        };
        let answer = self.client.wait_ready(Context::default(), &request).await;
        let answer = answer.map_err(|e| classify(e, "report that it is ready", CALL_TIMEOUT))?;
        Ok(answer.ready)
    }

    /// Suspends all processes of the container; they are suspended when this returns.
    ///
    /// # Errors
    /// When the agent refuses, or can't suspend them.
    pub async fn pause(&self, id: &ContainerId) -> Result<(), AgentError> {
        let request = PauseContainerRequest {
            container_id: id.to_string(),
            ..Default::default()
        };
        self.call(
            "pause the container",
            CALL_TIMEOUT,
            |context, client| async move { client.pause_container(context, &request).await },
        )
        .await
        .map(drop)
    }

    /// Resumes them.
    ///
    /// # Errors
    /// When the agent refuses.
    pub async fn resume(&self, id: &ContainerId) -> Result<(), AgentError> {
        let request = ResumeContainerRequest {
            container_id: id.to_string(),
            ..Default::default()
        };
        self.call(
            "resume the container",
            CALL_TIMEOUT,
            |context, client| async move { client.resume_container(context, &request).await },
        )
        .await
        .map(drop)
    }

    /// Changes the container's limits to those of a `linux.resources` object.
    ///
    /// # Errors
    /// When the agent refuses; the limits are then as they were.
    pub async fn update(
        &self,
        id: &ContainerId,
        resources_json: Vec<u8>,
    ) -> Result<(), AgentError> {
        let request = UpdateContainerRequest {
            container_id: id.to_string(),
            resources_json,
            ..Default::default()
        };
        self.call(
            "change the container's limits",
            CALL_TIMEOUT,
            |context, client| async move { client.update_container(context, &request).await },
        )
        .await
        .map(drop)
    }

    /// Lists the container's processes, by their pids.
    ///
    /// # Errors
    /// When the agent refuses, or lists what can't be.
    pub async fn processes(&self, id: &ContainerId) -> Result<Vec<ProcessInfo>, AgentError> {
        let mut listed: Vec<ProcessInfo> = Vec::new();
        let mut last = 0;
        while listed.len() < MOST_PROCESSES {
            let answer = self.processes_after(id, last).await?;
            let is_last = answer.len() < answers::MAX_PROCESSES;
            for process in answer {
                // Each has to be news, so that they come to an end.
                if process.pid <= last || process.pid > HIGHEST_PID || process.parent < 0 {
                    return Err(AgentError::Nonsense("processes that can't be"));
                }
                last = process.pid;
                listed.push(process.into());
            }
            if is_last {
                return Ok(listed);
            }
        }
        log::warn!(
            "there may be more processes: the first {} are listed",
            listed.len()
        );
        Ok(listed)
    }

    async fn processes_after(
        &self,
        id: &ContainerId,
        after: i32,
    ) -> Result<Vec<messages::ProcessInfo>, AgentError> {
        let request = ListProcessesRequest {
            container_id: id.to_string(),
            after,
            ..Default::default()
        };
        let answer = self.call(
            "list the container's processes",
            CALL_TIMEOUT,
            |context, client| async move { client.list_processes(context, &request).await },
        );
        Ok(answer.await?.processes)
    }

    /// Reads the container's statistics.
    ///
    /// # Errors
    /// When the agent refuses.
    pub async fn stats(&self, id: &ContainerId) -> Result<Stats, AgentError> {
        let request = ContainerStatsRequest {
            container_id: id.to_string(),
            ..Default::default()
        };
        let answer = self.call(
            "read the container's statistics",
            CALL_TIMEOUT,
            |context, client| async move { client.container_stats(context, &request).await },
        );
        Ok(answer.await?.into())
    }

    /// Waits until more processes were killed for want of memory than `known`, however long that takes,
    /// and returns how many.
    ///
    /// # Errors
    /// When the container goes away first.
    pub async fn wait_oom(&self, id: &ContainerId, known: u64) -> Result<u64, AgentError> {
        let request = WaitOomRequest {
            container_id: id.to_string(),
            known,
            ..Default::default()
        };
        let answer = self.client.wait_oom(Context::default(), &request).await;
        let kills = answer
            .map_err(|e| classify(e, "report an out-of-memory event", CALL_TIMEOUT))?
            .kills;
        // Each answer has to be news.
        if kills > known {
            Ok(kills)
        } else {
            Err(AgentError::Nonsense("no out-of-memory event"))
        }
    }
}

fn stream_message(stream: HostStream) -> messages::HostStream {
    messages::HostStream {
        port: stream.port,
        token: stream.token.to_vec(),
        ..Default::default()
    }
}

fn stdio_message(offer: Offer) -> Stdio {
    let (terminal, streams) = match offer {
        Offer::Streams(streams) => (false, streams),
        Offer::Terminal { text, sizes } => (true, [text, sizes, None]),
    };
    let [stdin, stdout, stderr] = streams.map(|stream| stream.map(stream_message).into());
    Stdio {
        stdin,
        stdout,
        stderr,
        terminal,
        ..Default::default()
    }
}
