//! What is wrong with a folder just now, by subject: says when a report comes, and when it is over.

use super::super::Key;
use crate::{error::Skipped, model::Event};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    mem,
    sync::Arc,
};

/// Who reports. What it says replaces what it said before.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Origin {
    /// The folder as a whole.
    Folder,
    /// That a file can be read at all.
    Readable(Arc<str>),
    /// The contents of a file.
    Contents(Arc<str>),
    /// Files that define the same object.
    Contest(Key),
}

/// All reports that stand. Files may report of one subject, an object that several define; each has its say.
#[derive(Debug, Default)]
pub(super) struct Reports {
    standing: HashMap<String, BTreeMap<Origin, Vec<Skipped>>>,
    subjects: HashMap<Origin, Vec<String>>,
    /// Subjects whose reports have changed since [`Reports::changes`], in order; whether there were any before.
    touched: Vec<(String, bool)>,
}

impl Reports {
    /// All that `origin` has to report now.
    pub(super) fn set(&mut self, origin: &Origin, reports: Vec<Skipped>) {
        if reports.is_empty() && !self.subjects.contains_key(origin) {
            return;
        }
        let mut subjects: Vec<String> = Vec::new();
        let mut by_subject: HashMap<String, Vec<Skipped>> = HashMap::new();
        for report in reports {
            let list = by_subject.entry(report.object.clone()).or_default();
            if list.is_empty() {
                subjects.push(report.object.clone());
            }
            list.push(report);
        }
        for subject in self.subjects.remove(origin).unwrap_or_default() {
            if !by_subject.contains_key(&subject) {
                self.say(subject, origin, Vec::new());
            }
        }
        for subject in &subjects {
            let list = by_subject.remove(subject).unwrap_or_default();
            self.say(subject.clone(), origin, list);
        }
        if !subjects.is_empty() {
            self.subjects.insert(origin.clone(), subjects);
        }
    }

    fn say(&mut self, subject: String, origin: &Origin, reports: Vec<Skipped>) {
        let standing = self.standing.entry(subject.clone()).or_default();
        let before = !standing.is_empty();
        let differs = if reports.is_empty() {
            standing.remove(origin).is_some()
        } else {
            standing.get(origin) != Some(&reports) && {
                standing.insert(origin.clone(), reports);
                true
            }
        };
        if standing.is_empty() {
            self.standing.remove(&subject);
        }
        if differs {
            self.touched.push((subject, before));
        }
    }

    /// Files that cannot be read.
    pub(super) fn unreadable(&self) -> impl Iterator<Item = &Arc<str>> {
        self.subjects.keys().filter_map(|origin| match origin {
            Origin::Readable(file) => Some(file),
            Origin::Folder | Origin::Contents(_) | Origin::Contest(_) => None,
        })
    }

    /// What to announce since the last call. Of a subject whose reports have changed, all are told again.
    pub(super) fn changes(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        let mut told = HashSet::new();
        // The first time that a subject was touched tells what there was before.
        for (subject, before) in mem::take(&mut self.touched) {
            if !told.insert(subject.clone()) {
                continue;
            }
            let standing = self.standing.get(&subject).into_iter().flat_map(BTreeMap::values);
            let standing = standing.flatten().cloned().map(Event::Skipped);
            if before {
                events.push(Event::Reviewed { subject });
            }
            events.extend(standing);
        }
        events
    }

    /// Whether nothing is wrong.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.standing.is_empty() && self.subjects.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(object: &str, reason: &str) -> Skipped {
        Skipped {
            object: object.to_owned(),
            field: String::new(),
            reason: reason.to_owned(),
        }
    }

    fn lines(reports: &mut Reports) -> Vec<String> {
        let line = |event| match event {
            Event::Reviewed { subject } => format!("~ {subject}"),
            Event::Skipped(skipped) => format!("! {skipped}"),
            other => format!("{other:?}"),
        };
        reports.changes().into_iter().map(line).collect()
    }

    #[test]
    fn each_change_is_told_once() {
        let mut reports = Reports::default();
        let file = Origin::Contents("x.yaml".into());
        let all = [report("b", "1"), report("a", "2"), report("b", "3")];
        reports.set(&file, all.to_vec());
        assert_eq!(lines(&mut reports), ["! b: 1", "! b: 3", "! a: 2"]);
        reports.set(&file, all.to_vec());
        assert_eq!(lines(&mut reports), [""; 0]);
        reports.set(&file, all[..2].to_vec());
        assert_eq!(lines(&mut reports), ["~ b", "! b: 1"]);
        reports.set(&file, Vec::new());
        assert_eq!(lines(&mut reports), ["~ b", "~ a"]);
        assert!(reports.is_empty());
    }

    #[test]
    fn a_subject_of_two_origins_is_over_when_both_say_so() {
        let mut reports = Reports::default();
        let [one, two] = ["1.yaml", "2.yaml"].map(|name| Origin::Contents(name.into()));
        reports.set(&one, vec![report("a", "1")]);
        reports.set(&two, vec![report("a", "2")]);
        assert_eq!(lines(&mut reports), ["! a: 1", "! a: 2"]);
        reports.set(&one, Vec::new());
        assert_eq!(lines(&mut reports), ["~ a", "! a: 2"]);
        reports.set(&two, Vec::new());
        assert_eq!(lines(&mut reports), ["~ a"]);
        reports.set(&two, vec![report("a", "2")]);
        reports.set(&two, Vec::new());
        assert_eq!(lines(&mut reports), [""; 0]);
        assert!(reports.is_empty());
    }
}
