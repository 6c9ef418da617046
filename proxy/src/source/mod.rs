//! Where Services, EndpointSlices and the Node come from: one stream of [`crate::model::Event`]s.
//!
//! `kubernetes.rs` follows an API server, `manifests.rs` a folder of files. Both give [`Events`]: batches that belong
//! together. The first batches say [`Event::Init`], everything that exists, and [`Event::InitDone`]; from then on each
//! batch is one change. A source sends differences only: an object that did not change is not repeated, one that was
//! never announced is not deleted. The same holds for faults: [`Event::Skipped`] says one once, [`Event::Reviewed`] that
//! those of an object are over.
//!
//! A source stops when its receiver is dropped, and waits while the receiver is busy.

mod decode;
pub mod kubernetes;
pub mod manifests;

use crate::model::{Change, EndpointSlice, Event, Node, ObjectName, Service};
use std::{fmt, io, path::PathBuf, sync::Arc};

/// What both sources give. One `Vec` is one atomic change (a file, a page of a list); the channel closes only when the
/// source cannot go on, which it has logged.
pub type Events = tokio::sync::mpsc::Receiver<Vec<Event>>;

/// Batches that may wait for the receiver.
const BACKLOG: usize = 16;

/// Why a source could not start.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The manifest folder cannot be read or followed.
    #[error("manifest folder {}: {doing}: {source}{remedy}", dir.display())]
    Folder {
        /// `--manifests`.
        dir: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
        /// What a human can do, or empty.
        remedy: &'static str,
    },
    /// No client for the API server can be made.
    #[error("{origin}: {reason}")]
    Client {
        /// Where the settings come from: the kubeconfig's path, or the pod's service account.
        origin: String,
        /// What is wrong with them, and the remedy.
        reason: String,
    },
}

/// An object of any kind that a proxy acts on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Object {
    Service(Service),
    Slice(EndpointSlice),
    Node(Node),
}

/// Kind and name of an [`Object`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Key {
    Service(ObjectName),
    Slice(ObjectName),
    Node(Arc<str>),
}

impl Object {
    fn key(&self) -> Key {
        match self {
            Self::Service(service) => Key::Service(service.name.clone()),
            Self::Slice(slice) => Key::Slice(slice.name.clone()),
            Self::Node(node) => Key::Node(Arc::clone(&node.name)),
        }
    }

    /// Gives back the room that growing lists have taken in reserve.
    fn shrink(&mut self) {
        match self {
            Self::Service(service) => {
                service.cluster_ips.shrink_to_fit();
                service.external_ips.shrink_to_fit();
                service.load_balancer_ips.shrink_to_fit();
                service.ports.shrink_to_fit();
                service.source_ranges.shrink_to_fit();
            }
            Self::Slice(slice) => {
                slice.ports.shrink_to_fit();
                slice.endpoints.shrink_to_fit();
                for endpoint in &mut slice.endpoints {
                    endpoint.zone_hints.shrink_to_fit();
                    endpoint.node_hints.shrink_to_fit();
                }
            }
            Self::Node(node) => node.internal_ips.shrink_to_fit(),
        }
    }

    fn applied(self) -> Event {
        match self {
            Self::Service(service) => Event::Service(Change::Apply(service)),
            Self::Slice(slice) => Event::Slice(Change::Apply(slice)),
            Self::Node(node) => Event::Node(Change::Apply(node)),
        }
    }
}

impl Key {
    fn deleted(self) -> Event {
        match self {
            Self::Service(name) => Event::Service(Change::Delete(name)),
            Self::Slice(name) => Event::Slice(Change::Delete(name)),
            Self::Node(name) => Event::Node(Change::Delete(name)),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(name) => write!(f, "Service {name}"),
            Self::Slice(name) => write!(f, "EndpointSlice {name}"),
            Self::Node(name) => write!(f, "Node {name}"),
        }
    }
}
