//! Lifecycle hooks. Source: `Container.lifecycle`.

use crate::{
    cri::Runtime,
    probes::{
        Action,
        check::{excerpt, timed_out},
        http,
    },
};
use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod};
use std::{net::IpAddr, time::Duration};

/// Which hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Right after the start; what comes after it waits, and its failure ends the container.
    PostStart,
    /// Before the container is told to stop; its time counts as grace.
    PreStop,
}

/// A hook failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} hook of container {container} in pod {pod}: {cause}", match hook { Hook::PostStart => "postStart", Hook::PreStop => "preStop" })]
pub struct HookError {
    /// Which hook.
    pub hook: Hook,
    /// `namespace/name`.
    pub pod: String,
    /// Name.
    pub container: String,
    /// In words.
    pub cause: String,
}

impl HookError {
    /// The reason of the event that tells of it.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self.hook {
            Hook::PostStart => "FailedPostStartHook",
            Hook::PreStop => "FailedPreStopHook",
        }
    }
}

/// Runs `lifecycle.postStart`, if there is one, to its end: it has no time limit, as upstream.
///
/// # Errors
/// A command that fails, a server that does not answer.
pub async fn post_start(
    runtime: &Runtime,
    pod: &Pod,
    container: &Container,
    container_id: &str,
    pod_ip: Option<IpAddr>,
) -> Result<(), HookError> {
    let lifecycle = container.lifecycle.as_ref();
    let Some(handler) = lifecycle.and_then(|it| it.post_start.as_ref()) else {
        return Ok(());
    };
    let ran = run(runtime, handler, container, container_id, pod_ip, None).await;
    ran.map_err(|cause| failed(Hook::PostStart, pod, container, cause))
}

/// Runs `lifecycle.preStop`, if there is one, for as long as `grace`; what it does then is cut off with the container.
///
/// # Errors
/// A command that fails or takes too long, a server that does not answer. The container is stopped nevertheless.
pub async fn pre_stop(
    runtime: &Runtime,
    pod: &Pod,
    container: &Container,
    container_id: &str,
    pod_ip: Option<IpAddr>,
    grace: Duration,
) -> Result<(), HookError> {
    let lifecycle = container.lifecycle.as_ref();
    let Some(handler) = lifecycle.and_then(|it| it.pre_stop.as_ref()) else {
        return Ok(());
    };
    let run = run(runtime, handler, container, container_id, pod_ip, Some(grace));
    let ran = match tokio::time::timeout(grace, run).await {
        Ok(ran) => ran,
        Err(_) => Err(format!("not finished within the grace period of {} s", grace.as_secs())),
    };
    ran.map_err(|cause| failed(Hook::PreStop, pod, container, cause))
}

fn failed(hook: Hook, pod: &Pod, container: &Container, cause: String) -> HookError {
    let (namespace, name) = (pod.metadata.namespace.as_deref(), pod.metadata.name.as_deref());
    HookError {
        hook,
        pod: format!("{}/{}", namespace.unwrap_or_default(), name.unwrap_or_default()),
        container: container.name.clone(),
        cause,
    }
}

async fn run(
    runtime: &Runtime,
    handler: &LifecycleHandler,
    container: &Container,
    container_id: &str,
    pod_ip: Option<IpAddr>,
    grace: Option<Duration>,
) -> Result<(), String> {
    if let Some(exec) = &handler.exec {
        let command = exec.command.clone().unwrap_or_default();
        let line = command.join(" ");
        // Whole seconds, and none at all would mean no limit.
        let limit = grace.map_or(Duration::ZERO, |it| it.max(Duration::from_secs(1)));
        return match runtime.exec_sync(container_id, command, limit).await {
            Ok(answer) if answer.exit_code == 0 => Ok(()),
            Ok(answer) => {
                let code = answer.exit_code;
                let output = [answer.stdout, answer.stderr].concat();
                Err(format!(
                    "command '{line}' exited with {code}: {}",
                    excerpt(&output, code)
                ))
            }
            Err(error) if grace.is_some() && timed_out(&error) => Err(format!("command '{line}' took too long")),
            Err(error) => Err(error.to_string()),
        };
    }
    if let Some(get) = &handler.http_get {
        let Action::Http(get) = Action::http(get, container, pod_ip)? else {
            return Err("no request".to_owned());
        };
        // Any answer will do: the hook tells the container something. Source: upstream's handler.
        return http::get(&get, http::Redirects::Ignore).await.map(drop);
    }
    if let Some(sleep) = &handler.sleep {
        let seconds = u64::try_from(sleep.seconds).unwrap_or_default();
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        return Ok(());
    }
    // tcpSocket was never carried out by upstream either.
    Err("the hook has no exec, httpGet or sleep".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
        time::Instant,
    };

    fn container(lifecycle: &Value) -> Container {
        serde_json::from_value(json!({ "name": "c", "lifecycle": lifecycle })).unwrap()
    }

    fn pod() -> Pod {
        serde_json::from_value(json!({ "metadata": { "namespace": "n", "name": "p" } })).unwrap()
    }

    fn nowhere() -> Runtime {
        Runtime::new(std::path::Path::new("/nowhere.sock")).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn sleep_takes_its_time_but_no_longer_than_the_grace() {
        let container = container(&json!({ "preStop": { "sleep": { "seconds": 20 } } }));
        let start = Instant::now();
        pre_stop(&nowhere(), &pod(), &container, "id", None, Duration::from_secs(30))
            .await
            .unwrap();
        assert_eq!(start.elapsed().as_secs(), 20);
        let cut = pre_stop(&nowhere(), &pod(), &container, "id", None, Duration::from_secs(5)).await;
        assert_eq!(start.elapsed().as_secs(), 25);
        let error = cut.unwrap_err();
        assert_eq!(error.reason(), "FailedPreStopHook");
        assert_eq!(
            error.to_string(),
            "preStop hook of container c in pod n/p: not finished within the grace period of 5 s"
        );
        // Without a hook there is nothing to wait for.
        post_start(&nowhere(), &pod(), &container, "id", None).await.unwrap();
        assert_eq!(start.elapsed().as_secs(), 25);
    }

    #[tokio::test]
    async fn any_answer_will_do() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let get = json!({ "postStart": { "httpGet": { "port": port, "path": "/up" } } });
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            stream
                .write_all(b"HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n")
                .await
                .unwrap();
            head
        });
        let address = Some("127.0.0.1".parse().unwrap());
        post_start(&nowhere(), &pod(), &container(&get), "id", address)
            .await
            .unwrap();
        assert!(server.await.unwrap().starts_with(b"GET /up HTTP/1.1\r\n"));
        let gone = post_start(&nowhere(), &pod(), &container(&get), "id", address).await;
        assert_eq!(gone.unwrap_err().reason(), "FailedPostStartHook");
    }

    #[tokio::test]
    async fn a_runtime_that_is_away_is_a_failure() {
        let exec = container(&json!({ "postStart": { "exec": { "command": ["true"] } } }));
        let error = post_start(&nowhere(), &pod(), &exec, "id", None).await.unwrap_err();
        assert!(error.cause.contains("ExecSync"), "{error}");
        let nothing = container(&json!({ "postStart": {} }));
        let error = post_start(&nowhere(), &pod(), &nothing, "id", None).await.unwrap_err();
        assert!(error.cause.contains("no exec"), "{error}");
    }
}
