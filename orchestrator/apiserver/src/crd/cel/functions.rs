//! Functions: the frequent ones here, in place and charged exactly; all others by kube-cel, charged before.

use super::{
    super::pattern,
    convert::{self, Target},
    eval::{Error, Evaluator, Result, Scope},
    ops,
    value::V,
};
use kube_cel::cel::common::ast::{CallExpr, Expr};
use regex::Regex;
use std::rc::Rc;

/// What compiling an expression costs that is not written in the rule itself: some milliseconds at worst.
const REGEX_COST: u64 = 20_000;

pub(super) fn call<'a>(evaluator: &Evaluator<'_>, call: &'a CallExpr, scope: &Scope<'_, 'a>) -> Result<V<'a>> {
    let name = call.func_name.as_str();
    let namespace = call.target.as_deref().and_then(|target| match &target.expr {
        Expr::Ident(ident) if scope.get(ident).is_none() && super::eval::type_named(ident).is_none() => {
            Some(ident.as_str())
        }
        _ => None,
    });
    let target = match &call.target {
        Some(target) if namespace.is_none() => Some(evaluator.eval(target, scope)?),
        _ => None,
    };
    let args = call
        .args
        .iter()
        .map(|arg| evaluator.eval(arg, scope))
        .collect::<Result<Vec<_>>>()?;
    if let Some(value) = native(evaluator, name, namespace, target.as_ref(), &args) {
        return value;
    }
    charge(evaluator, name, target.as_ref(), &args)?;
    let target = match (namespace, &target) {
        (Some(namespace), _) => Some(Target::Namespace(namespace)),
        (None, Some(target)) => Some(Target::Value(convert::to_foreign(target))),
        (None, None) => None,
    };
    let args = args.iter().map(convert::to_foreign).collect();
    let value = convert::from_foreign(convert::foreign(name, target, args)?);
    evaluator.charge(value.weight())?;
    Ok(value)
}

/// What one of the library's functions may cost: most go through their arguments once, some compare each with each, and
/// some make much of little.
fn charge(evaluator: &Evaluator<'_>, name: &str, target: Option<&V<'_>>, args: &[V<'_>]) -> Result<()> {
    let all = || target.into_iter().chain(args);
    let sum = all().map(V::weight).fold(10, u64::saturating_add);
    let product = || all().map(V::weight).fold(1, u64::saturating_mul);
    let extra = match name {
        "contains" | "intersects" | "equivalent" | "replace" | "format" | "join" | "indexOf" | "lastIndexOf" => {
            product()
        }
        "distinct" | "sort" | "isSorted" | "flatten" | "min" | "max" => sum.saturating_mul(sum),
        "find" | "findAll" | "matches" => REGEX_COST,
        "range" => match args {
            [V::Int(count)] => u64::try_from(*count).unwrap_or(0),
            _ => 0,
        },
        "split" => all()
            .map(|it| it.len().unwrap_or(0) as u64)
            .fold(0, u64::saturating_add),
        _ => 0,
    };
    evaluator.charge(sum.saturating_add(extra))?;
    if name == "format" && target.and_then(V::as_str).is_some_and(wide_precision) {
        return Err(Error::new("a precision has at most two digits"));
    }
    Ok(())
}

/// `%.1000000f` makes a megabyte of one number.
fn wide_precision(format: &str) -> bool {
    format
        .split("%.")
        .skip(1)
        .any(|rest| rest.bytes().take_while(u8::is_ascii_digit).count() > 2)
}

fn native<'a>(
    evaluator: &Evaluator<'_>,
    name: &str,
    namespace: Option<&str>,
    target: Option<&V<'a>>,
    args: &[V<'a>],
) -> Option<Result<V<'a>>> {
    if let Some(namespace) = namespace {
        return (namespace == "optional").then(|| optional_function(name, args))?;
    }
    Some(match (name, target, args) {
        ("size", Some(value), []) | ("size", None, [value]) => size(evaluator, value),
        ("dyn", None, [value]) => Ok(value.clone()),
        ("type", None, [value]) => Ok(V::Type(value.type_name())),
        ("bool", None, [value]) => to_bool(value),
        ("int", None, [value]) if !matches!(value, V::Foreign(_)) => to_int(value),
        ("uint", None, [value]) if !matches!(value, V::Foreign(_)) => to_uint(value),
        ("double", None, [value]) if !matches!(value, V::Foreign(_)) => to_double(value),
        ("string", None, [value]) if !matches!(value, V::Foreign(_)) => match value {
            V::Text(_) | V::Made(_) => Ok(value.clone()),
            value => evaluator
                .charge(value.breadth())
                .and_then(|()| ops::to_text(value).map(V::made).ok_or_else(Error::no_overload)),
        },
        ("startsWith" | "endsWith" | "contains", Some(value), [part]) => {
            search(evaluator, name, value.as_str()?, part.as_str()?)
        }
        ("matches", Some(value), [pattern]) | ("matches", None, [value, pattern]) => {
            with_regex(evaluator, value.as_str()?, pattern.as_str()?, |regex, text| {
                V::Bool(regex.is_match(text))
            })
        }
        ("find", Some(value), [pattern]) => with_regex(evaluator, value.as_str()?, pattern.as_str()?, |regex, text| {
            V::made(regex.find(text).map_or("", |it| it.as_str()))
        }),
        ("findAll", Some(value), [pattern]) => find_all(evaluator, value.as_str()?, pattern.as_str()?, usize::MAX),
        ("findAll", Some(value), [pattern, V::Int(limit)]) => {
            let limit = usize::try_from(*limit).unwrap_or(usize::MAX);
            find_all(evaluator, value.as_str()?, pattern.as_str()?, limit)
        }
        ("hasValue", Some(V::Optional(inner)), []) => Ok(V::Bool(inner.is_some())),
        ("value", Some(V::Optional(inner)), []) => inner
            .as_ref()
            .map(|it| (**it).clone())
            .ok_or_else(|| Error::new("optional.none() dereference")),
        ("orValue", Some(V::Optional(inner)), [other]) => {
            Ok(inner.as_ref().map_or_else(|| other.clone(), |it| (**it).clone()))
        }
        ("or", Some(V::Optional(inner)), [other @ V::Optional(_)]) => Ok(if inner.is_some() {
            V::Optional(inner.clone())
        } else {
            other.clone()
        }),
        _ => return None,
    })
}

fn optional_function<'a>(name: &str, args: &[V<'a>]) -> Option<Result<V<'a>>> {
    let some = |value: &V<'a>| V::Optional(Some(Rc::new(value.clone())));
    Some(Ok(match (name, args) {
        ("none", []) => V::Optional(None),
        ("of", [value]) => some(value),
        ("ofNonZeroValue", [value]) => {
            let zero = match value {
                V::Null | V::Bool(false) | V::Int(0) | V::UInt(0) => true,
                V::Double(it) => *it == 0.0,
                value => value.len() == Some(0),
            };
            if zero { V::Optional(None) } else { some(value) }
        }
        _ => return None,
    }))
}

fn size<'a>(evaluator: &Evaluator<'_>, value: &V<'a>) -> Result<V<'a>> {
    if value.as_str().is_some() {
        evaluator.charge(value.weight())?;
    }
    let length = value.len().ok_or_else(Error::no_overload)?;
    Ok(V::Int(length as i64))
}

fn search<'a>(evaluator: &Evaluator<'_>, name: &str, text: &str, part: &str) -> Result<V<'a>> {
    // The standard library's search is linear.
    evaluator.charge((text.len() + part.len()) as u64 / 10)?;
    Ok(V::Bool(match name {
        "startsWith" => text.starts_with(part),
        "endsWith" => text.ends_with(part),
        _ => text.contains(part),
    }))
}

fn with_regex<'a>(
    evaluator: &Evaluator<'_>,
    text: &str,
    source: &str,
    found: impl FnOnce(&Regex, &str) -> V<'a>,
) -> Result<V<'a>> {
    evaluator.charge((text.len() as u64 / 10 + 1).saturating_mul(source.len() as u64 / 4 + 1))?;
    let use_it = |compiled: &Result<Regex, String>| match compiled {
        Ok(regex) => Ok(found(regex, text)),
        Err(why) => Err(Error::new(format!("{why}: {source}"))),
    };
    if let Some(compiled) = evaluator.program.regex(source) {
        return use_it(compiled);
    }
    let known = evaluator.regexes.borrow().get(source).cloned();
    let compiled = match known {
        Some(compiled) => compiled,
        None => {
            evaluator.charge(REGEX_COST)?;
            let compiled = Rc::new(pattern::compile_small(source));
            evaluator
                .regexes
                .borrow_mut()
                .insert(source.to_owned(), Rc::clone(&compiled));
            compiled
        }
    };
    use_it(&compiled)
}

fn find_all<'a>(evaluator: &Evaluator<'_>, text: &str, source: &str, limit: usize) -> Result<V<'a>> {
    let found = with_regex(evaluator, text, source, |regex, text| {
        let found = regex.find_iter(text).take(limit).map(|it| V::made(it.as_str()));
        V::List(Rc::new(found.collect()))
    })?;
    evaluator.charge(found.breadth())?;
    Ok(found)
}

fn to_bool<'a>(value: &V<'a>) -> Result<V<'a>> {
    match (value, value.as_str()) {
        (V::Bool(_), _) => Ok(value.clone()),
        (_, Some("true" | "True" | "TRUE" | "t" | "T" | "1")) => Ok(V::Bool(true)),
        (_, Some("false" | "False" | "FALSE" | "f" | "F" | "0")) => Ok(V::Bool(false)),
        (_, Some(text)) => Err(Error::new(format!(
            "type conversion error from 'string' to 'bool': {text}"
        ))),
        _ => Err(Error::no_overload()),
    }
}

/// Doubles beyond this are no int64.
const INT_LIMIT: f64 = 9_223_372_036_854_775_808.0;

fn to_int<'a>(value: &V<'a>) -> Result<V<'a>> {
    let range = || Error::new("integer overflow");
    match value {
        V::Int(_) => Ok(value.clone()),
        V::UInt(it) => i64::try_from(*it).map(V::Int).map_err(|_| range()),
        // The cast truncates, as CEL does, and is exact in this range.
        V::Double(it) if it.abs() < INT_LIMIT => Ok(V::Int(*it as i64)),
        V::Double(_) => Err(range()),
        value => {
            let text = value.as_str().ok_or_else(Error::no_overload)?;
            let why = || Error::new(format!("type conversion error from 'string' to 'int': {text}"));
            text.parse().map(V::Int).map_err(|_| why())
        }
    }
}

fn to_uint<'a>(value: &V<'a>) -> Result<V<'a>> {
    let range = || Error::new("unsigned integer overflow");
    match value {
        V::UInt(_) => Ok(value.clone()),
        V::Int(it) => u64::try_from(*it).map(V::UInt).map_err(|_| range()),
        V::Double(it) if *it > -1.0 && *it < 2.0 * INT_LIMIT => Ok(V::UInt(*it as u64)),
        V::Double(_) => Err(range()),
        value => {
            let text = value.as_str().ok_or_else(Error::no_overload)?;
            let why = || Error::new(format!("type conversion error from 'string' to 'uint': {text}"));
            text.parse().map(V::UInt).map_err(|_| why())
        }
    }
}

fn to_double<'a>(value: &V<'a>) -> Result<V<'a>> {
    match value {
        V::Double(_) => Ok(value.clone()),
        V::Int(it) => Ok(V::Double(*it as f64)),
        V::UInt(it) => Ok(V::Double(*it as f64)),
        value => {
            let text = value.as_str().ok_or_else(Error::no_overload)?;
            let why = || Error::new(format!("type conversion error from 'string' to 'double': {text}"));
            text.parse().map(V::Double).map_err(|_| why())
        }
    }
}
