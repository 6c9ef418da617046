//! What is wrong with the rules of a schema, told to its author: syntax, unknown names, fields that the schema does not
//! have, `oldSelf` where old and new items cannot be told apart.
//!
//! Types are followed as far as they are certain: along fields, items and the variables of macros. What a function gives
//! is not known here, and checked when the rule runs.

use super::{
    macros,
    program::{Program, reads},
    value::unescape,
};
use crate::crd::{
    faults::{child, forbidden, index, invalid, key},
    structural::{Additional, SchemaType, Structural, array, flag},
};
use fairlead_schema::{Fault, ListKind};
use kube_cel::cel::common::ast::{CallExpr, Expr, IdedExpr, operators};
use serde_json::Value;

/// Functions of the libraries that rules may use, by name. Source: "Available CEL libraries" of the documentation.
const FUNCTIONS: &[&str] = &[
    "_!=_",
    "_%_",
    "_&&_",
    "_*_",
    "_+_",
    "_-_",
    "_/_",
    "_<=_",
    "_<_",
    "_==_",
    "_>=_",
    "_>_",
    "_?._",
    "_?_:_",
    "_[?_]",
    "_[_]",
    "_||_",
    "!_",
    "-_",
    "@in",
    "@not_strictly_false",
    "abs",
    "add",
    "asApproximateFloat",
    "asInteger",
    "bitAnd",
    "bitNot",
    "bitOr",
    "bitShiftLeft",
    "bitShiftRight",
    "bitXor",
    "bool",
    "bytes",
    "ceil",
    "charAt",
    "cidr",
    "compareTo",
    "contains",
    "containsCIDR",
    "containsIP",
    "decode",
    "distinct",
    "dns1035Label",
    "dns1035LabelPrefix",
    "dns1123Label",
    "dns1123LabelPrefix",
    "dns1123Subdomain",
    "dns1123SubdomainPrefix",
    "double",
    "duration",
    "dyn",
    "encode",
    "endsWith",
    "equivalent",
    "escapeKey",
    "family",
    "find",
    "findAll",
    "first",
    "flatten",
    "floor",
    "format",
    "getDate",
    "getDayOfMonth",
    "getDayOfWeek",
    "getDayOfYear",
    "getEscapedPath",
    "getFullYear",
    "getHost",
    "getHostname",
    "getHours",
    "getMilliseconds",
    "getMinutes",
    "getMonth",
    "getPort",
    "getQuery",
    "getScheme",
    "getSeconds",
    "greatest",
    "hasValue",
    "indexOf",
    "int",
    "intersects",
    "ip",
    "isCIDR",
    "isCanonical",
    "isFinite",
    "isGlobalUnicast",
    "isGreaterThan",
    "isIP",
    "isInf",
    "isInteger",
    "isLessThan",
    "isLinkLocalMulticast",
    "isLinkLocalUnicast",
    "isLoopback",
    "isMulticast",
    "isNaN",
    "isQuantity",
    "isSemver",
    "isSorted",
    "isURL",
    "isUnspecified",
    "join",
    "last",
    "lastIndexOf",
    "least",
    "lowerAscii",
    "major",
    "masked",
    "matches",
    "max",
    "min",
    "minor",
    "named",
    "none",
    "of",
    "ofNonZeroValue",
    "or",
    "orValue",
    "patch",
    "prefixLength",
    "quantity",
    "qualifiedName",
    "labelValue",
    "quote",
    "range",
    "replace",
    "reverse",
    "round",
    "semver",
    "sign",
    "size",
    "slice",
    "sort",
    "split",
    "sqrt",
    "startsWith",
    "string",
    "sub",
    "substring",
    "sum",
    "timestamp",
    "trim",
    "trunc",
    "type",
    "uint",
    "unwrap",
    "unwrapOpt",
    "upperAscii",
    "url",
    "uri",
    "uuid",
    "byte",
    "date",
    "datetime",
    "validate",
    "value",
];

/// Namespaces of functions, as in `math.greatest(…)`.
const NAMESPACES: &[&str] = &[
    "base64",
    "cel",
    "cidr",
    "format",
    "ip",
    "jsonpatch",
    "lists",
    "math",
    "optional",
    "sets",
    "strings",
];

/// Appends the faults of all rules below `schema`, which was read as `node`.
pub(crate) fn rules(schema: &Value, node: &Structural, path: &str, found: &mut Vec<Fault>) {
    walk(schema, node, path, None, found);
}

/// `list`: path of the nearest list around, of which old and new items do not correspond.
fn walk(schema: &Value, node: &Structural, path: &str, list: Option<&str>, found: &mut Vec<Fault>) {
    for (at, rule) in array(schema, "x-kubernetes-validations").enumerate() {
        let path = index(&child(path, "x-kubernetes-validations"), at);
        one(rule, node, &path, list, found);
    }
    for (name, below) in &node.properties {
        if below.has_rules {
            let path = key(&child(path, "properties"), name);
            walk(&schema["properties"][&**name], below, &path, list, found);
        }
    }
    if let Some(Additional::Schema(below)) = &node.additional
        && below.has_rules
    {
        walk(
            &schema["additionalProperties"],
            below,
            &child(path, "additionalProperties"),
            list,
            found,
        );
    }
    if let Some(below) = node.items.as_deref().filter(|it| it.has_rules) {
        let list = if matches!(node.list, ListKind::Map { .. }) {
            list
        } else {
            list.or(Some(path))
        };
        walk(&schema["items"], below, &child(path, "items"), list, found);
    }
}

fn one(rule: &Value, node: &Structural, path: &str, list: Option<&str>, found: &mut Vec<Fault>) {
    let text = |name: &str| rule[name].as_str().filter(|it| !it.trim().is_empty());
    if let Some(source) = text("rule") {
        match Program::compile(source) {
            Err(why) => found.push(invalid(
                &child(path, "rule"),
                rule,
                &format!("compilation failed: {why}"),
            )),
            Ok(program) => {
                if let Err(why) = check(&program, node, rule) {
                    found.push(invalid(
                        &child(path, "rule"),
                        rule,
                        &format!("compilation failed: {why}"),
                    ));
                }
                let reads_old = reads(&program.root, "oldSelf");
                if let Some(list) = list.filter(|_| reads_old) {
                    let why =
                        format!("oldSelf cannot be used on the uncorrelatable portion of the schema within {list}");
                    found.push(invalid(&child(path, "rule"), &rule["rule"], &why));
                }
                if !rule["optionalOldSelf"].is_null() && !reads_old {
                    let path = child(path, "optionalOldSelf");
                    found.push(invalid(
                        &path,
                        &rule["optionalOldSelf"],
                        "may not be set if oldSelf is not used in rule",
                    ));
                }
                if matches!(&program.root.expr, Expr::List(_) | Expr::Map(_))
                    || matches!(&program.root.expr, Expr::Literal(it) if !matches!(it, kube_cel::cel::common::ast::LiteralValue::Boolean(_)))
                {
                    found.push(invalid(
                        &child(path, "rule"),
                        rule,
                        "cel expression must evaluate to a bool",
                    ));
                }
            }
        }
    }
    if let Some(source) = text("messageExpression") {
        let checked = Program::compile(source).and_then(|program| check(&program, node, rule));
        if let Err(why) = checked {
            let why = format!("messageExpression compilation failed: {why}");
            found.push(invalid(&child(path, "messageExpression"), rule, &why));
        }
    }
    if text("rule").is_some_and(|it| it.trim().is_empty()) {
        found.push(forbidden(path, "rule is not specified"));
    }
}

/// What is known of a value.
#[derive(Clone, Copy)]
enum Known<'s> {
    /// Nothing.
    Any,
    /// It has this schema.
    Schema(&'s Structural),
    /// It is an item or a key of nothing known, or what a macro accumulates.
    Nothing,
}

type Variables<'v, 's> = Vec<(&'v str, Known<'s>)>;

fn check(program: &Program, node: &Structural, rule: &Value) -> Result<(), String> {
    let old = if flag(rule, "optionalOldSelf") {
        Known::Any
    } else {
        Known::Schema(node)
    };
    let mut variables = vec![("self", Known::Schema(node)), ("oldSelf", old)];
    infer(&program.root, &mut variables).map(drop)
}

fn infer<'v, 's>(expr: &'v IdedExpr, variables: &mut Variables<'v, 's>) -> Result<Known<'s>, String> {
    match &expr.expr {
        Expr::Ident(name) => {
            let known = variables
                .iter()
                .rev()
                .find(|(it, _)| it == name)
                .map(|(_, known)| *known);
            match known {
                Some(known) => Ok(known),
                None if super::eval::type_named(name).is_some() => Ok(Known::Nothing),
                None => Err(format!("undeclared reference to '{name}' (in container '')")),
            }
        }
        Expr::Select(select) => {
            if let Some(name) = qualified(expr) {
                return if name.starts_with("google.protobuf.") {
                    Ok(Known::Nothing)
                } else {
                    infer_select(select, variables)
                };
            }
            infer_select(select, variables)
        }
        Expr::Call(call) => infer_call(call, variables),
        Expr::Comprehension(it) => {
            let range = infer(&it.iter_range, variables)?;
            infer(&it.accu_init, variables)?;
            let depth = variables.len();
            variables.push((&it.accu_var, Known::Nothing));
            variables.push((&it.iter_var, item_of(range)));
            infer(&it.loop_cond, variables)?;
            infer(&it.loop_step, variables)?;
            variables.truncate(depth + 1);
            infer(&it.result, variables)?;
            variables.truncate(depth);
            Ok(Known::Nothing)
        }
        _ => {
            for below in super::program::children(expr) {
                infer(below, variables)?;
            }
            Ok(Known::Nothing)
        }
    }
}

fn infer_select<'v, 's>(
    select: &'v kube_cel::cel::common::ast::SelectExpr,
    variables: &mut Variables<'v, 's>,
) -> Result<Known<'s>, String> {
    match infer(&select.operand, variables)? {
        Known::Schema(schema) => field_of(schema, &select.field),
        _ => Ok(Known::Any),
    }
}

fn field_of<'s>(schema: &'s Structural, name: &str) -> Result<Known<'s>, String> {
    match &schema.additional {
        Some(Additional::Schema(below)) => return Ok(Known::Schema(below)),
        Some(Additional::Any) => return Ok(Known::Any),
        None => {}
    }
    let plain = unescape(name);
    match schema.properties.get(plain.as_str()) {
        Some(below) => Ok(Known::Schema(below)),
        None if schema.int_or_string || schema.ty.is_none() => Ok(Known::Any),
        None if schema.ty == Some(SchemaType::Object) => Err(format!("undefined field '{name}'")),
        None => Err("type does not support field selection".to_owned()),
    }
}

/// What going through a value gives.
fn item_of<'s>(range: Known<'s>) -> Known<'s> {
    match range {
        Known::Schema(schema) => match (&schema.items, schema.ty) {
            (Some(item), _) => Known::Schema(item),
            (None, Some(SchemaType::Object)) => Known::Nothing,
            _ => Known::Any,
        },
        _ => Known::Any,
    }
}

fn infer_call<'v, 's>(call: &'v CallExpr, variables: &mut Variables<'v, 's>) -> Result<Known<'s>, String> {
    let name = call.func_name.as_str();
    let declared = macros::declared(call);
    if !FUNCTIONS.contains(&name) && (declared.is_empty() || !macros::NAMES.contains(&name)) {
        return Err(format!("undeclared reference to '{name}' (in container '')"));
    }
    let target = match call.target.as_deref() {
        Some(target) => match &target.expr {
            Expr::Ident(namespace)
                if NAMESPACES.contains(&namespace.as_str()) && !variables.iter().any(|(it, _)| it == namespace) =>
            {
                Known::Nothing
            }
            _ => infer(target, variables)?,
        },
        None => Known::Nothing,
    };
    let depth = variables.len();
    if !declared.is_empty() && macros::NAMES.contains(&name) {
        let count = declared.len();
        // Of an optional, and of a value that `cel.bind` names, nothing is known here.
        let of_item = if matches!(name, "bind" | "optMap" | "optFlatMap") {
            Known::Any
        } else {
            item_of(target)
        };
        let last = declared.len() - 1;
        let rest = if name == "bind" {
            infer(&call.args[1], variables)?;
            2
        } else {
            count
        };
        for (at, variable) in declared.into_iter().enumerate() {
            let of_map = matches!(target, Known::Schema(it) if it.items.is_none());
            variables.push((variable, if at == last && !of_map { of_item } else { Known::Any }));
        }
        for arg in call.args.iter().skip(rest) {
            infer(arg, variables)?;
        }
        variables.truncate(depth);
        return Ok(Known::Any);
    }
    let mut args = Vec::new();
    for arg in &call.args {
        args.push(infer(arg, variables)?);
    }
    Ok(match (name, args.as_slice()) {
        (operators::INDEX, [Known::Schema(schema), _]) => match (&schema.items, &schema.additional) {
            (Some(item), _) => Known::Schema(item),
            (None, Some(Additional::Schema(below))) => Known::Schema(below),
            _ => Known::Any,
        },
        (operators::CONDITIONAL, [_, then, _]) => match then {
            Known::Schema(_) => Known::Any,
            other => *other,
        },
        _ => Known::Any,
    })
}

/// `a.b.c` as a name.
fn qualified(expr: &IdedExpr) -> Option<String> {
    match &expr.expr {
        Expr::Ident(name) => Some(name.clone()),
        Expr::Select(select) if !select.test => Some(format!("{}.{}", qualified(&select.operand)?, select.field)),
        _ => None,
    }
}
