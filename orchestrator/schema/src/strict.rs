//! Request bodies against their type: fields that nobody knows, values of the wrong type, and the form in which
//! upstream's server would store the same object.

pub mod quantity;

use crate::types::{Object, Scalar, Type, TypeId, Types, Wire};
use jiff::Timestamp;
use quantity::canonical;
use serde_json::{Map, Value};
use std::fmt;

/// Something wrong with one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldProblem {
    /// From the object's root, as `spec.containers[0].nmae`.
    pub path: String,
    /// What is wrong.
    pub kind: ProblemKind,
}

/// What is wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProblemKind {
    /// Its object has no such field.
    Unknown,
    /// The body names it twice.
    Duplicate,
    /// Its value is of another JSON type, or of another range.
    Type {
        /// As `string`, `number 1.5`.
        found: String,
        /// Local name of the object that has the field, as `DeploymentSpec`.
        owner: String,
        /// Upstream's name of the wanted type, as `int32`, `[]v1.Container`.
        wanted: String,
    },
    /// Its text does not say what it must: no time, no quantity, no Base64.
    Text(String),
}

/// The words are those of upstream's decoder: clients print them, and scripts match them.
impl fmt::Display for FieldProblem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = &self.path;
        match &self.kind {
            ProblemKind::Unknown => write!(formatter, "unknown field {path:?}"),
            ProblemKind::Duplicate => write!(formatter, "duplicate field {path:?}"),
            ProblemKind::Type { found, owner, wanted } => {
                let path = without_indexes(path);
                let into = if path.is_empty() {
                    format!("Go value of type {wanted}")
                } else {
                    format!("Go struct field {owner}.{path} of type {wanted}")
                };
                write!(formatter, "json: cannot unmarshal {found} into {into}")
            }
            ProblemKind::Text(message) => write!(formatter, "{path}: {message}"),
        }
    }
}

impl FieldProblem {
    /// One step further from the root: a field's name, or an index in brackets.
    pub(crate) fn under(&mut self, step: &str) {
        if self.path.len() > MAX_PATH {
            return;
        }
        let step = shortened(step);
        let dot = if self.path.is_empty() || self.path.starts_with('[') {
            ""
        } else {
            "."
        };
        self.path = format!("{step}{dot}{}", self.path);
    }
}

/// At most so many problems are reported, as upstream does.
pub(crate) const MAX_PROBLEMS: usize = 100;

/// Paths longer than this get no longer: a body of few long names around many short ones would grow without bound.
const MAX_PATH: usize = 1024;

/// A name as it is reported: nobody reads more of it.
pub(crate) fn shortened(name: &str) -> String {
    name.chars().take(MAX_PATH).collect()
}

/// Collects problems and tells them where they are once that is known, so that a good body costs no paths.
pub(crate) fn within<P>(
    problems: &mut Vec<FieldProblem>,
    step: impl FnOnce() -> String,
    visit: impl FnOnce(&mut Vec<FieldProblem>) -> P,
) -> P {
    let before = problems.len();
    let result = visit(problems);
    if problems.len() > before {
        let step = step();
        for problem in &mut problems[before..] {
            problem.under(&step);
        }
    }
    result
}

/// Fields of the object that its type does not know, at most 100. What is of a wrong type is not looked into.
pub fn check(types: &Types, ty: TypeId, value: &Value) -> Vec<FieldProblem> {
    let mut problems = Vec::new();
    unknown(types, ty, value, &mut problems);
    problems
}

fn unknown(types: &Types, ty: TypeId, value: &Value, problems: &mut Vec<FieldProblem>) {
    if problems.len() >= MAX_PROBLEMS {
        return;
    }
    match (types.get(ty), value) {
        (Type::Object(object), Value::Object(map)) => {
            for (name, value) in map {
                match object.fields.get(&**name) {
                    Some(field) => {
                        within(
                            problems,
                            || name.clone(),
                            |problems| unknown(types, field.ty, value, problems),
                        );
                    }
                    None if object.preserve_unknown => {}
                    None => problems.push(FieldProblem {
                        path: shortened(name),
                        kind: ProblemKind::Unknown,
                    }),
                }
                if problems.len() >= MAX_PROBLEMS {
                    return;
                }
            }
        }
        (Type::Map { value: ty, .. }, Value::Object(map)) => {
            for (name, value) in map {
                within(
                    problems,
                    || name.clone(),
                    |problems| unknown(types, *ty, value, problems),
                );
            }
        }
        (Type::List { item, .. }, Value::Array(list)) => {
            for (index, value) in list.iter().enumerate() {
                within(
                    problems,
                    || format!("[{index}]"),
                    |problems| unknown(types, *item, value, problems),
                );
            }
        }
        _ => {}
    }
}

/// Brings an object into the form in which upstream's server has it after decoding: unknown fields and nulls are gone,
/// so are zeros of fields that are no pointers; quantities, times and whole numbers are canonical.
///
/// # Errors
/// Values of a wrong type, at most 100; the object is then half normalised and of no use.
pub fn normalise(types: &Types, ty: TypeId, value: &mut Value) -> Result<(), Vec<FieldProblem>> {
    let mut normaliser = Normaliser {
        types,
        owner: "",
        problems: Vec::new(),
    };
    normaliser.value(ty, value);
    if normaliser.problems.is_empty() {
        Ok(())
    } else {
        Err(normaliser.problems)
    }
}

struct Normaliser<'t> {
    types: &'t Types,
    /// Local name of the innermost object.
    owner: &'t str,
    problems: Vec<FieldProblem>,
}

impl<'t> Normaliser<'t> {
    fn value(&mut self, ty: TypeId, value: &mut Value) {
        if self.problems.len() >= MAX_PROBLEMS {
            return;
        }
        match (self.types.get(ty), &mut *value) {
            (Type::Any, _) => {}
            (_, Value::Null) => *value = self.zero(ty),
            (Type::Object(object), Value::Object(map)) => self.object(object, map),
            (Type::Map { value: ty, .. }, Value::Object(map)) => {
                for (name, value) in map {
                    let before = self.problems.len();
                    self.value(*ty, value);
                    // Where a type is wrong, upstream's decoder names fields of structs and no keys of maps.
                    let typed = |it: &&mut FieldProblem| matches!(it.kind, ProblemKind::Type { .. });
                    let problems = self.problems[before..].iter_mut();
                    problems.filter(|it| !typed(it)).for_each(|it| it.under(name));
                }
            }
            (Type::List { item, .. }, Value::Array(list)) => {
                for (index, value) in list.iter_mut().enumerate() {
                    self.under(|| format!("[{index}]"), |it| it.value(*item, value));
                }
            }
            (Type::Scalar(scalar), _) => match canonical_scalar(*scalar, value) {
                Ok(Some(canonical)) => *value = canonical,
                Ok(None) => {}
                Err(Some(message)) => self.problem(ProblemKind::Text(message)),
                Err(None) => self.wrong_type(ty, value),
            },
            _ => self.wrong_type(ty, value),
        }
    }

    fn object(&mut self, object: &'t Object, map: &mut Map<String, Value>) {
        let outer = std::mem::replace(&mut self.owner, local(&object.name));
        map.retain(|name, value| {
            let Some(field) = object.fields.get(&**name) else {
                return object.preserve_unknown;
            };
            if value.is_null() {
                return false;
            }
            self.under(|| name.clone(), |it| it.value(field.ty, value));
            !is_unset(self.types.get(field.ty), value) || !drops_zero(self.wire(object, name, field.wire))
        });
        self.owner = outer;
    }

    /// The place of a field in protobuf, also where an inlined message has it: it tells pointers from plain values.
    fn wire(&self, object: &Object, name: &str, own: Option<Wire>) -> Option<Wire> {
        own.or_else(|| {
            let mut inlined = self.types.inline(object).iter();
            inlined.find_map(|inline| self.types.field(inline.ty, name)?.wire)
        })
    }

    /// What a `null` in a list or map means to Go.
    fn zero(&self, ty: TypeId) -> Value {
        match self.types.get(ty) {
            Type::Any | Type::Scalar(Scalar::Time | Scalar::MicroTime) => Value::Null,
            Type::Map { .. } | Type::Object(_) => Map::new().into(),
            Type::List { .. } => Value::Array(Vec::new()),
            Type::Scalar(Scalar::String | Scalar::Bytes) => "".into(),
            Type::Scalar(Scalar::Quantity) => "0".into(),
            Type::Scalar(Scalar::Boolean) => false.into(),
            Type::Scalar(_) => 0.into(),
        }
    }

    fn under(&mut self, step: impl FnOnce() -> String, visit: impl FnOnce(&mut Self)) {
        let before = self.problems.len();
        visit(self);
        if self.problems.len() > before {
            let step = step();
            for problem in &mut self.problems[before..] {
                problem.under(&step);
            }
        }
    }

    fn problem(&mut self, kind: ProblemKind) {
        let path = String::new();
        self.problems.push(FieldProblem { path, kind });
    }

    fn wrong_type(&mut self, ty: TypeId, value: &Value) {
        let found = match value {
            Value::Null => "null".to_owned(),
            Value::Bool(_) => "bool".to_owned(),
            Value::Number(number) => match self.types.get(ty) {
                Type::Scalar(Scalar::Int32 | Scalar::Int64) => format!("number {number}"),
                _ => "number".to_owned(),
            },
            Value::String(_) => "string".to_owned(),
            Value::Array(_) => "array".to_owned(),
            Value::Object(_) => "object".to_owned(),
        };
        self.problem(ProblemKind::Type {
            found,
            owner: self.owner.to_owned(),
            wanted: go_type(self.types, ty),
        });
    }
}

/// Text, numbers, booleans and collections that Go's `omitempty` leaves out; structs it writes even when empty.
fn is_unset(ty: &Type, value: &Value) -> bool {
    match (ty, value) {
        (Type::Scalar(Scalar::IntOrString) | Type::Any, value) => value.is_null(),
        (_, Value::Null) => true,
        (_, Value::Bool(value)) => !value,
        (_, Value::Number(number)) => number.as_f64() == Some(0.0),
        (_, Value::String(text)) => text.is_empty(),
        (_, Value::Array(list)) => list.is_empty(),
        (ty, Value::Object(map)) => matches!(ty, Type::Map { .. }) && map.is_empty(),
    }
}

/// Upstream leaves a zero of this field out: it is neither a pointer nor without `omitempty`.
fn drops_zero(wire: Option<Wire>) -> bool {
    wire.is_some_and(|wire| !wire.pointer && !wire.always)
}

/// The canonical form, where it differs; `Err(None)`: of a wrong type.
fn canonical_scalar(scalar: Scalar, value: &Value) -> Result<Option<Value>, Option<String>> {
    let text = |value: &Value| value.as_str().map(str::to_owned).ok_or(None);
    match scalar {
        Scalar::String => text(value).map(|_| None),
        Scalar::Boolean => value.as_bool().map(|_| None).ok_or(None),
        Scalar::Int32 => integer(value, i64::from(i32::MIN), i64::from(i32::MAX)),
        Scalar::Int64 => integer(value, i64::MIN, i64::MAX),
        Scalar::Double => value.as_f64().map(|_| None).ok_or(None),
        Scalar::IntOrString if value.is_string() => Ok(None),
        Scalar::IntOrString => integer(value, i64::from(i32::MIN), i64::from(i32::MAX)),
        Scalar::Bytes => {
            use base64::{Engine as _, engine::general_purpose::STANDARD};
            let text = text(value)?;
            // Go's decoder skips line ends.
            let joined: String = text.chars().filter(|it| !matches!(it, '\r' | '\n')).collect();
            match STANDARD.decode(&joined) {
                Ok(_) => Ok((joined != text).then(|| joined.into())),
                Err(error) => Err(Some(format!("illegal base64 data: {error}"))),
            }
        }
        Scalar::Time => time(&text(value)?, "%Y-%m-%dT%H:%M:%SZ"),
        Scalar::MicroTime => time(&text(value)?, "%Y-%m-%dT%H:%M:%S.%6fZ"),
        Scalar::Quantity => {
            let text = match value {
                Value::String(text) => text.clone(),
                Value::Number(number) => number.to_string(),
                _ => return Err(None),
            };
            match canonical(text.trim()) {
                Some(canonical) => Ok((value.as_str() != Some(&canonical)).then(|| canonical.into())),
                None => Err(Some(format!(
                    "quantities must match the regular expression '{}', not {text:?}",
                    quantity::PATTERN
                ))),
            }
        }
    }
}

fn integer(value: &Value, low: i64, high: i64) -> Result<Option<Value>, Option<String>> {
    if let Some(number) = value.as_i64() {
        return if (low..=high).contains(&number) {
            Ok(None)
        } else {
            Err(None)
        };
    }
    // 5.0 is what some JSON writers make of 5; below 2^53 nothing is lost.
    let number = value
        .as_f64()
        .filter(|it| it.fract() == 0.0 && it.abs() < 9_007_199_254_740_992.0);
    let number = number.map(|it| it as i64).filter(|it| (low..=high).contains(it));
    number.map(|number| Some(number.into())).ok_or(None)
}

fn time(text: &str, format: &str) -> Result<Option<Value>, Option<String>> {
    let rfc3339 = text.len() >= 20 && text.as_bytes().get(10) == Some(&b'T');
    let parsed = text.parse::<Timestamp>().ok().filter(|_| rfc3339);
    let Some(parsed) = parsed else {
        return Err(Some(format!(
            "parsing time {text:?} as \"2006-01-02T15:04:05Z07:00\": it is no time of RFC 3339"
        )));
    };
    let canonical = parsed.strftime(format).to_string();
    Ok((canonical != text).then(|| canonical.into()))
}

/// `io.k8s.api.apps.v1.DeploymentSpec` is `DeploymentSpec`.
fn local(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

/// Upstream's word for a type, as its decoder prints it.
fn go_type(types: &Types, ty: TypeId) -> String {
    match types.get(ty) {
        Type::Any => "interface {}".to_owned(),
        Type::Map { value, .. } => format!("map[string]{}", go_type(types, *value)),
        Type::List { item, .. } => format!("[]{}", go_type(types, *item)),
        Type::Object(object) => {
            let mut parts = object.name.rsplit('.');
            match (parts.next(), parts.next()) {
                (Some(name), Some(package)) => format!("{package}.{name}"),
                _ => "object".to_owned(),
            }
        }
        Type::Scalar(scalar) => match scalar {
            Scalar::String => "string",
            Scalar::Int32 => "int32",
            Scalar::Int64 => "int64",
            Scalar::Double => "float64",
            Scalar::Boolean => "bool",
            Scalar::Bytes => "[]uint8",
            Scalar::Time => "v1.Time",
            Scalar::MicroTime => "v1.MicroTime",
            Scalar::Quantity => "resource.Quantity",
            Scalar::IntOrString => "intstr.IntOrString",
        }
        .to_owned(),
    }
}

/// Upstream's paths in type errors name fields only.
fn without_indexes(path: &str) -> String {
    let mut plain = String::with_capacity(path.len());
    let mut inside = false;
    for character in path.chars() {
        match character {
            '[' => inside = true,
            ']' => inside = false,
            _ if inside => {}
            _ => plain.push(character),
        }
    }
    plain
}
