//! Cells of `kubectl get`: what upstream's server prints for each built-in kind, and the printer columns of CRDs.
//! Pure: the time is an argument.

mod cluster;
mod duration;
mod events;
mod network;
mod pods;
mod policy;
mod storage;
mod workloads;

pub use duration::human_duration;

use crate::{
    jsonpath::JsonPath,
    resource::{Column, Resource},
};
use jiff::Timestamp;
use serde_json::{Value, json};

/// Makes the rows of one resource: its columns' sources, parsed once.
pub struct Printer {
    columns: Vec<(Column, Source)>,
    /// Absent text of a built-in kind is empty; of a custom resource it is null, which kubectl shows as `<none>`.
    custom: bool,
}

enum Source {
    Path(JsonPath),
    /// The value at the path, or else this.
    Or(Value, JsonPath),
    /// A function of the object and the arguments behind its name.
    Function(Function, Vec<JsonPath>, Vec<String>),
    /// Not readable; the cell is null.
    Nothing,
}

/// What a function may look at.
struct Row<'a> {
    object: &'a Value,
    now: Timestamp,
    /// Arguments that are paths.
    paths: &'a [JsonPath],
    /// Arguments that are words.
    words: &'a [String],
}

type Function = fn(&Row<'_>) -> Value;

/// Column definitions (`TableColumnDefinition` as JSON) and, for every object, its cells.
pub fn rows<'a>(
    resource: &Resource,
    objects: impl IntoIterator<Item = &'a Value>,
    now: Timestamp,
) -> (Vec<Value>, Vec<Vec<Value>>) {
    let printer = Printer::new(resource);
    let cells = objects.into_iter().map(|object| printer.cells(object, now)).collect();
    (printer.definitions(), cells)
}

impl Printer {
    /// Reads the columns of a resource. A column whose source cannot be read has empty cells: the CRD's validation is the
    /// place to refuse it.
    pub fn new(resource: &Resource) -> Self {
        Self {
            columns: resource
                .columns
                .iter()
                .map(|it| (it.clone(), Source::parse(&it.source)))
                .collect(),
            custom: resource.custom.is_some(),
        }
    }

    /// `columnDefinitions` of `meta.k8s.io/v1` Table.
    pub fn definitions(&self) -> Vec<Value> {
        let definition = |column: &Column| {
            json!({
                "name": &*column.name,
                "type": &*column.ty,
                "format": &*column.format,
                "description": &*column.description,
                "priority": column.priority,
            })
        };
        self.columns.iter().map(|(column, _)| definition(column)).collect()
    }

    /// `cells` of one row, as many as there are columns.
    pub fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let cell = |(column, source): &(Column, Source)| {
            let value = match source {
                Source::Path(path) => {
                    let found = path.first(object).filter(|it| !it.is_null());
                    return found.map_or_else(|| self.nothing(&column.ty), |it| typed(&column.ty, it, now));
                }
                Source::Or(or, path) => match path.first(object) {
                    None | Some(Value::Null) => or.clone(),
                    Some(Value::String(text)) if text.is_empty() => or.clone(),
                    Some(value) => value.clone(),
                },
                Source::Function(function, paths, words) => function(&Row {
                    object,
                    now,
                    paths,
                    words,
                }),
                Source::Nothing => Value::Null,
            };
            if &*column.ty == "string" && !value.is_string() {
                text_of(&value).into()
            } else {
                value
            }
        };
        self.columns.iter().map(cell).collect()
    }

    fn nothing(&self, ty: &str) -> Value {
        if !self.custom && ty == "string" {
            "".into()
        } else {
            Value::Null
        }
    }
}

/// A value as the column's type asks. Source: `CustomResourceColumnDefinition.type`.
fn typed(ty: &str, value: &Value, now: Timestamp) -> Value {
    match ty {
        "string" => text_of(value).into(),
        // A fraction is cut off, as a conversion to int64 does.
        "integer" => match value.as_i64() {
            Some(number) => number.into(),
            None => value.as_f64().map_or(Value::Null, |it| (it as i64).into()),
        },
        "number" if value.is_number() => value.clone(),
        "boolean" if value.is_boolean() => value.clone(),
        "date" => value.as_str().map_or(Value::Null, |it| match it.parse() {
            Ok(time) => human_duration(now.duration_since(time)).into(),
            Err(_) => "<invalid>".into(),
        }),
        _ => Value::Null,
    }
}

fn text_of(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

impl Source {
    fn parse(text: &str) -> Self {
        Self::try_parse(text).unwrap_or(Self::Nothing)
    }

    fn try_parse(text: &str) -> Option<Self> {
        let Some(call) = text.strip_prefix("fn:") else {
            return Some(Self::Path(JsonPath::parse(text).ok()?));
        };
        let mut words = call.split_whitespace();
        let name = words.next()?;
        if name == "or" {
            let or = words.next()?;
            let value = serde_json::from_str(or).unwrap_or_else(|_| or.into());
            return Some(Self::Or(value, JsonPath::parse(words.next()?).ok()?));
        }
        let (paths, words): (Vec<&str>, Vec<&str>) = words.partition(|it| it.starts_with('.'));
        let paths = paths
            .iter()
            .map(|it| JsonPath::parse(it))
            .collect::<Result<_, _>>()
            .ok()?;
        Some(Self::Function(
            function(name)?,
            paths,
            words.iter().map(|it| (*it).to_owned()).collect(),
        ))
    }
}

fn function(name: &str) -> Option<Function> {
    let general: Function = match name {
        "age" => |row| row.since(&row.object["metadata"]["creationTimestamp"], "<unknown>"),
        "created" => |row| row.object["metadata"]["creationTimestamp"].clone(),
        "since" => |row| row.since(row.argument(), row.words.first().map_or("<unknown>", String::as_str)),
        "count" => |row| {
            let length = |path: &JsonPath| match path.first(row.object) {
                Some(Value::Array(items)) => items.len(),
                Some(Value::Object(fields)) => fields.len(),
                _ => 0,
            };
            row.paths.iter().map(length).sum::<usize>().into()
        },
        "ratio" => |row| {
            let number = |index: usize| {
                let path: Option<&JsonPath> = row.paths.get(index);
                path.and_then(|it| it.first(row.object))
                    .and_then(Value::as_i64)
                    .unwrap_or(0)
            };
            format!("{}/{}", number(0), number(1)).into()
        },
        "join" => |row| joined(texts(row.argument()), ",").into(),
        "labels" => |row| labels(row.argument()).into(),
        "selector" => |row| selector(row.argument()).into(),
        "go-boolean" => |row| match row.argument().as_bool() {
            Some(true) => "True".into(),
            Some(false) => "False".into(),
            None => "<unset>".into(),
        },
        _ => {
            let all = [
                cluster::function(name),
                events::function(name),
                network::function(name),
                pods::function(name),
                policy::function(name),
                storage::function(name),
                workloads::function(name),
            ];
            return all.into_iter().flatten().next();
        }
    };
    Some(general)
}

impl Row<'_> {
    /// Where the first path leads; null where it leads nowhere.
    fn argument(&self) -> &Value {
        let found = self.paths.first().and_then(|path| path.first(self.object));
        found.unwrap_or(&Value::Null)
    }

    fn word(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    /// How long ago a time was.
    fn since(&self, time: &Value, unset: &str) -> Value {
        let Some(time) = time.as_str().filter(|it| !it.is_empty()) else {
            return unset.into();
        };
        match time.parse::<Timestamp>() {
            Ok(time) => human_duration(self.now.duration_since(time)).into(),
            Err(_) => "<invalid>".into(),
        }
    }

    fn is_deleted(&self) -> bool {
        !self.object["metadata"]["deletionTimestamp"].is_null()
    }
}

/// The text, or `or` where there is none.
fn text_or<'a>(value: &'a Value, or: &'a str) -> &'a str {
    value.as_str().filter(|it| !it.is_empty()).unwrap_or(or)
}

/// The text; empty where there is none.
fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The items of a list; none where there is no list.
fn items(value: &Value) -> impl DoubleEndedIterator<Item = &Value> + Clone {
    value.as_array().map(Vec::as_slice).unwrap_or_default().iter()
}

/// The texts in a list.
fn texts(value: &Value) -> impl Iterator<Item = &str> {
    items(value).filter_map(Value::as_str)
}

fn joined<T: AsRef<str>>(parts: impl IntoIterator<Item = T>, separator: &str) -> String {
    let mut all = String::new();
    for (index, part) in parts.into_iter().enumerate() {
        if index > 0 {
            all.push_str(separator);
        }
        all.push_str(part.as_ref());
    }
    all
}

/// As [`joined`]; `or` where there is nothing to join.
fn joined_or<T: AsRef<str>>(parts: impl IntoIterator<Item = T>, separator: &str, or: &str) -> String {
    let all = joined(parts, separator);
    if all.is_empty() { or.into() } else { all }
}

/// The first `at_most`, and how many more there are.
fn shortened(parts: &[String], at_most: usize, separator: &str) -> String {
    let shown = joined(parts.iter().take(at_most), separator);
    match parts.len().checked_sub(at_most) {
        Some(more) if more > 0 => format!("{shown} + {more} more..."),
        _ => shown,
    }
}

/// The `status` of the condition of this type.
fn condition<'a>(object: &'a Value, ty: &str) -> Option<&'a str> {
    let found = items(&object["status"]["conditions"]).find(|it| text(&it["type"]) == ty);
    found.and_then(|it| it["status"].as_str())
}

/// `a=b,c=d`, sorted by key.
fn labels(value: &Value) -> String {
    let mut all: Vec<(&str, &str)> = value
        .as_object()
        .into_iter()
        .flatten()
        .map(|(k, v)| (k.as_str(), text(v)))
        .collect();
    all.sort_unstable();
    joined_or(all.iter().map(|(key, value)| format!("{key}={value}")), ",", "<none>")
}

/// A `LabelSelector` as one writes it in a query.
fn selector(value: &Value) -> String {
    let label = |(key, value): (&String, &Value)| (key.clone(), format!("{key}={}", text(value)));
    let mut all: Vec<(String, String)> = value["matchLabels"]
        .as_object()
        .into_iter()
        .flatten()
        .map(label)
        .collect();
    for expression in items(&value["matchExpressions"]) {
        let key = text(&expression["key"]);
        let mut values: Vec<&str> = texts(&expression["values"]).collect();
        values.sort_unstable();
        let values = joined(values, ",");
        let written = match text(&expression["operator"]) {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_owned(),
            "DoesNotExist" => format!("!{key}"),
            _ => return "<error>".into(),
        };
        all.push((key.to_owned(), written));
    }
    all.sort();
    joined_or(all.into_iter().map(|(_, written)| written), ",", "<none>")
}

#[cfg(test)]
mod tests;
