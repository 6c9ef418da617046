//! What conversions of API objects share: their result, and the list of what was left out.

use super::{
    Interner, ObjectName,
    address::{Read, parse_ip, unfit},
};
use crate::error::Skipped;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use std::{fmt, net::IpAddr, sync::Arc};

/// Label on a Service: another proxy owns it, whatever the value.
pub(super) const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Label on a Service or EndpointSlice: no proxy should handle it.
pub(super) const HEADLESS: &str = "service.kubernetes.io/headless";

/// Most reports about one object; the rest is counted in a last one.
const MAX_REPORTS: usize = 32;
/// Longest piece of a bad value that a report repeats, characters.
const MAX_QUOTE: usize = 64;
/// Longest object name, bytes. Source: DNS-1123 subdomain.
const MAX_NAME: usize = 253;

/// An API object, looked at by this proxy.
#[derive(Clone, Debug, PartialEq)]
pub enum Converted<T> {
    /// This proxy's business.
    Ours(T),
    /// A sound object that is not. Whoever announced it earlier must announce its deletion: labels change.
    NotOurs {
        /// Which object.
        name: ObjectName,
        /// Why not, for `explain` and debug logs.
        why: &'static str,
    },
    /// Has no usable name, so nothing can be said about it; a report says why.
    Nameless,
}

impl<T> Converted<T> {
    /// The object, if it is ours.
    pub fn ours(self) -> Option<T> {
        match self {
            Self::Ours(object) => Some(object),
            Self::NotOurs { .. } | Self::Nameless => None,
        }
    }
}

/// Collects what was left out of one object.
pub(super) struct Reports {
    kind: &'static str,
    name: String,
    list: Vec<Skipped>,
    more: usize,
}

impl Reports {
    pub(super) fn new(kind: &'static str) -> Self {
        Self {
            kind,
            name: String::new(),
            list: Vec::new(),
            more: 0,
        }
    }

    /// Reports about `field`; `reason` is only rendered while there is room.
    pub(super) fn add(&mut self, field: impl fmt::Display, reason: impl fmt::Display) {
        if self.list.len() >= MAX_REPORTS {
            self.more += 1;
            return;
        }
        self.list.push(Skipped {
            object: self.object(),
            field: field.to_string(),
            reason: reason.to_string(),
        });
    }

    pub(super) fn finish(mut self) -> Vec<Skipped> {
        if self.more > 0 {
            let reason = format!("{} more faults not listed", self.more);
            self.list.push(Skipped {
                object: self.object(),
                field: String::new(),
                reason,
            });
        }
        self.list
    }

    fn object(&self) -> String {
        if self.name.is_empty() {
            format!("{} without a name", self.kind)
        } else {
            format!("{} {}", self.kind, self.name)
        }
    }

    /// Namespace and name, or a report. A manifest without a namespace means `default`, as for kubectl.
    pub(super) fn object_name(&mut self, meta: &ObjectMeta, strings: &mut Interner) -> Option<ObjectName> {
        let namespace = meta
            .namespace
            .as_deref()
            .filter(|text| !text.is_empty())
            .unwrap_or("default");
        let name = self.plain_name(meta)?;
        if let Err(reason) = check_name(namespace) {
            self.name = name.to_string();
            self.add("metadata.namespace", format_args!("{} {reason}", quote(namespace)));
            return None;
        }
        let name = ObjectName {
            namespace: strings.intern(namespace),
            name,
        };
        self.name = name.to_string();
        Some(name)
    }

    /// Name of an object without namespace, or a report.
    pub(super) fn plain_name(&mut self, meta: &ObjectMeta) -> Option<Arc<str>> {
        let name = meta.name.as_deref().unwrap_or_default();
        match check_name(name) {
            Ok(()) => {
                self.name = name.to_owned();
                Some(Arc::from(name))
            }
            Err(reason) => {
                self.add(
                    "metadata.name",
                    format_args!("{} {reason}; the object is ignored", quote(name)),
                );
                None
            }
        }
    }

    /// An address that traffic may be sent to or taken from, or a report.
    pub(super) fn address(&mut self, field: impl fmt::Display, text: &str) -> Option<IpAddr> {
        match parse_ip(text) {
            Err(reason) => self.add(field, format_args!("{} {reason}", quote(text))),
            Ok(Read { value, odd }) => match unfit(value) {
                Some(reason) => self.add(
                    field,
                    format_args!("{} {reason}, which no service may use", quote(text)),
                ),
                None => {
                    if let Some(odd) = odd {
                        self.add(field, format_args!("{} {odd}", quote(text)));
                    }
                    return Some(value);
                }
            },
        }
        None
    }
}

/// Whether a name can stand in logs and keys. Kubernetes is stricter; this is what keeps our own output unambiguous.
pub(super) fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        Err("is no name")
    } else if name.len() > MAX_NAME {
        Err("is longer than 253 bytes")
    } else if !name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b':'))
    {
        Err("contains characters that no name may have")
    } else {
        Ok(())
    }
}

/// A value as reports repeat it: escaped, and cut when long.
pub(super) fn quote(text: &str) -> String {
    match text.char_indices().nth(MAX_QUOTE) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}
