//! One step of a path: a field, an item of a list by key or by value, an index.

use crate::value;
use serde_json::{Map, Value};
use std::{cmp::Ordering, fmt, sync::Arc};

/// One step of a path into an object.
#[derive(Clone, Debug)]
pub enum PathElement {
    /// A field of an object or a key of a map.
    Field(Arc<str>),
    /// The item of a list of objects that has these values, sorted by name.
    Key(Vec<(Arc<str>, Value)>),
    /// The item of a set.
    Value(Value),
    /// The item at a place. Nothing here makes one; clients may have written them.
    Index(i64),
}

impl PathElement {
    /// The field of this name.
    pub fn field(name: &str) -> Self {
        Self::Field(name.into())
    }

    /// Reads a key of `FieldsV1`, such as `f:spec` or `k:{"name":"a"}`. `Ok(None)` for kinds that only the future knows.
    ///
    /// # Errors
    /// The text says what is wrong with the key.
    pub fn parse(text: &str) -> Result<Option<Self>, String> {
        let Some((kind, rest)) = text.split_once(':') else {
            return Err(format!("missing colon: {text}"));
        };
        let json = |rest| serde_json::from_str::<Value>(rest).map_err(|error| format!("invalid key {text}: {error}"));
        Ok(Some(match kind {
            "f" => Self::field(rest),
            "v" => Self::Value(json(rest)?),
            "k" => match json(rest)? {
                Value::Object(fields) => {
                    Self::key(fields.into_iter().map(|(name, value)| (name.into(), value)).collect())
                }
                _ => return Err(format!("invalid key {text}: no object")),
            },
            "i" => Self::Index(rest.parse().map_err(|error| format!("invalid key {text}: {error}"))?),
            _ => return Ok(None),
        }))
    }

    /// The item with these values.
    pub fn key(mut fields: Vec<(Arc<str>, Value)>) -> Self {
        fields.sort_by(|a, b| a.0.cmp(&b.0));
        Self::Key(fields)
    }

    /// The key of `FieldsV1`: what [`PathElement::parse`] reads.
    pub fn encode(&self) -> String {
        match self {
            Self::Field(name) => format!("f:{name}"),
            Self::Key(fields) => {
                let fields: Map<String, Value> =
                    fields.iter().map(|(name, it)| (name.to_string(), it.clone())).collect();
                format!("k:{}", Value::Object(fields))
            }
            Self::Value(value) => format!("v:{value}"),
            Self::Index(index) => format!("i:{index}"),
        }
    }
}

/// As upstream prints paths: `.spec`, `[name="a",port=80]`, `[="x"]`, `[3]`.
impl fmt::Display for PathElement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(name) => write!(f, ".{name}"),
            Self::Key(fields) => {
                f.write_str("[")?;
                for (at, (name, value)) in fields.iter().enumerate() {
                    write!(f, "{}{name}={value}", if at == 0 { "" } else { "," })?;
                }
                f.write_str("]")
            }
            Self::Value(value) => write!(f, "[={value}]"),
            Self::Index(index) => write!(f, "[{index}]"),
        }
    }
}

/// Fields, then keys, then values, then indices: the order of `FieldsV1`.
impl Ord for PathElement {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Field(a), Self::Field(b)) => a.cmp(b),
            (Self::Key(a), Self::Key(b)) => {
                let fields = a
                    .iter()
                    .zip(b)
                    .map(|(a, b)| a.0.cmp(&b.0).then_with(|| value::compare(&a.1, &b.1)));
                let different = fields.fold(Ordering::Equal, Ordering::then);
                different.then_with(|| a.len().cmp(&b.len()))
            }
            (Self::Value(a), Self::Value(b)) => value::compare(a, b),
            (Self::Index(a), Self::Index(b)) => a.cmp(b),
            _ => self.rank().cmp(&other.rank()),
        }
    }
}

impl PathElement {
    fn rank(&self) -> u8 {
        match self {
            Self::Field(_) => 0,
            Self::Key(_) => 1,
            Self::Value(_) => 2,
            Self::Index(_) => 3,
        }
    }
}

impl PartialOrd for PathElement {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for PathElement {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for PathElement {}

/// A path, as `.spec.containers[name="a"].image`.
pub fn path_text(path: &[PathElement]) -> String {
    path.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_read_and_written() {
        let cases = [
            ("f:spec", ".spec"),
            ("f:a:b", ".a:b"),
            ("f:", "."),
            (
                r#"k:{"containerPort":80,"protocol":"TCP"}"#,
                r#"[containerPort=80,protocol="TCP"]"#,
            ),
            (r#"v:"a\"b""#, r#"[="a\"b"]"#),
            ("v:1", "[=1]"),
            ("v:true", "[=true]"),
            ("i:3", "[3]"),
        ];
        for (text, printed) in cases {
            let element = PathElement::parse(text).unwrap().unwrap();
            assert_eq!(element.encode(), text);
            assert_eq!(element.to_string(), printed);
        }
        // Keys are sorted by name.
        let element = PathElement::parse(r#"k:{"b":1,"a":2}"#).unwrap().unwrap();
        assert_eq!(element.encode(), r#"k:{"a":2,"b":1}"#);
    }

    #[test]
    fn bad_elements_are_refused_and_unknown_ones_ignored() {
        for text in ["", "f", "v:{", "k:[]", "k:x", "i:x", "i:"] {
            assert!(PathElement::parse(text).is_err(), "{text}");
        }
        assert_eq!(PathElement::parse("z:1"), Ok(None));
    }

    #[test]
    fn numbers_make_one_element_however_they_are_written() {
        let parse = |text| PathElement::parse(text).unwrap().unwrap();
        assert_eq!(parse("v:1"), parse("v:1.0"));
        assert!(parse("f:z") < parse("k:{}"));
        assert!(parse("k:{}") < parse(r#"k:{"a":1}"#));
        assert!(parse(r#"k:{"a":9}"#) < parse(r#"k:{"a":10}"#));
        assert!(parse("k:{}") < parse("v:1") && parse(r#"v:"x""#) < parse("i:0"));
    }
}
