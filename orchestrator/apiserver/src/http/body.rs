//! Bodies: reading them within limits, and answering with them.

use crate::status::{Result, Status};
use bytes::{Bytes, BytesMut};
use fairlead_schema::{Types, proto, read, strict::FieldProblem};
use http::{HeaderMap, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited, StreamBody, combinators::UnsyncBoxBody};
use serde_json::Value;

/// Largest body of a request, bytes. Upstream's limit.
pub const MAX_BODY: usize = 3 * 1024 * 1024;

/// Bodies of responses, and of requests to a node.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// Why a body broke off.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A body that is all there.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A body that comes piece by piece.
pub fn streamed(pieces: impl futures::Stream<Item = Result<Bytes, BoxError>> + Send + 'static) -> Body {
    use futures::StreamExt as _;
    StreamBody::new(pieces.map(|piece| piece.map(http_body::Frame::data))).boxed_unsync()
}

/// An answer with one JSON value.
pub fn json(code: StatusCode, value: &Value) -> Response<Body> {
    json_bytes(code, serde_json::to_vec(value).unwrap_or_default())
}

/// An answer with JSON text.
pub fn json_bytes(code: StatusCode, bytes: impl Into<Bytes>) -> Response<Body> {
    with_type(code, "application/json", full(bytes))
}

/// An answer with plain text.
pub fn text(code: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    with_type(code, "text/plain; charset=utf-8", full(text))
}

/// An answer of a media type.
pub fn with_type(code: StatusCode, media_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    let value = http::HeaderValue::from_static(media_type);
    response.headers_mut().insert(header::CONTENT_TYPE, value);
    response
}

impl Status {
    /// The answer that says so.
    pub fn response(&self) -> Response<Body> {
        let code = StatusCode::from_u16(self.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = json(code, &self.to_json());
        if self.details.retry_after_s > 0 {
            let seconds = self.details.retry_after_s.into();
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        response
    }
}

/// The whole body of a request.
///
/// # Errors
/// 413 past [`MAX_BODY`], 400 when it breaks off.
pub async fn collect<B>(body: B) -> Result<Bytes>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    match Limited::new(body, MAX_BODY).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Status::too_large(MAX_BODY)),
        Err(error) => Err(Status::bad_request(format!("the request's body broke off: {error}"))),
    }
}

/// A request's object, whatever it was written in.
#[derive(Clone, Debug, Default)]
pub struct Payload {
    /// The object; `Null` for no body.
    pub value: Value,
    /// Fields that were given twice.
    pub duplicates: Vec<FieldProblem>,
}

const MEDIA_TYPES: [&str; 3] = [
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
];

impl Payload {
    /// Reads a body by its content type: JSON (also when nothing is said), YAML or protobuf.
    ///
    /// # Errors
    /// 415 for other types, 400 with the place of the fault.
    pub fn read(types: &Types, headers: &HeaderMap, body: &Bytes) -> Result<Self> {
        if body.is_empty() {
            return Ok(Self::default());
        }
        let found = match media_type(headers).as_deref() {
            None | Some("application/json") => {
                let (value, duplicates) = read::json(body).map_err(|error| {
                    let message = format!("couldn't get version/kind; json parse error: {error}");
                    Status::bad_request(message)
                })?;
                Self { value, duplicates }
            }
            Some("application/yaml") => {
                let (value, duplicates) = read::yaml(body)
                    .map_err(|error| Status::bad_request(format!("error converting YAML to JSON: {error}")))?;
                Self { value, duplicates }
            }
            Some("application/vnd.kubernetes.protobuf") => Self {
                value: proto::decode(types, body)
                    .map_err(|error| Status::bad_request(format!("the protobuf body: {error}")))?,
                duplicates: Vec::new(),
            },
            Some(_) => return Err(Status::unsupported_media_type(&MEDIA_TYPES)),
        };
        if !found.value.is_object() {
            return Err(Status::bad_request("the body must hold one object"));
        }
        Ok(found)
    }
}

/// The content type without parameters, in lower case; `None` when there is none.
pub fn media_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    let media_type = value.split(';').next().unwrap_or_default().trim();
    (!media_type.is_empty()).then(|| media_type.to_ascii_lowercase())
}

/// Joins many small pieces into fewer large ones, so that a list of a thousand objects is not a thousand frames.
pub fn coalesce(pieces: impl Iterator<Item = Bytes>) -> impl Iterator<Item = Bytes> {
    const FRAME: usize = 128 * 1024;
    let mut pieces = pieces.fuse();
    std::iter::from_fn(move || {
        let first = pieces.next()?;
        if first.len() >= FRAME {
            return Some(first);
        }
        let mut frame = BytesMut::with_capacity(FRAME);
        frame.extend_from_slice(&first);
        while frame.len() < FRAME {
            match pieces.next() {
                Some(piece) => frame.extend_from_slice(&piece),
                None => break,
            }
        }
        Some(frame.freeze())
    })
}

/// Least size of a body that is compressed, bytes: upstream's value.
const COMPRESS_FROM: u64 = 128 * 1024;

/// Compresses an answer whose size is known and worth it. Watches and streams pass as they are: a frame must arrive at
/// once.
pub async fn compress(response: Response<Body>) -> Response<Body> {
    use http_body::Body as _;
    let is_stream = response.headers().contains_key(header::CONTENT_ENCODING)
        || response.status() == StatusCode::SWITCHING_PROTOCOLS
        || response.extensions().get::<Endless>().is_some();
    let small = response
        .body()
        .size_hint()
        .exact()
        .is_some_and(|size| size < COMPRESS_FROM);
    if is_stream || small {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let Ok(collected) = body.collect().await else {
        return Status::internal("the answer broke off").response();
    };
    let bytes = collected.to_bytes();
    if (bytes.len() as u64) < COMPRESS_FROM {
        return Response::from_parts(parts, full(bytes));
    }
    let packed = tokio::task::spawn_blocking(move || {
        use std::io::Write as _;
        let mut packer =
            flate2::write::GzEncoder::new(Vec::with_capacity(bytes.len() / 4), flate2::Compression::fast());
        packer.write_all(&bytes).and_then(|()| packer.finish())
    });
    match packed.await {
        Ok(Ok(packed)) => {
            parts
                .headers
                .insert(header::CONTENT_ENCODING, http::HeaderValue::from_static("gzip"));
            parts
                .headers
                .append(header::VARY, http::HeaderValue::from_static("Accept-Encoding"));
            Response::from_parts(parts, full(packed))
        }
        _ => Status::internal("the answer could not be compressed").response(),
    }
}

/// Marks an answer that goes on until somebody ends it.
#[derive(Clone, Copy, Debug)]
pub struct Endless;
