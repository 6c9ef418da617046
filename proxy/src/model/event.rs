//! What a source says: one stream, whatever it reads from.

use super::{EndpointSlice, Node, ObjectName, Service};
use crate::error::Skipped;
use std::sync::Arc;

/// An object came or changed, or went.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Change<T, K> {
    /// New or changed; replaces what had this key.
    Apply(T),
    /// Gone.
    Delete(K),
}

/// One event. A stream begins with [`Event::Init`], then whole objects, then [`Event::InitDone`] once **every** kind
/// has been read; after that only changes. A source that has to read everything anew (a watch that fell off, a
/// directory that was replaced) works out the difference itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// The first read begins; nothing may be programmed.
    Init,
    /// A Service that is this proxy's business. Services that are not (headless, ExternalName, labelled away) arrive as
    /// deletions of their name, so that a live change of a label takes effect.
    Service(Change<Service, ObjectName>),
    /// An EndpointSlice that is this proxy's business; others arrive as deletions, as above.
    Slice(Change<EndpointSlice, ObjectName>),
    /// This node's own Node object, if the source knows one.
    Node(Change<Node, Arc<str>>),
    /// Everything has been read once.
    InitDone,
    /// Something could not be used; the rest goes on. Stands until [`Event::Reviewed`] with the same object.
    Skipped(Skipped),
    /// What was last said in [`Event::Skipped`] of `subject` is over: it was read anew, or is gone. What is still wrong
    /// with it follows. Only for a subject that something was said of.
    Reviewed {
        /// [`Skipped::object`] of what is over.
        subject: String,
    },
}
