//! `/healthz` and `/livez` as kube-proxy answers them, and [`ServiceChecks`] for `healthCheckNodePort`.

mod service_checks;

pub use service_checks::{CheckState, ServiceChecks, service_check_router};

use crate::{clock::Now, metrics::Metrics};
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use jiff::Timestamp;
use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};
use tokio::time::Instant;

/// Go's zero time, as kube-proxy prints it before the first sync.
const NEVER: &str = "0001-01-01 00:00:00 +0000 UTC";

/// Whether the proxy keeps up with what it is told, and whether load balancers may send traffic to this node.
///
/// Unhealthy means that a change has been waiting for longer than the timeout; a proxy that has not been told anything
/// is healthy, as upstream.
#[derive(Debug)]
pub struct ProxyHealth {
    timeout: Duration,
    inner: RwLock<Inner>,
}

#[derive(Clone, Copy, Debug)]
struct Inner {
    oldest_pending: Option<Instant>,
    last_updated: Option<Timestamp>,
    node_eligible: bool,
}

/// One answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    /// No change waits for longer than the timeout.
    pub keeps_up: bool,
    /// The node is neither being deleted nor tainted for deletion.
    pub node_eligible: bool,
    /// End of the last sync.
    pub last_updated: Option<Timestamp>,
}

impl ProxyHealth {
    /// `timeout` is twice the sync period.
    pub fn new(timeout: Duration) -> Self {
        let inner = Inner {
            oldest_pending: None,
            last_updated: None,
            node_eligible: true,
        };
        Self {
            timeout,
            inner: RwLock::new(inner),
        }
    }

    /// A change has come in and is not in the kernel yet.
    pub fn queued(&self, now: Now) {
        self.write(|inner| _ = inner.oldest_pending.get_or_insert(now.mono));
    }

    /// Everything that was queued is in the kernel.
    pub fn updated(&self, now: Now) {
        self.write(|inner| {
            inner.oldest_pending = None;
            inner.last_updated = Some(now.wall);
        });
    }

    /// What the Node object says.
    pub fn set_node_eligible(&self, eligible: bool) {
        self.write(|inner| inner.node_eligible = eligible);
    }

    /// How things stand.
    pub fn check(&self, now: Now) -> Health {
        let inner = *self.inner.read().unwrap_or_else(PoisonError::into_inner);
        let age = |since: Instant| now.mono.saturating_duration_since(since);
        Health {
            keeps_up: inner.oldest_pending.is_none_or(|since| age(since) < self.timeout),
            node_eligible: inner.node_eligible,
            last_updated: inner.last_updated,
        }
    }

    fn write(&self, change: impl FnOnce(&mut Inner)) {
        change(&mut self.inner.write().unwrap_or_else(PoisonError::into_inner));
    }
}

/// A time as Go prints it.
fn go_time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S.%9f +0000 UTC").to_string()
}

/// Code and body of `/healthz` (`with_node`) or `/livez`.
fn answer(health: Health, now: Timestamp, with_node: bool) -> (StatusCode, String) {
    let healthy = health.keeps_up && (health.node_eligible || !with_node);
    // A healthy proxy is up to date now, even if nothing had to be done lately.
    let last_updated = if healthy {
        go_time(now)
    } else {
        health.last_updated.map_or(NEVER.to_owned(), go_time)
    };
    let mut body = format!(r#"{{"lastUpdated": "{last_updated}","currentTime": "{}""#, go_time(now));
    if with_node {
        body.push_str(&format!(r#", "nodeEligible": {}"#, health.node_eligible));
    }
    body.push('}');
    (
        if healthy {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        },
        body,
    )
}

/// JSON with the headers that kube-proxy sets.
pub(crate) fn json(code: StatusCode, body: String) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "application/json"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (code, headers, body).into_response()
}

/// The routes of the health port.
pub fn health_router(health: Arc<ProxyHealth>, metrics: Arc<Metrics>) -> Router {
    type Shared = State<(Arc<ProxyHealth>, Arc<Metrics>)>;
    let code = |code: StatusCode| [("code", code.as_str().to_owned())];
    let healthz = move |State((health, metrics)): Shared| async move {
        let now = Now::read();
        let (status, body) = answer(health.check(now), now.wall, true);
        metrics.healthz.get_or_create(&code(status)).inc();
        json(status, body)
    };
    let livez = move |State((health, metrics)): Shared| async move {
        let now = Now::read();
        let (status, body) = answer(health.check(now), now.wall, false);
        metrics.livez.get_or_create(&code(status)).inc();
        json(status, body)
    };
    Router::new()
        .route("/healthz", get(healthz))
        .route("/livez", get(livez))
        .with_state((health, metrics))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Format;
    use axum::{body::Body, http::Request};
    use tower::ServiceExt;

    fn at(base: Now, seconds: u64) -> Now {
        let later = Duration::from_secs(seconds);
        Now {
            mono: base.mono + later,
            wall: base.wall + jiff::SignedDuration::from_secs(seconds as i64),
        }
    }

    #[test]
    fn a_change_that_waits_too_long_is_unhealthy_until_it_is_in() {
        let base = Now::read();
        let health = ProxyHealth::new(Duration::from_secs(60));
        assert!(health.check(at(base, 1000)).keeps_up, "nothing queued yet");
        health.queued(base);
        health.queued(at(base, 50));
        assert!(health.check(at(base, 59)).keeps_up);
        assert!(!health.check(at(base, 60)).keeps_up, "the oldest counts");
        health.updated(at(base, 61));
        let after = health.check(at(base, 2000));
        assert!(after.keeps_up);
        assert_eq!(after.last_updated, Some(at(base, 61).wall));
    }

    #[test]
    fn bodies_and_codes() {
        let now: Timestamp = "2026-03-01T12:00:00.5Z".parse().unwrap();
        let last = Some("2026-03-01T11:00:00Z".parse().unwrap());
        let health = |keeps_up, node_eligible| Health {
            keeps_up,
            node_eligible,
            last_updated: last,
        };
        let current = "2026-03-01 12:00:00.500000000 +0000 UTC";
        let stale = "2026-03-01 11:00:00.000000000 +0000 UTC";
        for (given, with_node, code, updated, tail) in [
            (health(true, true), true, 200, current, r#", "nodeEligible": true}"#),
            (health(true, false), true, 503, stale, r#", "nodeEligible": false}"#),
            (health(true, false), false, 200, current, "}"),
            (health(false, true), true, 503, stale, r#", "nodeEligible": true}"#),
            (health(false, true), false, 503, stale, "}"),
        ] {
            let body = format!(r#"{{"lastUpdated": "{updated}","currentTime": "{current}"{tail}"#);
            let (found, text) = answer(given, now, with_node);
            assert_eq!((found.as_u16(), &text), (code, &body), "{given:?}");
            serde_json::from_str::<serde_json::Value>(&text).unwrap();
        }
        let never = Health {
            last_updated: None,
            ..health(false, true)
        };
        assert!(answer(never, now, true).1.contains(NEVER));
    }

    #[tokio::test]
    async fn the_router_sets_headers_and_counts() {
        let health = Arc::new(ProxyHealth::new(Duration::from_secs(60)));
        let metrics = Arc::new(Metrics::new());
        let router = health_router(health.clone(), metrics.clone());
        let get = async |path: &str| {
            router
                .clone()
                .oneshot(Request::get(path).body(Body::empty()).unwrap())
                .await
                .unwrap()
        };
        let response = get("/healthz").await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "application/json");
        assert_eq!(response.headers()["x-content-type-options"], "nosniff");
        health.set_node_eligible(false);
        assert_eq!(get("/healthz").await.status(), 503);
        assert_eq!(get("/livez").await.status(), 200);
        assert_eq!(get("/other").await.status(), 404);
        let text = metrics.encode(Format::Text);
        assert!(
            text.contains("kubeproxy_proxy_healthz_total{code=\"503\"} 1\n"),
            "{text}"
        );
        assert!(text.contains("kubeproxy_proxy_livez_total{code=\"200\"} 1\n"));
    }
}
