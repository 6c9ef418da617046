//! [`expand`]: `$(VAR)` in commands, arguments, environment variables and `subPathExpr`.

/// A text with its references replaced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expansion {
    /// The text; references to variables that do not exist are left as they were.
    pub text: String,
    /// Those variables.
    pub missing: Vec<String>,
}

/// Replaces `$(NAME)` by what `lookup` has for `NAME`, and `$$` by `$`, once from left to right: what is put in is not
/// looked at again. Any other `$` stands for itself. Source: `Container.command` in the API reference.
pub fn expand<'a>(text: &str, lookup: impl Fn(&str) -> Option<&'a str>) -> Expansion {
    let mut out = Expansion::default();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.text.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.text.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|it| it.split_once(')')) {
            match lookup(name) {
                Some(value) => out.text.push_str(value),
                None => {
                    out.text.push_str(&format!("$({name})"));
                    out.missing.push(name.to_owned());
                }
            }
            rest = after;
        } else {
            out.text.push('$');
        }
    }
    out.text.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[test]
    fn references_are_replaced_once() {
        let vars = BTreeMap::from([("A", "1"), ("B", "$(A)"), ("EMPTY", ""), ("a.b-c", "dots")]);
        for (text, want) in [
            ("", ""),
            ("plain", "plain"),
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$(B)", "$(A)"),
            ("$(EMPTY)", ""),
            ("$(a.b-c)", "dots"),
            ("$(NONE)", "$(NONE)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$$$$(A)", "$$(A)"),
            ("$A", "$A"),
            ("$(A", "$(A"),
            ("$", "$"),
            ("$$", "$"),
            ("a$", "a$"),
            ("$()", "$()"),
            ("$($(A))", "$($(A))"),
            ("$é(A)", "$é(A)"),
            ("100% $(A)é", "100% 1é"),
        ] {
            assert_eq!(expand(text, |name| vars.get(name).copied()).text, want, "{text}");
        }
        assert_eq!(
            expand("$(X)$(A)$(Y)", |name| vars.get(name).copied()).missing,
            ["X", "Y"]
        );
    }

    /// The rule again, character by character.
    fn model(text: &str, vars: &BTreeMap<String, String>) -> String {
        let chars: Vec<char> = text.chars().collect();
        let mut out = String::new();
        let mut at = 0;
        while at < chars.len() {
            match (chars[at], chars.get(at + 1)) {
                ('$', Some('$')) => {
                    out.push('$');
                    at += 2;
                }
                ('$', Some('(')) if chars[at + 2..].contains(&')') => {
                    let end = (at + 2..chars.len()).find(|it| chars[*it] == ')').unwrap();
                    let name: String = chars[at + 2..end].iter().collect();
                    out += &vars.get(&name).cloned().unwrap_or(format!("$({name})"));
                    at = end + 1;
                }
                (other, _) => {
                    out.push(other);
                    at += 1;
                }
            }
        }
        out
    }

    proptest! {
        #[test]
        fn expansion_is_as_the_rule_read_slowly(text in "[$()AB{}é ]{0,24}", a in "[$()A]{0,6}", b in "[$()B]{0,6}") {
            let vars = BTreeMap::from([("A".to_owned(), a), ("AB".to_owned(), b)]);
            let expansion = expand(&text, |name| vars.get(name).map(String::as_str));
            prop_assert_eq!(expansion.text, model(&text, &vars));
        }
    }
}
