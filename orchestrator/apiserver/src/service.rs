//! The one router: every request passes here, from a TLS socket or from a client in this process.
//!
//! Order: limits, who asks, for whom, what for, may they, answer, warnings, compression, metrics.

use crate::{
    authn::{Credentials, User, impersonate},
    authz::{self, Attributes, Authorizer as _, FieldRequirement},
    core::{ApiServer, unknown_resource},
    discovery,
    handlers::Call,
    health,
    http::{Accept, Body, body, body::BoxError, negotiate::takes_gzip},
    metrics::RequestLabels,
    request_info::{RequestInfo, parameter},
    selectors::field_terms,
    status::{Result, Status},
};
use bytes::Bytes;
use fairlead_schema::{Resource, Scope};
use futures::future::BoxFuture;
use http::{HeaderValue, Method, Request, Response, header};
use jiff::Timestamp;
use std::{
    convert::Infallible,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Instant,
};
use tokio::sync::{Semaphore, SemaphorePermit};

/// The client certificate of a connection in DER, verified; an extension of its requests.
#[derive(Clone, Debug)]
pub struct PeerCertificate(pub Arc<[u8]>);

/// Who asks, known without credentials: an extension of requests made inside this process.
#[derive(Clone, Debug)]
pub struct TrustedUser(pub User);

/// The server as a user of itself.
pub(crate) const ITSELF: &str = "system:apiserver";

/// Requests at one time.
#[derive(Debug)]
pub(crate) struct Limits {
    reads: Semaphore,
    writes: Semaphore,
}

impl Limits {
    pub(crate) fn new(reads: usize, writes: usize) -> Self {
        Self {
            reads: Semaphore::new(reads),
            writes: Semaphore::new(writes),
        }
    }

    /// A place, if there is one.
    fn enter(&self, writes: bool) -> Option<SemaphorePermit<'_>> {
        let semaphore = if writes { &self.writes } else { &self.reads };
        semaphore.try_acquire().ok()
    }
}

/// The API as a [`tower::Service`].
#[derive(Clone)]
pub struct Api(pub Arc<ApiServer>);

impl<B> tower::Service<Request<B>> for Api
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let server = Arc::clone(&self.0);
        Box::pin(async move {
            // A fault of ours in one request must not take the connection, and its other requests, with it.
            let answer = answer(Arc::clone(&server), request);
            let answer = futures::FutureExt::catch_unwind(AssertUnwindSafe(answer));
            Ok(answer.await.unwrap_or_else(|panic| {
                server.metrics.fault();
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text
                    .or_else(|| panic.downcast_ref::<&str>().copied())
                    .unwrap_or("unknown");
                tracing::error!(panic = text, "a request failed by a fault of this server");
                Status::internal("this server has a fault; its log names it").response()
            }))
        })
    }
}

async fn answer<B>(server: Arc<ApiServer>, request: Request<B>) -> Response<Body>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let started = Instant::now();
    let gzip = takes_gzip(request.headers());
    let query = request.uri().query().unwrap_or_default().to_owned();
    let info = RequestInfo::parse(request.method(), request.uri().path(), &query);
    let mut labels = labels(&server, &info);
    let mut warnings = Vec::new();
    let response = route(&server, request, info, query, &mut warnings).await;
    let mut response = response.unwrap_or_else(|status| status.response());
    for text in warnings {
        if let Some(value) = warning(&text) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
    labels.code = response.status().as_u16();
    let headers = response.headers_mut();
    let fresh = HeaderValue::from_static("no-cache, private");
    headers.entry(header::CACHE_CONTROL).or_insert(fresh);
    server.metrics.finished(&labels, started.elapsed());
    if gzip { body::compress(response).await } else { response }
}

/// Names that a client makes up, known or not to it, must not become series: those have a row, or are left empty.
fn labels(server: &ApiServer, info: &RequestInfo) -> RequestLabels {
    const VERBS: [&str; 10] = [
        "get",
        "list",
        "watch",
        "create",
        "update",
        "patch",
        "delete",
        "deletecollection",
        "post",
        "put",
    ];
    let verb = if VERBS.contains(&info.verb.as_str()) {
        &*info.verb
    } else {
        "other"
    };
    let mut labels = RequestLabels {
        verb: verb.to_owned(),
        ..RequestLabels::default()
    };
    if let Some(resource) = server.resource(&info.group, &info.version, &info.resource) {
        labels.group.clone_from(&info.group);
        labels.version.clone_from(&info.version);
        labels.resource.clone_from(&info.resource);
        if resource.subresource(&info.subresource).is_some() {
            labels.subresource.clone_from(&info.subresource);
        }
    }
    labels
}

/// `299 - "text"`. Source: RFC 7234 §5.5; what no header may hold is replaced.
fn warning(text: &str) -> Option<HeaderValue> {
    let text: String = text.chars().map(|it| if it.is_control() { ' ' } else { it }).collect();
    let text = text.replace('\\', "\\\\").replace('"', "\\\"");
    HeaderValue::from_bytes(format!("299 - \"{text}\"").as_bytes()).ok()
}

async fn route<B>(
    server: &Arc<ApiServer>,
    mut request: Request<B>,
    info: RequestInfo,
    query: String,
    warnings: &mut Vec<String>,
) -> Result<Response<Body>>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let streams = matches!(
        info.subresource.as_str(),
        "exec" | "attach" | "portforward" | "proxy" | "log"
    );
    let long = info.verb == "watch" || (info.is_resource && streams);
    let writes = !matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    let kind = if writes { "mutating" } else { "readOnly" };
    let _place = if long || health::is_health(&info.path) || is_itself(&request) {
        None
    } else {
        let place = server.limits.enter(writes);
        Some(place.ok_or_else(|| {
            server.metrics.rejected(kind);
            Status::too_many_requests("too many requests, please try again later", 1)
        })?)
    };
    let _counted = Inflight::new(server, kind, long);
    if *server.stop.borrow() && !health::is_health(&info.path) {
        return Err(Status::unavailable("the server is stopping"));
    }
    let user = who(server, &request)?;
    let fields = selector_requirements(&info, &query);
    let attributes = Attributes {
        user: &user,
        verb: &info.verb,
        group: &info.group,
        version: &info.version,
        resource: &info.resource,
        subresource: &info.subresource,
        namespace: &info.namespace,
        name: &info.name,
        path: if info.is_resource { "" } else { &info.path },
        fields: &fields,
    };
    let decision = server.authorizer.authorize(&attributes);
    if !decision.allowed() {
        return Err(authz::forbidden(&attributes, &decision.reason));
    }
    // A stream into a pod is a write however it is asked for. Source: KEP-5515.
    if info.verb == "get" && matches!(info.subresource.as_str(), "exec" | "attach" | "portforward") {
        let attributes = Attributes {
            verb: "create",
            ..attributes
        };
        let decision = server.authorizer.authorize(&attributes);
        if !decision.allowed() {
            return Err(authz::forbidden(&attributes, &decision.reason));
        }
    }
    if !info.is_resource {
        return discovery::answer(server, &request, &info);
    }
    let resource = server
        .resource(&info.group, &info.version, &info.resource)
        .ok_or_else(unknown_resource)?;
    check_scope(&resource, &info)?;
    let accept = if streams {
        Accept::JSON
    } else {
        Accept::read(request.headers())?
    };
    let on_upgrade = request.extensions_mut().remove::<hyper::upgrade::OnUpgrade>();
    let (parts, incoming) = request.into_parts();
    let call = Arc::new(Call {
        server: Arc::clone(server),
        resource,
        info,
        user,
        query,
        headers: parts.headers,
        accept,
        now: Timestamp::now(),
        warnings: Mutex::default(),
        method: parts.method,
        on_upgrade: Mutex::new(on_upgrade),
    });
    let work = {
        let call = Arc::clone(&call);
        async move {
            let bytes = body::collect(incoming).await?;
            if !writes || long {
                return call.run(bytes).await;
            }
            // A client that goes must not stop a write half way: what is stored has consequences elsewhere.
            match tokio::spawn(call.run(bytes)).await {
                Ok(answer) => answer,
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Err(_) => Err(Status::unavailable("the server is stopping")),
            }
        }
    };
    let response = if long {
        work.await
    } else {
        let late = |_| Status::timeout("request did not complete within the allotted timeout", 1);
        tokio::time::timeout(server.settings.request_timeout, work)
            .await
            .map_err(late)?
    };
    warnings.append(&mut call.warnings.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    response
}

/// Whether the server asks for its own purposes: it must not wait for those who wait for it.
fn is_itself<B>(request: &Request<B>) -> bool {
    let user = request.extensions().get::<TrustedUser>();
    user.is_some_and(|TrustedUser(user)| user.name == ITSELF)
}

/// Paths that name a namespace for what has none, or an object of a namespace without its namespace, lead nowhere.
fn check_scope(resource: &Resource, info: &RequestInfo) -> Result<()> {
    let fits = match resource.scope {
        // The path of a namespace names it twice over; of others only the rights inside it would have been asked for.
        Scope::Cluster => {
            info.namespace.is_empty() || (&*resource.plural == "namespaces" && info.namespace == info.name)
        }
        Scope::Namespaced => !info.namespace.is_empty() || matches!(info.verb.as_str(), "list" | "watch" | "create"),
    };
    if fits { Ok(()) } else { Err(Status::no_such_path()) }
}

/// Who asks: known from inside, or by certificate, token or nothing; then for whom.
fn who<B>(server: &ApiServer, request: &Request<B>) -> Result<User> {
    let user = match request.extensions().get::<TrustedUser>() {
        Some(TrustedUser(user)) => user.clone(),
        None => {
            let certificate = request.extensions().get::<PeerCertificate>();
            let authorization = match request.headers().get(header::AUTHORIZATION) {
                Some(value) => Some(value.to_str().map_err(|_| Status::unauthorized())?),
                None => None,
            };
            let credentials = Credentials {
                certificate: certificate.map(|it| &*it.0),
                authorization,
            };
            server
                .authenticator
                .authenticate(credentials, server, Timestamp::now().as_second())?
        }
    };
    impersonate::apply(user, request.headers(), &server.authorizer)
}

/// The terms of a field selector, for authorizers that look at them (nodes may list their own pods).
fn selector_requirements(info: &RequestInfo, query: &str) -> Vec<FieldRequirement> {
    if !matches!(info.verb.as_str(), "list" | "watch" | "deletecollection") {
        return Vec::new();
    }
    let selector = parameter(query, "fieldSelector").unwrap_or_default();
    // What cannot be read selects nothing and is refused later.
    let terms = field_terms(&selector).unwrap_or_default().into_iter();
    let terms = terms.map(|term| FieldRequirement {
        field: term.field.to_owned(),
        equals: term.equal,
        value: term.value,
    });
    terms.collect()
}

struct Inflight<'a>(&'a ApiServer, &'static str, bool);

impl<'a> Inflight<'a> {
    fn new(server: &'a ApiServer, kind: &'static str, long: bool) -> Self {
        if !long {
            server.metrics.inflight(kind, 1);
        }
        Self(server, kind, long)
    }
}

impl Drop for Inflight<'_> {
    fn drop(&mut self) {
        if !self.2 {
            self.0.metrics.inflight(self.1, -1);
        }
    }
}
