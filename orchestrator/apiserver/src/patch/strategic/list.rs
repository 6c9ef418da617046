//! Merging, deleting and ordering of list items. An item is known by its merge key, a scalar by itself.

use super::{Schema, bad, bad_argument, clean, go_text, no_merge_key, text::go_list, unknown_directive};
use crate::{
    patch::{PatchError, strategic::PATCH},
    value::canonical,
};
use serde_json::{Map, Value};
use std::{
    collections::{BTreeMap, BTreeSet},
    mem::{Discriminant, discriminant},
};

/// Result of [`merge`].
pub(super) struct Merged {
    pub(super) items: Vec<Value>,
    /// The live order that a `$setElementOrder` starts from: new items count as appended there as far as deleted ones left
    /// room. Source: upstream, which merges in place.
    pub(super) order: Vec<Value>,
}

/// Merges a list whose strategy is `merge`.
pub(super) fn merge(
    schema: Schema<'_>,
    merge_key: Option<&str>,
    old: Vec<Value>,
    new: Vec<Value>,
) -> Result<Merged, PatchError> {
    let Some(kind) = kind_of_items(&old, &new)? else {
        return Ok(Merged {
            items: old,
            order: Vec::new(),
        });
    };
    if kind != discriminant(&Value::Object(Map::new())) {
        let mut seen = BTreeSet::new();
        let both = old
            .iter()
            .chain(&new)
            .filter(|item| seen.insert(canonical(item)))
            .cloned();
        let items = sort(both.collect(), &new, &old, None)?;
        return Ok(Merged { items, order: old });
    }
    let Some(merge_key) = merge_key else {
        return Err(bad("cannot merge lists without merge key for struct"));
    };
    let room = old.len();
    let (mut merged, new) = without_directives(old, new, merge_key)?;
    let order = merged.clone();
    let mut places = BTreeMap::new();
    for (at, item) in merged.iter().enumerate() {
        // Of items with the same key, which only a careless client wrote, the first is meant.
        if let Some(id) = item.get(merge_key) {
            places.entry(canonical(id)).or_insert(at);
        }
    }
    for item in &new {
        let id = canonical(key_of(item, merge_key)?);
        let place = places.get(&id).copied();
        let old = place.and_then(|at| merged.get_mut(at));
        match (old, item) {
            (Some(Value::Object(old)), Value::Object(item)) => {
                *old = schema.merge(std::mem::take(old), item.clone())?;
            }
            _ => {
                places.insert(id, merged.len());
                merged.extend(clean(item.clone()));
            }
        }
    }
    let live_order = merged.iter().take(room).cloned().collect();
    Ok(Merged {
        items: sort(merged, &new, &order, Some(merge_key))?,
        order: live_order,
    })
}

/// Takes the values of a `$deleteFromPrimitiveList` out of a list.
pub(super) fn delete(old: Vec<Value>, values: &[Value]) -> Result<Vec<Value>, PatchError> {
    kind_of_items(&old, values)?;
    let values: BTreeSet<_> = values.iter().map(canonical).collect();
    Ok(old
        .into_iter()
        .filter(|item| !values.contains(&canonical(item)))
        .collect())
}

/// Applies the items that carry a `$patch` and gives what is left of both lists.
fn without_directives(
    mut old: Vec<Value>,
    new: Vec<Value>,
    merge_key: &str,
) -> Result<(Vec<Value>, Vec<Value>), PatchError> {
    let mut rest = Vec::with_capacity(new.len());
    let mut replace = false;
    let mut deleted = BTreeSet::new();
    for item in new {
        let Value::Object(fields) = &item else { continue };
        match fields.get(PATCH) {
            None => rest.push(item),
            Some(Value::String(directive)) if directive == "delete" => {
                deleted.insert(canonical(key_of(&item, merge_key)?));
            }
            Some(Value::String(directive)) if directive == "replace" => replace = true,
            Some(Value::String(directive)) if directive == "merge" => {
                return Err(bad("merging lists cannot yet be specified in the patch"));
            }
            Some(directive) => return Err(unknown_directive(directive, fields)),
        }
    }
    if replace {
        return Ok((rest.into_iter().filter_map(clean).collect(), Vec::new()));
    }
    old.retain(|item| item.get(merge_key).is_none_or(|id| !deleted.contains(&canonical(id))));
    Ok((old, rest))
}

/// Orders a merged list: the items that `order` names as it names them, the others as they were in `old`, and both
/// interleaved as `old` had them where it had both.
pub(super) fn sort(
    merged: Vec<Value>,
    order: &[Value],
    old: &[Value],
    merge_key: Option<&str>,
) -> Result<Vec<Value>, PatchError> {
    let wished = places(order, merge_key)?;
    let known = places(old, merge_key)?;
    let (mut named, mut others) = (Vec::new(), Vec::new());
    for item in merged {
        let id = canonical(id_of(&item, merge_key)?);
        let was = known.get(&id).copied();
        match wished.get(&id) {
            Some(wish) => named.push((*wish, was, item)),
            None => others.push((was, item)),
        }
    }
    named.sort_by_key(|(wish, ..)| *wish);
    others.sort_by_key(|(was, _)| was.unwrap_or(usize::MAX));
    let mut sorted = Vec::with_capacity(named.len() + others.len());
    let mut others = others.into_iter().peekable();
    for (_, place, item) in named {
        while let Some((_, other)) = others.next_if(|(was, _)| was.is_some() && place.is_some() && *was < place) {
            sorted.push(other);
        }
        sorted.push(item);
    }
    sorted.extend(others.map(|(_, item)| item));
    Ok(sorted)
}

/// Checks that the items of a patch appear in its `$setElementOrder`, in that order.
pub(super) fn check_order(new: &[Value], order: &[Value], merge_key: Option<&str>) -> Result<(), PatchError> {
    if new.is_empty() || order.is_empty() {
        return Ok(());
    }
    let mut wishes = order.iter();
    for item in new {
        if item.get(PATCH).is_some() {
            continue;
        }
        let id = canonical(id_of(item, merge_key)?);
        loop {
            let Some(wish) = wishes.next() else {
                return Err(bad(format!(
                    "The order in patch list:\n{}\n doesn't match $setElementOrder list:\n{}\n",
                    go_list(new),
                    go_list(order)
                )));
            };
            if canonical(id_of(wish, merge_key)?) == id {
                break;
            }
        }
    }
    Ok(())
}

fn places(items: &[Value], merge_key: Option<&str>) -> Result<BTreeMap<String, usize>, PatchError> {
    let mut places = BTreeMap::new();
    for (at, item) in items.iter().enumerate() {
        places.entry(canonical(id_of(item, merge_key)?)).or_insert(at);
    }
    Ok(places)
}

fn id_of<'v>(item: &'v Value, merge_key: Option<&str>) -> Result<&'v Value, PatchError> {
    merge_key.map_or(Ok(item), |key| key_of(item, key))
}

fn key_of<'v>(item: &'v Value, merge_key: &str) -> Result<&'v Value, PatchError> {
    match item {
        Value::Object(fields) => fields.get(merge_key).ok_or_else(|| no_merge_key(fields, merge_key)),
        other => Err(bad_argument("map[string]interface {}", other)),
    }
}

/// The one kind that all items are of; `None` where there are none.
fn kind_of_items(old: &[Value], new: &[Value]) -> Result<Option<Discriminant<Value>>, PatchError> {
    let mut kinds = old.iter().chain(new).map(discriminant);
    let Some(kind) = kinds.next() else { return Ok(None) };
    if kind == discriminant(&Value::Array(Vec::new())) {
        return Err(PatchError::Unprocessable("lists of lists are not supported".into()));
    }
    if kinds.any(|other| other != kind) {
        let lists = [Value::Array(old.to_vec()), Value::Array(new.to_vec())];
        return Err(bad(format!(
            "list element types are not identical: {}",
            go_text(&Value::Array(lists.into()))
        )));
    }
    Ok(Some(kind))
}
