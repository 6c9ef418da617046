//! Merging what a client applies into the live object, and comparing two objects: the two walks that everything rests on.

use super::{
    element::PathElement,
    set::FieldSet,
    typed::{Shape, Typed},
};
use crate::value::same;
use fairlead_schema::types::ListKind;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

impl Typed<'_> {
    /// The live value with everything that the applied one says. Nothing is removed. Both were checked before.
    pub(super) fn merge(self, live: Option<&Value>, applied: Option<&Value>) -> Option<Value> {
        let (Some(live), Some(applied)) = (live, applied) else {
            return live.or(applied).cloned();
        };
        match self.shape(applied) {
            // A `null` in place of a container says nothing about its parts.
            Shape::Fields(_) | Shape::Items(_) if applied.is_null() && (live.is_object() || live.is_array()) => {
                Some(live.clone())
            }
            Shape::Fields(_) => {
                let (live_fields, applied_fields) = (fields(live), fields(applied));
                if live_fields.is_none_or(Map::is_empty) && applied_fields.is_none_or(Map::is_empty) {
                    return Some(applied.clone());
                }
                let mut merged = live_fields.cloned().unwrap_or_default();
                for (name, value) in applied_fields.into_iter().flatten() {
                    let value = self.field(name).merge(merged.get(name), Some(value));
                    merged.extend(value.map(|value| (name.clone(), value)));
                }
                Some(Value::Object(merged))
            }
            Shape::Items(kind) => {
                let (live_items, applied_items) = (items(live), items(applied));
                if live_items.is_empty() && applied_items.is_empty() {
                    return Some(applied.clone());
                }
                Some(Value::Array(self.merge_items(kind, live_items, applied_items)))
            }
            Shape::Leaf(_) => Some(applied.clone()),
        }
    }

    /// Items in the order of the applied list. What only the live list has keeps its place between the items that both
    /// have, as far as the applied order allows.
    fn merge_items(self, kind: &ListKind, live: &[Value], applied: &[Value]) -> Vec<Value> {
        let named = |list: &[Value]| -> Vec<_> { list.iter().map(|item| self.name(kind, item).ok()).collect() };
        let (live_names, applied_names) = (named(live), named(applied));
        let mut live_places: BTreeMap<&PathElement, Vec<usize>> = BTreeMap::new();
        for (at, name) in live_names.iter().enumerate() {
            if let Some(name) = name {
                live_places.entry(name).or_default().push(at);
            }
        }
        let applied_set: BTreeSet<&PathElement> = applied_names.iter().flatten().collect();
        // Shared items in the order of the applied list: at each, both lists meet.
        let mut meetings = applied_names
            .iter()
            .flatten()
            .filter(|name| live_places.contains_key(name))
            .peekable();
        let mut merged = Vec::with_capacity(live.len().max(applied.len()));
        let mut done = BTreeSet::new();
        let mut next = 0;
        for (name, item) in applied_names.iter().zip(applied) {
            let Some(name) = name else { continue };
            while let (Some(live_name), Some(live_item)) = (live_names.get(next), live.get(next)) {
                match live_name.as_ref().filter(|it| applied_set.contains(it)) {
                    // Only the live list has it.
                    None => merged.push(live_item.clone()),
                    Some(shared) if shared == name => {
                        next += 1;
                        break;
                    }
                    // Shared, and it comes when the applied list comes to it.
                    Some(shared) if meetings.peek().is_some_and(|meeting| *meeting != shared) => {}
                    Some(shared) => {
                        next += usize::from(done.contains(shared));
                        break;
                    }
                }
                next += 1;
            }
            let old = match live_places.get(name).map(Vec::as_slice) {
                Some([place]) => live.get(*place),
                // Twins are replaced as one.
                _ => None,
            };
            merged.extend(self.item().merge(old, Some(item)));
            done.insert(name);
            meetings.next_if(|meeting| *meeting == name);
        }
        let rest = live_names.iter().zip(live).skip(next);
        let live_only = rest.filter(|(name, _)| name.as_ref().is_none_or(|name| !applied_set.contains(name)));
        merged.extend(live_only.map(|(_, item)| item.clone()));
        merged
    }
}

/// What changed from one object to another.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    pub(super) added: FieldSet,
    pub(super) modified: FieldSet,
    pub(super) removed: FieldSet,
}

impl Comparison {
    /// What is different in `new`.
    pub(super) fn of(typed: Typed<'_>, old: &Value, new: &Value) -> Self {
        let mut comparison = Self::default();
        comparison.compare(typed, Some(old), Some(new), &mut Vec::new());
        comparison
    }

    /// Paths that have a value in the new object that they had not in the old one.
    pub(super) fn written(&self) -> FieldSet {
        self.added.union(&self.modified)
    }

    fn compare(&mut self, typed: Typed<'_>, old: Option<&Value>, new: Option<&Value>, path: &mut Vec<PathElement>) {
        let leaf = match (old, new) {
            (None, None) => return,
            (Some(value), None) | (None, Some(value)) => self.compare_as(typed, typed.shape(value), old, new, path),
            (Some(old_value), Some(new_value)) => {
                let (was, is) = (typed.shape(old_value), typed.shape(new_value));
                // Only values without a type change their shape: the old one goes, the new one comes.
                if was != is {
                    self.compare_as(typed, was, old, new, path);
                }
                self.compare_as(typed, is, old, new, path)
            }
        };
        match (old, new) {
            (None, Some(_)) if !leaf => self.added.insert(path),
            (Some(_), None) if !leaf => self.removed.insert(path),
            _ => {}
        }
    }

    /// Compares values seen in one shape. Gives whether they are one thing, and so already accounted for.
    fn compare_as(
        &mut self,
        typed: Typed<'_>,
        shape: Shape<'_>,
        old: Option<&Value>,
        new: Option<&Value>,
        path: &mut Vec<PathElement>,
    ) -> bool {
        match shape {
            Shape::Leaf(_) => {}
            Shape::Fields(_) => {
                let (old_fields, new_fields) = (old.and_then(fields), new.and_then(fields));
                if !(old_fields.is_none_or(Map::is_empty) && new_fields.is_none_or(Map::is_empty)) {
                    self.compare_fields(typed, old_fields, new_fields, path);
                    return false;
                }
            }
            Shape::Items(kind) => {
                let (old_items, new_items) = (old.map_or(&[][..], items), new.map_or(&[][..], items));
                if !(old_items.is_empty() && new_items.is_empty()) {
                    self.compare_items(typed, kind, old_items, new_items, path);
                    return false;
                }
            }
        }
        match (old, new) {
            (None, _) => self.added.insert(path),
            (_, None) => self.removed.insert(path),
            (Some(old), Some(new)) if !same(old, new) => self.modified.insert(path),
            _ => {}
        }
        true
    }

    fn compare_fields(
        &mut self,
        typed: Typed<'_>,
        old: Option<&Map<String, Value>>,
        new: Option<&Map<String, Value>>,
        path: &mut Vec<PathElement>,
    ) {
        let mut names: BTreeSet<&String> = old.into_iter().flatten().map(|(name, _)| name).collect();
        names.extend(new.into_iter().flatten().map(|(name, _)| name));
        for name in names {
            let filler = typed.filler(name);
            let old_value = old.and_then(|map| map.get(name).or(filler));
            let new_value = new.and_then(|map| map.get(name).or(filler));
            path.push(PathElement::field(name));
            self.compare(typed.field(name), old_value, new_value, path);
            path.pop();
        }
    }

    fn compare_items(
        &mut self,
        typed: Typed<'_>,
        kind: &ListKind,
        old: &[Value],
        new: &[Value],
        path: &mut Vec<PathElement>,
    ) {
        // Items by name, before and after. Lists in the wild have twins.
        let mut names: BTreeMap<PathElement, (Vec<&Value>, Vec<&Value>)> = BTreeMap::new();
        for item in old {
            if let Ok(name) = typed.name(kind, item) {
                names.entry(name).or_default().0.push(item);
            }
        }
        for item in new {
            if let Ok(name) = typed.name(kind, item) {
                names.entry(name).or_default().1.push(item);
            }
        }
        for (name, (old, new)) in names {
            path.push(name);
            match (&old[..], &new[..]) {
                ([] | [_], [] | [_]) => self.compare(typed.item(), old.first().copied(), new.first().copied(), path),
                ([_, _, ..], [_, _, ..]) => {
                    if old.len() != new.len() || old.iter().zip(&new).any(|(old, new)| !same(old, new)) {
                        self.modified.insert(path);
                    }
                }
                ([_, _, ..], _) => {
                    if let Some(new) = new.first() {
                        self.compare(typed.item(), None, Some(new), path);
                    }
                    self.removed.insert(path);
                }
                (_, _) => {
                    if let Some(old) = old.first() {
                        self.compare(typed.item(), Some(old), None, path);
                    }
                    self.added.insert(path);
                }
            }
            path.pop();
        }
    }
}

fn fields(value: &Value) -> Option<&Map<String, Value>> {
    value.as_object()
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
