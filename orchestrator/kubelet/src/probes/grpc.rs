//! gRPC probes. Source: `grpc.health.v1.Health/Check` of the gRPC health checking protocol.

use super::Attempt;
use http::uri::PathAndQuery;
use tonic::{Code, Request, client::Grpc, transport::Endpoint};
use tonic_prost::ProstCodec;

/// `grpc.health.v1.HealthCheckRequest`
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    pub(super) service: String,
}

/// `grpc.health.v1.HealthCheckResponse`
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    pub(super) status: i32,
}

/// `SERVING` of `HealthCheckResponse.ServingStatus`.
const SERVING: i32 = 1;

/// Asks once, without TLS. The caller keeps the time.
pub(super) async fn check(host: &str, port: u16, service: &str) -> Attempt {
    let bracketed = if host.contains(':') {
        format!("[{host}]")
    } else {
        host.to_owned()
    };
    let endpoint = Endpoint::from_shared(format!("http://{bracketed}:{port}"));
    let endpoint = match endpoint.and_then(|it| it.user_agent("kube-probe/1.36")) {
        Ok(endpoint) => endpoint,
        Err(error) => return Attempt::Unknown(format!("{host}, port {port}: {error}")),
    };
    let channel = match endpoint.connect().await {
        Ok(channel) => channel,
        Err(error) => {
            let cause = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            return Attempt::Failure(format!("failed to connect service \"{bracketed}:{port}\": {cause}"));
        }
    };
    let mut grpc = Grpc::new(channel);
    if let Err(error) = grpc.ready().await {
        return Attempt::Failure(error.to_string());
    }
    let request = Request::new(HealthCheckRequest {
        service: service.to_owned(),
    });
    let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let codec: ProstCodec<HealthCheckRequest, HealthCheckResponse> = ProstCodec::default();
    match grpc.unary(request, path, codec).await {
        Ok(answer) => match answer.into_inner().status {
            SERVING => Attempt::Success,
            other => Attempt::Failure(format!("service unhealthy (responded with {:?})", name(other))),
        },
        Err(status) if status.code() == Code::Unimplemented => Attempt::Failure(
            "this server does not implement the grpc health protocol (grpc.health.v1.Health)".to_owned(),
        ),
        Err(status) => Attempt::Failure(format!(
            "service health check failed: {} ({})",
            status.message(),
            status.code()
        )),
    }
}

fn name(status: i32) -> String {
    match status {
        0 => "UNKNOWN".to_owned(),
        2 => "NOT_SERVING".to_owned(),
        3 => "SERVICE_UNKNOWN".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::{BufMut as _, Bytes, BytesMut};
    use http::{HeaderMap, HeaderValue, Response};
    use http_body_util::{BodyExt as _, StreamBody};
    use hyper::{body::Frame, server::conn::http2, service::service_fn};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use prost::Message as _;
    use std::convert::Infallible;
    use tokio::net::TcpListener;

    /// A server that knows two services, `up` and `down`; its port.
    async fn server() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let answer = |request: http::Request<hyper::body::Incoming>| async move {
            assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
            let asked = request.into_body().collect().await.unwrap().to_bytes();
            // A flag and four bytes of length are in front of the message.
            let asked = HealthCheckRequest::decode(&asked[5..]).unwrap().service;
            let mut trailers = HeaderMap::new();
            let code = if matches!(&*asked, "up" | "down") { "0" } else { "5" };
            trailers.insert("grpc-status", HeaderValue::from_static(code));
            let status = if asked == "up" { SERVING } else { 2 };
            let message = HealthCheckResponse { status }.encode_to_vec();
            let mut body = BytesMut::new();
            body.put_u8(0);
            body.put_u32(message.len().try_into().unwrap());
            body.extend_from_slice(&message);
            let mut frames = vec![Ok::<_, Infallible>(Frame::trailers(trailers))];
            if code == "0" {
                frames.insert(0, Ok(Frame::data(Bytes::from(body))));
            }
            let mut response = Response::new(StreamBody::new(futures::stream::iter(frames)));
            let kind = HeaderValue::from_static("application/grpc");
            response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
            Ok::<_, Infallible>(response)
        };
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let server = http2::Builder::new(TokioExecutor::new());
                tokio::spawn(server.serve_connection(TokioIo::new(socket), service_fn(answer)));
            }
        });
        port
    }

    #[tokio::test]
    async fn what_servers_say() {
        let port = server().await;
        assert_eq!(check("127.0.0.1", port, "up").await, Attempt::Success);
        for (service, expected) in [
            ("down", "service unhealthy (responded with \"NOT_SERVING\")"),
            ("other", "service health check failed"),
        ] {
            match check("127.0.0.1", port, service).await {
                Attempt::Failure(text) => assert!(text.starts_with(expected), "{text}"),
                other => panic!("{other:?}"),
            }
        }
        let closed = TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        match check("127.0.0.1", closed, "").await {
            Attempt::Failure(text) => assert!(text.starts_with("failed to connect service"), "{text}"),
            other => panic!("{other:?}"),
        }
    }
}
