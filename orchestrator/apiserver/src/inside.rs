//! The inner door: the same router for callers in this process, without a socket.

use crate::{
    authn::User,
    core::ApiServer,
    http::{Body, body::BoxError},
    service::{Api, TrustedUser},
};
use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt as _, Full};
use serde_json::Value;
use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
};
use tower::Service;

/// The router for one user of this process: hand it to `kube::Client::new`.
#[derive(Clone)]
pub struct Inside {
    api: Api,
    user: User,
}

impl Inside {
    /// A door for this user, who needs no credentials.
    pub fn new(server: Arc<ApiServer>, user: User) -> Self {
        Self { api: Api(server), user }
    }

    /// One request; the code and the JSON of the answer (`Null` where it is none).
    pub async fn request(&self, method: Method, path: &str, content_type: &str, body: Option<&Value>) -> (u16, Value) {
        let bytes = body
            .map(|body| serde_json::to_vec(body).unwrap_or_default())
            .unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, content_type)
            .header(header::USER_AGENT, "fairlead")
            .body(Full::new(Bytes::from(bytes)));
        let Ok(request) = request else {
            return (400, Value::Null);
        };
        let Ok(response) = self.clone().call(request).await;
        let code = response.status().as_u16();
        let collected = response
            .into_body()
            .collect()
            .await
            .map(http_body_util::Collected::to_bytes)
            .unwrap_or_default();
        (code, serde_json::from_slice(&collected).unwrap_or_default())
    }
}

impl<B> Service<Request<B>> for Inside
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

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        request.extensions_mut().insert(TrustedUser(self.user.clone()));
        self.api.call(request)
    }
}
