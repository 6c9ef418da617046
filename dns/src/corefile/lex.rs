//! Text → tokens with their lines. Comments are gone, environment variables are in.

use super::{Bad, Place};
use std::sync::Arc;

/// A word and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) text: String,
    pub(super) place: Place,
    /// It was quoted: a brace is a word then.
    pub(super) quoted: bool,
}

impl Token {
    pub(super) fn opens(&self) -> bool {
        !self.quoted && self.text == "{"
    }

    pub(super) fn closes(&self) -> bool {
        !self.quoted && self.text == "}"
    }
}

/// Splits a file into words.
///
/// # Errors
/// A quote or a variable that does not end.
pub(super) fn tokens(
    file: &Arc<str>,
    text: &str,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<Token>, Bad> {
    let mut all = Vec::new();
    let mut line = 1;
    let mut characters = text.chars().peekable();
    while let Some(first) = characters.next() {
        match first {
            '\n' => line += 1,
            '#' => while characters.next_if(|it| *it != '\n').is_some() {},
            it if it.is_whitespace() => {}
            _ => {
                let place = Place {
                    file: Arc::clone(file),
                    line,
                };
                let quoted = first == '"';
                let mut word = String::new();
                if !quoted {
                    word.push(first);
                }
                let mut closed = !quoted;
                loop {
                    let next = if quoted {
                        characters.next()
                    } else {
                        characters.next_if(|it| !it.is_whitespace())
                    };
                    match next {
                        None => break,
                        Some('"') if quoted => {
                            closed = true;
                            break;
                        }
                        Some('\\') if quoted && characters.peek() == Some(&'"') => {
                            word.extend(characters.next());
                        }
                        Some(it) => {
                            line += usize::from(it == '\n');
                            word.push(it);
                        }
                    }
                }
                if !closed {
                    return Err(Bad::new(
                        &place,
                        "a quote is opened but never closed",
                        "add the closing \"",
                    ));
                }
                let text = expand(&word, &place, variable)?;
                all.push(Token { text, place, quoted });
            }
        }
    }
    Ok(all)
}

/// `{$NAME}` and `{%NAME%}` become the variable's value; one that is not set becomes nothing.
fn expand(word: &str, place: &Place, variable: &dyn Fn(&str) -> Option<String>) -> Result<String, Bad> {
    let mut expanded = String::new();
    let mut rest = word;
    loop {
        let unix = rest.find("{$").map(|at| (at, "}"));
        let windows = rest.find("{%").map(|at| (at, "%}"));
        let Some((at, end)) = unix.into_iter().chain(windows).min() else {
            expanded.push_str(rest);
            return Ok(expanded);
        };
        expanded.push_str(&rest[..at]);
        let name = &rest[at + 2..];
        let Some(length) = name.find(end) else {
            let remedy = "write it as {$NAME}";
            return Err(Bad::new(
                place,
                "an environment variable is opened but never closed",
                remedy,
            ));
        };
        expanded.push_str(&variable(&name[..length]).unwrap_or_default());
        rest = &name[length + end.len()..];
    }
}
