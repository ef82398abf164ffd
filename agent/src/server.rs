//! The agent's ttrpc service: it turns requests into calls of the [`sandbox`](crate::sandbox), and
//! errors into status codes.

use std::sync::Arc;

use async_trait::async_trait;
use hull_protocol::agent::{
    ContainerStatsRequest, ContainerStatsResponse, CreateContainerRequest, CreateContainerResponse,
    DeleteContainerRequest, Empty, ExecProcessRequest, ExecProcessResponse, ListProcessesRequest,
    ListProcessesResponse, PauseContainerRequest, RelayResolverRequest, ResumeContainerRequest,
    SignalProcessRequest, StartContainerRequest, UpdateContainerRequest, UpdateNetworkRequest,
    WaitOomRequest, WaitOomResponse, WaitProcessRequest, WaitProcessResponse, WaitReadyRequest,
    WaitReadyResponse,
};
use hull_protocol::agent_ttrpc;
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{Server, TtrpcContext};

use crate::error::Error;
use crate::sandbox::Sandbox;

struct Service(Arc<Sandbox>);

/// Serves the sandbox on a listener, on the current runtime, until the returned server is dropped.
///
/// # Errors
/// When the server can't be started.
pub async fn serve(sandbox: Arc<Sandbox>, listener: Listener) -> ttrpc::Result<Server> {
    let service = agent_ttrpc::create_agent(Arc::new(Service(sandbox)));
    let mut server = Server::new()
        .add_listener(listener)
        .register_service(service);
    server.start().await?;
    Ok(server)
}

/// Logs a failed request, by its name, and converts the error into a ttrpc status.
fn answer<T>(request: &str, result: Result<T, Error>) -> ttrpc::Result<T> {
    result.map_err(|error| {
        log::info!("{request}: {error}");
        error.into()
    })
}

#[async_trait]
impl agent_ttrpc::Agent for Service {
    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> ttrpc::Result<CreateContainerResponse> {
        let pid = answer("CreateContainer", self.0.create(request).await)?;
        Ok(CreateContainerResponse {
            pid,
            ..Default::default()
        })
    }

    async fn start_container(
        &self,
        _: &TtrpcContext,
        request: StartContainerRequest,
    ) -> ttrpc::Result<Empty> {
        answer("StartContainer", self.0.start(&request.container_id))?;
        Ok(Empty::new())
    }

    async fn exec_process(
        &self,
        _: &TtrpcContext,
        request: ExecProcessRequest,
    ) -> ttrpc::Result<ExecProcessResponse> {
        let pid = answer("ExecProcess", self.0.exec(request).await)?;
        Ok(ExecProcessResponse {
            pid,
            ..Default::default()
        })
    }

    async fn signal_process(
        &self,
        _: &TtrpcContext,
        request: SignalProcessRequest,
    ) -> ttrpc::Result<Empty> {
        answer("SignalProcess", self.0.signal(&request))?;
        Ok(Empty::new())
    }

    async fn wait_process(
        &self,
        _: &TtrpcContext,
        request: WaitProcessRequest,
    ) -> ttrpc::Result<WaitProcessResponse> {
        let status = answer("WaitProcess", self.0.wait(&request).await)?;
        Ok(WaitProcessResponse {
            exit_status: status,
            ..Default::default()
        })
    }

    async fn delete_container(
        &self,
        _: &TtrpcContext,
        request: DeleteContainerRequest,
    ) -> ttrpc::Result<Empty> {
        let deleted = self.0.delete(&request.container_id, request.force).await;
        answer("DeleteContainer", deleted)?;
        Ok(Empty::new())
    }

    async fn pause_container(
        &self,
        _: &TtrpcContext,
        request: PauseContainerRequest,
    ) -> ttrpc::Result<Empty> {
        let paused = self.0.set_paused(&request.container_id, true).await;
        answer("PauseContainer", paused)?;
        Ok(Empty::new())
    }

    async fn resume_container(
        &self,
        _: &TtrpcContext,
        request: ResumeContainerRequest,
    ) -> ttrpc::Result<Empty> {
        let resumed = self.0.set_paused(&request.container_id, false).await;
        answer("ResumeContainer", resumed)?;
        Ok(Empty::new())
    }

    async fn update_container(
        &self,
        _: &TtrpcContext,
        request: UpdateContainerRequest,
    ) -> ttrpc::Result<Empty> {
        answer("UpdateContainer", self.0.update(&request))?;
        Ok(Empty::new())
    }

    async fn update_network(
        &self,
        _: &TtrpcContext,
        request: UpdateNetworkRequest,
    ) -> ttrpc::Result<Empty> {
        answer("UpdateNetwork", self.0.update_network(&request).await)?;
        Ok(Empty::new())
    }

    async fn relay_resolver(
        &self,
        _: &TtrpcContext,
        request: RelayResolverRequest,
    ) -> ttrpc::Result<Empty> {
        answer("RelayResolver", self.0.relay_resolver(&request).await)?;
        Ok(Empty::new())
    }

    async fn list_processes(
        &self,
        _: &TtrpcContext,
        request: ListProcessesRequest,
    ) -> ttrpc::Result<ListProcessesResponse> {
        let processes = self.0.processes(&request.container_id, request.after);
        let processes = answer("ListProcesses", processes)?;
        Ok(ListProcessesResponse {
            processes,
            ..Default::default()
        })
    }

    async fn container_stats(
        &self,
        _: &TtrpcContext,
        request: ContainerStatsRequest,
    ) -> ttrpc::Result<ContainerStatsResponse> {
        answer("ContainerStats", self.0.stats(&request.container_id))
    }

    async fn wait_oom(
        &self,
        _: &TtrpcContext,
        request: WaitOomRequest,
    ) -> ttrpc::Result<WaitOomResponse> {
        let kills = self.0.wait_oom(&request.container_id, request.known).await;
        Ok(WaitOomResponse {
            kills: answer("WaitOom", kills)?,
            ..Default::default()
        })
    }

    async fn wait_ready(
        &self,
        _: &TtrpcContext,
        request: WaitReadyRequest,
    ) -> ttrpc::Result<WaitReadyResponse> {
        let ready = self.0.wait_ready(&request.container_id).await;
        Ok(WaitReadyResponse {
            ready: answer("WaitReady", ready)?,
            ..Default::default()
        })
    }
}
