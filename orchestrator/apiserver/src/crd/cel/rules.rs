//! [`Rule`]: one entry of `x-kubernetes-validations`; and all rules of an object, run.
//! Source: `pkg/apiserver/schema/cel/validation.go` of apiextensions.

use super::{
    eval,
    program::{Program, reads},
    value::V,
};
use crate::{
    crd::{
        faults::{self, child, index, key},
        structural::{Additional, SchemaType, Structural, flag, text},
        validate::Items,
    },
    value::same,
};
use fairlead_schema::Fault;
use serde_json::{Value, json};
use std::{
    rc::Rc,
    sync::{Arc, OnceLock},
};

/// What all rules of one request may cost. Source: `RuntimeCELCostBudget`.
const BUDGET: u64 = 10_000_000;

/// What one rule may cost. Source: `PerCallLimit`.
const RULE_BUDGET: u64 = 1_000_000;

/// Bytes of a message that a rule computes. Source: the same limit of upstream's.
const MAX_MESSAGE: usize = 5 << 10;

/// Faults of one object at most.
const MAX_FAULTS: usize = 100;

/// One rule, compiled when first run: most rules of most CRDs never are.
#[derive(Debug)]
pub struct Rule {
    /// The expression.
    pub source: Arc<str>,
    message: Option<Arc<str>>,
    message_expression: Option<Arc<str>>,
    reason: Option<Arc<str>>,
    field_path: Option<Arc<str>>,
    optional_old_self: bool,
    compiled: OnceLock<Result<Compiled, String>>,
    compiled_message: OnceLock<Option<Program>>,
}

#[derive(Debug)]
struct Compiled {
    program: Program,
    reads_old: bool,
}

impl Rule {
    pub(crate) fn read(rule: &Value) -> Self {
        let filled = |name: &str| text(rule, name).filter(|it| !it.trim().is_empty());
        Self {
            source: text(rule, "rule").unwrap_or_default(),
            message: filled("message"),
            message_expression: filled("messageExpression"),
            reason: filled("reason"),
            field_path: filled("fieldPath"),
            optional_old_self: flag(rule, "optionalOldSelf"),
            compiled: OnceLock::new(),
            compiled_message: OnceLock::new(),
        }
    }

    fn compiled(&self) -> Result<&Compiled, &str> {
        let compile = || {
            let program = Program::compile(&self.source)?;
            let reads_old = reads(&program.root, "oldSelf");
            Ok(Compiled { program, reads_old })
        };
        self.compiled.get_or_init(compile).as_ref().map_err(String::as_str)
    }

    fn compiled_message(&self) -> Option<&Program> {
        let source = self.message_expression.as_deref()?;
        self.compiled_message
            .get_or_init(|| Program::compile(source).ok())
            .as_ref()
    }

    /// How faults name the rule.
    fn label(&self) -> &str {
        self.message.as_deref().unwrap_or(&self.source).trim()
    }

    fn own_message(&self) -> String {
        match &self.message {
            Some(message) => message.trim().to_owned(),
            None => format!("failed rule: {}", self.source.trim()),
        }
    }
}

/// Runs every rule of a schema on an object; with `old`, the transition rules too.
pub fn run(schema: &Structural, old: Option<&Value>, new: &Value) -> Vec<Fault> {
    let mut runner = Runner {
        faults: Vec::new(),
        left: BUDGET,
        stopped: false,
    };
    let unchanged = old.is_some_and(|old| same(old, new));
    runner.node(schema, "", old, new, unchanged);
    runner.faults
}

struct Runner {
    faults: Vec<Fault>,
    left: u64,
    stopped: bool,
}

impl Runner {
    /// `unchanged`: this value or one that it is in is what it was, so that only transition rules may fail.
    fn node(&mut self, schema: &Structural, path: &str, old: Option<&Value>, new: &Value, unchanged: bool) {
        if !schema.has_rules || new.is_null() || self.stopped {
            return;
        }
        let old = old.filter(|old| !old.is_null());
        let unchanged = unchanged || old.is_some_and(|old| same(old, new));
        self.rules(schema, path, old, new, unchanged);
        match new {
            Value::Object(fields) => {
                for (name, value) in fields {
                    let old = old.and_then(|old| old.get(name));
                    match (schema.properties.get(name.as_str()), &schema.additional) {
                        (Some(below), _) => self.node(below, &child(path, name), old, value, unchanged),
                        (None, Some(Additional::Schema(below))) => {
                            self.node(below, &key(path, name), old, value, unchanged);
                        }
                        (None, _) => {}
                    }
                }
            }
            Value::Array(items) => {
                if let Some(below) = schema.items.as_deref().filter(|it| it.has_rules) {
                    let before = Items::new(&schema.list, Some(below), old);
                    for (at, item) in items.iter().enumerate() {
                        let old = before.of(&schema.list, Some(below), item);
                        self.node(below, &index(path, at), old, item, unchanged);
                    }
                }
            }
            _ => {}
        }
    }

    fn rules(&mut self, schema: &Structural, path: &str, old: Option<&Value>, new: &Value, unchanged: bool) {
        let ty = json!(schema.ty.map_or("", SchemaType::name));
        for rule in &schema.rules {
            if self.stopped || self.faults.len() >= MAX_FAULTS {
                return;
            }
            let compiled = match rule.compiled() {
                Ok(compiled) => compiled,
                Err(why) => {
                    self.faults
                        .push(faults::invalid(path, &ty, &format!("rule compile error: {why}")));
                    continue;
                }
            };
            if compiled.reads_old && old.is_none() && !rule.optional_old_self {
                continue;
            }
            let mut variables = vec![("self", V::json(new, Some(schema)))];
            let before = old.map(|old| V::json(old, Some(schema)));
            if rule.optional_old_self {
                variables.push(("oldSelf", V::Optional(before.map(Rc::new))));
            } else if let Some(before) = before {
                variables.push(("oldSelf", before));
            }
            let (cost, value) = eval::run(&compiled.program, &variables, self.left.min(RULE_BUDGET));
            self.left -= cost;
            match value {
                Ok(V::Bool(true)) => {}
                Ok(V::Bool(false)) => {
                    if compiled.reads_old || !unchanged {
                        let fault = self.failed(rule, schema, path, new, &variables);
                        self.faults.push(fault);
                    }
                }
                Ok(_) => {
                    let why = format!("the rule gives no bool: {}", rule.label());
                    self.faults.push(faults::invalid(path, &ty, &why));
                }
                Err(error) if error.is_cost() => {
                    let why = if self.left == 0 {
                        "validation failed due to running out of cost budget, no further validation rules will be run"
                            .to_owned()
                    } else {
                        let rule = rule.label();
                        format!(
                            "'{error}': no further validation rules will be run due to call cost exceeds limit for rule: \
                             {rule}"
                        )
                    };
                    self.faults.push(faults::invalid(path, &ty, &why));
                    self.stopped = true;
                }
                Err(error) if error.is_overload() => {
                    let rule = rule.label();
                    let why = format!(
                        "'{error}': call arguments did not match a supported operator, function or macro signature for \
                         rule: {rule}"
                    );
                    self.faults.push(faults::invalid(path, &ty, &why));
                }
                Err(error) => {
                    let why = format!("{error} evaluating rule: {}", rule.label());
                    self.faults.push(faults::invalid(path, &ty, &why));
                }
            }
        }
    }

    fn failed(
        &mut self,
        rule: &Rule,
        schema: &Structural,
        path: &str,
        new: &Value,
        variables: &[(&'static str, V<'_>)],
    ) -> Fault {
        let computed = rule.compiled_message().and_then(|program| {
            let (cost, value) = eval::run(program, variables, self.left.min(RULE_BUDGET));
            self.left -= cost;
            let message = value.ok()?.as_str()?.trim().to_owned();
            let sound = !message.is_empty() && message.len() <= MAX_MESSAGE && !message.contains(['\n', '\r']);
            sound.then_some(message)
        });
        let message = computed.unwrap_or_else(|| rule.own_message());
        let path = match rule.field_path.as_deref().and_then(super::path::normal) {
            Some(below) if below.starts_with('[') => format!("{path}{below}"),
            Some(below) => child(path, &below),
            None => path.to_owned(),
        };
        let shown = !matches!(schema.ty, Some(SchemaType::Object | SchemaType::Array));
        match (rule.reason.as_deref(), shown) {
            (Some("FieldValueForbidden"), _) => faults::forbidden(&path, &message),
            (Some("FieldValueRequired"), _) => faults::required(&path, &message),
            (Some("FieldValueDuplicate"), true) => faults::duplicate(&path, new, &message),
            (Some("FieldValueDuplicate"), false) => faults::duplicate_unshown(&path, &message),
            (_, true) => faults::invalid(&path, new, &message),
            (_, false) => faults::invalid_unshown(&path, &message),
        }
    }
}
