//! The agent's ttrpc service: it turns requests into calls of the [`sandbox`](crate::sandbox), and
//! errors into status codes.

use std::sync::Arc;

use async_trait::async_trait;
use hull_protocol::agent::{
    CreateContainerRequest, CreateContainerResponse, DeleteContainerRequest, Empty,
    ExecProcessRequest, ExecProcessResponse, SignalProcessRequest, StartContainerRequest,
    WaitProcessRequest, WaitProcessResponse,
};
use hull_protocol::agent_ttrpc;
use ttrpc::asynchronous::transport::Listener;
use ttrpc::asynchronous::{Server, TtrpcContext};

use crate::error::Error;
use crate::sandbox::Sandbox;

struct Service(Arc<Sandbox>);

/// Serves the sandbox on a listener, on the current runtime. It ends with the server that is returned.
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

/// Logs a failed request, by its name, and makes a status of it.
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
}
