//! `healthCheckNodePort`: one small HTTP server per such service and node address, for external load balancers.

use super::{ProxyHealth, json};
use crate::{clock::Now, metrics::Metrics, model::ObjectName, plan::HealthCheck};
use axum::{
    Router,
    http::{HeaderName, HeaderValue, StatusCode},
    response::Response,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::TcpListener,
    sync::{oneshot, watch},
    time::{Instant, sleep_until},
};

/// Ports that could not be opened are tried again after this long, and at every change before.
const RETRY: Duration = Duration::from_secs(30);

/// What should be served.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CheckState {
    /// Services with a `healthCheckNodePort`.
    pub checks: BTreeMap<ObjectName, HealthCheck>,
    /// Node addresses to listen on: those that serve NodePorts.
    pub addresses: Vec<IpAddr>,
}

impl CheckState {
    /// Sockets to listen on. A port that two services claim goes to the first by name.
    fn sockets(&self) -> BTreeMap<SocketAddr, &ObjectName> {
        let mut sockets = BTreeMap::new();
        for (name, check) in &self.checks {
            for addr in &self.addresses {
                sockets.entry(SocketAddr::new(*addr, check.port.get())).or_insert(name);
            }
        }
        sockets
    }
}

/// The task that keeps the servers in step with a [`CheckState`].
#[derive(Debug)]
pub struct ServiceChecks {
    state: watch::Receiver<CheckState>,
    health: Arc<ProxyHealth>,
    metrics: Arc<Metrics>,
    /// Open sockets: whom they answer for, and what closes them when dropped.
    open: BTreeMap<SocketAddr, (ObjectName, oneshot::Sender<()>)>,
    /// Sockets whose failure has been logged.
    failed: BTreeSet<SocketAddr>,
}

impl ServiceChecks {
    /// Follows `state` once [`ServiceChecks::run`].
    pub fn new(state: watch::Receiver<CheckState>, health: Arc<ProxyHealth>, metrics: Arc<Metrics>) -> Self {
        Self {
            state,
            health,
            metrics,
            open: BTreeMap::new(),
            failed: BTreeSet::new(),
        }
    }

    /// Runs until the sender of the state is gone; then all servers close.
    pub async fn run(mut self) {
        loop {
            self.step().await;
            let retry = Instant::now() + RETRY;
            tokio::select! {
                changed = self.state.changed() => if changed.is_err() { return },
                () = sleep_until(retry), if !self.failed.is_empty() => {}
            }
        }
    }

    /// Closes what is not wanted any more, opens what is missing.
    async fn step(&mut self) {
        let state = self.state.borrow_and_update().clone();
        let wanted = state.sockets();
        self.open
            .retain(|socket, (name, _)| wanted.get(socket) == Some(&&*name));
        self.failed.retain(|socket| wanted.contains_key(socket));
        for (socket, name) in wanted {
            if self.open.contains_key(&socket) {
                continue;
            }
            match TcpListener::bind(socket).await {
                Ok(listener) => {
                    self.failed.remove(&socket);
                    let router = service_check_router(name.clone(), self.state.clone(), self.health.clone());
                    self.open.insert(socket, (name.clone(), serve(listener, router)));
                }
                Err(error) => self.bind_failed(socket, name, &error),
            }
        }
    }

    fn bind_failed(&mut self, socket: SocketAddr, name: &ObjectName, error: &io::Error) {
        if self.failed.insert(socket) {
            self.metrics.health_check_bind_failures.inc();
            tracing::error!(
                reason = "FailedToStartServiceHealthcheck",
                service = %name,
                %socket,
                %error,
                "load balancers cannot ask this node; free the port or change spec.healthCheckNodePort"
            );
        }
    }
}

/// Serves until the returned sender is dropped, then closes its connections too.
fn serve(listener: TcpListener, router: Router) -> oneshot::Sender<()> {
    let (close, closed) = oneshot::channel();
    tokio::spawn(async move {
        let stop = async move { _ = closed.await };
        if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(stop).await {
            tracing::warn!(%error, "a healthCheckNodePort server ended");
        }
    });
    close
}

/// Answers every path for one service, as kube-proxy does.
pub fn service_check_router(name: ObjectName, state: watch::Receiver<CheckState>, health: Arc<ProxyHealth>) -> Router {
    Router::new().fallback(move || {
        let endpoints = state
            .borrow()
            .checks
            .get(&name)
            .map_or(0, |check| check.local_endpoints);
        let response = answer(&name, endpoints, health.check(Now::read()).keeps_up);
        async move { response }
    })
}

fn answer(name: &ObjectName, endpoints: usize, healthy: bool) -> Response {
    let body = serde_json::json!({
        "service": {"namespace": &*name.namespace, "name": &*name.name},
        "localEndpoints": endpoints,
        "serviceProxyHealthy": healthy,
    });
    let code = if endpoints > 0 && healthy {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let mut response = json(code, body.to_string());
    let weight = HeaderName::from_static("x-load-balancing-endpoint-weight");
    response.headers_mut().insert(weight, HeaderValue::from(endpoints));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::{body::Body, http::Request};
    use std::num::NonZeroU16;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tower::ServiceExt;

    fn state(port: u16, local_endpoints: usize) -> CheckState {
        let check = HealthCheck {
            port: NonZeroU16::new(port).unwrap(),
            local_endpoints,
        };
        CheckState {
            checks: BTreeMap::from([(ObjectName::new("shop", "web"), check)]),
            addresses: vec!["127.0.0.1".parse().unwrap()],
        }
    }

    #[tokio::test]
    async fn body_headers_and_codes() {
        for (endpoints, keeps_up, code) in [(2, true, 200), (0, true, 503), (2, false, 503)] {
            let (_sender, receiver) = watch::channel(state(30_999, endpoints));
            let health = Arc::new(ProxyHealth::new(if keeps_up { Duration::MAX } else { Duration::ZERO }));
            health.queued(Now::read());
            let router = service_check_router(ObjectName::new("shop", "web"), receiver, health);
            let response = router
                .oneshot(Request::get("/any").body(Body::empty()).unwrap())
                .await
                .unwrap();
            assert_eq!(response.status(), code);
            assert_eq!(response.headers()["content-type"], "application/json");
            assert_eq!(
                response.headers()["x-load-balancing-endpoint-weight"],
                endpoints.to_string().as_str()
            );
            let body = axum::body::to_bytes(response.into_body(), 4096).await.unwrap();
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            let expected = serde_json::json!({
                "service": {"namespace": "shop", "name": "web"},
                "localEndpoints": endpoints,
                "serviceProxyHealthy": keeps_up,
            });
            assert_eq!(body, expected);
        }
    }

    async fn ask(port: u16) -> io::Result<String> {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        Ok(text)
    }

    #[tokio::test]
    async fn sockets_follow_the_state() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = taken.local_addr().unwrap().port();
        let (sender, receiver) = watch::channel(state(port, 1));
        let metrics = Arc::new(Metrics::new());
        let health = Arc::new(ProxyHealth::new(Duration::from_secs(60)));
        let mut checks = ServiceChecks::new(receiver, health, metrics.clone());
        checks.step().await;
        assert!(checks.open.is_empty(), "the port is taken");
        assert_eq!(metrics.health_check_bind_failures.get(), 1);
        drop(taken);
        checks.step().await;
        assert!(ask(port).await.unwrap().starts_with("HTTP/1.1 200 "));
        sender.send(state(port, 0)).unwrap();
        assert!(
            ask(port).await.unwrap().starts_with("HTTP/1.1 503 "),
            "the count is read at each request"
        );
        sender.send(CheckState::default()).unwrap();
        checks.step().await;
        assert!(checks.open.is_empty());
    }

    #[test]
    fn one_port_claimed_twice_has_one_owner() {
        let mut state = state(30_999, 1);
        let check = state.checks[&ObjectName::new("shop", "web")];
        state.checks.insert(ObjectName::new("shop", "api"), check);
        state.addresses.push("::1".parse().unwrap());
        let sockets = state.sockets();
        assert_eq!(sockets.len(), 2);
        assert!(sockets.values().all(|name| &*name.name == "api"));
    }
}
