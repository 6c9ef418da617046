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
    /// The process: that of the container itself has its id, one that was started later another. Empty in events that
    /// are about all processes.
    #[prost(string, tag = "2")]
    id: String,
}

impl Envelope {
    /// The container, or sandbox, that this is about as a whole; `None` for commands that were run in one.
    pub fn container_id(&self) -> Option<String> {
        let value = self.event.as_ref()?.value.clone();
        let task: OfTask = prost::Message::decode(value).ok()?;
        let whole = task.id.is_empty() || task.id == task.container_id || self.topic != "/tasks/exit";
        Some(task.container_id).filter(|it| whole && !it.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;

    #[test]
    fn commands_in_containers_are_no_ends_of_containers() {
        let event = |topic: &str, container_id: &str, id: &str| {
            let task = OfTask {
                container_id: container_id.to_owned(),
                id: id.to_owned(),
            };
            let value = Bytes::from(task.encode_to_vec());
            Envelope {
                namespace: "k8s.io".to_owned(),
                topic: topic.to_owned(),
                event: Some(Any { value }),
            }
        };
        assert_eq!(event("/tasks/exit", "c1", "c1").container_id().as_deref(), Some("c1"));
        assert_eq!(event("/tasks/exit", "c1", "probe").container_id(), None);
        assert_eq!(event("/tasks/oom", "c1", "").container_id().as_deref(), Some("c1"));
        assert_eq!(event("/tasks/oom", "", "").container_id(), None);
    }
}
