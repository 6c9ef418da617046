//! [`Folder`]: contents of files → what changed. Pure: it never touches the file system.

use super::{
    super::{Key, Object},
    reader::{Found, Piece, Position, Readers, Syntax, split},
    reports::{Origin, Reports},
};
use crate::{error::Skipped, model::Event};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, hash_map::RandomState},
    hash::BuildHasher,
    sync::Arc,
};

/// Most reports about one file; the rest is counted in a last one.
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
    objects: HashMap<Key, Entry>,
    reports: Reports,
}

/// An object that a file speaks of, or that was announced.
#[derive(Debug, Default)]
struct Entry {
    /// The first file by name that speaks of it: it counts. `None`: none does any more.
    winner: Option<Arc<str>>,
    /// Other files that do, sorted.
    others: Vec<Arc<str>>,
    /// What was announced last.
    published: Option<Arc<Object>>,
}

/// What a file says of an object; `None`: that it is not for this proxy.
type Claim = Option<Arc<Object>>;

/// What a file said. There are many objects, so that it is held without a gap.
#[derive(Debug, Default)]
struct File {
    /// What each document or item of a List said, by hash of its text: an edit of one costs one. Sorted.
    documents: Box<[(u64, Found)]>,
    /// What was wrong with some of them.
    faulty: HashMap<u64, Faults>,
    /// Sorted.
    claims: Box<[(Key, Claim)]>,
}

/// What is wrong with one document.
#[derive(Clone, Debug)]
struct Faults {
    /// Where it was read: elsewhere, it has to be read again.
    position: Position,
    /// At most [`MAX_REPORTS`].
    reports: Vec<Skipped>,
    more: usize,
}

impl Entry {
    fn add(&mut self, mut file: Arc<str>) {
        let Some(winner) = &mut self.winner else {
            self.winner = Some(file);
            return;
        };
        if file < *winner {
            std::mem::swap(winner, &mut file);
        }
        if file != *winner
            && let Err(at) = self.others.binary_search(&file)
        {
            self.others.insert(at, file);
        }
    }

    fn remove(&mut self, file: &str) {
        if self.winner.as_deref() == Some(file) {
            self.winner = (!self.others.is_empty()).then(|| self.others.remove(0));
        } else {
            self.others.retain(|other| &**other != file);
        }
    }

    /// What to say while several files speak of it.
    fn contest(&self, key: &Key) -> Option<Skipped> {
        let (winner, other) = (self.winner.as_ref()?, self.others.first()?);
        let more = match self.others.len() {
            1 => String::new(),
            2 => " and 1 more file".to_owned(),
            others => format!(" and {} more files", others - 1),
        };
        Some(Skipped {
            object: key.to_string(),
            field: String::new(),
            reason: format!("defined in {winner} and in {other}{more}; {winner} counts, the first by name; keep one"),
        })
    }
}

impl File {
    fn claim(&self, key: &Key) -> Option<&Claim> {
        let at = self.claims.binary_search_by(|(held, _)| held.cmp(key)).ok()?;
        Some(&self.claims[at].1)
    }

    /// What a document of this hash said. `None`: it has to be read.
    fn known(&self, hash: u64, piece: &Piece<'_>) -> Option<&[(u64, Found)]> {
        let from = self.documents.partition_point(|(held, _)| *held < hash);
        let said = &self.documents[from..];
        let said = &said[..said.partition_point(|(held, _)| *held == hash)];
        let faults = self.faulty.get(&hash);
        let here = faults.is_none_or(|faults| faults.position == piece.position());
        (!said.is_empty() && here).then_some(said)
    }
}

impl Folder {
    /// An empty folder, for the node of this name: other Nodes are ignored.
    pub fn new(node_name: impl Into<Arc<str>>) -> Self {
        Self {
            readers: Readers::new(&node_name.into()),
            hasher: RandomState::new(),
            files: BTreeMap::new(),
            objects: HashMap::new(),
            reports: Reports::default(),
        }
    }

    /// Whether a file of this name is read at all: `*.yaml`, `*.yml`, `*.json`, not hidden.
    pub fn reads(name: &str) -> bool {
        syntax(name).is_some()
    }

    /// Names of the files whose end would be news: those that were last seen with content, or could not be read.
    pub(super) fn files(&self) -> impl Iterator<Item = &Arc<str>> {
        self.files.keys().chain(self.reports.unreadable())
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
        let (mut added, mut changed) = (Vec::new(), Vec::new());
        for (name, state) in changes {
            self.update_file(&name, state, &mut added, &mut changed);
        }
        for key in added.iter().chain(&changed).collect::<BTreeSet<_>>() {
            let contest = self.objects.get(key).and_then(|entry| entry.contest(key));
            self.reports
                .set(&Origin::Contest(key.clone()), contest.into_iter().collect());
        }
        let mut events = self.reports.changes();
        // What is new comes before what is gone: in between, too much is served, never too little.
        for key in added.into_iter().chain(changed) {
            self.publish(key, &mut events);
        }
        events
    }

    /// Takes in what is wrong with the folder as a whole, and returns what is to be announced.
    pub(super) fn trouble(&mut self, report: Option<Skipped>) -> Vec<Event> {
        self.reports.set(&Origin::Folder, report.into_iter().collect());
        self.reports.changes()
    }

    fn update_file(&mut self, name: &Arc<str>, state: FileState, added: &mut Vec<Key>, changed: &mut Vec<Key>) {
        let readable = Origin::Readable(Arc::clone(name));
        let (new, reports) = match state {
            FileState::Content(bytes) => match syntax(name) {
                Some(syntax) => self.read(name, syntax, &bytes),
                None => return,
            },
            FileState::Unreadable(reason) => {
                let report = Skipped {
                    object: name.to_string(),
                    field: String::new(),
                    reason,
                };
                return self.reports.set(&readable, vec![report]);
            }
            FileState::Gone => Default::default(),
        };
        self.reports.set(&readable, Vec::new());
        self.reports.set(&Origin::Contents(Arc::clone(name)), reports);
        let old = self.files.remove(name).unwrap_or_default();
        for (key, claim) in &new.claims {
            match old.claim(key) {
                Some(before) if before == claim => {}
                Some(_) => changed.push(key.clone()),
                None => {
                    self.objects.entry(key.clone()).or_default().add(Arc::clone(name));
                    added.push(key.clone());
                }
            }
        }
        for (key, _) in old.claims {
            if new.claim(&key).is_none() {
                if let Some(entry) = self.objects.get_mut(&key) {
                    entry.remove(name);
                }
                changed.push(key);
            }
        }
        if !(new.documents.is_empty() && new.claims.is_empty()) {
            self.files.insert(Arc::clone(name), new);
        }
    }

    /// Returns what a file says now, and what is wrong with it.
    fn read(&mut self, name: &Arc<str>, syntax: Syntax, bytes: &[u8]) -> (File, Vec<Skipped>) {
        let nothing = File::default();
        let old = self.files.get(name).unwrap_or(&nothing);
        let pieces: Vec<(u64, Piece<'_>)> = split(syntax, bytes)
            .into_iter()
            .map(|piece| (self.hasher.hash_one(piece.meaning()), piece))
            .collect();
        let unread: Vec<_> = pieces
            .iter()
            .filter(|(hash, piece)| old.known(*hash, piece).is_none())
            .map(|(_, piece)| *piece)
            .collect();
        let mut fresh = self.readers.read(name, syntax, &unread).into_iter();
        let mut documents = Vec::with_capacity(pieces.len());
        let mut faulty = HashMap::new();
        let mut claims: BTreeMap<Key, Claim> = BTreeMap::new();
        let (mut reports, mut more) = (Vec::new(), 0);
        let mut report = |report: Skipped| match reports.len() < MAX_REPORTS {
            true => reports.push(report),
            false => more += 1,
        };
        let mut held = HashSet::new();
        let (mut unknown, mut malformed, mut ignored) = (false, Vec::new(), 0usize);
        let mut hidden = 0;
        for (hash, piece) in pieces {
            let (found, faults) = match old.known(hash, &piece) {
                Some(said) => {
                    let found: Vec<Found> = said.iter().map(|(_, found)| found.clone()).collect();
                    (found, old.faulty.get(&hash).cloned())
                }
                None => {
                    let (found, mut reports) = fresh.next().unwrap_or_default();
                    let more = reports.len().saturating_sub(MAX_REPORTS);
                    reports.truncate(MAX_REPORTS);
                    let position = piece.position();
                    let faults = (!reports.is_empty()).then_some(Faults {
                        position,
                        reports,
                        more,
                    });
                    (found, faults)
                }
            };
            if let Some(faults) = faults {
                faults.reports.iter().cloned().for_each(&mut report);
                hidden += faults.more;
                faulty.insert(hash, faults);
            }
            let first = held.insert(hash);
            for mut found in found {
                let said = match &mut found {
                    Found::Object(object) => {
                        let key = object.key();
                        // What did not change is held once: as it was announced.
                        if let Some(Some(before)) = old.claim(&key)
                            && before == object
                        {
                            *object = Arc::clone(before);
                        }
                        Some((key, Some(Arc::clone(object))))
                    }
                    Found::NotOurs(key) => Some(((**key).clone(), None)),
                    Found::Malformed(key) => {
                        malformed.push((**key).clone());
                        None
                    }
                    Found::Ignored => {
                        ignored += 1;
                        None
                    }
                    Found::Unknown => {
                        unknown = true;
                        None
                    }
                };
                if first {
                    documents.push((hash, found));
                }
                let Some((key, claim)) = said else { continue };
                if claims.contains_key(&key) {
                    report(Skipped {
                        object: format!("{name}, document {}", piece.number),
                        field: String::new(),
                        reason: format!("{key} is defined earlier in this file, which counts; remove one"),
                    });
                    continue;
                }
                claims.insert(key, claim);
            }
        }
        // A sound definition elsewhere in the file counts more than what a malformed one used to say.
        for key in malformed {
            if let Some(before) = old.claim(&key) {
                claims.entry(key).or_insert_with(|| before.clone());
            }
        }
        if unknown {
            for (key, claim) in &old.claims {
                claims.entry(key.clone()).or_insert_with(|| claim.clone());
            }
        }
        more += hidden;
        if more > 0 {
            reports.push(Skipped {
                object: name.to_string(),
                field: String::new(),
                reason: format!("{more} more faults not listed"),
            });
        }
        documents.sort_by_key(|(hash, _)| *hash);
        tracing::debug!(file = %name, objects = claims.len(), ignored, faults = reports.len(), "manifest read");
        let file = File {
            documents: documents.into_boxed_slice(),
            faulty,
            claims: claims.into_iter().collect(),
        };
        (file, reports)
    }

    fn publish(&mut self, key: Key, events: &mut Vec<Event>) {
        let Some(entry) = self.objects.get_mut(&key) else {
            return;
        };
        let winner = entry.winner.as_ref().and_then(|file| self.files.get(file));
        let claim = winner.and_then(|file| file.claim(&key)?.clone());
        if let Some(now) = claim {
            if entry.published.as_ref() != Some(&now) {
                events.push(now.as_ref().clone().applied());
            }
            entry.published = Some(now);
            return;
        }
        let published = entry.published.take().is_some();
        if entry.winner.is_none() {
            self.objects.remove(&key);
        }
        if published {
            events.push(key.deleted());
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
