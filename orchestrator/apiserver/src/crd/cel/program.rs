//! [`Program`]: the source of one expression, parsed.

use crate::crd::pattern;
use kube_cel::cel::{
    common::ast::{EntryExpr, Expr, IdedExpr, LiteralValue},
    parser::Parser,
};
use regex::Regex;
use std::{collections::HashMap, sync::OnceLock};

/// Bytes of source: upstream's own rules and those of the projects that we know are below 4 KiB.
const MAX_SOURCE: usize = 16 << 10;

/// Levels of the parsed expression, which evaluation recurses into.
const MAX_DEPTH: usize = 128;

/// Bytes of stack for the parser, which recurses as deep as the source nests.
const PARSER_STACK: usize = 256 << 20;

/// A parsed expression.
#[derive(Debug)]
pub struct Program {
    pub(super) root: IdedExpr,
    /// Expressions that are written in the source, compiled when first used.
    regexes: HashMap<String, OnceLock<Result<Regex, String>>>,
}

impl Program {
    /// Parses.
    ///
    /// # Errors
    /// What is wrong with the source, for its author.
    pub fn compile(source: &str) -> Result<Self, String> {
        if source.len() > MAX_SOURCE {
            return Err(format!("the expression is longer than {MAX_SOURCE} bytes"));
        }
        let source = source.to_owned();
        // The parser is not ours: it may recurse deeply, and a fault of it must end this expression only.
        let parser = std::thread::Builder::new()
            .name("cel".to_owned())
            .stack_size(PARSER_STACK)
            .spawn(move || {
                let parser = Parser::new().enable_optional_syntax(true);
                let root = parser.parse(&source).map_err(|errors| {
                    let errors: Vec<String> = errors.errors.iter().map(|it| it.msg.trim().to_owned()).collect();
                    format!("Syntax error: {}", errors.join("; "))
                })?;
                match fault(&root, MAX_DEPTH) {
                    Some(why) => Err(why.to_owned()),
                    None => Ok(root),
                }
            });
        let parsed = parser
            .map_err(|error| format!("no thread for the parser: {error}"))?
            .join();
        let root = parsed.unwrap_or_else(|_| Err("Syntax error: the parser cannot read it".to_owned()))?;
        let mut regexes = HashMap::new();
        collect(&root, &mut regexes);
        Ok(Self { root, regexes })
    }

    /// A regular expression of the source, compiled.
    pub(super) fn regex(&self, source: &str) -> Option<&Result<Regex, String>> {
        self.regexes
            .get(source)
            .map(|it| it.get_or_init(|| pattern::compile(source)))
    }
}

fn collect(expr: &IdedExpr, regexes: &mut HashMap<String, OnceLock<Result<Regex, String>>>) {
    if let Expr::Call(call) = &expr.expr
        && matches!(call.func_name.as_str(), "matches" | "find" | "findAll")
    {
        for arg in &call.args {
            if let Expr::Literal(LiteralValue::String(source)) = &arg.expr {
                regexes.entry(source.inner().to_owned()).or_default();
            }
        }
    }
    children(expr).into_iter().for_each(|it| collect(it, regexes));
}

/// What evaluation could not cope with.
fn fault(expr: &IdedExpr, depth: usize) -> Option<&'static str> {
    if depth == 0 {
        return Some("the expression nests too deeply");
    }
    match &expr.expr {
        Expr::Unspecified => Some("Syntax error: an expression is missing"),
        Expr::Struct(_) => Some("messages cannot be constructed here"),
        Expr::Literal(_) | Expr::Ident(_) => None,
        _ => children(expr).into_iter().find_map(|child| fault(child, depth - 1)),
    }
}

/// The expressions right below.
pub(super) fn children(expr: &IdedExpr) -> Vec<&IdedExpr> {
    match &expr.expr {
        Expr::Unspecified | Expr::Literal(_) | Expr::Ident(_) => Vec::new(),
        Expr::Call(call) => call.target.as_deref().into_iter().chain(&call.args).collect(),
        Expr::List(list) => list.elements.iter().collect(),
        Expr::Map(map) => map
            .entries
            .iter()
            .flat_map(|entry| entry_children(&entry.expr))
            .collect(),
        Expr::Struct(one) => one
            .entries
            .iter()
            .flat_map(|entry| entry_children(&entry.expr))
            .collect(),
        Expr::Select(select) => vec![&select.operand],
        Expr::Comprehension(it) => {
            vec![&it.iter_range, &it.accu_init, &it.loop_cond, &it.loop_step, &it.result]
        }
    }
}

fn entry_children(entry: &EntryExpr) -> Vec<&IdedExpr> {
    match entry {
        EntryExpr::StructField(field) => vec![&field.value],
        EntryExpr::MapEntry(entry) => vec![&entry.key, &entry.value],
    }
}

/// Whether a variable is read anywhere.
pub(super) fn reads(expr: &IdedExpr, name: &str) -> bool {
    matches!(&expr.expr, Expr::Ident(ident) if ident == name) || children(expr).into_iter().any(|it| reads(it, name))
}
