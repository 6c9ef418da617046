//! containerd's own events: before 1.7 it has no `GetContainerEvents`, but it tells of every task that ended.

use prost::bytes::Bytes;

/// `containerd.services.events.v1.SubscribeRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct SubscribeRequest {
    /// Each one suffices.
    #[prost(string, repeated, tag = "1")]
    pub filters: Vec<String>,
}

/// `containerd.services.events.v1.Envelope`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Envelope {
    /// As `k8s.io`.
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// As `/tasks/exit`.
    #[prost(string, tag = "3")]
    pub topic: String,
    /// The event itself.
    #[prost(message, optional, tag = "4")]
    event: Option<Any>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Any {
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
}

/// What the events of tasks have in common.
#[derive(Clone, PartialEq, prost::Message)]
struct OfTask {
    #[prost(string, tag = "1")]
    container_id: String,
}

impl Envelope {
    /// The container, or sandbox, that this is about.
    pub fn container_id(&self) -> Option<String> {
        let value = self.event.as_ref()?.value.clone();
        let task: OfTask = prost::Message::decode(value).ok()?;
        Some(task.container_id).filter(|it| !it.is_empty())
    }
}
