//! Strategic merge patch: a merge patch that knows which lists are merged, and by which key. Source: the design proposals
//! "strategic merge patch" and "preserve order in strategic merge patch", and the field's
//! [`fairlead_schema::types::PatchStrategy`].
//!
//! | directive | where | meaning |
//! |---|---|---|
//! | `$patch: replace` | object | the patch, without the directive, is the new value |
//! | `$patch: delete` | object | the value becomes empty |
//! | `$patch: delete` | item of a merged list | the items with its merge key go |
//! | `$patch: replace` | item of a merged list | the patch's other items are the new list |
//! | `$retainKeys` | object | fields that are not listed go |
//! | `$deleteFromPrimitiveList/x` | beside list `x` | its values leave `x` |
//! | `$setElementOrder/x` | beside list `x` | the order of `x` |

mod list;
mod text;

use super::{PatchError, check_depth};
use fairlead_schema::types::{Field, PatchStrategy, Type, TypeId, Types};
use serde_json::{Map, Value};
use text::{go_text, go_type};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList";
const SET_ORDER: &str = "$setElementOrder";

/// Applies a strategic merge patch to an object of type `ty`. The result has none of the patch's nulls and directives. Custom
/// resources do not take such patches: their callers answer 415.
///
/// # Errors
/// [`PatchError::BadRequest`] for a malformed patch, [`PatchError::Unprocessable`] for lists of lists.
pub fn strategic_merge_patch(types: &Types, ty: TypeId, object: &Value, patch: &Value) -> Result<Value, PatchError> {
    let (Value::Object(object_fields), Value::Object(patch_fields)) = (object, patch) else {
        return Err(bad("invalid JSON document"));
    };
    check_depth(object, patch)?;
    let schema = Schema { types, ty: Some(ty) };
    schema
        .merge(object_fields.clone(), patch_fields.clone())
        .map(Value::Object)
}

fn bad(text: impl Into<String>) -> PatchError {
    PatchError::BadRequest(text.into())
}

fn bad_set_order() -> PatchError {
    bad("invalid patch format of setElementOrder list")
}

/// The type of the value at hand; `None` where the schema says nothing.
#[derive(Clone, Copy)]
struct Schema<'a> {
    types: &'a Types,
    ty: Option<TypeId>,
}

impl<'a> Schema<'a> {
    /// What is known of a field whose value is an object or a list. Fields of [`Type::Any`] and of maps have no strategy.
    fn field(self, key: &str) -> Result<(Schema<'a>, PatchStrategy), PatchError> {
        let inner = |ty| Schema { types: self.types, ty };
        match self.ty.map(|ty| self.types.get(ty)) {
            Some(Type::Object(object)) => match object.fields.get(key) {
                Some(Field { ty, patch, .. }) => Ok((inner(Some(*ty)), patch.clone())),
                None if object.preserve_unknown => Ok((inner(None), PatchStrategy::default())),
                None => {
                    let name = object.name.rsplit('.').next().unwrap_or_default();
                    Err(bad(format!(
                        "unable to find api field in struct {name} for the json field {key:?}"
                    )))
                }
            },
            Some(Type::Map { value, .. }) => Ok((inner(Some(*value)), PatchStrategy::default())),
            _ => Ok((inner(None), PatchStrategy::default())),
        }
    }

    /// The type of a list's items.
    fn item(self) -> Schema<'a> {
        let ty = self.ty.and_then(|ty| match self.types.get(ty) {
            Type::List { item, .. } => Some(*item),
            _ => None,
        });
        Schema { types: self.types, ty }
    }

    fn merge(
        self,
        mut object: Map<String, Value>,
        mut patch: Map<String, Value>,
    ) -> Result<Map<String, Value>, PatchError> {
        if let Some(directive) = patch.get(PATCH) {
            return match directive.as_str() {
                Some("replace") => {
                    patch.remove(PATCH);
                    Ok(clean_map(patch))
                }
                Some("delete") => Ok(Map::new()),
                _ => Err(unknown_directive(directive, &patch)),
            };
        }
        retain_keys(&mut object, &mut patch)?;
        self.ordered_lists(&mut object, &mut patch)?;
        for (key, value) in patch {
            let deletes = key.starts_with(DELETE_FROM);
            let key = if deletes {
                list_of(&key, DELETE_FROM)?.to_owned()
            } else {
                key
            };
            if value.is_null() {
                object.remove(&key);
                continue;
            }
            let merged = match (object.remove(&key), value) {
                (None, _) if deletes => continue,
                (None, value) => clean(value),
                (Some(Value::Object(old)), Value::Object(new)) => {
                    let (schema, _) = self.field(&key)?;
                    Some(Value::Object(schema.merge(old, new)?))
                }
                (Some(Value::Array(old)), Value::Array(new)) => {
                    let (schema, strategy) = self.field(&key)?;
                    Some(Value::Array(if deletes {
                        list::delete(old, &new)?
                    } else if strategy.merge {
                        list::merge(schema.item(), strategy.merge_key.as_deref(), old, new)?.items
                    } else {
                        clean_list(new)
                    }))
                }
                (Some(old), _) if deletes => Some(old),
                (Some(_), value) => clean(value),
            };
            if let Some(merged) = merged {
                object.insert(key, merged);
            }
        }
        Ok(object)
    }

    /// Takes the `$setElementOrder` directives out of the patch, with the lists that they order, and merges those.
    fn ordered_lists(self, object: &mut Map<String, Value>, patch: &mut Map<String, Value>) -> Result<(), PatchError> {
        let directives: Vec<String> = patch.keys().filter(|key| key.starts_with(SET_ORDER)).cloned().collect();
        for directive in directives {
            let Some(order) = patch.remove(&directive) else {
                continue;
            };
            let Value::Array(order) = order else {
                return Err(bad_argument("[]interface {}", &order));
            };
            let key = list_of(&directive, SET_ORDER)?;
            let (schema, strategy) = self.field(key)?;
            let old = take_list(object, key)?;
            // A patch that sets the list to null deletes it; its order does not matter then.
            let new = if patch.get(key).is_some_and(Value::is_null) {
                None
            } else {
                take_list(patch, key)?
            };
            let merge_key = strategy.merge_key.as_deref();
            list::check_order(new.as_deref().unwrap_or_default(), &order, merge_key)?;
            let (items, live_order) = match (old, new) {
                (None, None) => continue,
                (Some(old), None) => (old.clone(), old),
                (None, Some(new)) => (clean_list(new), Vec::new()),
                (Some(old), Some(new)) if strategy.merge => {
                    let merged = list::merge(schema.item(), merge_key, old, new)?;
                    (merged.items, merged.order)
                }
                (Some(old), Some(new)) => (clean_list(new), old),
            };
            let sorted = list::sort(items, &order, &live_order, merge_key)?;
            object.insert(key.to_owned(), Value::Array(sorted));
        }
        Ok(())
    }
}

/// Applies `$retainKeys` and takes it out of the patch. Everything that the patch sets must be listed.
fn retain_keys(object: &mut Map<String, Value>, patch: &mut Map<String, Value>) -> Result<(), PatchError> {
    let Some(keys) = patch.remove(RETAIN_KEYS) else {
        return Ok(());
    };
    let malformed = || bad("invalid patch format of retainKeys");
    let keys = keys.as_array().ok_or_else(malformed)?;
    let listed = |key: &str| keys.iter().any(|it| it.as_str() == Some(key));
    let directive = |key: &str| key.starts_with(DELETE_FROM) || key.starts_with(SET_ORDER);
    if patch
        .iter()
        .any(|(key, value)| !value.is_null() && !directive(key) && !listed(key))
    {
        return Err(malformed());
    }
    object.retain(|key, _| listed(key));
    Ok(())
}

/// The list that a directive such as `$setElementOrder/finalizers` is about.
fn list_of<'k>(key: &'k str, prefix: &str) -> Result<&'k str, PatchError> {
    key.strip_prefix(prefix)
        .and_then(|rest| rest.strip_prefix('/'))
        .ok_or_else(|| {
            if prefix == SET_ORDER {
                bad_set_order()
            } else {
                bad("invalid patch format of primitive list")
            }
        })
}

fn take_list(fields: &mut Map<String, Value>, key: &str) -> Result<Option<Vec<Value>>, PatchError> {
    match fields.remove(key) {
        None => Ok(None),
        Some(Value::Array(items)) => Ok(Some(items)),
        Some(other) => Err(bad_argument("[]interface {}", &other)),
    }
}

/// A value of the patch as it enters the object: without nulls and directives. `None` for one that only says `$patch`.
fn clean(value: Value) -> Option<Value> {
    match value {
        Value::Object(fields) if fields.contains_key(PATCH) => None,
        Value::Object(fields) => Some(Value::Object(clean_map(fields))),
        Value::Array(items) => Some(Value::Array(clean_list(items))),
        scalar => Some(scalar),
    }
}

fn clean_map(fields: Map<String, Value>) -> Map<String, Value> {
    let directive = |key: &str| key.starts_with(DELETE_FROM) || key.starts_with(SET_ORDER) || key == RETAIN_KEYS;
    let kept = fields
        .into_iter()
        .filter(|(key, value)| !value.is_null() && !directive(key));
    kept.filter_map(|(key, value)| Some((key, clean(value)?))).collect()
}

fn clean_list(items: Vec<Value>) -> Vec<Value> {
    items.into_iter().filter_map(clean).collect()
}

fn unknown_directive(directive: &Value, map: &Map<String, Value>) -> PatchError {
    bad(format!(
        "unknown patch type: {} in map: {}",
        go_text(directive),
        text::go_map(map)
    ))
}

fn no_merge_key(map: &Map<String, Value>, key: &str) -> PatchError {
    bad(format!(
        "map: {} does not contain declared merge key: {key}",
        text::go_map(map)
    ))
}

fn bad_argument(expected: &str, actual: &Value) -> PatchError {
    bad(format!("expected a {expected}, but received a {}", go_type(actual)))
}

#[cfg(test)]
mod tests;
