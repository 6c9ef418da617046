//! The walk over one message, led by its type.

use super::{DecodeCause, DecodeError, MAGIC, Unknown, special::Special};
use crate::types::{Field, Object, Scalar, Type, TypeId, Types, Wire, WireEncoding};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use serde_json::{Map, Number, Value};
use std::sync::Arc;

/// Fields of one message, one after the other.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

/// What stands behind a field's number.
#[derive(Clone, Copy, Debug)]
pub(super) enum Payload<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    /// Of a kind that none of upstream's messages has: fixed32, groups.
    Skipped,
}

impl<'a> Reader<'a> {
    /// The next field's number and payload; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<(u32, Payload<'a>)>, DecodeError> {
        let rest = &mut self.0;
        if rest.is_empty() {
            return Ok(None);
        }
        let malformed = |error: prost::DecodeError| DecodeCause::Malformed(error.to_string());
        let (number, wire_type) = decode_key(rest).map_err(malformed)?;
        let payload = match wire_type {
            WireType::Varint => Payload::Varint(decode_varint(rest).map_err(malformed)?),
            WireType::SixtyFourBit => {
                let (bytes, after) = rest.split_first_chunk::<8>().ok_or_else(truncated)?;
                *rest = after;
                Payload::Fixed64(u64::from_le_bytes(*bytes))
            }
            WireType::LengthDelimited => {
                let length = decode_varint(rest).map_err(malformed)?;
                let length = usize::try_from(length).map_err(|_| truncated())?;
                let (bytes, after) = rest.split_at_checked(length).ok_or_else(truncated)?;
                *rest = after;
                Payload::Bytes(bytes)
            }
            _ => {
                skip_field(wire_type, number, rest, DecodeContext::default()).map_err(malformed)?;
                Payload::Skipped
            }
        };
        Ok(Some((number, payload)))
    }
}

fn truncated() -> DecodeError {
    DecodeCause::Malformed("the message ends inside a field".to_owned()).into()
}

fn wrong_wire_type(wanted: &str) -> DecodeError {
    DecodeCause::Malformed(format!("the field's wire type is not that of {wanted}")).into()
}

impl<'a> Payload<'a> {
    pub(super) fn bytes(self) -> Result<&'a [u8], DecodeError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => Err(wrong_wire_type("text, bytes or a message")),
        }
    }

    pub(super) fn text(self) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.bytes()?)
            .map_err(|error| DecodeCause::Malformed(format!("text is not UTF-8: {error}")).into())
    }

    pub(super) fn varint(self) -> Result<u64, DecodeError> {
        match self {
            Self::Varint(value) => Ok(value),
            _ => Err(wrong_wire_type("an integer")),
        }
    }
}

/// One decoding: its budget and where it is.
pub(super) struct Walker<'t> {
    pub(super) types: &'t Types,
    special: Special,
    depth: usize,
    values: usize,
}

impl<'t> Walker<'t> {
    pub(super) fn new(types: &'t Types, depth: usize, values: usize) -> Self {
        Self {
            types,
            special: Special::of(types),
            depth,
            values,
        }
    }

    /// What `runtime.Unknown` carries.
    pub(super) fn envelope(&mut self, ty: Option<TypeId>, body: &[u8]) -> Result<Value, DecodeError> {
        let unknown = Unknown::read(body)?;
        if !unknown.content_encoding.is_empty() {
            return Err(DecodeCause::Encoding(unknown.content_encoding).into());
        }
        match &*unknown.content_type {
            "" | super::CONTENT_TYPE => {}
            "application/json" => return json(unknown.raw),
            _ => return Err(DecodeCause::Encoding(unknown.content_type).into()),
        }
        let named = self.types.kind_of(&unknown.api_version, &unknown.kind);
        let unnamed = unknown.kind.is_empty() && unknown.api_version.is_empty();
        let id = named.or(ty.filter(|_| unnamed));
        let Some((id, Type::Object(object))) = id.map(|id| (id, self.types.get(id))) else {
            return Err(DecodeCause::UnknownKind {
                api_version: unknown.api_version,
                kind: unknown.kind,
            }
            .into());
        };
        let mut map = Map::new();
        self.object(id, object, unknown.raw, &mut map)?;
        if !unnamed {
            map.insert("apiVersion".to_owned(), unknown.api_version.into());
            map.insert("kind".to_owned(), unknown.kind.into());
        }
        Ok(map.into())
    }

    /// Reads a message into the JSON object of its fields. A field that comes again is replaced, a message merged.
    pub(super) fn object(
        &mut self,
        id: TypeId,
        object: &'t Object,
        message: &[u8],
        into: &mut Map<String, Value>,
    ) -> Result<(), DecodeError> {
        self.deeper(|walker| {
            let mut reader = Reader(message);
            while let Some((number, payload)) = reader.next()? {
                if let Some((name, field, wire)) = by_number(object, number) {
                    walker.field(name, field, wire, payload, into)?;
                    continue;
                }
                let inline = walker.types.inline(object).iter().find(|it| it.number == number);
                if let Some(inline) = inline.filter(|inline| inline.ty != id)
                    && let Type::Object(inner) = walker.types.get(inline.ty)
                {
                    walker.object(inline.ty, inner, payload.bytes()?, into)?;
                }
            }
            Ok(())
        })
    }

    fn field(
        &mut self,
        name: &Arc<str>,
        field: &Field,
        wire: Wire,
        payload: Payload<'_>,
        into: &mut Map<String, Value>,
    ) -> Result<(), DecodeError> {
        let at = |error: DecodeError| error.under(name);
        self.spend()?;
        match self.types.get(field.ty) {
            Type::List { item, .. } if wire.encoding == WireEncoding::Items => {
                let items = self.items(*item, payload.bytes().map_err(at)?).map_err(at)?;
                into.insert(name.to_string(), items);
            }
            Type::List { item, .. } => {
                let list = into.entry(&**name).or_insert_with(|| Value::Array(Vec::new()));
                let Value::Array(list) = list else { return Ok(()) };
                let index = list.len();
                let at = |error: DecodeError| error.under(format_args!("[{index}]")).under(name);
                self.repeated(*item, payload, list).map_err(at)?;
            }
            Type::Map { value, .. } => {
                let map = into.entry(&**name).or_insert_with(|| Value::Object(Map::new()));
                let Value::Object(map) = map else { return Ok(()) };
                let (key, value) = self.entry(*value, payload.bytes().map_err(at)?).map_err(at)?;
                map.insert(key, value);
            }
            Type::Object(object) => {
                let known = matches!(into.get(&**name), Some(Value::Object(_)));
                let mut map = match into.remove(&**name) {
                    Some(Value::Object(map)) => map,
                    _ => Map::new(),
                };
                self.object(field.ty, object, payload.bytes().map_err(at)?, &mut map)
                    .map_err(at)?;
                if wire.pointer || wire.always || known || !map.is_empty() {
                    into.insert(name.to_string(), map.into());
                }
            }
            Type::Any | Type::Scalar(_) => {
                let value = self.single(field.ty, payload).map_err(at)?;
                let set = match &value {
                    Value::Null => wire.pointer && matches!(self.types.get(field.ty), Type::Any),
                    value => wire.pointer || wire.always || !is_zero(value),
                };
                if set {
                    into.insert(name.to_string(), value);
                } else {
                    into.remove(&**name);
                }
            }
        }
        Ok(())
    }

    /// One value of a repeated field; several where integers are packed into one payload.
    fn repeated(&mut self, item: TypeId, payload: Payload<'_>, into: &mut Vec<Value>) -> Result<(), DecodeError> {
        let integer = matches!(
            self.types.get(item),
            Type::Scalar(Scalar::Int32 | Scalar::Int64 | Scalar::Boolean)
        );
        if let (true, Payload::Bytes(mut packed)) = (integer, payload) {
            while !packed.is_empty() {
                let value = decode_varint(&mut packed);
                let value = value.map_err(|error| DecodeCause::Malformed(error.to_string()))?;
                self.spend()?;
                into.push(self.single(item, Payload::Varint(value))?);
            }
            return Ok(());
        }
        into.push(self.value(item, payload)?);
        Ok(())
    }

    /// A message of which field 1 repeats the items of a list.
    fn items(&mut self, item: TypeId, message: &[u8]) -> Result<Value, DecodeError> {
        self.deeper(|walker| {
            let mut items = Vec::new();
            let mut reader = Reader(message);
            while let Some((number, payload)) = reader.next()? {
                if number == 1 {
                    walker.spend()?;
                    walker.repeated(item, payload, &mut items)?;
                }
            }
            Ok(items.into())
        })
    }

    /// A map's entry: field 1 is the key, field 2 the value; each may be left out when empty.
    fn entry(&mut self, ty: TypeId, message: &[u8]) -> Result<(String, Value), DecodeError> {
        let mut key = String::new();
        let mut value = None;
        let mut reader = Reader(message);
        while let Some((number, payload)) = reader.next()? {
            match number {
                1 => key = payload.text()?.to_owned(),
                2 => value = Some(self.value(ty, payload).map_err(|error| error.under(&key))?),
                _ => {}
            }
        }
        let value = match value {
            Some(value) => value,
            None => self.zero(ty)?,
        };
        Ok((key, value))
    }

    /// A value on its own: a list's item, a map's value. Zeros are kept.
    pub(super) fn value(&mut self, ty: TypeId, payload: Payload<'_>) -> Result<Value, DecodeError> {
        match self.types.get(ty) {
            Type::Object(object) => {
                let mut map = Map::new();
                self.object(ty, object, payload.bytes()?, &mut map)?;
                Ok(map.into())
            }
            Type::List { item, .. } => self.items(*item, payload.bytes()?),
            // A map inside a list or map is no message of upstream's.
            Type::Map { .. } => Err(wrong_wire_type("a map inside a collection")),
            Type::Any | Type::Scalar(_) => self.single(ty, payload),
        }
    }

    /// What an absent value of a map's entry means.
    fn zero(&mut self, ty: TypeId) -> Result<Value, DecodeError> {
        Ok(match self.types.get(ty) {
            Type::Scalar(Scalar::Int32 | Scalar::Int64 | Scalar::Double) => 0.into(),
            Type::Scalar(Scalar::Boolean) => false.into(),
            Type::Scalar(Scalar::String | Scalar::Bytes) => "".into(),
            _ => self.value(ty, Payload::Bytes(&[]))?,
        })
    }

    /// A scalar, or a type with a wire form of its own.
    fn single(&mut self, ty: TypeId, payload: Payload<'_>) -> Result<Value, DecodeError> {
        let Type::Scalar(scalar) = self.types.get(ty) else {
            return self.any(ty, payload.bytes()?);
        };
        Ok(match scalar {
            Scalar::String if self.special.is_duration(ty) => super::special::duration(payload.bytes()?)?,
            Scalar::String => payload.text()?.into(),
            // The wire carries sign-extended 64 bits; Go keeps the low 32.
            Scalar::Int32 => (payload.varint()? as i32).into(),
            Scalar::Int64 => (payload.varint()? as i64).into(),
            Scalar::Boolean => (payload.varint()? != 0).into(),
            Scalar::Double => match payload {
                Payload::Fixed64(bits) => number(f64::from_bits(bits))?,
                _ => return Err(wrong_wire_type("a double")),
            },
            Scalar::Bytes => STANDARD.encode(payload.bytes()?).into(),
            Scalar::Time => super::special::time(payload.bytes()?, false)?,
            Scalar::MicroTime => super::special::time(payload.bytes()?, true)?,
            Scalar::Quantity => super::special::quantity(payload.bytes()?)?,
            Scalar::IntOrString => super::special::int_or_string(payload.bytes()?)?,
        })
    }

    /// `RawExtension`, `FieldsV1` and `JSON` carry JSON bytes in field 1; the unions of `JSONSchemaProps` are messages.
    fn any(&mut self, ty: TypeId, message: &[u8]) -> Result<Value, DecodeError> {
        if let Some(union) = self.special.union(ty) {
            return self.deeper(|walker| walker.schema_union(union, message));
        }
        let mut raw: &[u8] = &[];
        let mut reader = Reader(message);
        while let Some((number, payload)) = reader.next()? {
            if number == 1 {
                raw = payload.bytes()?;
            }
        }
        match raw.strip_prefix(MAGIC) {
            Some(body) => self.deeper(|walker| walker.envelope(None, body)),
            None if raw.is_empty() => Ok(Value::Null),
            None => json(raw),
        }
    }

    pub(super) fn schema(&self) -> Option<TypeId> {
        self.special.schema()
    }

    pub(super) fn spend(&mut self) -> Result<(), DecodeError> {
        self.values = self.values.checked_sub(1).ok_or(DecodeCause::TooLarge)?;
        Ok(())
    }

    fn deeper<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T, DecodeError>) -> Result<T, DecodeError> {
        self.depth = self.depth.checked_sub(1).ok_or(DecodeCause::TooDeep)?;
        let result = read(self);
        self.depth += 1;
        result
    }
}

/// The field of a message's number. A scan: messages have a handful of fields, and an index would have to be kept.
fn by_number(object: &Object, number: u32) -> Option<(&Arc<str>, &Field, Wire)> {
    object.fields.iter().find_map(|(name, field)| {
        let wire = field.wire.filter(|wire| wire.number == number)?;
        Some((name, field, wire))
    })
}

fn json(raw: &[u8]) -> Result<Value, DecodeError> {
    serde_json::from_slice(raw)
        .map_err(|error| DecodeCause::Malformed(format!("JSON inside the message: {error}")).into())
}

/// As Go writes it into JSON: without a fraction where there is none.
fn number(value: f64) -> Result<Value, DecodeError> {
    // Below 2^53 every whole number has a double of its own.
    if value.fract() == 0.0 && value.abs() < 9_007_199_254_740_992.0 {
        return Ok((value as i64).into());
    }
    match Number::from_f64(value) {
        Some(number) => Ok(number.into()),
        None => Err(DecodeCause::Malformed(format!("{value} is no number of JSON")).into()),
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}
