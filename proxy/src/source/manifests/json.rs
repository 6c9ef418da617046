//! JSON files → documents and items of Lists, still as text.

use super::reader::{Item, Part, Piece};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Deserializer, value::RawValue};

/// A List whose items can be read one by one. Whatever is not exactly this is read as a whole, which says what is wrong.
#[derive(Deserialize)]
struct List<'a> {
    #[serde(rename = "apiVersion")]
    api_version: &'a str,
    kind: &'a str,
    #[serde(borrow)]
    items: Vec<&'a RawValue>,
}

/// Splits a file of JSON values, one after the other, into documents, and Lists into items. What follows a syntax error
/// cannot be told apart, so that it is one last piece.
pub(super) fn split(file: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let mut cursor = Cursor::default();
    let (mut at, mut number) = (0, 0);
    loop {
        let rest = &file[at..];
        at += rest.len() - rest.trim_ascii_start().len();
        let rest = &file[at..];
        if rest.is_empty() {
            return pieces;
        }
        number += 1;
        if let Some((list, kind, length)) = list(rest) {
            pieces.reserve_exact(list.items.len());
            for (n, item) in list.items.into_iter().enumerate() {
                let text = item.get();
                // Both are addresses inside `file`.
                let start = text.as_ptr().addr() - file.as_ptr().addr();
                let part = Part::Item(Item {
                    n,
                    api_version: list.api_version,
                    kind,
                });
                pieces.push(cursor.piece(file, start, start + text.len(), number, part));
            }
            at += length;
            continue;
        }
        let mut values = Deserializer::from_str(rest).into_iter::<IgnoredAny>();
        let sound = matches!(values.next(), Some(Ok(_)));
        let end = if sound { at + values.byte_offset() } else { file.len() };
        pieces.push(cursor.piece(file, at, end, number, Part::Document));
        at = end;
    }
}

/// The List at the beginning of `text`, the kind that it is named for, and its length.
fn list(text: &str) -> Option<(List<'_>, &str, usize)> {
    // Serde would take an array for a struct, too.
    if !text.starts_with('{') {
        return None;
    }
    let mut values = Deserializer::from_str(text).into_iter::<List<'_>>();
    let list = values.next()?.ok()?;
    let kind = list.kind.strip_suffix("List")?;
    Some((list, kind, values.byte_offset()))
}

/// Counts lines on the way through a file.
#[derive(Default)]
struct Cursor {
    at: usize,
    /// Lines before the one that `at` is in.
    lines: usize,
    line_start: usize,
}

impl Cursor {
    /// `start` never goes back.
    fn piece<'a>(&mut self, file: &'a str, start: usize, end: usize, number: usize, part: Part<'a>) -> Piece<'a> {
        let passed = &file.as_bytes()[self.at..start];
        if let Some(last) = passed.iter().rposition(|byte| *byte == b'\n') {
            self.lines += passed.iter().filter(|byte| **byte == b'\n').count();
            self.line_start = self.at + last + 1;
        }
        self.at = start;
        Piece {
            number,
            line: self.lines + 1,
            indent: start - self.line_start,
            text: &file.as_bytes()[start..end],
            part,
        }
    }
}

#[cfg(test)]
#[path = "json_tests.rs"]
mod tests;
