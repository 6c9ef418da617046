//! [`Folder`]: contents of files → what changed. Pure: it never touches the file system.

use super::super::{Key, Object};
use super::reader::{Found, Readers, Syntax, split};
use crate::{error::Skipped, model::Event};
use std::{
    collections::{BTreeMap, HashMap, hash_map::RandomState},
    hash::BuildHasher,
    sync::Arc,
};

/// Most reports about one change of one file; the rest is counted in a last one.
const MAX_REPORTS: usize = 100;

/// A file as it was just seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileState {
    /// Its bytes.
    Content(Vec<u8>),
    /// It cannot be read, and why; what it held before lives on.
    Unreadable(String),
    /// It is not there (any more).
    Gone,
}

/// Keeps the objects of a folder in step with its files, and says what to announce.
///
/// The first file by name wins where two define the same object. A document that cannot be understood keeps what its
/// file said before: the named object if it names one, else everything that the file no longer mentions.
#[derive(Debug)]
pub struct Folder {
    readers: Readers,
    hasher: RandomState,
    files: BTreeMap<Arc<str>, File>,
    /// Which files speak of an object, sorted.
    claimants: HashMap<Key, Vec<Arc<str>>>,
    published: HashMap<Key, Arc<Object>>,
}

/// What a file says of an object; `None`: that it is not for this proxy.
type Claim = Option<Arc<Object>>;

#[derive(Debug, Default)]
struct File {
    /// What each document said, by hash of its text: an edit of one document costs one document.
    documents: HashMap<u64, Arc<[Found]>>,
    claims: BTreeMap<Key, Claim>,
}

impl Folder {
    /// An empty folder, for the node of this name: other Nodes are ignored.
    pub fn new(node_name: impl Into<Arc<str>>) -> Self {
        Self {
            readers: Readers::new(&node_name.into()),
            hasher: RandomState::new(),
            files: BTreeMap::new(),
            claimants: HashMap::new(),
            published: HashMap::new(),
        }
    }

    /// Whether a file of this name is read at all: `*.yaml`, `*.yml`, `*.json`, not hidden.
    pub fn reads(name: &str) -> bool {
        syntax(name).is_some()
    }

    /// Names of the files that were last seen with content.
    pub(super) fn files(&self) -> impl Iterator<Item = &Arc<str>> {
        self.files.keys()
    }

    /// Takes in files that changed together, in any order, and returns one batch of differences.
    pub fn update(&mut self, changes: impl IntoIterator<Item = (Arc<str>, FileState)>) -> Vec<Event> {
        let mut changes: Vec<_> = changes.into_iter().collect();
        changes.sort_by(|(a, _), (b, _)| a.cmp(b));
        self.update_sorted(changes)
    }

    /// As [`Folder::update`], with files in the order of their names; takes one at a time, so that they need not all be
    /// in memory.
    pub(super) fn update_sorted(&mut self, changes: impl IntoIterator<Item = (Arc<str>, FileState)>) -> Vec<Event> {
        let mut events = Vec::new();
        let (mut added, mut changed) = (Vec::new(), Vec::new());
        for (name, state) in changes {
            let mut skipped = Vec::new();
            self.update_file(&name, state, &mut added, &mut changed, &mut skipped);
            let more = skipped.len().saturating_sub(MAX_REPORTS);
            events.extend(skipped.into_iter().take(MAX_REPORTS).map(Event::Skipped));
            if more > 0 {
                let reason = format!("{more} more faults not listed");
                events.push(Event::Skipped(Skipped {
                    object: name.to_string(),
                    field: String::new(),
                    reason,
                }));
            }
        }
        for (key, file) in &added {
            events.extend(self.contest(key, file).map(Event::Skipped));
        }
        // What is new comes before what is gone: in between, too much is served, never too little.
        for key in added.into_iter().map(|(key, _)| key).chain(changed) {
            self.publish(key, &mut events);
        }
        events
    }

    fn update_file(
        &mut self,
        name: &Arc<str>,
        state: FileState,
        added: &mut Vec<(Key, Arc<str>)>,
        changed: &mut Vec<Key>,
        skipped: &mut Vec<Skipped>,
    ) {
        let new = match state {
            FileState::Content(bytes) => match syntax(name) {
                Some(syntax) => self.read(name, syntax, &bytes, skipped),
                None => return,
            },
            FileState::Unreadable(reason) => {
                skipped.push(Skipped {
                    object: name.to_string(),
                    field: String::new(),
                    reason,
                });
                return;
            }
            FileState::Gone => File::default(),
        };
        let old = self.files.remove(name).unwrap_or_default();
        for (key, claim) in &new.claims {
            match old.claims.get(key) {
                Some(before) if before == claim => {}
                Some(_) => changed.push(key.clone()),
                None => {
                    let claimants = self.claimants.entry(key.clone()).or_default();
                    if let Err(at) = claimants.binary_search(name) {
                        claimants.insert(at, Arc::clone(name));
                    }
                    added.push((key.clone(), Arc::clone(name)));
                }
            }
        }
        for key in old.claims.into_keys().filter(|key| !new.claims.contains_key(key)) {
            if let Some(claimants) = self.claimants.get_mut(&key) {
                claimants.retain(|file| file != name);
                if claimants.is_empty() {
                    self.claimants.remove(&key);
                }
            }
            changed.push(key);
        }
        if !(new.documents.is_empty() && new.claims.is_empty()) {
            self.files.insert(Arc::clone(name), new);
        }
    }

    fn read(&mut self, name: &Arc<str>, syntax: Syntax, bytes: &[u8], skipped: &mut Vec<Skipped>) -> File {
        let old = self.files.get(name);
        let mut new = File::default();
        let mut unknown = false;
        let mut ignored = 0usize;
        let known = |hash: &u64| old.and_then(|old| old.documents.get(hash));
        let pieces = split(syntax, bytes).into_iter();
        let pieces: Vec<_> = pieces.map(|piece| (self.hasher.hash_one(piece.text), piece)).collect();
        let unread: Vec<_> = pieces
            .iter()
            .filter(|(hash, _)| known(hash).is_none())
            .map(|(_, piece)| *piece)
            .collect();
        let mut fresh = self.readers.read(name, syntax, &unread).into_iter();
        for (hash, piece) in pieces {
            let known = known(&hash);
            let found: Arc<[Found]> = match known {
                Some(known) => Arc::clone(known),
                None => {
                    let (found, faults) = fresh.next().unwrap_or_default();
                    skipped.extend(faults);
                    found.into()
                }
            };
            for found in found.iter() {
                let (key, claim) = match found {
                    Found::Object(object) => (object.key(), Some(Arc::clone(object))),
                    Found::NotOurs(key) => (key.clone(), None),
                    Found::Malformed(key) => match old.and_then(|old| old.claims.get(key)) {
                        Some(before) => (key.clone(), before.clone()),
                        None => continue,
                    },
                    Found::Ignored => {
                        ignored += 1;
                        continue;
                    }
                    Found::Unknown => {
                        unknown = true;
                        continue;
                    }
                };
                if new.claims.contains_key(&key) {
                    if known.is_none() {
                        let object = format!("{name}, document {}", piece.number);
                        let reason = format!("{key} is defined earlier in this file, which counts; remove one");
                        skipped.push(Skipped {
                            object,
                            field: String::new(),
                            reason,
                        });
                    }
                    continue;
                }
                new.claims.insert(key, claim);
            }
            new.documents.insert(hash, found);
        }
        if let Some(old) = old.filter(|_| unknown) {
            for (key, claim) in &old.claims {
                new.claims.entry(key.clone()).or_insert_with(|| claim.clone());
            }
        }
        tracing::debug!(file = %name, objects = new.claims.len(), ignored, faults = skipped.len(), "manifest read");
        new
    }

    /// What to say when `file` begins to speak of an object that another file defines too.
    fn contest(&self, key: &Key, file: &Arc<str>) -> Option<Skipped> {
        let claimants = self.claimants.get(key)?;
        let (winner, rest) = claimants.split_first()?;
        let other = if file == winner { rest.first()? } else { winner };
        let reason = format!("defined in {file} and in {other}; {winner} counts, the first by name; remove one");
        Some(Skipped {
            object: key.to_string(),
            field: String::new(),
            reason,
        })
    }

    fn publish(&mut self, key: Key, events: &mut Vec<Event>) {
        let winner = self.claimants.get(&key).and_then(|files| files.first());
        let claim = winner.and_then(|file| self.files.get(file)?.claims.get(&key)?.clone());
        match (self.published.get(&key), claim) {
            (Some(before), Some(now)) if Arc::ptr_eq(before, &now) || *before == now => {}
            (_, Some(now)) => {
                events.push(now.as_ref().clone().applied());
                self.published.insert(key, now);
            }
            (Some(_), None) => {
                self.published.remove(&key);
                events.push(key.deleted());
            }
            (None, None) => {}
        }
    }
}

fn syntax(name: &str) -> Option<Syntax> {
    match name.rsplit_once('.')? {
        ("", _) => None,
        (stem, _) if stem.starts_with('.') => None,
        (_, "yaml" | "yml") => Some(Syntax::Yaml),
        (_, "json") => Some(Syntax::Json),
        _ => None,
    }
}

#[cfg(test)]
#[path = "folder_tests.rs"]
mod tests;
