//! Messages of `generated.proto` files, which have one field per line and nest nothing.

use anyhow::{Context as _, Result};
use std::{collections::BTreeMap, fs, path::Path};

/// Fields by message name, then by number.
pub(super) type Messages = BTreeMap<String, BTreeMap<u32, Field>>;

/// A field of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Field {
    /// As written: `string`, `.k8s.io.api.core.v1.PodSpec`, `map<string, string>`.
    pub(super) ty: String,
    /// It may come many times (a map does too).
    pub(super) repeated: bool,
}

/// The messages of a package; none where it has no `generated.proto`.
///
/// # Errors
/// The file is not readable, or a field's number is not one.
pub(super) fn messages(dir: &Path) -> Result<Messages> {
    let path = dir.join("generated.proto");
    if !path.is_file() {
        return Ok(Messages::new());
    }
    parse(&fs::read_to_string(&path)?).with_context(|| path.display().to_string())
}

fn parse(text: &str) -> Result<Messages> {
    let mut messages = Messages::new();
    let mut message = String::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("message ").and_then(|rest| rest.split(' ').next()) {
            message = name.to_owned();
            messages.entry(message.clone()).or_default();
            continue;
        }
        let Some((declared, number)) = line.trim().trim_end_matches(';').split_once(" = ") else {
            continue;
        };
        let (repeated, declared) = match declared.split_once(' ') {
            Some(("optional", rest)) => (false, rest),
            Some(("repeated", rest)) => (true, rest),
            _ if declared.starts_with("map<") => (true, declared),
            _ => continue,
        };
        let Some((ty, _)) = declared.rsplit_once(' ') else {
            continue;
        };
        let field = Field {
            ty: ty.to_owned(),
            repeated,
        };
        let number = number.parse().with_context(|| line.to_owned())?;
        messages.entry(message.clone()).or_default().insert(number, field);
    }
    Ok(messages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_number() {
        let text = "syntax = \"proto2\";\noption go_package = \"x\";\nmessage A {\n  // b = 1\n  optional string b = 1;\n\n\
                    repeated .k.C c = 3;\n  map<string, int32> d = 4;\n}\nmessage Empty {\n}\n";
        let messages = parse(text).unwrap();
        let field = |ty: &str, repeated| Field {
            ty: ty.to_owned(),
            repeated,
        };
        assert_eq!(messages["A"][&1], field("string", false));
        assert_eq!(messages["A"][&3], field(".k.C", true));
        assert_eq!(messages["A"][&4], field("map<string, int32>", true));
        assert!(messages["Empty"].is_empty());
    }
}
