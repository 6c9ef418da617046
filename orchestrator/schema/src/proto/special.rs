//! Messages whose JSON form is no object of their fields.

use super::{
    DecodeCause, DecodeError,
    walk::{Reader, Walker},
};
use crate::types::{Type, TypeId, Types};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value};

/// Ids of types that the arena knows as [`Type::Any`] or text, though their messages differ.
#[derive(Clone, Copy, Debug)]
pub(super) struct Special {
    unions: [Option<TypeId>; 3],
    schema: Option<TypeId>,
    duration: Option<TypeId>,
}

/// The unions of `apiextensions/v1`: a schema, or something simpler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Union {
    /// `schema = 1`, `jSONSchemas = 2`.
    Array,
    /// `allows = 1`, `schema = 2`.
    Bool,
    /// `schema = 1`, `property = 2`.
    StringArray,
}

impl Special {
    pub(super) fn of(types: &Types) -> Self {
        let named = |local: &str| {
            types.named(&format!(
                "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.{local}"
            ))
        };
        Self {
            unions: ["OrArray", "OrBool", "OrStringArray"].map(|union| named(&format!("JSONSchemaProps{union}"))),
            schema: named("JSONSchemaProps"),
            duration: types.named("io.k8s.apimachinery.pkg.apis.meta.v1.Duration"),
        }
    }

    pub(super) fn union(&self, ty: TypeId) -> Option<Union> {
        let at = self.unions.iter().position(|union| *union == Some(ty))?;
        [Union::Array, Union::Bool, Union::StringArray].get(at).copied()
    }

    pub(super) fn schema(&self) -> Option<TypeId> {
        self.schema
    }

    pub(super) fn is_duration(&self, ty: TypeId) -> bool {
        self.duration == Some(ty)
    }
}

impl Walker<'_> {
    pub(super) fn schema_union(&mut self, union: Union, message: &[u8]) -> Result<Value, DecodeError> {
        let Some(schema) = self.schema() else {
            return Ok(Value::Null);
        };
        let mut single: Option<Map<String, Value>> = None;
        let mut many: Option<Vec<Value>> = None;
        let mut allows = false;
        let mut reader = Reader(message);
        while let Some((number, payload)) = reader.next()? {
            self.spend()?;
            match (union, number) {
                (Union::Bool, 1) => allows = payload.varint()? != 0,
                (Union::Bool, 2) | (Union::Array | Union::StringArray, 1) => {
                    if let Type::Object(object) = self.types.get(schema) {
                        let map = single.get_or_insert_default();
                        self.object(schema, object, payload.bytes()?, map)?;
                    }
                }
                (Union::Array, 2) => {
                    let item = self.value(schema, payload)?;
                    many.get_or_insert_default().push(item);
                }
                (Union::StringArray, 2) => many.get_or_insert_default().push(payload.text()?.into()),
                _ => {}
            }
        }
        // Upstream prefers the array to the schema in its own encoder, and the schema to the flag.
        Ok(match (many, single, union) {
            (Some(many), _, _) => many.into(),
            (None, Some(single), _) => single.into(),
            (None, None, Union::Bool) => allows.into(),
            (None, None, _) => Value::Null,
        })
    }
}

/// `Timestamp{seconds = 1, nanos = 2}`; an empty message is the zero time, `null`. `Time` knows no fractions.
pub(super) fn time(message: &[u8], micro: bool) -> Result<Value, DecodeError> {
    let (mut seconds, mut nanos) = (0, 0);
    if message.is_empty() {
        return Ok(Value::Null);
    }
    let mut reader = Reader(message);
    while let Some((number, payload)) = reader.next()? {
        match number {
            1 => seconds = payload.varint()? as i64,
            2 => nanos = payload.varint()? as i32,
            _ => {}
        }
    }
    let malformed = |error: jiff::Error| DecodeCause::Malformed(error.to_string());
    let time = Timestamp::new(seconds, if micro { nanos } else { 0 }).map_err(malformed)?;
    let format = if micro {
        "%Y-%m-%dT%H:%M:%S.%6fZ"
    } else {
        "%Y-%m-%dT%H:%M:%SZ"
    };
    Ok(time.strftime(format).to_string().into())
}

/// `Quantity{string = 1}`; empty is zero.
pub(super) fn quantity(message: &[u8]) -> Result<Value, DecodeError> {
    let mut text = "";
    let mut reader = Reader(message);
    while let Some((number, payload)) = reader.next()? {
        if number == 1 {
            text = payload.text()?;
        }
    }
    Ok(if text.is_empty() { "0" } else { text }.into())
}

/// `IntOrString{type = 1, intVal = 2, strVal = 3}`; type 1 is text.
pub(super) fn int_or_string(message: &[u8]) -> Result<Value, DecodeError> {
    let (mut is_text, mut number_value, mut text) = (false, 0, "");
    let mut reader = Reader(message);
    while let Some((number, payload)) = reader.next()? {
        match number {
            1 => is_text = payload.varint()? == 1,
            2 => number_value = payload.varint()? as i32,
            3 => text = payload.text()?,
            _ => {}
        }
    }
    Ok(if is_text { text.into() } else { number_value.into() })
}

/// `Duration{duration = 1}`, in nanoseconds, as Go writes it: `1m0s`.
pub(super) fn duration(message: &[u8]) -> Result<Value, DecodeError> {
    let mut nanos = 0;
    let mut reader = Reader(message);
    while let Some((number, payload)) = reader.next()? {
        if number == 1 {
            nanos = payload.varint()? as i64;
        }
    }
    Ok(go_duration(SignedDuration::from_nanos(nanos)).into())
}

fn go_duration(duration: SignedDuration) -> String {
    let sign = if duration.is_negative() { "-" } else { "" };
    let duration = duration.unsigned_abs();
    let nanos = duration.subsec_nanos();
    let fraction = |value: u32, digits: usize| {
        let text = format!("{value:0digits$}");
        let text = text.trim_end_matches('0');
        if text.is_empty() {
            String::new()
        } else {
            format!(".{text}")
        }
    };
    let seconds = duration.as_secs();
    let text = match (seconds, nanos) {
        (0, 0) => "0s".to_owned(),
        (0, 1..1_000) => format!("{nanos}ns"),
        (0, 1_000..1_000_000) => format!("{}{}µs", nanos / 1_000, fraction(nanos % 1_000, 3)),
        (0, _) => format!("{}{}ms", nanos / 1_000_000, fraction(nanos % 1_000_000, 6)),
        _ => {
            let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
            let seconds = format!("{}{}s", seconds % 60, fraction(nanos, 9));
            match (hours, minutes) {
                (0, 0) => seconds,
                (0, _) => format!("{minutes}m{seconds}"),
                _ => format!("{hours}h{minutes}m{seconds}"),
            }
        }
    };
    format!("{sign}{text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_in_go() {
        let cases = [
            (0, "0s"),
            (1, "1ns"),
            (1_500, "1.5µs"),
            (2_000_000, "2ms"),
            (60_000_000_000, "1m0s"),
            (3_600_000_000_000, "1h0m0s"),
            (-90_500_000_000, "-1m30.5s"),
        ];
        for (nanos, text) in cases {
            assert_eq!(go_duration(SignedDuration::from_nanos(nanos)), text);
        }
    }
}
