//! Macros that kube-cel's parser leaves as calls: comprehensions of two variables, `cel.bind`, `optMap`, `sortBy`.
//! Source: cel-go's `ext` and the list of libraries in the CRD documentation.

use super::{
    eval::{Error, Evaluator, Result, Scope},
    ops,
    value::{Key, V},
};
use kube_cel::cel::common::ast::{CallExpr, Expr, IdedExpr};
use std::{cmp::Ordering, collections::BTreeMap, rc::Rc};

/// The names of these macros, for the check of what a rule refers to.
pub(super) const NAMES: [&str; 10] = [
    "all",
    "bind",
    "exists",
    "existsOne",
    "exists_one",
    "optFlatMap",
    "optMap",
    "sortBy",
    "transformList",
    "transformMap",
];

/// The variables that a macro call declares for its later arguments.
pub(super) fn declared(call: &CallExpr) -> Vec<&str> {
    let names = match (call.func_name.as_str(), call.args.len()) {
        ("bind", 3) | ("optMap" | "optFlatMap" | "sortBy", 2) => 1,
        ("all" | "exists" | "existsOne" | "exists_one" | "transformList" | "transformMap", 3 | 4) => 2,
        _ => 0,
    };
    if call.target.is_none() {
        Vec::new()
    } else {
        call.args.iter().take(names).filter_map(ident).collect()
    }
}

fn ident(expr: &IdedExpr) -> Option<&str> {
    match &expr.expr {
        Expr::Ident(name) => Some(name),
        _ => None,
    }
}

/// The value of a macro; `None`: the call is none.
pub(super) fn expand<'a>(
    evaluator: &Evaluator<'_>,
    call: &'a CallExpr,
    scope: &Scope<'_, 'a>,
) -> Option<Result<V<'a>>> {
    let target = call.target.as_deref()?;
    let (name, args) = (call.func_name.as_str(), call.args.as_slice());
    Some(match (name, args) {
        ("bind", [variable, value, body]) if ident(target) == Some("cel") => {
            let variable = ident(variable)?;
            let value = evaluator.eval(value, scope);
            if let Err(error) = &value
                && error.is_cost()
            {
                return Some(value);
            }
            evaluator.eval(body, &scope.with(variable, value))
        }
        ("optMap" | "optFlatMap", [variable, body]) => {
            let variable = ident(variable)?;
            let wrap = name == "optMap";
            opt_map(evaluator, target, variable, body, wrap, scope)
        }
        ("sortBy", [variable, body]) => sort_by(evaluator, target, ident(variable)?, body, scope),
        ("all" | "exists" | "existsOne" | "exists_one", [first, second, body]) => {
            quantify(evaluator, name, target, (ident(first)?, ident(second)?), body, scope)
        }
        ("transformList" | "transformMap", [first, second, body]) => transform(
            evaluator,
            name,
            target,
            (ident(first)?, ident(second)?),
            None,
            body,
            scope,
        ),
        ("transformList" | "transformMap", [first, second, filter, body]) => transform(
            evaluator,
            name,
            target,
            (ident(first)?, ident(second)?),
            Some(filter),
            body,
            scope,
        ),
        _ => return None,
    })
}

fn opt_map<'a>(
    evaluator: &Evaluator<'_>,
    target: &'a IdedExpr,
    variable: &'a str,
    body: &'a IdedExpr,
    wrap: bool,
    scope: &Scope<'_, 'a>,
) -> Result<V<'a>> {
    match evaluator.eval(target, scope)? {
        V::Optional(None) => Ok(V::Optional(None)),
        V::Optional(Some(inner)) => {
            let value = evaluator.eval(body, &scope.with(variable, Ok((*inner).clone())))?;
            match value {
                value if wrap => Ok(V::Optional(Some(Rc::new(value)))),
                value @ V::Optional(_) => Ok(value),
                _ => Err(Error::no_overload()),
            }
        }
        _ => Err(Error::no_overload()),
    }
}

fn sort_by<'a>(
    evaluator: &Evaluator<'_>,
    target: &'a IdedExpr,
    variable: &'a str,
    body: &'a IdedExpr,
    scope: &Scope<'_, 'a>,
) -> Result<V<'a>> {
    let items = evaluator.eval(target, scope)?.items().ok_or_else(Error::no_overload)?;
    evaluator.charge(items.len() as u64)?;
    let mut keyed = Vec::with_capacity(items.len());
    for item in items {
        let key = evaluator.eval(body, &scope.with(variable, Ok(item.clone())))?;
        keyed.push((key, item));
    }
    let mut failed = None;
    keyed.sort_by(|(a, _), (b, _)| {
        let order = evaluator.charge(1).and_then(|()| ops::compare(evaluator, a, b));
        order.unwrap_or_else(|error| {
            failed.get_or_insert(error);
            Ordering::Equal
        })
    });
    match failed {
        Some(error) => Err(error),
        None => Ok(V::List(Rc::new(keyed.into_iter().map(|(_, item)| item).collect()))),
    }
}

/// Index and item of a list, key and value of a map.
fn pairs<'a>(evaluator: &Evaluator<'_>, target: &'a IdedExpr, scope: &Scope<'_, 'a>) -> Result<Vec<(V<'a>, V<'a>)>> {
    let target = evaluator.eval(target, scope)?;
    let pairs: Vec<_> = match target.items() {
        Some(items) => items
            .into_iter()
            .enumerate()
            .map(|(at, item)| (V::Int(at as i64), item))
            .collect(),
        None => {
            let keys = target.keys().ok_or_else(Error::no_overload)?;
            let values = keys
                .into_iter()
                .filter_map(|key| Some((key.clone(), target.index(&key).ok()??)));
            values.collect()
        }
    };
    evaluator.charge(pairs.len() as u64)?;
    Ok(pairs)
}

fn quantify<'a>(
    evaluator: &Evaluator<'_>,
    name: &str,
    target: &'a IdedExpr,
    (first, second): (&'a str, &'a str),
    body: &'a IdedExpr,
    scope: &Scope<'_, 'a>,
) -> Result<V<'a>> {
    let decides = match name {
        "all" => Some(false),
        "exists" => Some(true),
        _ => None,
    };
    let (mut failed, mut count) = (None, 0);
    for (key, value) in pairs(evaluator, target, scope)? {
        let outer = scope.with(first, Ok(key));
        match evaluator.eval(body, &outer.with(second, Ok(value))) {
            Ok(V::Bool(it)) if decides == Some(it) => return Ok(V::Bool(it)),
            Ok(V::Bool(it)) => count += usize::from(it),
            Ok(_) => return Err(Error::no_overload()),
            // Another item may decide.
            Err(error) if decides.is_some() && !error.is_cost() => {
                failed.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    match (failed, decides) {
        (Some(error), _) => Err(error),
        (None, Some(decides)) => Ok(V::Bool(!decides)),
        (None, None) => Ok(V::Bool(count == 1)),
    }
}

fn transform<'a>(
    evaluator: &Evaluator<'_>,
    name: &str,
    target: &'a IdedExpr,
    (first, second): (&'a str, &'a str),
    filter: Option<&'a IdedExpr>,
    body: &'a IdedExpr,
    scope: &Scope<'_, 'a>,
) -> Result<V<'a>> {
    let (mut list, mut map) = (Vec::new(), BTreeMap::new());
    for (key, value) in pairs(evaluator, target, scope)? {
        let own = Key::of(&key);
        let outer = scope.with(first, Ok(key));
        let inner = outer.with(second, Ok(value));
        if let Some(filter) = filter {
            match evaluator.eval(filter, &inner)? {
                V::Bool(true) => {}
                V::Bool(false) => continue,
                _ => return Err(Error::no_overload()),
            }
        }
        let value = evaluator.eval(body, &inner)?;
        match (name, own) {
            ("transformMap", Some(key)) => {
                map.insert(key, value);
            }
            _ => list.push(value),
        }
    }
    Ok(if name == "transformMap" {
        V::Map(Rc::new(map))
    } else {
        V::List(Rc::new(list))
    })
}
