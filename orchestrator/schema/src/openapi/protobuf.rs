//! The document of version 2 as protobuf, which is the only form that kubectl asks for: it looks there when version 3
//! does not know a kind, before it says so.
//!
//! Source of the field numbers: `openapi.v2` of github.com/google/gnostic-models. Schemas are whole; paths are left out,
//! since who reads them reads version 3.

use serde_json::{Map, Value};

/// Writes protobuf's wire format.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn tag(&mut self, field: u64, wire_type: u64) {
        self.varint(field << 3 | wire_type);
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.tag(field, 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn text(&mut self, field: u64, text: &str) {
        self.bytes(field, text.as_bytes());
    }

    fn message(&mut self, field: u64, message: &Self) {
        self.bytes(field, &message.0);
    }

    /// `Any`: its second field is YAML, which JSON is too.
    fn any(&mut self, field: u64, value: &Value) {
        let mut any = Self::default();
        any.text(2, &value.to_string());
        self.message(field, &any);
    }

    /// One entry of what protobuf has instead of a map: a name and a value.
    fn named(&mut self, field: u64, name: &str, value: impl FnOnce(&mut Self)) {
        let mut entry = Self::default();
        entry.text(1, name);
        value(&mut entry);
        self.message(field, &entry);
    }
}

/// Encodes a document.
pub(super) fn document(document: &Value) -> Vec<u8> {
    let mut message = Message::default();
    message.text(1, "2.0");
    let mut info = Message::default();
    for (field, name) in [(1, "title"), (2, "version")] {
        info.text(field, document["info"][name].as_str().unwrap_or_default());
    }
    message.message(2, &info);
    message.message(8, &Message::default());
    let mut definitions = Message::default();
    for (name, value) in document["definitions"].as_object().into_iter().flatten() {
        definitions.named(1, name, |entry| entry.message(2, &schema(value)));
    }
    message.message(9, &definitions);
    message.0
}

fn schema(value: &Value) -> Message {
    let mut message = Message::default();
    for (name, value) in value.as_object().unwrap_or(&Map::new()) {
        field(&mut message, name, value);
    }
    message
}

fn field(message: &mut Message, name: &str, value: &Value) {
    match (name, value) {
        ("$ref", Value::String(text)) => message.text(1, text),
        ("format", Value::String(text)) => message.text(2, text),
        ("title", Value::String(text)) => message.text(3, text),
        ("description", Value::String(text)) => message.text(4, text),
        ("default", value) => message.any(5, value),
        ("pattern", Value::String(text)) => message.text(13, text),
        ("required", Value::Array(names)) => {
            for name in names.iter().filter_map(Value::as_str) {
                message.text(19, name);
            }
        }
        ("enum", Value::Array(values)) => values.iter().for_each(|value| message.any(20, value)),
        ("additionalProperties", value) => {
            let mut item = Message::default();
            match value {
                Value::Bool(allowed) => {
                    item.tag(2, 0);
                    item.varint(u64::from(*allowed));
                }
                value => item.message(1, &schema(value)),
            }
            message.message(21, &item);
        }
        ("type", value) => {
            let mut item = Message::default();
            let several = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
            several.iter().filter_map(Value::as_str).for_each(|it| item.text(1, it));
            message.message(22, &item);
        }
        ("items", value) => {
            let mut item = Message::default();
            item.message(1, &schema(value));
            message.message(23, &item);
        }
        ("allOf", Value::Array(all)) => all.iter().for_each(|it| message.message(24, &schema(it))),
        ("properties", Value::Object(fields)) => {
            let mut properties = Message::default();
            for (name, value) in fields {
                properties.named(1, name, |entry| entry.message(2, &schema(value)));
            }
            message.message(25, &properties);
        }
        (name, value) if name.starts_with("x-") => {
            message.named(31, name, |entry| entry.any(2, value));
        }
        (name, value) => limit(message, name, value),
    }
}

/// Numbers and flags.
fn limit(message: &mut Message, name: &str, value: &Value) {
    let double = match name {
        "multipleOf" => 6,
        "maximum" => 7,
        "minimum" => 9,
        _ => 0,
    };
    if let Some(number) = value.as_f64().filter(|_| double != 0) {
        message.tag(double, 1);
        message.0.extend_from_slice(&number.to_le_bytes());
        return;
    }
    let varint = match name {
        "exclusiveMaximum" => 8,
        "exclusiveMinimum" => 10,
        "maxLength" => 11,
        "minLength" => 12,
        "maxItems" => 14,
        "minItems" => 15,
        "uniqueItems" => 16,
        "maxProperties" => 17,
        "minProperties" => 18,
        "readOnly" => 27,
        _ => return,
    };
    if let Some(number) = value.as_bool().map(u64::from).or_else(|| value.as_u64()) {
        message.tag(varint, 0);
        message.varint(number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_schema_on_the_wire() {
        let message = schema(&json!({ "type": "integer", "maximum": 1.0, "maxLength": 300, "x-a": [1] }));
        let mut expected = Vec::new();
        expected.extend([0x58, 0xac, 0x02]);
        expected.extend([0x39, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f]);
        expected.extend([0xb2, 0x01, 9, 0x0a, 7]);
        expected.extend(b"integer");
        expected.extend([0xfa, 0x01, 12, 0x0a, 3]);
        expected.extend(b"x-a");
        expected.extend([0x12, 5, 0x12, 3]);
        expected.extend(b"[1]");
        assert_eq!(message.0, expected);
    }

    #[test]
    fn a_document_has_its_definitions() {
        let bytes = document(&json!({ "info": { "title": "t", "version": "v" }, "definitions": { "a": {} } }));
        assert_eq!(
            bytes,
            b"\x0a\x032.0\x12\x06\x0a\x01t\x12\x01v\x42\x00\x4a\x07\x0a\x05\x0a\x01a\x12\x00"
        );
    }
}
