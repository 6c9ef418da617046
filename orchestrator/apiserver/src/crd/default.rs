//! Defaults of a structural schema. Source: `pkg/apiserver/schema/defaulting` of apiextensions.

use super::structural::{Additional, Structural};
use serde_json::Value;

/// Writes the defaults of absent fields, and over nulls that the schema does not allow. Doing it again changes nothing:
/// what a default brings gets the defaults below it at once.
pub fn apply(value: &mut Value, schema: &Structural) {
    if !schema.has_defaults {
        return;
    }
    match value {
        Value::Object(fields) => {
            for (name, property) in &schema.properties {
                let Some(default) = &property.default else { continue };
                let absent = fields
                    .get(&**name)
                    .is_none_or(|value| value.is_null() && !property.nullable);
                if absent {
                    fields.insert(name.to_string(), default.clone());
                }
            }
            for (name, value) in fields {
                match (schema.properties.get(name.as_str()), &schema.additional) {
                    (Some(property), _) => apply(value, property),
                    (None, Some(Additional::Schema(schema))) => item(value, schema),
                    (None, _) => {}
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = &schema.items {
                items.iter_mut().for_each(|value| item(value, schema));
            }
        }
        _ => {}
    }
}

/// A value that is there, be it null.
fn item(value: &mut Value, schema: &Structural) {
    if let Some(default) = &schema.default
        && value.is_null()
        && !schema.nullable
    {
        *value = default.clone();
    }
    apply(value, schema);
}
