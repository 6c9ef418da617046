//! From the place that a request names to the container it means.

use super::{Refusal, route::Place};
use crate::{
    logs::container_file,
    table::{ContainerIds, PodTable, RunningPod},
};
use http::StatusCode;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use std::{path::PathBuf, sync::Arc};

/// The pod.
///
/// # Errors
/// There is none, or another one has its name now.
pub(super) fn pod(table: &PodTable, place: &Place) -> Result<Arc<RunningPod>, Refusal> {
    let found = table.by_name(&place.namespace, &place.pod);
    let same = found.filter(|it| place.uid.as_ref().is_none_or(|uid| uid == it.uid()));
    same.ok_or_else(|| {
        let text = format!("pod {:?} not found in namespace {:?}", place.pod, place.namespace);
        Refusal::new(StatusCode::NOT_FOUND, text)
    })
}

/// Id of the container that runs there.
///
/// # Errors
/// None does.
pub(super) fn running(pod: &RunningPod, place: &Place) -> Result<String, Refusal> {
    let container = pod.containers.get(&place.container).filter(|it| it.running);
    container.and_then(|it| it.current.clone()).ok_or_else(|| {
        let text = format!("container not found ({:?})", place.container);
        Refusal::new(StatusCode::NOT_FOUND, text)
    })
}

/// A log: its file, and the container that writes it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Log {
    pub(super) path: PathBuf,
    pub(super) container_id: String,
    pub(super) running: bool,
}

/// The log that is meant. `previous`: of the run before the last restart.
///
/// # Errors
/// No such container, or none that has run. The texts are upstream's, which people search for.
pub(super) fn log(pod: &RunningPod, place: &Place, previous: bool) -> Result<Log, Refusal> {
    let (name, container) = (&place.pod, &place.container);
    let bad = |text| Refusal::new(StatusCode::BAD_REQUEST, text);
    if !is_in(&pod.pod, container) {
        let text = format!("container {container:?} not found in pod {name:?}");
        return Err(Refusal::new(StatusCode::NOT_FOUND, text));
    }
    let none = ContainerIds::default();
    let ids = pod.containers.get(container).unwrap_or(&none);
    let file = |restarts| pod.log_directory.join(container_file(container, restarts));
    if previous {
        let id = ids.previous.clone().filter(|_| ids.restart_count > 0);
        let text = format!("previous terminated container {container:?} in pod {name:?} not found");
        return Ok(Log {
            container_id: id.ok_or_else(|| bad(text))?,
            path: file(ids.restart_count - 1),
            running: false,
        });
    }
    match &ids.current {
        Some(id) => Ok(Log {
            container_id: id.clone(),
            path: file(ids.restart_count),
            running: ids.running,
        }),
        None => Err(bad(match waiting(&pod.pod, container) {
            Some(reason) if matches!(&*reason, "ErrImagePull" | "ImagePullBackOff") => {
                format!("container {container:?} in pod {name:?} is waiting to start: trying and failing to pull image")
            }
            Some(reason) => format!("container {container:?} in pod {name:?} is waiting to start: {reason}"),
            None => format!("container {container:?} in pod {name:?} is not available"),
        })),
    }
}

fn is_in(pod: &Pod, container: &str) -> bool {
    let Some(spec) = &pod.spec else {
        return false;
    };
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    containers.map(|it| &it.name).any(|it| it == container)
        || spec
            .ephemeral_containers
            .iter()
            .flatten()
            .any(|it| it.name == container)
}

/// Why it waits.
fn waiting(pod: &Pod, container: &str) -> Option<String> {
    let status = pod.status.as_ref()?;
    let lists = [
        &status.container_statuses,
        &status.init_container_statuses,
        &status.ephemeral_container_statuses,
    ];
    let mut all = lists.into_iter().flatten().flatten();
    let found: Option<&ContainerStatus> = all.find(|it| it.name == container);
    found?.state.as_ref()?.waiting.as_ref()?.reason.clone()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn place(container: &str) -> Place {
        Place {
            namespace: "n".to_owned(),
            pod: "p".to_owned(),
            uid: None,
            container: container.to_owned(),
        }
    }

    fn ids(current: Option<&str>, previous: Option<&str>, running: bool, restart_count: u32) -> ContainerIds {
        ContainerIds {
            current: current.map(str::to_owned),
            previous: previous.map(str::to_owned),
            running,
            restart_count,
        }
    }

    fn running_pod() -> RunningPod {
        let containers = ["up", "ended", "pulling", "new", "fresh"].map(|it| json!({ "name": it }));
        let waiting = |name, reason| {
            json!({
                "name": name, "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": { "waiting": { "reason": reason } },
            })
        };
        let pod = json!({
            "metadata": { "namespace": "n", "name": "p", "uid": "u" },
            "spec": { "containers": containers },
            "status": { "containerStatuses": [waiting("pulling", "ImagePullBackOff"), waiting("new", "ContainerCreating")] },
        });
        RunningPod {
            pod: Arc::new(serde_json::from_value(pod).unwrap()),
            sandbox_id: Some("s".to_owned()),
            containers: [
                ("up".to_owned(), ids(Some("up2"), Some("up1"), true, 2)),
                ("ended".to_owned(), ids(Some("ended0"), None, false, 0)),
            ]
            .into(),
            pod_ips: Vec::new(),
            log_directory: "/logs/n_p_u".into(),
        }
    }

    #[test]
    fn which_pod() {
        let table = PodTable::default();
        table.insert(running_pod());
        assert_eq!(pod(&table, &place("up")).unwrap().uid(), "u");
        for (namespace, name, uid) in [("x", "p", None), ("n", "x", None), ("n", "p", Some("other"))] {
            let place = Place {
                namespace: namespace.to_owned(),
                pod: name.to_owned(),
                uid: uid.map(str::to_owned),
                container: String::new(),
            };
            assert_eq!(pod(&table, &place).unwrap_err().code, StatusCode::NOT_FOUND);
        }
    }

    #[test]
    fn which_container() {
        let pod = running_pod();
        assert_eq!(running(&pod, &place("up")).unwrap(), "up2");
        for container in ["ended", "new", "none"] {
            let refusal = running(&pod, &place(container)).unwrap_err();
            assert_eq!(refusal.text, format!("container not found ({container:?})"));
        }
    }

    #[test]
    fn which_log() {
        let pod = running_pod();
        let log = |container, previous| {
            let found = log(&pod, &place(container), previous);
            found
                .map(|it| format!("{} {} {}", it.path.display(), it.container_id, it.running))
                .map_err(|it| (it.code.as_u16(), it.text))
        };
        assert_eq!(log("up", false).unwrap(), "/logs/n_p_u/up/2.log up2 true");
        assert_eq!(log("up", true).unwrap(), "/logs/n_p_u/up/1.log up1 false");
        assert_eq!(log("ended", false).unwrap(), "/logs/n_p_u/ended/0.log ended0 false");
        for (container, previous, code, text) in [
            ("none", false, 404, "container \"none\" not found in pod \"p\""),
            (
                "ended",
                true,
                400,
                "previous terminated container \"ended\" in pod \"p\" not found",
            ),
            (
                "new",
                false,
                400,
                "container \"new\" in pod \"p\" is waiting to start: ContainerCreating",
            ),
            (
                "pulling",
                false,
                400,
                "container \"pulling\" in pod \"p\" is waiting to start: trying and failing to pull image",
            ),
            ("fresh", false, 400, "container \"fresh\" in pod \"p\" is not available"),
        ] {
            assert_eq!(log(container, previous), Err((code, text.to_owned())), "{container}");
        }
    }
}
