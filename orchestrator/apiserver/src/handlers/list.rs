//! GET of one object and of many.

use super::{
    Call,
    present::{self, Tabulator},
};
use crate::{
    continue_token::ContinueToken,
    http::{
        Body, Form, body,
        options::{ListOptions, Match},
    },
    object,
    selectors::{FieldSelector, LabelSelector},
    status::{Result, Status},
};
use bytes::Bytes;
use fairlead_schema::Scope;
use fairlead_store::{Entry, Snapshot, StoreError};
use http::{Response, StatusCode};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};

/// How long a read waits for a revision that the client knows and this server does not, upstream's value.
pub(crate) const WAIT_FOR_REVISION: Duration = Duration::from_secs(3);

/// GET of one object.
pub(crate) async fn get(call: &Call) -> Result<Response<Body>> {
    let options = ListOptions::read(&call.query, false)?;
    if let Some(revision) = options.revision()? {
        wait_for(call, revision).await?;
    }
    let entry = call.entry()?;
    present::entry(call, StatusCode::OK, &entry)
}

impl Call {
    /// The object that the path names.
    pub(crate) fn entry(&self) -> Result<Arc<Entry>> {
        let key = object::key(&self.resource, &self.info.namespace, &self.info.name)?;
        let entry = self.server.cache.get(&key);
        entry.ok_or_else(|| Status::not_found(&self.resource, &self.info.name))
    }
}

/// What a list or watch lets through.
#[derive(Clone, Debug)]
pub(crate) struct Filter {
    pub(crate) namespace: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) labels: LabelSelector,
    pub(crate) fields: FieldSelector,
}

impl Filter {
    pub(crate) fn read(call: &Call, options: &ListOptions) -> Result<Self> {
        let fields = FieldSelector::parse(&options.field_selector, &call.resource)?;
        Ok(Self {
            namespace: (call.resource.scope == Scope::Namespaced && !call.info.namespace.is_empty())
                .then(|| call.info.namespace.clone()),
            // What was authorized: of a path as watch/…/NAME, or of the field selector.
            name: (!call.info.name.is_empty()).then(|| call.info.name.clone()),
            labels: LabelSelector::parse(&options.label_selector)?,
            fields,
        })
    }

    pub(crate) fn passes(&self, entry: &Entry) -> bool {
        self.namespace
            .as_deref()
            .is_none_or(|namespace| *entry.key.namespace == *namespace)
            && self.name.as_deref().is_none_or(|name| *entry.key.name == *name)
            && self.fields.matches_entry(entry)
            && self.labels.matches_entry(entry)
    }

    fn selects(&self) -> bool {
        !(self.labels.is_empty() && self.fields.is_empty())
    }
}

/// Waits until reads see a revision.
///
/// # Errors
/// 504 when it does not come: the client's revision is from another history.
pub(crate) async fn wait_for(call: &Call, revision: u64) -> Result<()> {
    let waited = call.server.cache.wait_for(revision, WAIT_FOR_REVISION).await;
    waited.map_err(|error| match error {
        StoreError::Future { newest, .. } => Status::timeout(
            format!("Too large resource version: {revision}, current: {newest}"),
            1,
        )
        .with_cause("ResourceVersionTooLarge", "Too large resource version", ""),
        other => Status::unavailable(other.to_string()),
    })
}

/// One page.
pub(crate) struct Page {
    pub(crate) entries: Vec<Arc<Entry>>,
    pub(crate) revision: u64,
    pub(crate) next: Option<ContinueToken>,
    pub(crate) remaining: Option<usize>,
}

/// GET of a collection.
pub(crate) async fn list(call: &Call) -> Result<Response<Body>> {
    let options = ListOptions::read(&call.query, false)?;
    let filter = Filter::read(call, &options)?;
    let page = page(call, &options, &filter).await?;
    match call.accept.form {
        Form::Object if !call.accept.yaml => objects(call, &page),
        form => transformed(call, form, &options, &page),
    }
}

/// Finds the objects of a page.
pub(crate) async fn page(call: &Call, options: &ListOptions, filter: &Filter) -> Result<Page> {
    let storage = call.resource.storage.as_ref();
    let prefix = &storage
        .ok_or_else(|| Status::method_not_allowed(&call.resource, "list"))?
        .prefix;
    let token = match options.continue_token.as_str() {
        "" => None,
        text => Some(ContinueToken::decode(text)?),
    };
    let snapshot = snapshot(call, prefix, options, token.as_ref()).await?;
    let after = token.as_ref().map(ContinueToken::start);
    let mut rest = snapshot
        .entries(filter.namespace.as_deref(), after)
        .filter(|entry| filter.passes(entry));
    let limit = if options.limit == 0 { usize::MAX } else { options.limit };
    let entries: Vec<_> = rest.by_ref().take(limit).map(Arc::clone).collect();
    let (mut next, mut remaining) = (None, None);
    if entries.len() == limit
        && let Some(last) = entries.last()
        && rest.next().is_some()
    {
        let consistent = token.as_ref().is_none_or(|token| token.revision().is_some());
        let revision = consistent.then_some(snapshot.revision());
        next = Some(ContinueToken::after(revision, &last.key.namespace, &last.key.name));
        // With selectors the number is not told, as upstream.
        remaining = (!filter.selects()).then(|| rest.count() + 1);
    }
    Ok(Page {
        entries,
        revision: snapshot.revision(),
        next,
        remaining,
    })
}

async fn snapshot(call: &Call, prefix: &str, options: &ListOptions, token: Option<&ContinueToken>) -> Result<Snapshot> {
    let cache = &call.server.cache;
    let asked = options.revision()?;
    let exact = match (token, asked) {
        (Some(token), _) => {
            let revision = token.revision();
            wait_for(call, revision.unwrap_or(0)).await?;
            revision
        }
        (None, None | Some(0)) => None,
        (None, Some(revision)) => {
            wait_for(call, revision).await?;
            let exact = options.resource_version_match == Some(Match::Exact)
                || (options.resource_version_match.is_none() && options.limit > 0);
            exact.then_some(revision)
        }
    };
    let Some(revision) = exact else {
        return Ok(cache.snapshot(prefix));
    };
    cache.snapshot_at(prefix, revision).map_err(|error| match (error, token) {
        (StoreError::Compacted { .. }, Some(token)) => {
            let mut status = Status::expired(
                "The provided continue parameter is too old to display a consistent list result. You can start a new \
                 list without the continue parameter, or use the continue token in this response to retrieve the \
                 remainder of the results. Continuing with the provided token results in an inconsistent list - \
                 objects that were created, modified, or deleted between the time the first chunk was returned and now \
                 may show up in the list.",
            );
            status.continue_token = Some(token.clone().inconsistent().encode());
            status
        }
        (StoreError::Compacted { asked, oldest }, None) => {
            Status::expired(format!("The resourceVersion for the provided list is too old: {asked} ({oldest})"))
        }
        (other, _) => Status::unavailable(other.to_string()),
    })
}

fn list_meta(page: &Page) -> Value {
    let mut meta = json!({ "resourceVersion": page.revision.to_string() });
    if let Some(next) = &page.next {
        meta["continue"] = json!(next.encode());
    }
    if let Some(remaining) = page.remaining {
        meta["remainingItemCount"] = json!(remaining);
    }
    meta
}

/// The list as stored texts behind one another: objects are neither parsed nor copied.
fn objects(call: &Call, page: &Page) -> Result<Response<Body>> {
    let head = json!({
        "kind": call.resource.list_kind(), "apiVersion": call.resource.api_version(), "metadata": list_meta(page),
    });
    let mut head = serde_json::to_vec(&head).unwrap_or_default();
    head.pop();
    head.extend_from_slice(b",\"items\":[");
    let mut pieces = Vec::with_capacity(2 * page.entries.len() + 1);
    for (at, entry) in page.entries.iter().enumerate() {
        if at > 0 {
            pieces.push(Bytes::from_static(b","));
        }
        pieces.push(present::text_of(&call.resource, entry)?);
    }
    let pieces = std::iter::once(Bytes::from(head))
        .chain(pieces)
        .chain([Bytes::from_static(b"]}")]);
    let body = body::streamed(futures::stream::iter(body::coalesce(pieces).map(Ok)));
    Ok(body::with_type(StatusCode::OK, "application/json", body))
}

fn transformed(call: &Call, form: Form, options: &ListOptions, page: &Page) -> Result<Response<Body>> {
    let values: Vec<Value> = page
        .entries
        .iter()
        .map(|entry| present::object_of(&call.resource, entry))
        .collect::<Result<_>>()?;
    let version = call.accept.meta_version();
    let mut shown = match form {
        Form::Table => Tabulator::new(call, options.include_object).table(values.iter(), true),
        Form::Metadata => {
            let items: Vec<_> = values.iter().map(|value| object::partial(value, version)).collect();
            json!({ "kind": "PartialObjectMetadataList", "apiVersion": version, "items": items })
        }
        Form::Object => json!({
            "kind": call.resource.list_kind(), "apiVersion": call.resource.api_version(), "items": values,
        }),
    };
    shown["metadata"] = list_meta(page);
    Ok(call.json(StatusCode::OK, &shown))
}
