//! Label and field selectors: parsing as `kubectl -l` and `--field-selector` write them, and matching.
//!
//! Labels: `a=b`, `a==b`, `a!=b`, `a in (b,c)`, `a notin (b,c)`, `a`, `!a`, `a>1`, `a<1`; all terms must hold.

use crate::{
    indexer,
    status::{Result, Status},
};
use fairlead_schema::{Resource, resource::SelectableField};
use fairlead_store::Entry;
use serde_json::Value;

/// A label selector. Empty: everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector(Vec<Requirement>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    operator: Operator,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Operator {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Absent,
    Greater(i64),
    Less(i64),
}

/// A field selector. Empty: everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector(Vec<FieldTerm>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct FieldTerm {
    field: Place,
    equal: bool,
    value: String,
}

/// Where the value of a selected field is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Name,
    Namespace,
    /// Position among the resource's selectable fields.
    Indexed(usize),
    /// In the object itself: definitions of custom resources change, and with them what a position means.
    Read(SelectableField),
}

impl LabelSelector {
    /// Reads a selector.
    ///
    /// # Errors
    /// 400 that names the term.
    pub fn parse(text: &str) -> Result<Self> {
        let mut terms = Vec::new();
        let mut rest = text.trim();
        while !rest.is_empty() {
            let (term, behind) = split_term(rest);
            terms.push(Requirement::parse(term.trim()).map_err(|why| {
                Status::bad_request(format!("unable to parse requirement: {why} in label selector {text:?}"))
            })?);
            rest = behind.trim();
        }
        Ok(Self(terms))
    }

    /// Reads a `meta/v1 LabelSelector` object, as in `spec.selector`.
    ///
    /// # Errors
    /// 400 that names the operator.
    pub fn from_object(selector: &Value) -> Result<Self> {
        let mut terms = Vec::new();
        for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
            terms.push(Requirement {
                key: key.clone(),
                operator: Operator::In(vec![value.as_str().unwrap_or_default().to_owned()]),
            });
        }
        for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
            let values = || {
                let values = expression["values"].as_array().into_iter().flatten();
                values.filter_map(|value| value.as_str().map(str::to_owned)).collect()
            };
            let operator = match expression["operator"].as_str().unwrap_or_default() {
                "In" => Operator::In(values()),
                "NotIn" => Operator::NotIn(values()),
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::Absent,
                other => {
                    let message = format!("{other:?} is not a valid label selector operator");
                    return Err(Status::bad_request(message));
                }
            };
            terms.push(Requirement {
                key: expression["key"].as_str().unwrap_or_default().to_owned(),
                operator,
            });
        }
        Ok(Self(terms))
    }

    /// Whether it lets everything through.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether labels, given by a look-up, satisfy it.
    pub fn matches<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.0.iter().all(|term| term.holds(label(&term.key)))
    }

    /// Whether a stored object satisfies it.
    pub fn matches_entry(&self, entry: &Entry) -> bool {
        let labels = &entry.indexed.labels;
        self.matches(|key| {
            let at = labels.binary_search_by(|(name, _)| (**name).cmp(key)).ok()?;
            Some(&labels[at].1)
        })
    }

    /// Whether the labels of an object satisfy it.
    pub fn matches_object(&self, object: &Value) -> bool {
        self.matches(|key| object["metadata"]["labels"].get(key)?.as_str())
    }
}

impl Requirement {
    fn parse(term: &str) -> std::result::Result<Self, String> {
        let requirement = |key: &str, operator| {
            let key = key.trim();
            check_key(key)?;
            Ok(Self {
                key: key.to_owned(),
                operator,
            })
        };
        if let Some(key) = term.strip_prefix('!') {
            return requirement(key, Operator::Absent);
        }
        if let Some(set) = term.strip_suffix(')') {
            let (left, values) = set
                .split_once('(')
                .ok_or_else(|| format!("unexpected ')' in {term:?}"))?;
            let values: Vec<_> = values.split(',').map(|value| value.trim().to_owned()).collect();
            values.iter().try_for_each(|value| check_value(value))?;
            let (key, operator) = left.trim_end().rsplit_once(char::is_whitespace).unwrap_or((left, ""));
            return match operator {
                "in" => requirement(key, Operator::In(values)),
                "notin" => requirement(key, Operator::NotIn(values)),
                other => Err(format!("found {other:?}, expected: in, notin")),
            };
        }
        let Some(at) = term.find(['=', '!', '<', '>']) else {
            if term.contains(char::is_whitespace) {
                return Err(format!("found {term:?}, expected: !, identifier, or 'end of string'"));
            }
            return requirement(term, Operator::Exists);
        };
        let (key, operation) = term.split_at(at);
        let number = |value: &str| {
            let value = value.trim();
            value
                .parse()
                .map_err(|_| format!("{value:?} must be an integer for '>' and '<'"))
        };
        for sign in ["==", "=", "!="] {
            if let Some(value) = operation.strip_prefix(sign) {
                let value = value.trim();
                check_value(value)?;
                let values = vec![value.to_owned()];
                return requirement(
                    key,
                    if sign == "!=" {
                        Operator::NotIn(values)
                    } else {
                        Operator::In(values)
                    },
                );
            }
        }
        if let Some(value) = operation.strip_prefix('>') {
            return requirement(key, Operator::Greater(number(value)?));
        }
        if let Some(value) = operation.strip_prefix('<') {
            return requirement(key, Operator::Less(number(value)?));
        }
        Err(format!("found {operation:?}, expected: =, !=, ==, in, notin"))
    }

    fn holds(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|value| value.parse::<i64>().ok());
        match &self.operator {
            Operator::In(values) => value.is_some_and(|value| values.iter().any(|it| it == value)),
            // As upstream: an absent label is not in the set.
            Operator::NotIn(values) => value.is_none_or(|value| values.iter().all(|it| it != value)),
            Operator::Exists => value.is_some(),
            Operator::Absent => value.is_none(),
            Operator::Greater(bound) => number().is_some_and(|it| it > *bound),
            Operator::Less(bound) => number().is_some_and(|it| it < *bound),
        }
    }
}

/// The first term and what follows its comma; commas in parentheses belong to the term.
fn split_term(text: &str) -> (&str, &str) {
    let mut depth = 0usize;
    for (at, character) in text.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => return (&text[..at], &text[at + 1..]),
            _ => {}
        }
    }
    (text, "")
}

/// `[prefix/]name`, each name of at most 63 letters, digits, `-`, `_`, `.`, the prefix a DNS name.
fn check_key(key: &str) -> std::result::Result<(), String> {
    let name = match key.split_once('/') {
        Some((prefix, name)) if !prefix.is_empty() && prefix.len() <= 253 => name,
        Some(_) => return Err(format!("{key:?} has an empty or overlong prefix")),
        None => key,
    };
    if name.is_empty() {
        return Err(format!("{key:?} is no label key: name part must be non-empty"));
    }
    check_word(name).map_err(|why| format!("{key:?} is no label key: {why}"))
}

fn check_value(value: &str) -> std::result::Result<(), String> {
    check_word(value).map_err(|why| format!("{value:?} is no label value: {why}"))
}

fn check_word(word: &str) -> std::result::Result<(), &'static str> {
    let bytes = word.as_bytes();
    if bytes.len() > 63 {
        return Err("must be no more than 63 characters");
    }
    let ends = [bytes.first(), bytes.last()];
    let fine = bytes
        .iter()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte));
    if !fine || !ends.iter().flatten().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(
            "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
                    alphanumeric character",
        );
    }
    Ok(())
}

/// One term of a field selector, as written: the same for authorization, which comes first, and for the selection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RawTerm<'a> {
    pub(crate) field: &'a str,
    pub(crate) equal: bool,
    pub(crate) value: String,
}

/// The terms of a field selector, empty ones left out.
///
/// # Errors
/// The term that is none.
pub(crate) fn field_terms(text: &str) -> std::result::Result<Vec<RawTerm<'_>>, &str> {
    let terms = split_escaped(text).filter(|term| !term.is_empty()).map(|term| {
        let signs = ["!=", "==", "="];
        let signs = signs.into_iter().filter_map(|sign| Some((term.find(sign)?, sign)));
        let (at, sign) = signs
            .min_by_key(|(at, sign)| (*at, usize::MAX - sign.len()))
            .ok_or(term)?;
        Ok(RawTerm {
            field: term[..at].trim(),
            equal: sign != "!=",
            value: unescape(&term[at + sign.len()..]),
        })
    });
    terms.collect()
}

impl FieldSelector {
    /// Reads a selector for objects of this resource.
    ///
    /// # Errors
    /// 400 that names the field or the term.
    pub fn parse(text: &str, resource: &Resource) -> Result<Self> {
        let mut terms = Vec::new();
        let raw = field_terms(text)
            .map_err(|term| Status::bad_request(format!("invalid selector: {text:?}; can't understand {term:?}")))?;
        for RawTerm {
            field: name,
            equal,
            value,
        } in raw
        {
            let field = match name {
                "metadata.name" => Place::Name,
                "metadata.namespace" => Place::Namespace,
                _ => {
                    let at = resource.selectable.iter().position(|field| &*field.name == name);
                    let at = at.ok_or_else(|| {
                        Status::bad_request(format!("field label not supported: {name}")).with_cause(
                            "FieldLabelNotSupported",
                            format!("{} of {}", name, resource.qualified()),
                            name,
                        )
                    })?;
                    match resource.custom {
                        Some(_) => Place::Read(resource.selectable[at].clone()),
                        None => Place::Indexed(at),
                    }
                }
            };
            terms.push(FieldTerm { field, equal, value });
        }
        Ok(Self(terms))
    }

    /// Whether it lets everything through.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a stored object satisfies it.
    pub fn matches_entry(&self, entry: &Entry) -> bool {
        self.0.iter().all(|term| {
            let read;
            let value = match &term.field {
                Place::Name => &*entry.key.name,
                Place::Namespace => &*entry.key.namespace,
                Place::Indexed(at) => entry.indexed.fields.get(*at).map_or("", |value| value),
                Place::Read(field) => {
                    read = indexer::value(&serde_json::from_slice(&entry.json).unwrap_or_default(), field);
                    &*read
                }
            };
            (value == term.value) == term.equal
        })
    }
}

/// Splits at commas that no backslash precedes.
fn split_escaped(text: &str) -> impl Iterator<Item = &str> {
    let mut escaped = false;
    text.split(move |character| {
        let split = character == ',' && !escaped;
        escaped = character == '\\' && !escaped;
        split
    })
}

fn unescape(text: &str) -> String {
    let mut characters = text.chars();
    let mut plain = String::with_capacity(text.len());
    while let Some(character) = characters.next() {
        match character {
            '\\' => plain.extend(characters.next()),
            other => plain.push(other),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn matches(selector: &str, labels: &Value) -> bool {
        let object = json!({ "metadata": { "labels": labels } });
        LabelSelector::parse(selector).unwrap().matches_object(&object)
    }

    #[test]
    fn labels() {
        let labels = json!({ "app": "web", "tier": "front", "n": "5", "example.com/x": "" });
        for selector in [
            "",
            "app=web",
            "app==web",
            " app = web , tier = front ",
            "app!=db",
            "other!=db",
            "app in (web,db)",
            "app in (db, web),tier",
            "app notin (db)",
            "other notin (db)",
            "!other",
            "n>4",
            "n<6",
            "example.com/x=",
            "example.com/x",
        ] {
            assert!(matches(selector, &labels), "{selector}");
        }
        for selector in [
            "app=db",
            "app!=web",
            "other",
            "!app",
            "app in (db)",
            "app notin (web)",
            "n>5",
            "app>1",
            "other in (a)",
        ] {
            assert!(!matches(selector, &labels), "{selector}");
        }
        for selector in [
            "a b", "a in b", "a in (b", "=b", "a=b c", "a>x", "a is (b)", "a=-", "/a", "a!b", "a=b)",
        ] {
            assert!(LabelSelector::parse(selector).is_err(), "{selector}");
        }
    }

    #[test]
    fn selector_objects() {
        let selector = json!({
            "matchLabels": { "app": "web" },
            "matchExpressions": [{ "key": "x", "operator": "DoesNotExist" }, { "key": "tier", "operator": "In", "values": ["a", "b"] }],
        });
        let selector = LabelSelector::from_object(&selector).unwrap();
        assert!(selector.matches_object(&json!({ "metadata": { "labels": { "app": "web", "tier": "b" } } })));
        assert!(!selector.matches_object(&json!({ "metadata": { "labels": { "app": "web", "tier": "b", "x": "" } } })));
        assert!(
            LabelSelector::from_object(&json!({ "matchExpressions": [{ "key": "x", "operator": "Like" }] })).is_err()
        );
    }

    #[test]
    fn fields_are_split_at_unescaped_commas() {
        let parts: Vec<_> = split_escaped(r"a=b\,c,d!=e").map(unescape).collect();
        assert_eq!(parts, ["a=b,c", "d!=e"]);
    }
}
