//! [`Accept`]: the form in which a client wants its answer.

use crate::status::{Result, Status};
use http::{HeaderMap, header};

/// What to answer with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The object or list itself.
    Object,
    /// `meta/v1 Table`, as `kubectl get` draws it.
    Table,
    /// `meta/v1 PartialObjectMetadata` or its list.
    Metadata,
}

/// The first acceptable of what a client offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accept {
    /// Which view of the object.
    pub form: Form,
    /// YAML instead of JSON.
    pub yaml: bool,
    /// The transformed view is asked for in `meta.k8s.io/v1beta1`.
    pub beta: bool,
}

impl Accept {
    /// Plain JSON.
    pub const JSON: Self = Self {
        form: Form::Object,
        yaml: false,
        beta: false,
    };

    /// Reads `Accept`. Offers are taken in the order of the header, as upstream does; quality values only exclude (q=0).
    ///
    /// # Errors
    /// 406 when nothing fits.
    pub fn read(headers: &HeaderMap) -> Result<Self> {
        let mut offers = headers.get_all(header::ACCEPT).iter().peekable();
        if offers.peek().is_none() {
            return Ok(Self::JSON);
        }
        let offers = offers.filter_map(|value| value.to_str().ok());
        let found = offers.flat_map(|value| value.split(',')).find_map(Self::offer);
        found.ok_or_else(|| Status::not_acceptable(&["application/json", "application/yaml"]))
    }

    fn offer(offer: &str) -> Option<Self> {
        let mut parts = offer.split(';').map(str::trim);
        let media_type = parts.next()?.to_ascii_lowercase();
        let yaml = match media_type.as_str() {
            "" | "*/*" | "application/*" | "application/json" => false,
            "application/yaml" => true,
            _ => return None,
        };
        let (mut form, mut beta, mut version_known) = (Form::Object, false, true);
        for parameter in parts {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            match (name.trim(), value.trim()) {
                ("as", "Table") => form = Form::Table,
                ("as", "PartialObjectMetadata" | "PartialObjectMetadataList") => form = Form::Metadata,
                ("as", _) => return None,
                ("v", "v1beta1") => beta = true,
                ("v", "v1") | ("g", "meta.k8s.io") => {}
                ("v" | "g", _) => version_known = false,
                ("q", quality) if quality.trim_start_matches(['0', '.']).is_empty() => return None,
                _ => {}
            }
        }
        (form == Form::Object || version_known).then_some(Self { form, yaml, beta })
    }

    /// `meta.k8s.io/v1` or `/v1beta1`, for the transformed views.
    pub fn meta_version(&self) -> &'static str {
        if self.beta {
            "meta.k8s.io/v1beta1"
        } else {
            "meta.k8s.io/v1"
        }
    }
}

/// Whether the client takes gzip.
pub fn takes_gzip(headers: &HeaderMap) -> bool {
    let values = headers
        .get_all(header::ACCEPT_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        matches!(parts.next(), Some("gzip" | "*")) && !matches!(parts.next(), Some("q=0" | "q=0.0"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn read(accept: &'static str) -> Result<Accept> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
        Accept::read(&headers)
    }

    #[test]
    fn what_real_clients_send() {
        assert_eq!(Accept::read(&HeaderMap::new()).unwrap(), Accept::JSON);
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(read(kubectl).unwrap().form, Form::Table);
        assert_eq!(
            read("application/vnd.kubernetes.protobuf,application/json").unwrap(),
            Accept::JSON
        );
        assert_eq!(read("application/json, */*").unwrap(), Accept::JSON);
        let metadata = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
        assert_eq!(read(metadata).unwrap().form, Form::Metadata);
        assert!(
            read("application/json;as=Table;v=v9;g=meta.k8s.io,application/yaml")
                .unwrap()
                .yaml
        );
        assert_eq!(read("application/cbor").unwrap_err().code, 406);
        assert_eq!(read("application/json;q=0").unwrap_err().code, 406);
    }
}
