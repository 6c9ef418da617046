//! [`Pattern`]: a regular expression as Go's RE2 reads it, on the crate `regex`, which is linear in time as RE2 is.

use regex::{Regex, RegexBuilder};
use std::{
    fmt,
    sync::{Arc, OnceLock},
};

/// Bytes that one compiled expression may take.
const MAX_SIZE: usize = 4 << 20;

/// An expression, compiled when first used: most patterns of most CRDs never are.
pub struct Pattern {
    source: Arc<str>,
    compiled: OnceLock<Result<Regex, String>>,
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pattern({:?})", self.source)
    }
}

impl Pattern {
    /// Takes the text as it is.
    pub fn new(source: Arc<str>) -> Self {
        Self {
            source,
            compiled: OnceLock::new(),
        }
    }

    /// As its author wrote it.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether it matches somewhere.
    ///
    /// # Errors
    /// Why it is no expression.
    pub fn matches(&self, text: &str) -> Result<bool, String> {
        let regex = self.compiled.get_or_init(|| compile(&self.source)).as_ref();
        regex.map(|regex| regex.is_match(text)).map_err(Clone::clone)
    }
}

/// Compiles what Go would compile.
///
/// # Errors
/// Why it is no expression.
pub fn compile(source: &str) -> Result<Regex, String> {
    compile_within(source, MAX_SIZE)
}

/// The same for an expression that an object brings: a smaller one, since it is compiled each time.
///
/// # Errors
/// Why it is no expression.
pub(crate) fn compile_small(source: &str) -> Result<Regex, String> {
    compile_within(source, MAX_SIZE / 16)
}

fn compile_within(source: &str, limit: usize) -> Result<Regex, String> {
    let built = RegexBuilder::new(&translate(source))
        .size_limit(limit)
        .octal(true)
        .nest_limit(200)
        .build();
    built.map_err(|error| match error {
        regex::Error::CompiledTooBig(limit) => format!("compiled, it is larger than {limit} bytes"),
        error => error.to_string().lines().last().unwrap_or_default().trim().to_owned(),
    })
}

/// The same expression in the crate's dialect: in RE2 classes such as `\d` are ASCII, and `[`, `&`, `~` in a class and a
/// `{` that counts nothing stand for themselves.
fn translate(source: &str) -> String {
    let chars: Vec<char> = source.chars().collect();
    let mut out = String::with_capacity(source.len() + 8);
    let (mut at, mut class) = (0, None::<usize>);
    while at < chars.len() {
        let c = chars[at];
        if c == '\\' && at + 1 < chars.len() {
            let next = chars[at + 1];
            at += 2;
            match next {
                'Q' if class.is_none() => {
                    while at < chars.len() && !(chars[at] == '\\' && chars.get(at + 1) == Some(&'E')) {
                        out.push_str(&regex::escape(&chars[at].to_string()));
                        at += 1;
                    }
                    at = (at + 2).min(chars.len());
                }
                'd' => out.push_str(if class.is_some() { "0-9" } else { "[0-9]" }),
                'D' => out.push_str("[^0-9]"),
                'w' => out.push_str(if class.is_some() { "0-9A-Za-z_" } else { "[0-9A-Za-z_]" }),
                'W' => out.push_str("[^0-9A-Za-z_]"),
                's' => out.push_str(if class.is_some() { r"\t\n\f\r " } else { r"[\t\n\f\r ]" }),
                'S' => out.push_str(r"[^\t\n\f\r ]"),
                'b' if class.is_none() => out.push_str(r"(?-u:\b)"),
                'B' if class.is_none() => out.push_str(r"(?-u:\B)"),
                '<' | '>' => out.push(next),
                // One digit alone refers back, which no linear matcher can; more are an octal number.
                '1'..='7' if !chars.get(at).is_some_and(|it| ('0'..='7').contains(it)) => out.push_str(r"\9"),
                _ => {
                    out.push('\\');
                    out.push(next);
                    // `\p{Greek}`, `\x{1F600}`: the braces count nothing.
                    if matches!(next, 'p' | 'P' | 'x') && chars.get(at) == Some(&'{') {
                        let end = (at..chars.len())
                            .find(|end| chars[*end] == '}')
                            .unwrap_or(chars.len() - 1);
                        out.extend(&chars[at..=end]);
                        at = end + 1;
                    }
                }
            }
            continue;
        }
        match (class, c) {
            (None, '[') => {
                out.push('[');
                at += 1;
                if chars.get(at) == Some(&'^') {
                    out.push('^');
                    at += 1;
                }
                // The first bracket of a class is a member of it.
                if chars.get(at) == Some(&']') {
                    out.push_str(r"\]");
                    at += 1;
                }
                class = Some(at);
                continue;
            }
            (Some(_), ']') => {
                class = None;
                out.push(']');
            }
            (Some(_), '[') if chars.get(at + 1) == Some(&':') => {
                let end = (at + 2..chars.len()).find(|end| chars[*end] == ':' && chars.get(end + 1) == Some(&']'));
                match end {
                    Some(end) => {
                        out.extend(&chars[at..end + 2]);
                        at = end + 2;
                        continue;
                    }
                    None => out.push_str(r"\["),
                }
            }
            (Some(_), '[' | '&' | '~') => {
                out.push('\\');
                out.push(c);
            }
            // Two in a row would subtract classes.
            (Some(start), '-') if at > start && chars[at - 1] == '-' => out.push_str(r"\-"),
            (None, '{') if !counts(&chars[at..]) => out.push_str(r"\{"),
            (None, '}') if !closes_count(&chars[..at]) => out.push_str(r"\}"),
            _ => out.push(c),
        }
        at += 1;
    }
    out
}

/// Whether `{…` is a repetition, as `{2}`, `{2,}` or `{2,3}`.
fn counts(rest: &[char]) -> bool {
    let Some(end) = rest.iter().position(|it| *it == '}') else {
        return false;
    };
    let body = &rest[1..end];
    let digits = |text: &[char]| text.iter().all(char::is_ascii_digit);
    match body.iter().position(|it| *it == ',') {
        Some(comma) => comma > 0 && digits(&body[..comma]) && digits(&body[comma + 1..]),
        None => !body.is_empty() && digits(body),
    }
}

/// Whether a `}` after this text ends a repetition.
fn closes_count(before: &[char]) -> bool {
    let Some(open) = before.iter().rposition(|it| *it == '{') else {
        return false;
    };
    let mut whole = before[open..].to_vec();
    whole.push('}');
    counts(&whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_mean_what_re2_means() {
        let cases = [
            (r"^\d+$", "12", true),
            (r"^\d+$", "\u{0663}", false), // a digit, not of ASCII
            (r"^[\w-]+$", "a-b_1", true),
            (r"^[[a]+$", "[a", true),
            (r"^[&&~~]+$", "&~", true),
            (r"^[+--]+$", ",-+", true),
            (r"^\101\x41$", "AA", true),
            (r"^a{2,3}$", "aaa", true),
            (r"^a{x}$", "a{x}", true),
            (r"^{$", "{", true),
            (r"^\{\}$", "{}", true),
            (r"^[[:alpha:]]+$", "ab", true),
            (r"^[]a]+$", "]a", true),
            (r"^\Qa.b\E$", "a.b", true),
            (r"^\Qa.b\E$", "axb", false),
            (r"^\p{Greek}+$", "\u{3b1}", true),
            (
                r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
                "a.b-c",
                true,
            ),
            (r"\bfoo\b", "a foo b", true),
            (r"^\<$", "<", true),
            (r"^(\d+|\*)(/\d+)?(\s+(\d+|\*)(/\d+)?){4}$", "* * * * */5", true),
        ];
        for (pattern, text, want) in cases {
            let compiled = compile(pattern).unwrap_or_else(|why| panic!("{pattern}: {why}"));
            assert_eq!(compiled.is_match(text), want, "{pattern} on {text}");
        }
    }

    #[test]
    fn what_go_refuses_is_refused() {
        for pattern in ["(", "a(?=b)", "[z-a]", "*", r"(a)\1"] {
            assert!(compile(pattern).is_err(), "{pattern}");
        }
        assert!(compile("((a{1000}){1000}){1000}").is_err(), "a bomb");
    }
}
