//! JSON and YAML bodies to values, with the fields that a body names twice: the last one counts, and strict clients want
//! to hear of it.

use crate::strict::{FieldProblem, MAX_PROBLEMS, ProblemKind, shortened, within};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::fmt;

/// Why a body is no JSON or YAML.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the body is no valid {format}: {message}")]
pub struct ReadError {
    /// `JSON` or `YAML`.
    pub format: &'static str,
    /// What and where, in the words of the parser.
    pub message: String,
}

/// Reads one JSON document. Its depth is bounded (128).
///
/// # Errors
/// It is no JSON, or more than one document.
pub fn json(body: &[u8]) -> Result<(Value, Vec<FieldProblem>), ReadError> {
    let error = |error: serde_json::Error| ReadError {
        format: "JSON",
        message: error.to_string(),
    };
    let mut duplicates = Vec::new();
    let mut reader = serde_json::Deserializer::from_slice(body);
    let value = Reader(&mut duplicates).deserialize(&mut reader).map_err(error)?;
    reader.end().map_err(error)?;
    Ok((value, duplicates))
}

/// Reads one YAML document. Keys that are no text become text, as upstream's converter makes them.
///
/// # Errors
/// It is no YAML, more than one document, or beyond the parser's limits of depth and aliases.
pub fn yaml(body: &[u8]) -> Result<(Value, Vec<FieldProblem>), ReadError> {
    let error = |message: String| ReadError {
        format: "YAML",
        message,
    };
    let text = std::str::from_utf8(body).map_err(|cause| error(cause.to_string()))?;
    let options = serde_saphyr::options! {
        duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::LastWins,
        with_snippet: false,
    };
    let mut duplicates = Vec::new();
    let value = serde_saphyr::with_deserializer_from_str_with_options(text, options, |reader| {
        Reader(&mut duplicates).deserialize(reader)
    });
    let value = value.map_err(|cause| error(cause.to_string()))?;
    Ok((value, duplicates))
}

struct Reader<'a>(&'a mut Vec<FieldProblem>);

impl<'de> DeserializeSeed<'de> for Reader<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Reader<'_> {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value of JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        let number = Number::from_f64(value);
        number
            .map(Value::Number)
            .ok_or_else(|| E::custom(format!("{value} is no number of JSON")))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        loop {
            let index = list.len();
            let item = within(
                self.0,
                || format!("[{index}]"),
                |all| items.next_element_seed(Reader(all)),
            )?;
            match item {
                Some(item) => list.push(item),
                None => return Ok(list.into()),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key_seed(Key)? {
            let value = within(self.0, || key.clone(), |all| entries.next_value_seed(Reader(all)))?;
            if map.contains_key(&key) && self.0.len() < MAX_PROBLEMS {
                self.0.push(FieldProblem {
                    path: shortened(&key),
                    kind: ProblemKind::Duplicate,
                });
            }
            map.insert(key, value);
        }
        Ok(map.into())
    }
}

/// A key of a map: text, or a scalar of YAML that becomes text.
struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Visitor<'_> for Key {
    type Value = String;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a key")
    }

    fn visit_str<E>(self, value: &str) -> Result<String, E> {
        Ok(value.to_owned())
    }

    fn visit_string<E>(self, value: String) -> Result<String, E> {
        Ok(value)
    }

    fn visit_bool<E>(self, value: bool) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_i64<E>(self, value: i64) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_u64<E>(self, value: u64) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<String, E> {
        Number::from_f64(value)
            .map(|number| number.to_string())
            .ok_or_else(|| E::custom("a key that is no number of JSON"))
    }
}
