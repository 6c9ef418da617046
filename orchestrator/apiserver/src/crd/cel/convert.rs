//! To kube-cel's values and back, to call its functions.

use super::{
    eval::Error,
    value::{Key, V},
};
use kube_cel::{
    KubeCelExt as _,
    cel::{
        Context, ExecutionError, Value as Foreign,
        common::ast::{CallExpr, Expr, IdedExpr},
        objects::{Key as ForeignKey, Map, OptionalValue},
    },
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, HashMap},
    panic::AssertUnwindSafe,
    rc::Rc,
    sync::{Arc, LazyLock},
};

/// All functions; variables go into scopes of their own.
static FUNCTIONS: LazyLock<Context<'static>> = LazyLock::new(|| Context::default().with_all());

/// One function of one text, where that succeeds.
pub(super) fn call(name: &str, text: &str) -> Option<Foreign> {
    foreign(name, None, vec![Foreign::String(Arc::new(text.to_owned()))]).ok()
}

/// Where a function is looked for.
pub(super) enum Target<'t> {
    /// `value.function(…)`.
    Value(Foreign),
    /// `namespace.function(…)`.
    Namespace(&'t str),
}

/// Calls one of the library's functions or operators.
pub(super) fn foreign(name: &str, target: Option<Target<'_>>, args: Vec<Foreign>) -> Result<Foreign, Error> {
    // The library is not ours, and a fault of it must end this expression only.
    let called = std::panic::catch_unwind(AssertUnwindSafe(|| {
        let mut scope = FUNCTIONS.new_inner_scope();
        let ident = |name: String| IdedExpr {
            id: 0,
            expr: Expr::Ident(name),
        };
        let target = target.map(|target| {
            Box::new(ident(match target {
                Target::Namespace(name) => name.to_owned(),
                Target::Value(value) => {
                    scope.add_variable_from_value("@t", value);
                    "@t".to_owned()
                }
            }))
        });
        let mut names = Vec::with_capacity(args.len());
        for (at, value) in args.into_iter().enumerate() {
            let name = format!("@{at}");
            scope.add_variable_from_value(name.clone(), value);
            names.push(ident(name));
        }
        let call = CallExpr {
            func_name: name.to_owned(),
            target,
            args: names,
        };
        scope.resolve(&IdedExpr {
            id: 0,
            expr: Expr::Call(call),
        })
    }));
    match called {
        Ok(result) => result.map_err(|error| error_of(&error)),
        Err(_) => Err(Error::new(format!("the function {name} failed"))),
    }
}

fn error_of(error: &ExecutionError) -> Error {
    match error {
        ExecutionError::NoSuchOverload
        | ExecutionError::UnexpectedType { .. }
        | ExecutionError::InvalidArgumentCount { .. }
        | ExecutionError::UnsupportedTargetType { .. }
        | ExecutionError::NotSupportedAsMethod { .. }
        | ExecutionError::ValuesNotComparable(..)
        | ExecutionError::UnsupportedBinaryOperator(..)
        | ExecutionError::UnsupportedUnaryOperator(..) => Error::no_overload(),
        ExecutionError::UndeclaredReference(name) => Error::new(format!("undeclared reference to '{name}'")),
        ExecutionError::FunctionError { message, .. } => Error::new(message.clone()),
        other => Error::new(other.to_string()),
    }
}

/// For a function's argument.
pub(super) fn to_foreign(value: &V<'_>) -> Foreign {
    match value {
        V::Null => Foreign::Null,
        V::Bool(it) => Foreign::Bool(*it),
        V::Int(it) => Foreign::Int(*it),
        V::UInt(it) => Foreign::UInt(*it),
        V::Double(it) => Foreign::Float(*it),
        V::Text(text) => Foreign::String(Arc::new((*text).to_owned())),
        V::Made(text) => Foreign::String(Arc::new(text.to_string())),
        V::Bytes(bytes) => Foreign::Bytes(Arc::new(bytes.to_vec())),
        V::List(_) | V::Json(Value::Array(_), _) => {
            let items = value.items().unwrap_or_default();
            Foreign::List(Arc::new(items.iter().map(to_foreign).collect()))
        }
        V::Map(map) => {
            let entries = map.iter().map(|(key, value)| (foreign_key(key), to_foreign(value)));
            let map: HashMap<ForeignKey, Foreign> = entries.collect();
            Foreign::Map(Map { map: Arc::new(map) })
        }
        V::Json(Value::Object(fields), schema) => {
            let entries = fields.iter().map(|(name, value)| {
                let schema = schema.and_then(|it| it.field(name));
                (
                    ForeignKey::String(Arc::new(name.clone())),
                    to_foreign(&V::json(value, schema)),
                )
            });
            let map: HashMap<ForeignKey, Foreign> = entries.collect();
            Foreign::Map(Map { map: Arc::new(map) })
        }
        V::Json(..) => Foreign::Null,
        V::Optional(inner) => {
            let inner = inner.as_ref().map(|it| to_foreign(it));
            Foreign::Opaque(Arc::new(inner.map_or_else(OptionalValue::none, OptionalValue::of)))
        }
        V::Foreign(it) => (**it).clone(),
        V::Type(name) => Foreign::String(Arc::new((*name).to_owned())),
    }
}

fn foreign_key(key: &Key) -> ForeignKey {
    match key {
        Key::Bool(it) => ForeignKey::Bool(*it),
        Key::Int(it) => i64::try_from(*it).map_or(
            ForeignKey::Uint(u64::try_from(*it).unwrap_or_default()),
            ForeignKey::Int,
        ),
        Key::Text(text) => ForeignKey::String(Arc::new(text.clone())),
    }
}

/// For a function's result.
pub(super) fn from_foreign<'a>(value: Foreign) -> V<'a> {
    match value {
        Foreign::Null => V::Null,
        Foreign::Bool(it) => V::Bool(it),
        Foreign::Int(it) => V::Int(it),
        Foreign::UInt(it) => V::UInt(it),
        Foreign::Float(it) => V::Double(it),
        Foreign::String(text) => V::made(text.as_str()),
        Foreign::Bytes(bytes) => V::Bytes(bytes.as_slice().into()),
        Foreign::List(items) => V::List(Rc::new(items.iter().cloned().map(from_foreign).collect())),
        Foreign::Map(map) => {
            let entries = map
                .map
                .iter()
                .map(|(key, value)| (own_key(key), from_foreign(value.clone())));
            V::Map(Rc::new(entries.collect::<BTreeMap<_, _>>()))
        }
        Foreign::Opaque(ref opaque) => match opaque.downcast_ref::<OptionalValue>() {
            Some(optional) => V::Optional(optional.value().map(|it| Rc::new(from_foreign(it.clone())))),
            None => V::Foreign(Rc::new(value)),
        },
        other => V::Foreign(Rc::new(other)),
    }
}

fn own_key(key: &ForeignKey) -> Key {
    match key {
        ForeignKey::Bool(it) => Key::Bool(*it),
        ForeignKey::Int(it) => Key::Int(i128::from(*it)),
        ForeignKey::Uint(it) => Key::Int(i128::from(*it)),
        ForeignKey::String(text) => Key::Text(text.to_string()),
    }
}
