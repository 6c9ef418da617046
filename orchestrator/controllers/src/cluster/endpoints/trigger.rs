//! When the change happened that a write follows from: the value of `endpoints.kubernetes.io/last-change-trigger-time`.

use crate::cluster::podview;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Service};
use std::collections::HashMap;

/// What was seen of a Service and its pods at the last look.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    service: Option<Timestamp>,
    pods: HashMap<String, Timestamp>,
}

/// When a pod last became ready or unready, or was made.
fn changed(pod: &Pod) -> Option<Timestamp> {
    let conditions = pod.status.as_ref().and_then(|it| it.conditions.as_ref());
    let ready = conditions.into_iter().flatten().find(|it| it.type_ == "Ready");
    let transition = ready.and_then(|it| it.last_transition_time.as_ref());
    let created = pod.metadata.creation_timestamp.as_ref();
    transition.or(created).map(|it| it.0)
}

impl Seen {
    /// Remembers what is there now, and returns the earliest change since the last look; `None` where nothing that counts
    /// has changed (a pod that went is not known by a time).
    pub(crate) fn look<'a>(&mut self, service: &Service, pods: impl IntoIterator<Item = &'a Pod>) -> Option<Timestamp> {
        let mut earliest: Option<Timestamp> = None;
        let mut note = |at: Timestamp| earliest = Some(earliest.map_or(at, |it| it.min(at)));
        let mut now = HashMap::with_capacity(self.pods.len());
        for pod in pods {
            let (Some(name), Some(at)) = (&pod.metadata.name, changed(pod)) else {
                continue;
            };
            if podview::addresses(pod).is_empty() {
                continue;
            }
            if self.pods.get(name).is_none_or(|seen| at > *seen) {
                note(at);
            }
            now.insert(name.clone(), at);
        }
        self.pods = now;
        if self.service.is_none()
            && let Some(created) = &service.metadata.creation_timestamp
        {
            note(created.0);
            self.service = Some(created.0);
        }
        earliest
    }
}
