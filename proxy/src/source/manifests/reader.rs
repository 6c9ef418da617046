//! Bytes of a file → documents → objects. Pure, and total: whatever the bytes, it ends and says what it found.

use super::{
    super::{
        Key, Object,
        decode::{Decoded, Kind, Malformed, decode},
    },
    json,
};
use crate::{error::Skipped, model::Interner};
use k8s_openapi::api::{core::v1, discovery};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::{hash::Hash, sync::Arc, thread};

/// Deepest nesting of a document. Kubernetes objects need about ten.
const MAX_DEPTH: usize = 64;
/// Most nodes that aliases may add to a document. Hand-written manifests use a few; an alias bomb wants billions.
const MAX_REPLAYED: usize = 100_000;
/// Deepest nesting of a List in a List.
const MAX_LISTS: usize = 4;
/// Most threads that read a file.
const MAX_READERS: usize = 4;
/// Least work that is shared out among threads, bytes: some ten milliseconds.
const SHARED_FROM: usize = 128 * 1024;

/// Syntax of a file, by the end of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Syntax {
    Yaml,
    Json,
}

/// A document of a file, or an item of a List, not yet read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece<'a> {
    /// Position of the document among those that hold anything, 1-based.
    pub(super) number: usize,
    /// First line in the file, 1-based.
    pub(super) line: usize,
    /// What stands before it on that line, bytes.
    pub(super) indent: usize,
    pub(super) text: &'a [u8],
    pub(super) part: Part<'a>,
}

/// Of what a [`Piece`] is the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part<'a> {
    Document,
    Item(Item<'a>),
}

/// An item of a List in JSON, and what the List says of all its items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Item<'a> {
    /// Position in the List, 0-based.
    pub(super) n: usize,
    /// `apiVersion` of the List.
    pub(super) api_version: &'a str,
    /// The kind that the List is named for, as in `ServiceList`; may be empty.
    pub(super) kind: &'a str,
}

impl Piece<'_> {
    /// All that decides what reading it finds, for a hash: its text, and what an item may leave out.
    pub(super) fn meaning(&self) -> impl Hash {
        let list = match self.part {
            Part::Document => None,
            Part::Item(item) => Some((item.api_version, item.kind)),
        };
        (self.text, list)
    }

    pub(super) fn position(&self) -> Position {
        Position {
            number: self.number,
            line: self.line,
            n: match self.part {
                Part::Document => None,
                Part::Item(item) => Some(item.n),
            },
        }
    }
}

/// Where a [`Piece`] is, as far as reports tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    number: usize,
    line: usize,
    n: Option<usize>,
}

/// What a document says of one object. There is one for each object of a folder.
#[derive(Clone, Debug)]
pub(super) enum Found {
    Object(Arc<Object>),
    /// Names an object that is not for this proxy.
    NotOurs(Box<Key>),
    /// A kind that is no proxy's business, or another node's Node.
    Ignored,
    /// Names an object, but is malformed: an earlier version of that object should live on.
    Malformed(Box<Key>),
    /// Does not even name an object, so it may be a broken version of any.
    Unknown,
}

const _: () = assert!(size_of::<Found>() == 16, "two for each service");

/// Splits a file into documents, and of JSON the Lists into items, so that a change of one costs one. A `---` or `...` at the beginning of a line always ends one (YAML 1.2.2 §9.1.2), even
/// inside quotes or a block scalar, so a broken document cannot swallow its neighbours.
pub(super) fn split(syntax: Syntax, file: &[u8]) -> Vec<Piece<'_>> {
    let file = file.strip_prefix(b"\xef\xbb\xbf").unwrap_or(file);
    if syntax == Syntax::Json {
        return match std::str::from_utf8(file) {
            Ok(text) => json::split(text),
            Err(_) => vec![Piece {
                number: 1,
                line: 1,
                indent: 0,
                text: file,
                part: Part::Document,
            }],
        };
    }
    let mut pieces = Vec::new();
    let (mut start, mut first_line, mut blank) = (0, 1, true);
    let mut close = |start: usize, end: usize, line: usize, blank: bool| {
        if !blank {
            pieces.push(Piece {
                number: pieces.len() + 1,
                line,
                indent: 0,
                text: &file[start..end],
                part: Part::Document,
            });
        }
    };
    let mut at = 0;
    for (n, line) in file.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let marker = matches!(line, [b'-', b'-', b'-', ..] | [b'.', b'.', b'.', ..])
            && line.get(3).is_none_or(u8::is_ascii_whitespace);
        if marker {
            close(start, at, first_line, blank);
            (start, first_line, blank) = (at + 3, n + 1, is_blank(&line[3..]));
        } else if blank && !is_blank(line) {
            blank = false;
        }
        at += line.len();
    }
    close(start, at, first_line, blank);
    pieces
}

/// Whether a line holds nothing: blanks, a comment, or a directive (which we do not need).
fn is_blank(line: &[u8]) -> bool {
    line.trim_ascii_start().first().is_none_or(|byte| *byte == b'#') || line.first() == Some(&b'%')
}

/// Everything that a document defines, and every fault in it.
pub(super) type Contents = (Vec<Found>, Vec<Skipped>);

/// One [`Reader`] for each processor, within reason.
#[derive(Debug)]
pub(super) struct Readers(Vec<Reader>);

impl Readers {
    /// `node` is the name of this node: other Nodes are ignored.
    pub(super) fn new(node: &Arc<str>) -> Self {
        let count = thread::available_parallelism().map_or(1, usize::from).min(MAX_READERS);
        Self(
            (0..count)
                .map(|_| Reader {
                    node: Arc::clone(node),
                    strings: Interner::default(),
                })
                .collect(),
        )
    }

    /// The contents of each document, in order; large files are shared out.
    pub(super) fn read(&mut self, file: &str, syntax: Syntax, pieces: &[Piece<'_>]) -> Vec<Contents> {
        let bytes: usize = pieces.iter().map(|piece| piece.text.len()).sum();
        let readers = if bytes < SHARED_FROM { 1 } else { self.0.len() };
        let share = pieces.len().div_ceil(readers).max(1);
        let mut work = self.0.iter_mut().zip(pieces.chunks(share));
        let read = |(reader, pieces): (&mut Reader, &[Piece<'_>])| -> Vec<Contents> {
            pieces.iter().map(|piece| reader.read(file, syntax, *piece)).collect()
        };
        thread::scope(|scope| {
            let own = work.next();
            let others: Vec<_> = work.map(|work| scope.spawn(move || read(work))).collect();
            let mut contents = own.map(read).unwrap_or_default();
            for other in others {
                contents.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            }
            contents
        })
    }
}

/// Reads documents; remembers names so that they are stored once.
#[derive(Debug)]
struct Reader {
    node: Arc<str>,
    strings: Interner,
}

/// Where a document is, for reports.
struct Place<'a> {
    file: &'a str,
    piece: Piece<'a>,
}

impl Place<'_> {
    fn skipped(&self, field: impl Into<String>, reason: impl Into<String>) -> Skipped {
        let object = format!("{}, document {}", self.file, self.piece.number);
        Skipped {
            object,
            field: field.into(),
            reason: reason.into(),
        }
    }
}

impl Reader {
    fn read(&mut self, file: &str, syntax: Syntax, piece: Piece<'_>) -> Contents {
        let (mut found, mut skipped) = (Vec::new(), Vec::new());
        let place = Place { file, piece };
        match std::str::from_utf8(piece.text) {
            Err(_) => {
                skipped.push(place.skipped("", format!("line {} or later: not UTF-8", piece.line)));
                found.push(Found::Unknown);
            }
            Ok(text) if syntax == Syntax::Json => self.read_json(text, &place, &mut found, &mut skipped),
            Ok(text) => match parse_yaml(text, piece.line) {
                Ok(Value::Null) => {}
                Ok(document) => {
                    let before = skipped.len();
                    self.document(document, "", &place, 0, &mut found, &mut skipped);
                    add_line(text, piece.line, &mut skipped[before..], &found);
                }
                Err(reason) => {
                    skipped.push(place.skipped("", reason));
                    found.push(Found::Unknown);
                }
            },
        }
        (found, skipped)
    }

    fn read_json(&mut self, text: &str, place: &Place<'_>, found: &mut Vec<Found>, skipped: &mut Vec<Skipped>) {
        // Of a text that breaks off or goes on wrongly, the first value is what was wanted.
        let Some(document) = serde_json::Deserializer::from_str(text).into_iter::<Value>().next() else {
            return;
        };
        let (path, depth) = match place.piece.part {
            Part::Document => (String::new(), 0),
            Part::Item(item) => (format!("items[{}]", item.n), 1),
        };
        match document {
            Ok(mut document) => {
                if let Part::Item(item) = place.piece.part {
                    default_kind(&mut document, item.api_version, item.kind);
                }
                self.document(document, &path, place, depth, found, skipped);
            }
            Err(err) => {
                skipped.push(place.skipped(path, in_file(&err, place.piece)));
                found.push(Found::Unknown);
            }
        }
    }

    /// `path` leads to `document` inside a List, as in `items[3]`.
    fn document(
        &mut self,
        mut document: Value,
        path: &str,
        place: &Place<'_>,
        depth: usize,
        found: &mut Vec<Found>,
        skipped: &mut Vec<Skipped>,
    ) {
        let mut unknown = |field: String, reason: &str| {
            skipped.push(place.skipped(field, reason));
            found.push(Found::Unknown);
        };
        let api_version = match document.get("apiVersion") {
            Some(Value::String(text)) => text.clone(),
            _ => {
                return unknown(
                    join(path, "apiVersion"),
                    "missing or not a string; every document needs one, as in v1",
                );
            }
        };
        let kind = match document.get("kind") {
            Some(Value::String(text)) => text.clone(),
            _ => {
                return unknown(
                    join(path, "kind"),
                    "missing or not a string; every document needs one, as in Service",
                );
            }
        };
        if let Some(item_kind) = kind.strip_suffix("List") {
            match document.get_mut("items").map(Value::take) {
                _ if depth >= MAX_LISTS => unknown(path.to_owned(), "lists inside lists inside lists"),
                Some(Value::Array(items)) => {
                    for (n, mut item) in items.into_iter().enumerate() {
                        default_kind(&mut item, &api_version, item_kind);
                        self.document(
                            item,
                            &join(path, &format!("items[{n}]")),
                            place,
                            depth + 1,
                            found,
                            skipped,
                        );
                    }
                }
                None | Some(Value::Null) => {}
                Some(_) => unknown(join(path, "items"), "not a list"),
            }
            return;
        }
        let Some(kind) = Kind::from_api(&api_version, &kind) else {
            tracing::debug!(
                file = place.file,
                document = place.piece.number,
                api_version,
                kind,
                "kind ignored"
            );
            return found.push(Found::Ignored);
        };
        let key = kind.key_of(&document, &mut self.strings);
        match decode(kind, document, &mut self.strings) {
            Ok((decoded, faults)) => {
                if matches!(&decoded, Decoded::Object(Object::Node(node)) if node.name != self.node) {
                    return found.push(Found::Ignored);
                }
                let file = place.file;
                let number = place.piece.number;
                skipped.extend(faults.into_iter().map(|fault| Skipped {
                    reason: format!("{} ({file}, document {number})", fault.reason),
                    ..fault
                }));
                found.push(match decoded {
                    Decoded::Object(mut object) => {
                        object.shrink();
                        Found::Object(Arc::new(object))
                    }
                    Decoded::NotOurs(key) => Found::NotOurs(Box::new(key)),
                    Decoded::Nameless => Found::Unknown,
                });
            }
            Err(Malformed { field, reason }) => {
                let named = key.as_ref().map_or(String::new(), |key| format!(" ({key})"));
                skipped.push(place.skipped(join(path, &field), format!("{reason}{named}")));
                found.push(key.map_or(Found::Unknown, |key| Found::Malformed(Box::new(key))));
            }
        }
    }
}

/// The error with its line and column in the file.
fn in_file(err: &serde_json::Error, piece: Piece<'_>) -> String {
    let text = err.to_string();
    let (line, column) = (err.line(), err.column());
    let Some(what) = text.strip_suffix(&format!(" at line {line} column {column}")) else {
        return text;
    };
    let before = if line == 1 { piece.indent } else { 0 };
    format!("{what} at line {} column {}", piece.line + line - 1, before + column)
}

fn join(path: &str, field: &str) -> String {
    match (path, field) {
        ("", field) => field.to_owned(),
        (path, "") => path.to_owned(),
        (path, field) => format!("{path}.{field}"),
    }
}

/// Items of a typed list such as ServiceList need not repeat what they are.
fn default_kind(item: &mut Value, api_version: &str, kind: &str) {
    if let Value::Object(item) = item
        && !kind.is_empty()
        && !item.contains_key("kind")
    {
        item.insert("kind".to_owned(), kind.into());
        item.entry("apiVersion").or_insert_with(|| api_version.into());
    }
}

fn parse_yaml(text: &str, line: usize) -> Result<Value, String> {
    yaml::<Value>(text).map_err(|err| {
        let options = serde_saphyr::render_options! {
            snippets: serde_saphyr::SnippetMode::Off,
            line_offset: line as u64 - 1,
        };
        err.render_with_options(options)
    })
}

fn yaml<T: DeserializeOwned>(text: &str) -> Result<T, serde_saphyr::Error> {
    let events = 1_000 + MAX_REPLAYED + 3 * text.len();
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: events,
            max_nodes: events,
            max_total_scalar_bytes: 16 * events,
            max_depth: MAX_DEPTH,
            max_recorded_anchor_events: MAX_REPLAYED,
            max_documents: 1,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MAX_REPLAYED },
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options)
}

/// Adds the line of the fault to the report about a malformed document. Only a second, typed reading of the text knows
/// it, which is worth its time for faults alone.
fn add_line(text: &str, line: usize, skipped: &mut [Skipped], found: &[Found]) {
    fn line_of<K: DeserializeOwned>(text: &str) -> Option<u64> {
        yaml::<K>(text).err()?.location().map(|location| location.line())
    }
    let ([report], [Found::Malformed(key)]) = (skipped, found) else {
        return;
    };
    let at = match **key {
        Key::Service(_) => line_of::<v1::Service>(text),
        Key::Slice(_) => line_of::<discovery::v1::EndpointSlice>(text),
        Key::Node(_) => line_of::<v1::Node>(text),
    };
    if let Some(at) = at.filter(|at| *at > 0) {
        let at = format!("line {}: ", at + line as u64 - 1);
        report.reason.insert_str(0, &at);
    }
}
