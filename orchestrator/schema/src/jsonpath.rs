//! [`JsonPath`]: the dialect of printer columns and `kubectl -o jsonpath`: fields (`.a`, `['a.b/c']`, `.a\.b`), items
//! (`[0]`, `[-1]`, `[1:3]`, `[*]`, `['a','b']`), everything below (`..a`), and filters (`[?(@.type=="Ready")]`).
//!
//! It also takes the paths that selectable fields and scale subresources name (`spec.replicas`).

use serde_json::Value;
use std::cmp::Ordering;

/// At most so many steps in one path.
const MAX_STEPS: usize = 64;
/// At most so many values looked at while one path is followed: work is bounded whatever the object is.
const MAX_VISITS: usize = 100_000;

/// A parsed path.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonPath {
    steps: Vec<Step>,
}

/// Why a path is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("JSONPath {path:?}: {reason} at byte {at}")]
pub struct PathError {
    /// As written.
    pub path: String,
    /// What is wrong.
    pub reason: &'static str,
    /// Where, from 0.
    pub at: usize,
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    Wildcard,
    Descend,
    Slice {
        from: Option<i64>,
        to: Option<i64>,
        by: usize,
    },
    Index(i64),
    Union(Vec<Step>),
    Filter(Filter),
}

#[derive(Clone, Debug, PartialEq)]
struct Filter {
    left: Operand,
    /// `None`: the left side is there.
    right: Option<(Operator, Operand)>,
}

#[derive(Clone, Debug, PartialEq)]
enum Operand {
    Path(JsonPath),
    Literal(Value),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl JsonPath {
    /// Reads a path. `{}` around it, and `$` or a dot before it, may be there or not.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub fn parse(path: &str) -> Result<Self, PathError> {
        let trimmed = path.trim();
        let inner = trimmed.strip_prefix('{').and_then(|it| it.strip_suffix('}'));
        let mut parser = Parser {
            path,
            text: inner.unwrap_or(trimmed).trim(),
            at: 0,
            steps: 0,
        };
        let parsed = parser.path(false)?;
        if parser.at < parser.text.len() {
            return Err(parser.error("there is more than a path"));
        }
        Ok(parsed)
    }

    /// Every value that the path leads to, in the order of the object.
    pub fn find<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        let mut budget = MAX_VISITS;
        self.follow(value, &mut budget)
    }

    /// The first value that the path leads to.
    pub fn first<'a>(&self, value: &'a Value) -> Option<&'a Value> {
        let mut at = value;
        // Most paths are fields alone, which need no lists.
        for (index, step) in self.steps.iter().enumerate() {
            match step {
                Step::Field(name) => at = at.get(name.as_str())?,
                _ => {
                    let mut budget = MAX_VISITS;
                    let rest = follow(&self.steps[index..], vec![at], &mut budget);
                    return rest.first().copied();
                }
            }
        }
        Some(at)
    }

    /// Whether the path is fields alone: what a scale subresource and a selectable field may name.
    pub fn is_simple(&self) -> bool {
        self.steps.iter().all(|step| matches!(step, Step::Field(_)))
    }

    /// Names of the fields of a simple path.
    pub fn fields(&self) -> impl Iterator<Item = &str> {
        self.steps.iter().filter_map(|step| match step {
            Step::Field(name) => Some(name.as_str()),
            _ => None,
        })
    }

    fn follow<'a>(&self, value: &'a Value, budget: &mut usize) -> Vec<&'a Value> {
        follow(&self.steps, vec![value], budget)
    }
}

fn follow<'a>(steps: &[Step], mut values: Vec<&'a Value>, budget: &mut usize) -> Vec<&'a Value> {
    for step in steps {
        let mut next = Vec::new();
        for value in values {
            take(step, value, &mut next, budget);
        }
        values = next;
    }
    values
}

fn take<'a>(step: &Step, value: &'a Value, out: &mut Vec<&'a Value>, budget: &mut usize) {
    let cost = match (step, value) {
        (Step::Wildcard | Step::Slice { .. } | Step::Filter(_), Value::Array(items)) => items.len(),
        (Step::Wildcard, Value::Object(fields)) => fields.len(),
        _ => 1,
    };
    let Some(left) = budget.checked_sub(cost.max(1)) else {
        return;
    };
    *budget = left;
    match step {
        Step::Field(name) => out.extend(value.get(name.as_str())),
        Step::Wildcard => match value {
            Value::Array(items) => out.extend(items),
            Value::Object(fields) => out.extend(fields.values()),
            _ => {}
        },
        Step::Descend => {
            out.push(value);
            match value {
                Value::Array(items) => items.iter().for_each(|item| take(step, item, out, budget)),
                Value::Object(fields) => fields.values().for_each(|field| take(step, field, out, budget)),
                _ => {}
            }
        }
        Step::Index(index) => {
            if let Value::Array(items) = value {
                let index = if *index < 0 {
                    *index + items.len() as i64
                } else {
                    *index
                };
                out.extend(usize::try_from(index).ok().and_then(|it| items.get(it)));
            }
        }
        Step::Slice { from, to, by } => {
            if let Value::Array(items) = value {
                let count = items.len() as i64;
                let place = |it: i64| (if it < 0 { it + count } else { it }).clamp(0, count) as usize;
                let (from, to) = (place(from.unwrap_or(0)), place(to.unwrap_or(count)));
                out.extend(items.iter().take(to).skip(from).step_by(*by));
            }
        }
        Step::Union(steps) => {
            for step in steps {
                take(step, value, out, budget);
            }
        }
        Step::Filter(filter) => {
            if let Value::Array(items) = value {
                for item in items {
                    if filter.holds(item, budget) {
                        out.push(item);
                    }
                }
            }
        }
    }
}

impl Filter {
    fn holds(&self, item: &Value, budget: &mut usize) -> bool {
        let Some(left) = self.left.value(item, budget) else {
            return false;
        };
        let Some((operator, right)) = &self.right else {
            return true;
        };
        right
            .value(item, budget)
            .is_some_and(|right| operator.holds(&left, &right))
    }
}

impl Operand {
    fn value(&self, item: &Value, budget: &mut usize) -> Option<Value> {
        match self {
            Self::Path(path) => path.follow(item, budget).first().map(|it| scalar(it)),
            Self::Literal(value) => Some(value.clone()),
        }
    }
}

/// Collections compare as nothing: copying them would not be bounded.
fn scalar(value: &Value) -> Value {
    match value {
        Value::Array(_) | Value::Object(_) => Value::Null,
        other => other.clone(),
    }
}

impl Operator {
    fn holds(self, left: &Value, right: &Value) -> bool {
        let order = match (left, right) {
            (Value::Number(left), Value::Number(right)) => left.as_f64().partial_cmp(&right.as_f64()),
            (Value::String(left), Value::String(right)) => Some(left.cmp(right)),
            (Value::Bool(left), Value::Bool(right)) => Some(left.cmp(right)),
            _ => None,
        };
        match self {
            Self::Equal => order == Some(Ordering::Equal),
            Self::NotEqual => order != Some(Ordering::Equal),
            Self::Less => order == Some(Ordering::Less),
            Self::LessOrEqual => matches!(order, Some(Ordering::Less | Ordering::Equal)),
            Self::Greater => order == Some(Ordering::Greater),
            Self::GreaterOrEqual => matches!(order, Some(Ordering::Greater | Ordering::Equal)),
        }
    }
}

struct Parser<'a> {
    /// For errors.
    path: &'a str,
    text: &'a str,
    at: usize,
    steps: usize,
}

impl Parser<'_> {
    fn error(&self, reason: &'static str) -> PathError {
        PathError {
            path: self.path.chars().take(256).collect(),
            reason,
            at: self.at,
        }
    }

    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn eat(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn skip_spaces(&mut self) {
        while self.eat(" ") {}
    }

    /// Inside a filter a path ends at an operator, a space or the closing parenthesis.
    fn path(&mut self, in_filter: bool) -> Result<JsonPath, PathError> {
        let mut steps = Vec::new();
        if !self.eat("$") {
            self.eat("@");
        }
        let bare = self.peek().is_some_and(|it| it.is_alphanumeric() || it == '_');
        if bare && !in_filter {
            steps.push(self.field(in_filter)?);
        }
        while let Some(next) = self.peek() {
            self.steps += 1;
            if self.steps > MAX_STEPS {
                return Err(self.error("too many steps"));
            }
            if self.eat("..") {
                if steps.last() == Some(&Step::Descend) {
                    return Err(self.error("`..` twice"));
                }
                steps.push(Step::Descend);
                if self.peek() != Some('[') {
                    steps.push(self.field(in_filter)?);
                }
            } else if self.eat(".") {
                // `.` alone is the object itself, and `.['a']` is `['a']`.
                if self.peek().is_some_and(|it| it != '[') {
                    steps.push(self.field(in_filter)?);
                }
            } else if self.eat("[") {
                steps.push(self.bracket()?);
            } else if in_filter && matches!(next, ' ' | '=' | '!' | '<' | '>' | ')') {
                break;
            } else {
                return Err(self.error("expected `.` or `[`"));
            }
        }
        Ok(JsonPath { steps })
    }

    fn field(&mut self, in_filter: bool) -> Result<Step, PathError> {
        let mut name = String::new();
        let mut chars = self.rest().char_indices();
        let mut end = self.rest().len();
        while let Some((index, char)) = chars.next() {
            match char {
                '\\' => match chars.next() {
                    Some((_, escaped)) => name.push(escaped),
                    None => return Err(self.error("nothing behind `\\`")),
                },
                '.' | '[' | ']' | '{' | '}' => {
                    end = index;
                    break;
                }
                ' ' | '=' | '!' | '<' | '>' | ')' if in_filter => {
                    end = index;
                    break;
                }
                _ => name.push(char),
            }
        }
        if name.is_empty() {
            return Err(self.error("a field without a name"));
        }
        self.at += end;
        Ok(if name == "*" { Step::Wildcard } else { Step::Field(name) })
    }

    /// Behind `[`, up to and with `]`.
    fn bracket(&mut self) -> Result<Step, PathError> {
        if self.eat("?(") {
            return self.filter();
        }
        let mut choices = Vec::new();
        loop {
            self.skip_spaces();
            choices.push(self.choice()?);
            self.skip_spaces();
            if self.eat("]") {
                break;
            }
            if !self.eat(",") {
                return Err(self.error("expected `]`"));
            }
            self.steps += 1;
            if self.steps > MAX_STEPS {
                return Err(self.error("too many steps"));
            }
        }
        Ok(if choices.len() == 1 {
            choices.remove(0)
        } else {
            Step::Union(choices)
        })
    }

    fn choice(&mut self) -> Result<Step, PathError> {
        if matches!(self.peek(), Some('\'' | '"')) {
            return Ok(Step::Field(self.quoted()?));
        }
        if self.eat("*") {
            return Ok(Step::Wildcard);
        }
        let from = self.integer()?;
        if !self.eat(":") {
            return from.map(Step::Index).ok_or_else(|| self.error("expected an index"));
        }
        let to = self.integer()?;
        let by = if self.eat(":") { self.integer()? } else { None };
        let by = usize::try_from(by.unwrap_or(1)).unwrap_or(0);
        if by == 0 {
            return Err(self.error("the step of a slice must be positive"));
        }
        Ok(Step::Slice { from, to, by })
    }

    fn integer(&mut self) -> Result<Option<i64>, PathError> {
        let is_part = |(index, char): &(usize, char)| char.is_ascii_digit() || (*index == 0 && *char == '-');
        let length = self.rest().char_indices().take_while(is_part).count();
        if length == 0 {
            return Ok(None);
        }
        // Indexes past 32 bits name nothing, and could overflow when added up.
        let value: i32 = self.rest()[..length].parse().map_err(|_| self.error("not an index"))?;
        self.at += length;
        Ok(Some(value.into()))
    }

    /// Text in quotes; a backslash takes away the meaning of the next character.
    fn quoted(&mut self) -> Result<String, PathError> {
        let mut chars = self.rest().char_indices();
        let Some((_, quote)) = chars.next() else {
            return Err(self.error("expected a quote"));
        };
        let mut text = String::new();
        while let Some((index, char)) = chars.next() {
            if char == quote {
                self.at += index + char.len_utf8();
                return Ok(text);
            }
            text.push(match char {
                '\\' => match chars.next() {
                    Some((_, escaped)) => escaped,
                    None => break,
                },
                other => other,
            });
        }
        Err(self.error("the quote does not end"))
    }

    fn filter(&mut self) -> Result<Step, PathError> {
        let left = self.operand()?;
        self.skip_spaces();
        let operators = [
            ("==", Operator::Equal),
            ("!=", Operator::NotEqual),
            ("<=", Operator::LessOrEqual),
            (">=", Operator::GreaterOrEqual),
            ("<", Operator::Less),
            (">", Operator::Greater),
        ];
        let operator = operators.iter().find(|(token, _)| self.rest().starts_with(token));
        let right = match operator {
            Some((token, operator)) => {
                self.at += token.len();
                Some((*operator, self.operand()?))
            }
            None => None,
        };
        self.skip_spaces();
        if !self.eat(")]") {
            return Err(self.error("expected `)]`"));
        }
        Ok(Step::Filter(Filter { left, right }))
    }

    fn operand(&mut self) -> Result<Operand, PathError> {
        self.skip_spaces();
        match self.peek() {
            Some('\'' | '"') => Ok(Operand::Literal(Value::String(self.quoted()?))),
            Some('@' | '$' | '.') => {
                // Filters within filters share the limit on steps, so recursion ends.
                self.steps += 1;
                if self.steps > MAX_STEPS {
                    return Err(self.error("too many steps"));
                }
                Ok(Operand::Path(self.path(true)?))
            }
            _ => {
                let end = self.rest().find([' ', ')', '=', '!', '<', '>']);
                let word = &self.rest()[..end.unwrap_or(self.rest().len())];
                let literal = serde_json::from_str::<Value>(word).map(|it| scalar(&it));
                let literal = literal.map_err(|_| self.error("expected a path, a number or a text in quotes"))?;
                self.at += word.len();
                Ok(Operand::Literal(literal))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn find(path: &str) -> Value {
        let object = json!({
            "metadata": {"labels": {"app.kubernetes.io/name": "web"}},
            "status": {"conditions": [
                {"type": "Synced", "status": "False", "n": 1},
                {"type": "Ready", "status": "True", "n": 2},
                {"type": "Late", "n": 3, "inner": {"n": 4}},
            ]},
        });
        JsonPath::parse(path)
            .unwrap()
            .find(&object)
            .into_iter()
            .cloned()
            .collect()
    }

    #[test]
    fn paths_lead_to_values() {
        for (path, want) in [
            (".status.conditions[0].type", json!(["Synced"])),
            ("status.conditions[0].type", json!(["Synced"])),
            ("{.status.conditions[-1].n}", json!([3])),
            ("$.status.conditions[*].n", json!([1, 2, 3])),
            (".status.conditions[1:].n", json!([2, 3])),
            (".status.conditions[:2].n", json!([1, 2])),
            (".status.conditions[::2].n", json!([1, 3])),
            (".status.conditions[0,2].n", json!([1, 3])),
            (r#".status.conditions[?(@.type=="Ready")].status"#, json!(["True"])),
            (".status.conditions[?(@.type == 'Ready')].status", json!(["True"])),
            (".status.conditions[?(@.n>=2)].n", json!([2, 3])),
            (".status.conditions[?(@.n!=2)].n", json!([1, 3])),
            (".status.conditions[?(@.status)].n", json!([1, 2])),
            (".status.conditions[?(@.inner.n==4)].n", json!([3])),
            (".status.conditions[9].n", json!([])),
            (".metadata.labels['app.kubernetes.io/name']", json!(["web"])),
            (r".metadata.labels['app\.kubernetes\.io/name']", json!(["web"])),
            (r".metadata.labels.app\.kubernetes\.io/name", json!(["web"])),
            (".metadata.labels.*", json!(["web"])),
            ("..n", json!([1, 2, 3, 4])),
            (".nothing.here", json!([])),
        ] {
            assert_eq!(find(path), want, "{path}");
        }
    }

    #[test]
    fn what_is_no_path_is_refused() {
        for path in [
            ".a[",
            ".a]",
            ".a[b]",
            ".a..",
            "....",
            ".a['b]",
            ".a[?(@.x=]",
            ".a[?(@.x==)]",
            ".a[::0]",
            ".a b.[",
            ".a[]",
        ] {
            assert!(JsonPath::parse(path).is_err(), "{path}");
        }
        assert!(JsonPath::parse(&".a".repeat(65)).is_err());
        assert!(JsonPath::parse(&".a[?(@".repeat(65)).is_err());
    }

    #[test]
    fn work_is_bounded() {
        let mut deep = json!([1, 2, 3]);
        for _ in 0..60 {
            deep = json!([deep.clone()]);
        }
        let wide: Value = (0..400).map(|_| deep.clone()).collect();
        assert!(find_in("..[*]..[*]..[*]", &wide) <= MAX_VISITS * 2);
    }

    fn find_in(path: &str, value: &Value) -> usize {
        JsonPath::parse(path).unwrap().find(value).len()
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(path in r#"[.\[\]'"a-c@$?()=<>!*:,0-9{} \\-]{0,40}"#) {
            if let Ok(path) = JsonPath::parse(&path) {
                let value = json!({"a": [{"b": 1}, {"c": [1, 2]}], "b": "c"});
                let all = path.find(&value);
                prop_assert_eq!(path.first(&value), all.first().copied());
            }
        }
    }
}
