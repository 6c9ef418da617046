//! Operators.

use super::{
    convert,
    eval::{Error, Evaluator, Result},
    value::{Key, V},
};
use fairlead_schema::ListKind;
use kube_cel::cel::common::ast::operators;
use serde_json::Value;
use std::{cmp::Ordering, rc::Rc};

pub(super) fn is_binary(name: &str) -> bool {
    matches!(
        name,
        operators::EQUALS
            | operators::NOT_EQUALS
            | operators::ADD
            | operators::SUBSTRACT
            | operators::MULTIPLY
            | operators::DIVIDE
            | operators::MODULO
            | operators::LESS
            | operators::LESS_EQUALS
            | operators::GREATER
            | operators::GREATER_EQUALS
            | operators::IN
    )
}

pub(super) fn binary<'a>(evaluator: &Evaluator<'_>, operator: &str, a: &V<'a>, b: &V<'a>) -> Result<V<'a>> {
    let compared = |wanted: &[Ordering]| Ok(V::Bool(wanted.contains(&compare(evaluator, a, b)?)));
    match operator {
        operators::EQUALS => equal(evaluator, a, b).map(V::Bool),
        operators::NOT_EQUALS => equal(evaluator, a, b).map(|it| V::Bool(!it)),
        operators::LESS => compared(&[Ordering::Less]),
        operators::LESS_EQUALS => compared(&[Ordering::Less, Ordering::Equal]),
        operators::GREATER => compared(&[Ordering::Greater]),
        operators::GREATER_EQUALS => compared(&[Ordering::Greater, Ordering::Equal]),
        operators::IN => contains(evaluator, b, a).map(V::Bool),
        operators::ADD => add(evaluator, a, b),
        _ => arithmetic(evaluator, operator, a, b),
    }
}

pub(super) fn negate<'a>(evaluator: &Evaluator<'_>, value: &V<'a>) -> Result<V<'a>> {
    match value {
        V::Int(it) => it.checked_neg().map(V::Int).ok_or_else(overflow),
        V::Double(it) => Ok(V::Double(-it)),
        V::Foreign(_) => library(evaluator, operators::NEGATE, &[value]),
        _ => Err(Error::no_overload()),
    }
}

fn overflow() -> Error {
    Error::new("integer overflow")
}

/// Times and durations are the library's.
fn library<'a>(evaluator: &Evaluator<'_>, operator: &str, args: &[&V<'a>]) -> Result<V<'a>> {
    for arg in args {
        evaluator.charge(arg.weight())?;
    }
    let args = args.iter().map(|it| convert::to_foreign(it)).collect();
    convert::foreign(operator, None, args).map(convert::from_foreign)
}

fn add<'a>(evaluator: &Evaluator<'_>, a: &V<'a>, b: &V<'a>) -> Result<V<'a>> {
    if let (Some(x), Some(y)) = (a.as_str(), b.as_str()) {
        evaluator.charge(a.weight() + b.weight())?;
        return Ok(V::made(format!("{x}{y}")));
    }
    match (a, b) {
        (V::Bytes(x), V::Bytes(y)) => {
            evaluator.charge(a.weight() + b.weight())?;
            return Ok(V::Bytes([&**x, &**y].concat().into()));
        }
        (V::Int(_) | V::UInt(_) | V::Double(_) | V::Foreign(_), _) => {
            return arithmetic(evaluator, operators::ADD, a, b);
        }
        _ => {}
    }
    let (Some(mut x), Some(y)) = (a.items(), b.items()) else {
        return Err(Error::no_overload());
    };
    evaluator.charge((x.len() + y.len()) as u64)?;
    match a.list_kind() {
        // Sets are united; entries of a map replace those of the same key. Source: the CRD documentation of rules.
        Some((ListKind::Set, _)) => {
            evaluator.charge((x.len() as u64).saturating_mul(y.len() as u64))?;
            for item in y {
                let known = x
                    .iter()
                    .map(|it| equal(evaluator, it, &item))
                    .collect::<Result<Vec<_>>>()?;
                if !known.contains(&true) {
                    x.push(item);
                }
            }
        }
        Some((ListKind::Map { keys }, _)) => {
            evaluator.charge((x.len() as u64).saturating_mul(y.len() as u64))?;
            for item in y {
                let mut same = None;
                for (at, it) in x.iter().enumerate() {
                    if same_key(evaluator, it, &item, keys)? {
                        same = Some(at);
                        break;
                    }
                }
                match same {
                    Some(at) => x[at] = item,
                    None => x.push(item),
                }
            }
        }
        _ => x.extend(y),
    }
    Ok(V::List(Rc::new(x)))
}

fn same_key(evaluator: &Evaluator<'_>, a: &V<'_>, b: &V<'_>, keys: &[std::sync::Arc<str>]) -> Result<bool> {
    for key in keys {
        let same = match (plain_field(a, key), plain_field(b, key)) {
            (Some(a), Some(b)) => equal(evaluator, &a, &b)?,
            (None, None) => true,
            _ => false,
        };
        if !same {
            return Ok(false);
        }
    }
    Ok(true)
}

fn plain_field<'a>(value: &V<'a>, name: &str) -> Option<V<'a>> {
    value.index(&V::made(name)).ok().flatten()
}

fn arithmetic<'a>(evaluator: &Evaluator<'_>, operator: &str, a: &V<'a>, b: &V<'a>) -> Result<V<'a>> {
    let zero = || {
        Error::new(if operator == operators::MODULO {
            "modulus by zero"
        } else {
            "division by zero"
        })
    };
    match (a, b) {
        (V::Int(x), V::Int(y)) => {
            let value = match operator {
                operators::ADD => x.checked_add(*y),
                operators::SUBSTRACT => x.checked_sub(*y),
                operators::MULTIPLY => x.checked_mul(*y),
                operators::DIVIDE | operators::MODULO if *y == 0 => return Err(zero()),
                operators::DIVIDE => x.checked_div(*y),
                _ => x.checked_rem(*y),
            };
            value.map(V::Int).ok_or_else(overflow)
        }
        (V::UInt(x), V::UInt(y)) => {
            let value = match operator {
                operators::ADD => x.checked_add(*y),
                operators::SUBSTRACT => x.checked_sub(*y),
                operators::MULTIPLY => x.checked_mul(*y),
                operators::DIVIDE | operators::MODULO if *y == 0 => return Err(zero()),
                operators::DIVIDE => x.checked_div(*y),
                _ => x.checked_rem(*y),
            };
            value.map(V::UInt).ok_or_else(overflow)
        }
        (V::Double(x), V::Double(y)) => match operator {
            operators::ADD => Ok(V::Double(x + y)),
            operators::SUBSTRACT => Ok(V::Double(x - y)),
            operators::MULTIPLY => Ok(V::Double(x * y)),
            operators::DIVIDE => Ok(V::Double(x / y)),
            _ => Err(Error::no_overload()),
        },
        (V::Foreign(_), _) | (_, V::Foreign(_)) => library(evaluator, operator, &[a, b]),
        _ => Err(Error::no_overload()),
    }
}

/// A number, exact where it is whole.
enum Number {
    Whole(i128),
    Fraction(f64),
}

fn number(value: &V<'_>) -> Option<Number> {
    Some(match value {
        V::Int(it) => Number::Whole(i128::from(*it)),
        V::UInt(it) => Number::Whole(i128::from(*it)),
        V::Double(it) => Number::Fraction(*it),
        _ => return None,
    })
}

fn compare_numbers(a: &Number, b: &Number) -> Option<Ordering> {
    match (a, b) {
        (Number::Whole(a), Number::Whole(b)) => Some(a.cmp(b)),
        (Number::Fraction(a), Number::Fraction(b)) => a.partial_cmp(b),
        (Number::Whole(a), Number::Fraction(b)) => (*a as f64).partial_cmp(b),
        (Number::Fraction(a), Number::Whole(b)) => a.partial_cmp(&(*b as f64)),
    }
}

pub(super) fn compare(evaluator: &Evaluator<'_>, a: &V<'_>, b: &V<'_>) -> Result<Ordering> {
    if let (Some(x), Some(y)) = (number(a), number(b)) {
        return compare_numbers(&x, &y).ok_or_else(Error::no_overload);
    }
    if let (Some(x), Some(y)) = (a.as_str(), b.as_str()) {
        evaluator.charge(x.len().min(y.len()) as u64 / 10)?;
        return Ok(x.cmp(y));
    }
    match (a, b) {
        (V::Bool(x), V::Bool(y)) => Ok(x.cmp(y)),
        (V::Bytes(x), V::Bytes(y)) => {
            evaluator.charge(a.weight().min(b.weight()))?;
            Ok(x.cmp(y))
        }
        (V::Foreign(_), V::Foreign(_)) => {
            let less = library(evaluator, operators::LESS, &[a, b])?;
            let greater = library(evaluator, operators::GREATER, &[a, b])?;
            Ok(match (less, greater) {
                (V::Bool(true), _) => Ordering::Less,
                (_, V::Bool(true)) => Ordering::Greater,
                _ => Ordering::Equal,
            })
        }
        _ => Err(Error::no_overload()),
    }
}

/// Values of different types are not equal; numbers are compared by value.
pub(super) fn equal(evaluator: &Evaluator<'_>, a: &V<'_>, b: &V<'_>) -> Result<bool> {
    evaluator.charge(1)?;
    if let (Some(x), Some(y)) = (number(a), number(b)) {
        return Ok(compare_numbers(&x, &y) == Some(Ordering::Equal));
    }
    if let (Some(x), Some(y)) = (a.as_str(), b.as_str()) {
        evaluator.charge(if x.len() == y.len() { x.len() as u64 / 10 } else { 0 })?;
        return Ok(x == y);
    }
    match (a, b) {
        (V::Null, V::Null) => Ok(true),
        (V::Bool(x), V::Bool(y)) => Ok(x == y),
        (V::Type(x), V::Type(y)) => Ok(x == y),
        (V::Bytes(x), V::Bytes(y)) => {
            evaluator.charge(a.weight().min(b.weight()))?;
            Ok(x == y)
        }
        (V::Foreign(x), V::Foreign(y)) => Ok(x == y),
        (V::Optional(None), V::Optional(None)) => Ok(true),
        (V::Optional(Some(x)), V::Optional(Some(y))) => equal(evaluator, x, y),
        _ => equal_collections(evaluator, a, b),
    }
}

fn equal_collections(evaluator: &Evaluator<'_>, a: &V<'_>, b: &V<'_>) -> Result<bool> {
    if a.len() != b.len() {
        return Ok(false);
    }
    if let (Some(x), Some(y)) = (a.items(), b.items()) {
        evaluator.charge(x.len() as u64)?;
        if matches!(a.list_kind(), Some((ListKind::Set | ListKind::Map { .. }, _))) {
            // In any order.
            for item in &x {
                let mut found = false;
                for other in &y {
                    found = equal(evaluator, item, other)?;
                    if found {
                        break;
                    }
                }
                if !found {
                    return Ok(false);
                }
            }
            return Ok(true);
        }
        for (x, y) in x.iter().zip(&y) {
            if !equal(evaluator, x, y)? {
                return Ok(false);
            }
        }
        return Ok(true);
    }
    let (Some(keys), Some(_)) = (a.keys(), b.keys()) else {
        return Ok(false);
    };
    evaluator.charge(keys.len() as u64)?;
    for key in keys {
        match (a.index(&key)?, b.index(&key)?) {
            (Some(x), Some(y)) if equal(evaluator, &x, &y)? => {}
            _ => return Ok(false),
        }
    }
    Ok(true)
}

pub(super) fn contains(evaluator: &Evaluator<'_>, container: &V<'_>, wanted: &V<'_>) -> Result<bool> {
    match container {
        V::Map(map) => Ok(Key::of(wanted).is_some_and(|key| map.contains_key(&key))),
        V::Json(Value::Object(fields), _) => Ok(wanted.as_str().is_some_and(|name| fields.contains_key(name))),
        list => {
            let items = list.items().ok_or_else(Error::no_overload)?;
            evaluator.charge(items.len() as u64)?;
            for item in items {
                if equal(evaluator, &item, wanted)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
    }
}

/// `string(value)` of what is no collection.
pub(super) fn to_text(value: &V<'_>) -> Option<String> {
    Some(match value {
        V::Bool(it) => it.to_string(),
        V::Int(it) => it.to_string(),
        V::UInt(it) => it.to_string(),
        V::Double(it) => it.to_string(),
        V::Text(_) | V::Made(_) => value.as_str()?.to_owned(),
        V::Bytes(bytes) => String::from_utf8(bytes.to_vec()).ok()?,
        _ => return None,
    })
}
