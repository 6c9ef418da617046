//! [`V`]: values of rules, read from JSON in place.

use super::super::structural::{SchemaType, Structural};
use crate::crd::cel::eval::Error;
use fairlead_schema::ListKind;
use kube_cel::cel::Value as Foreign;
use serde_json::Value;
use std::{collections::BTreeMap, rc::Rc};

/// A value while a rule runs. `'a`: the object that is validated, and the rule itself.
#[derive(Clone, Debug)]
pub(super) enum V<'a> {
    Null,
    Bool(bool),
    Int(i64),
    UInt(u64),
    Double(f64),
    Text(&'a str),
    Made(Rc<str>),
    Bytes(Rc<[u8]>),
    List(Rc<Vec<V<'a>>>),
    Map(Rc<BTreeMap<Key, V<'a>>>),
    /// An object or an array, with its schema where that is known.
    Json(&'a Value, Option<&'a Structural>),
    Optional(Option<Rc<V<'a>>>),
    /// What kube-cel's functions make: times, durations, quantities, URLs, addresses.
    Foreign(Rc<Foreign>),
    Type(&'static str),
}

/// Keys of maps.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    Bool(bool),
    Int(i128),
    Text(String),
}

/// Name of the field behind an identifier. Source: `k8s.io/apiserver/pkg/cel/escaping.go`.
pub(super) fn unescape(name: &str) -> String {
    if !name.contains("__") {
        return name.to_owned();
    }
    const WORDS: [(&str, &str); 4] = [
        ("__underscores__", "__"),
        ("__dot__", "."),
        ("__dash__", "-"),
        ("__slash__", "/"),
    ];
    if let Some(word) = name.strip_prefix("__").and_then(|it| it.strip_suffix("__"))
        && RESERVED.contains(&word)
    {
        return word.to_owned();
    }
    let mut out = String::new();
    let mut rest = name;
    while let Some(c) = rest.chars().next() {
        match WORDS.iter().find(|(escaped, _)| rest.starts_with(escaped)) {
            Some((escaped, plain)) => {
                out.push_str(plain);
                rest = &rest[escaped.len()..];
            }
            None => {
                out.push(c);
                rest = &rest[c.len_utf8()..];
            }
        }
    }
    out
}

const RESERVED: [&str; 21] = [
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

impl<'a> V<'a> {
    /// A JSON value as its schema types it.
    pub(super) fn json(value: &'a Value, schema: Option<&'a Structural>) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(it) => Self::Bool(*it),
            Value::Number(number) => match (number.as_i64(), number.as_u64()) {
                _ if schema.is_some_and(|it| it.ty == Some(SchemaType::Number)) => {
                    Self::Double(number.as_f64().unwrap_or(f64::NAN))
                }
                (Some(whole), _) => Self::Int(whole),
                (None, Some(whole)) => Self::UInt(whole),
                (None, None) => whole_float(number.as_f64().unwrap_or(f64::NAN), schema),
            },
            Value::String(text) => Self::text(text, schema),
            Value::Array(_) | Value::Object(_) => Self::Json(value, schema),
        }
    }

    fn text(text: &'a str, schema: Option<&'a Structural>) -> Self {
        let format = schema
            .filter(|it| !it.int_or_string)
            .and_then(|it| it.checks.format.as_deref());
        let made = match format {
            Some("date-time" | "datetime") => super::convert::call("timestamp", text),
            Some("date") => super::convert::call("timestamp", &format!("{text}T00:00:00Z")),
            Some("duration") => super::convert::call("duration", text),
            Some("byte") => {
                use base64::Engine as _;
                let decoded = base64::engine::general_purpose::STANDARD.decode(text).ok();
                return decoded.map_or(Self::Text(text), |bytes| Self::Bytes(bytes.into()));
            }
            _ => None,
        };
        made.map_or(Self::Text(text), |it| Self::Foreign(Rc::new(it)))
    }

    pub(super) fn made(text: impl Into<Rc<str>>) -> Self {
        Self::Made(text.into())
    }

    pub(super) fn as_str(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Made(text) => Some(text),
            _ => None,
        }
    }

    /// As CEL names it.
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Self::Null => "null_type",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::UInt(_) => "uint",
            Self::Double(_) => "double",
            Self::Text(_) | Self::Made(_) => "string",
            Self::Bytes(_) => "bytes",
            Self::List(_) | Self::Json(Value::Array(_), _) => "list",
            Self::Map(_) | Self::Json(..) => "map",
            Self::Optional(_) => "optional_type",
            Self::Foreign(it) => match &**it {
                Foreign::Timestamp(_) => "google.protobuf.Timestamp",
                Foreign::Duration(_) => "google.protobuf.Duration",
                _ => "object",
            },
            Self::Type(_) => "type",
        }
    }

    /// Items, characters, bytes or entries.
    pub(super) fn len(&self) -> Option<usize> {
        Some(match self {
            Self::Text(_) | Self::Made(_) => self.as_str()?.chars().count(),
            Self::Bytes(bytes) => bytes.len(),
            Self::List(items) => items.len(),
            Self::Map(map) => map.len(),
            Self::Json(Value::Array(items), _) => items.len(),
            Self::Json(Value::Object(fields), _) => fields.len(),
            _ => return None,
        })
    }

    /// What copying or searching it costs, roughly: bytes of text, entries of collections with all that is in them.
    pub(super) fn weight(&self) -> u64 {
        match self {
            Self::Text(text) => text.len() as u64 / 10 + 1,
            Self::Made(text) => text.len() as u64 / 10 + 1,
            Self::Bytes(bytes) => bytes.len() as u64 / 10 + 1,
            Self::List(items) => items.iter().map(Self::weight).fold(1, u64::saturating_add),
            Self::Map(map) => map.values().map(Self::weight).fold(1, u64::saturating_add),
            Self::Json(value, _) => json_weight(value),
            Self::Optional(Some(inner)) => inner.weight() + 1,
            _ => 1,
        }
    }

    /// What going through it once costs, without what is below.
    pub(super) fn breadth(&self) -> u64 {
        match self {
            Self::Text(_) | Self::Made(_) | Self::Bytes(_) => self.weight(),
            _ => self.len().unwrap_or(0) as u64 + 1,
        }
    }

    /// Items of a list.
    pub(super) fn items(&self) -> Option<Vec<V<'a>>> {
        match self {
            Self::List(items) => Some(items.to_vec()),
            Self::Json(Value::Array(items), schema) => {
                let schema = schema.and_then(|it| it.items.as_deref());
                Some(items.iter().map(|item| Self::json(item, schema)).collect())
            }
            _ => None,
        }
    }

    /// Keys of a map.
    pub(super) fn keys(&self) -> Option<Vec<V<'a>>> {
        match self {
            Self::Map(map) => Some(map.keys().map(Key::value).collect()),
            Self::Json(Value::Object(fields), _) => Some(fields.keys().map(|name| Self::Text(name)).collect()),
            _ => None,
        }
    }

    /// What a comprehension goes through: items, or keys.
    pub(super) fn iterate(&self) -> Option<Vec<V<'a>>> {
        self.items().or_else(|| self.keys())
    }

    /// `value.name`; `None`: it has no such field.
    pub(super) fn field(&self, name: &str) -> Result<Option<V<'a>>, Error> {
        match self {
            Self::Json(Value::Object(fields), schema) => {
                let is_map = schema.is_some_and(|it| it.additional.is_some());
                let plain = if is_map { name.to_owned() } else { unescape(name) };
                let below = schema.and_then(|it| it.field(&plain));
                Ok(fields.get(&plain).map(|value| Self::json(value, below)))
            }
            Self::Map(map) => Ok(map.get(&Key::Text(name.to_owned())).cloned()),
            _ => Err(Error::no_overload()),
        }
    }

    /// `value[at]`; `None`: there is nothing.
    pub(super) fn index(&self, at: &V<'a>) -> Result<Option<V<'a>>, Error> {
        let position = || match Key::of(at) {
            Some(Key::Int(at)) => Ok(usize::try_from(at).ok()),
            _ => Err(Error::no_overload()),
        };
        match self {
            Self::List(items) => Ok(position()?.and_then(|at| items.get(at)).cloned()),
            Self::Json(Value::Array(items), schema) => {
                let schema = schema.and_then(|it| it.items.as_deref());
                Ok(position()?
                    .and_then(|at| items.get(at))
                    .map(|item| Self::json(item, schema)))
            }
            Self::Map(map) => {
                let key = Key::of(at).ok_or_else(Error::no_overload)?;
                Ok(map.get(&key).cloned())
            }
            Self::Json(Value::Object(fields), schema) => match at.as_str() {
                Some(name) => {
                    let below = schema.and_then(|it| it.field(name));
                    Ok(fields.get(name).map(|value| Self::json(value, below)))
                }
                None => Ok(None),
            },
            _ => Err(Error::no_overload()),
        }
    }

    /// How a list of an object is merged, which says what equality of such lists means.
    pub(super) fn list_kind(&self) -> Option<(&'a ListKind, &'a Structural)> {
        match self {
            Self::Json(Value::Array(_), Some(schema)) => Some((&schema.list, schema)),
            _ => None,
        }
    }
}

fn whole_float<'a>(number: f64, schema: Option<&Structural>) -> V<'a> {
    // `1.0` of an integer field is the integer; the cast is exact in this range.
    let integer = schema.is_some_and(|it| it.ty == Some(SchemaType::Integer) || it.int_or_string);
    if integer && number.fract() == 0.0 && number.abs() < 9e15 {
        V::Int(number as i64)
    } else {
        V::Double(number)
    }
}

fn json_weight(value: &Value) -> u64 {
    match value {
        Value::String(text) => text.len() as u64 / 10 + 1,
        Value::Array(items) => items.iter().map(json_weight).fold(1, u64::saturating_add),
        Value::Object(fields) => fields.values().map(json_weight).fold(1, u64::saturating_add),
        _ => 1,
    }
}

impl Key {
    pub(super) fn of(value: &V<'_>) -> Option<Self> {
        Some(match value {
            V::Bool(it) => Self::Bool(*it),
            V::Int(it) => Self::Int(i128::from(*it)),
            V::UInt(it) => Self::Int(i128::from(*it)),
            // Exact: such a float has no fraction and fits.
            V::Double(it) if it.fract() == 0.0 && it.abs() < 9e15 => Self::Int(*it as i128),
            V::Text(_) | V::Made(_) => Self::Text(value.as_str()?.to_owned()),
            _ => return None,
        })
    }

    pub(super) fn value<'a>(&self) -> V<'a> {
        match self {
            Self::Bool(it) => V::Bool(*it),
            Self::Int(it) => i64::try_from(*it).map_or(V::UInt(u64::try_from(*it).unwrap_or_default()), V::Int),
            Self::Text(text) => V::made(text.as_str()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::unescape;

    #[test]
    fn names_are_unescaped_as_upstream_escapes_them() {
        let cases = [
            ("a_b", "a_b"),
            ("a__dash__b", "a-b"),
            ("a__dot__b", "a.b"),
            ("a__slash__b", "a/b"),
            ("a__underscores__b", "a__b"),
            ("__namespace__", "namespace"),
            ("__other__", "__other__"),
        ];
        for (escaped, plain) in cases {
            assert_eq!(unescape(escaped), plain);
        }
    }
}
