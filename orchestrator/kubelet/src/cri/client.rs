//! A client of the container runtime over its unix socket: one method per remote procedure, each with a deadline, and
//! errors that name procedure, object and cause.

use super::{
    containerd::{Envelope, SubscribeRequest},
    v1,
};
use http::uri::PathAndQuery;
use std::{path::Path, time::Duration};
use tonic::{
    Code, Request, Status,
    client::Grpc,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

/// Deadline of most procedures: upstream's `runtimeRequestTimeout`.
const USUAL: Duration = Duration::from_secs(120);

/// Deadline of those that call the network plugin: twice the usual one, as upstream has it.
const SANDBOX: Duration = Duration::from_secs(240);

/// Deadline of a pull. Images may be large and links slow, but a pull that hangs must end some day.
const PULL: Duration = Duration::from_secs(3600);

/// Largest answer, in bytes: upstream's limit; a list of some thousand containers is below it.
const MAX_MESSAGE: usize = 16 << 20;

/// A procedure of the runtime failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{rpc} {object}: {message}")]
pub struct RuntimeError {
    /// The procedure, as `RunPodSandbox`.
    pub rpc: &'static str,
    /// What it was about: an id, a name or an image; empty where it is about the runtime as a whole.
    pub object: String,
    /// The code of gRPC.
    pub code: Code,
    /// What the runtime says.
    pub message: String,
}

impl RuntimeError {
    /// The object does not exist (any more).
    pub fn is_not_found(&self) -> bool {
        // containerd before 1.7 answers some of these as Unknown, with the text alone.
        self.code == Code::NotFound || (self.code == Code::Unknown && self.message.contains("not found"))
    }

    /// The runtime could not be reached, or did not answer in time: nothing is known about what it did.
    pub fn is_unreachable(&self) -> bool {
        matches!(self.code, Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled)
    }

    /// The runtime does not have this procedure.
    pub fn is_unimplemented(&self) -> bool {
        self.code == Code::Unimplemented
    }
}

/// The container runtime: `RuntimeService` and `ImageService` behind one socket. Clones share the connection, which is
/// made when it is first needed and again after it broke.
#[derive(Clone, Debug)]
pub struct Runtime {
    channel: Channel,
}

/// Runs one procedure of `RuntimeService` or `ImageService`.
macro_rules! call {
    ($self:ident, $service:literal, $rpc:literal, $deadline:expr, $object:expr, $request:expr) => {
        $self.unary(
            $rpc,
            PathAndQuery::from_static(concat!("/runtime.v1.", $service, "/", $rpc)),
            $deadline,
            $object,
            $request,
        )
    };
}

impl Runtime {
    /// A client of the socket at `path`. Connects later, when it is needed.
    ///
    /// # Errors
    /// A path that is no valid address.
    pub fn new(path: &Path) -> Result<Self, RuntimeError> {
        let address = format!("unix://{}", path.display());
        let endpoint = Endpoint::from_shared(address).map_err(|error| RuntimeError {
            rpc: "connect",
            object: path.display().to_string(),
            code: Code::InvalidArgument,
            message: error.to_string(),
        })?;
        Ok(Self {
            channel: endpoint.connect_lazy(),
        })
    }

    fn grpc(&self) -> Grpc<Channel> {
        Grpc::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    async fn unary<Q, A>(
        &self,
        rpc: &'static str,
        path: PathAndQuery,
        deadline: Duration,
        object: &str,
        request: Q,
    ) -> Result<A, RuntimeError>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let failed = |status: &Status| RuntimeError {
            rpc,
            object: object.to_owned(),
            code: status.code(),
            message: status.message().to_owned(),
        };
        let work = async {
            let mut grpc = self.grpc();
            let ready = grpc.ready().await;
            ready.map_err(|error| Status::unavailable(format!("the runtime cannot be reached: {}", causes(&error))))?;
            let mut request = Request::new(request);
            request.set_timeout(deadline);
            let codec: ProstCodec<Q, A> = ProstCodec::default();
            grpc.unary(request, path, codec).await
        };
        match tokio::time::timeout(deadline, work).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(failed(&status)),
            Err(_) => {
                let message = format!("no answer within {} s", deadline.as_secs());
                Err(failed(&Status::deadline_exceeded(message)))
            }
        }
    }

    /// Name and versions of the runtime.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn version(&self) -> Result<v1::VersionResponse, RuntimeError> {
        let request = v1::VersionRequest {
            version: "0.1.0".to_owned(),
        };
        call!(self, "RuntimeService", "Version", USUAL, "", request).await
    }

    /// Conditions `RuntimeReady` and `NetworkReady`.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn status(&self) -> Result<v1::RuntimeStatus, RuntimeError> {
        let request = v1::StatusRequest { verbose: false };
        let answer: v1::StatusResponse = call!(self, "RuntimeService", "Status", USUAL, "", request).await?;
        Ok(answer.status.unwrap_or_default())
    }

    /// Makes and starts a sandbox with its network; its id.
    ///
    /// # Errors
    /// The runtime's, among them those of the network plugin.
    pub async fn run_sandbox(
        &self,
        config: v1::PodSandboxConfig,
        runtime_handler: &str,
    ) -> Result<String, RuntimeError> {
        let object = config
            .metadata
            .as_ref()
            .map_or_else(String::new, |it| format!("{}/{}", it.namespace, it.name));
        let request = v1::RunPodSandboxRequest {
            config: Some(config),
            runtime_handler: runtime_handler.to_owned(),
        };
        let answer: v1::RunPodSandboxResponse =
            call!(self, "RuntimeService", "RunPodSandbox", SANDBOX, &object, request).await?;
        Ok(answer.pod_sandbox_id)
    }

    /// Ends all processes of a sandbox and frees its network. Idempotent.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn stop_sandbox(&self, id: &str) -> Result<(), RuntimeError> {
        let request = v1::StopPodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        };
        let stopped: Result<v1::StopPodSandboxResponse, _> =
            call!(self, "RuntimeService", "StopPodSandbox", SANDBOX, id, request).await;
        gone_is_fine(stopped)
    }

    /// Removes a sandbox and its containers. Idempotent.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn remove_sandbox(&self, id: &str) -> Result<(), RuntimeError> {
        let request = v1::RemovePodSandboxRequest {
            pod_sandbox_id: id.to_owned(),
        };
        let removed: Result<v1::RemovePodSandboxResponse, _> =
            call!(self, "RuntimeService", "RemovePodSandbox", SANDBOX, id, request).await;
        gone_is_fine(removed)
    }

    /// State and addresses of a sandbox.
    ///
    /// # Errors
    /// The runtime's; [`RuntimeError::is_not_found`] where there is none.
    pub async fn sandbox_status(&self, id: &str) -> Result<v1::PodSandboxStatus, RuntimeError> {
        let request = v1::PodSandboxStatusRequest {
            pod_sandbox_id: id.to_owned(),
            verbose: false,
        };
        let answer: v1::PodSandboxStatusResponse =
            call!(self, "RuntimeService", "PodSandboxStatus", USUAL, id, request).await?;
        Ok(answer.status.unwrap_or_default())
    }

    /// All sandboxes that pass the filter.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn sandboxes(&self, filter: Option<v1::PodSandboxFilter>) -> Result<Vec<v1::PodSandbox>, RuntimeError> {
        let request = v1::ListPodSandboxRequest { filter };
        let answer: v1::ListPodSandboxResponse =
            call!(self, "RuntimeService", "ListPodSandbox", USUAL, "", request).await?;
        Ok(answer.items)
    }

    /// Makes a container in a sandbox, not started yet; its id.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn create_container(
        &self,
        sandbox_id: &str,
        config: v1::ContainerConfig,
        sandbox_config: v1::PodSandboxConfig,
    ) -> Result<String, RuntimeError> {
        let object = config.metadata.as_ref().map_or_else(String::new, |it| it.name.clone());
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: sandbox_id.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        let answer: v1::CreateContainerResponse =
            call!(self, "RuntimeService", "CreateContainer", USUAL, &object, request).await?;
        Ok(answer.container_id)
    }

    /// Starts a container that was made.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn start_container(&self, id: &str) -> Result<(), RuntimeError> {
        let request = v1::StartContainerRequest {
            container_id: id.to_owned(),
        };
        let _: v1::StartContainerResponse = call!(self, "RuntimeService", "StartContainer", USUAL, id, request).await?;
        Ok(())
    }

    /// Asks a container to stop, and kills it after `grace` (whole seconds). Returns when it has ended. Idempotent.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn stop_container(&self, id: &str, grace: Duration) -> Result<(), RuntimeError> {
        let request = v1::StopContainerRequest {
            container_id: id.to_owned(),
            timeout: i64::try_from(grace.as_secs()).unwrap_or(i64::MAX),
        };
        let deadline = grace.saturating_add(USUAL);
        let stopped: Result<v1::StopContainerResponse, _> =
            call!(self, "RuntimeService", "StopContainer", deadline, id, request).await;
        gone_is_fine(stopped)
    }

    /// Removes a container that does not run. Idempotent.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn remove_container(&self, id: &str) -> Result<(), RuntimeError> {
        let request = v1::RemoveContainerRequest {
            container_id: id.to_owned(),
        };
        let removed: Result<v1::RemoveContainerResponse, _> =
            call!(self, "RuntimeService", "RemoveContainer", USUAL, id, request).await;
        gone_is_fine(removed)
    }

    /// All containers that pass the filter.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn containers(&self, filter: Option<v1::ContainerFilter>) -> Result<Vec<v1::Container>, RuntimeError> {
        let request = v1::ListContainersRequest { filter };
        let answer: v1::ListContainersResponse =
            call!(self, "RuntimeService", "ListContainers", USUAL, "", request).await?;
        Ok(answer.containers)
    }

    /// State, times, exit code of a container.
    ///
    /// # Errors
    /// The runtime's; [`RuntimeError::is_not_found`] where there is none.
    pub async fn container_status(&self, id: &str) -> Result<v1::ContainerStatus, RuntimeError> {
        let request = v1::ContainerStatusRequest {
            container_id: id.to_owned(),
            verbose: false,
        };
        let answer: v1::ContainerStatusResponse =
            call!(self, "RuntimeService", "ContainerStatus", USUAL, id, request).await?;
        Ok(answer.status.unwrap_or_default())
    }

    /// Changes the limits of a container that runs.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn update_resources(&self, id: &str, linux: v1::LinuxContainerResources) -> Result<(), RuntimeError> {
        let request = v1::UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(linux),
            ..Default::default()
        };
        let _: v1::UpdateContainerResourcesResponse =
            call!(self, "RuntimeService", "UpdateContainerResources", USUAL, id, request).await?;
        Ok(())
    }

    /// Tells the runtime that a container's log was moved, so that it opens a new one.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn reopen_log(&self, id: &str) -> Result<(), RuntimeError> {
        let request = v1::ReopenContainerLogRequest {
            container_id: id.to_owned(),
        };
        let _: v1::ReopenContainerLogResponse =
            call!(self, "RuntimeService", "ReopenContainerLog", USUAL, id, request).await?;
        Ok(())
    }

    /// Runs a command in a container and waits for its end: output and exit code. The runtime ends it after `timeout`
    /// (whole seconds, zero: never) with [`Code::DeadlineExceeded`].
    ///
    /// # Errors
    /// The runtime's.
    pub async fn exec_sync(
        &self,
        id: &str,
        command: Vec<String>,
        timeout: Duration,
    ) -> Result<v1::ExecSyncResponse, RuntimeError> {
        let request = v1::ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: command,
            timeout: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        };
        let deadline = if timeout.is_zero() {
            PULL
        } else {
            timeout.saturating_add(USUAL)
        };
        call!(self, "RuntimeService", "ExecSync", deadline, id, request).await
    }

    /// Address at which a command's streams can be had once.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn exec(&self, request: v1::ExecRequest) -> Result<String, RuntimeError> {
        let id = request.container_id.clone();
        let answer: v1::ExecResponse = call!(self, "RuntimeService", "Exec", USUAL, &id, request).await?;
        Ok(answer.url)
    }

    /// Address at which a container's own streams can be had once.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn attach(&self, request: v1::AttachRequest) -> Result<String, RuntimeError> {
        let id = request.container_id.clone();
        let answer: v1::AttachResponse = call!(self, "RuntimeService", "Attach", USUAL, &id, request).await?;
        Ok(answer.url)
    }

    /// Address at which connections into a sandbox can be had once.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn port_forward(&self, request: v1::PortForwardRequest) -> Result<String, RuntimeError> {
        let id = request.pod_sandbox_id.clone();
        let answer: v1::PortForwardResponse = call!(self, "RuntimeService", "PortForward", USUAL, &id, request).await?;
        Ok(answer.url)
    }

    /// What containers use, those that pass the filter.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn container_stats(
        &self,
        filter: Option<v1::ContainerStatsFilter>,
    ) -> Result<Vec<v1::ContainerStats>, RuntimeError> {
        let request = v1::ListContainerStatsRequest { filter };
        let answer: v1::ListContainerStatsResponse =
            call!(self, "RuntimeService", "ListContainerStats", USUAL, "", request).await?;
        Ok(answer.stats)
    }

    /// What pods use, those that pass the filter.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn sandbox_stats(
        &self,
        filter: Option<v1::PodSandboxStatsFilter>,
    ) -> Result<Vec<v1::PodSandboxStats>, RuntimeError> {
        let request = v1::ListPodSandboxStatsRequest { filter };
        let answer: v1::ListPodSandboxStatsResponse =
            call!(self, "RuntimeService", "ListPodSandboxStats", USUAL, "", request).await?;
        Ok(answer.stats)
    }

    /// Changes of containers and sandboxes, as long as the connection lasts.
    ///
    /// # Errors
    /// The runtime's; [`RuntimeError::is_unimplemented`] where it has none (containerd before 1.7).
    pub async fn events(&self) -> Result<tonic::Streaming<v1::ContainerEventResponse>, RuntimeError> {
        let rpc = "GetContainerEvents";
        let failed = |code, message| RuntimeError {
            rpc,
            object: String::new(),
            code,
            message,
        };
        let mut grpc = self.grpc();
        grpc.ready()
            .await
            .map_err(|error| failed(Code::Unavailable, causes(&error)))?;
        let path = PathAndQuery::from_static("/runtime.v1.RuntimeService/GetContainerEvents");
        let codec: ProstCodec<v1::GetEventsRequest, v1::ContainerEventResponse> = ProstCodec::default();
        let answer = grpc
            .server_streaming(Request::new(v1::GetEventsRequest {}), path, codec)
            .await;
        answer
            .map(tonic::Response::into_inner)
            .map_err(|status| failed(status.code(), status.message().to_owned()))
    }

    /// Ends of containers and sandboxes as containerd itself tells them, as long as the connection lasts.
    ///
    /// # Errors
    /// The runtime's; [`RuntimeError::is_unimplemented`] where it is not containerd.
    pub async fn containerd_exits(&self) -> Result<tonic::Streaming<Envelope>, RuntimeError> {
        let failed = |code, message| RuntimeError {
            rpc: "Subscribe",
            object: String::new(),
            code,
            message,
        };
        let mut grpc = self.grpc();
        grpc.ready()
            .await
            .map_err(|error| failed(Code::Unavailable, causes(&error)))?;
        let path = PathAndQuery::from_static("/containerd.services.events.v1.Events/Subscribe");
        let codec: ProstCodec<SubscribeRequest, Envelope> = ProstCodec::default();
        let request = SubscribeRequest {
            filters: vec!["topic==\"/tasks/exit\"".to_owned(), "topic==\"/tasks/oom\"".to_owned()],
        };
        let answer = grpc.server_streaming(Request::new(request), path, codec).await;
        answer
            .map(tonic::Response::into_inner)
            .map_err(|status| failed(status.code(), status.message().to_owned()))
    }

    /// All images.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn images(&self) -> Result<Vec<v1::Image>, RuntimeError> {
        let request = v1::ListImagesRequest { filter: None };
        let answer: v1::ListImagesResponse = call!(self, "ImageService", "ListImages", USUAL, "", request).await?;
        Ok(answer.images)
    }

    /// An image by name or id; `None` where it is not here.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn image(&self, name: &str) -> Result<Option<v1::Image>, RuntimeError> {
        let request = v1::ImageStatusRequest {
            image: Some(image_spec(name)),
            verbose: false,
        };
        let answer: v1::ImageStatusResponse = call!(self, "ImageService", "ImageStatus", USUAL, name, request).await?;
        Ok(answer.image)
    }

    /// Fetches an image from its registry; the reference that stands for exactly this content.
    ///
    /// # Errors
    /// The runtime's, among them those of the registry.
    pub async fn pull_image(
        &self,
        name: &str,
        auth: Option<v1::AuthConfig>,
        sandbox_config: Option<v1::PodSandboxConfig>,
    ) -> Result<String, RuntimeError> {
        let request = v1::PullImageRequest {
            image: Some(image_spec(name)),
            auth,
            sandbox_config,
        };
        let answer: v1::PullImageResponse = call!(self, "ImageService", "PullImage", PULL, name, request).await?;
        Ok(answer.image_ref)
    }

    /// Removes an image. Idempotent.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn remove_image(&self, name: &str) -> Result<(), RuntimeError> {
        let request = v1::RemoveImageRequest {
            image: Some(image_spec(name)),
        };
        let removed: Result<v1::RemoveImageResponse, _> =
            call!(self, "ImageService", "RemoveImage", USUAL, name, request).await;
        gone_is_fine(removed)
    }

    /// What images take of their file systems.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn image_fs_info(&self) -> Result<v1::ImageFsInfoResponse, RuntimeError> {
        let request = v1::ImageFsInfoRequest {};
        call!(self, "ImageService", "ImageFsInfo", USUAL, "", request).await
    }
}

/// An image by its name alone.
fn image_spec(name: &str) -> v1::ImageSpec {
    v1::ImageSpec {
        image: name.to_owned(),
        ..Default::default()
    }
}

/// Ending what has ended is a success.
fn gone_is_fine<T>(result: Result<T, RuntimeError>) -> Result<(), RuntimeError> {
    match result {
        Ok(_) => Ok(()),
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(error),
    }
}

/// An error and what caused it: tonic's own words are "transport error" alone.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}
