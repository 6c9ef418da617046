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
