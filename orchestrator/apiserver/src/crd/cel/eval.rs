//! [`Evaluator`]: runs a program within a budget.

use super::{
    functions, macros, ops,
    program::Program,
    value::{Key, V},
};
use kube_cel::cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators};
use regex::Regex;
use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap},
    fmt,
    rc::Rc,
};

/// Why an expression has no value.
#[derive(Clone, Debug)]
pub(crate) struct Error {
    text: Rc<str>,
    cost: bool,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Error {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into().into(),
            cost: false,
        }
    }

    pub(super) fn no_overload() -> Self {
        Self::new("no such overload")
    }

    pub(super) fn no_key(name: &str) -> Self {
        Self::new(format!("no such key: {name}"))
    }

    fn too_costly() -> Self {
        Self {
            text: "operation cancelled: actual cost limit exceeded".into(),
            cost: true,
        }
    }

    /// The budget is used up: nothing may absorb this.
    pub(crate) fn is_cost(&self) -> bool {
        self.cost
    }

    pub(crate) fn is_overload(&self) -> bool {
        &*self.text == "no such overload"
    }
}

pub(super) type Result<T, E = Error> = std::result::Result<T, E>;

/// Variables, innermost first.
pub(super) enum Scope<'s, 'a> {
    /// What the rule is about.
    Root(&'s [(&'static str, V<'a>)]),
    /// A variable of a macro. Errors are values here: `[1/0, true].exists(x, x)` is true.
    Frame {
        name: &'s str,
        value: Result<V<'a>>,
        parent: &'s Scope<'s, 'a>,
    },
}

impl<'a> Scope<'_, 'a> {
    pub(super) fn get(&self, wanted: &str) -> Option<Result<V<'a>>> {
        let mut scope = self;
        loop {
            match scope {
                Scope::Frame { name, value, parent } => {
                    if *name == wanted {
                        return Some(value.clone());
                    }
                    scope = parent;
                }
                Scope::Root(variables) => {
                    return variables
                        .iter()
                        .find(|(name, _)| *name == wanted)
                        .map(|(_, value)| Ok(value.clone()));
                }
            }
        }
    }

    /// With one more variable.
    pub(super) fn with<'t>(&'t self, name: &'t str, value: Result<V<'a>>) -> Scope<'t, 'a> {
        Scope::Frame {
            name,
            value,
            parent: self,
        }
    }
}

/// Counts what evaluation costs. One unit is one step, or ten bytes that are copied or searched.
pub(super) struct Evaluator<'p> {
    left: Cell<u64>,
    pub(super) program: &'p Program,
    /// Compiled expressions that the program makes itself.
    pub(super) regexes: RefCell<HashMap<String, Rc<Result<Regex, String>>>>,
}

/// Runs a program with these variables. What it cost, and its value.
pub(super) fn run<'a>(program: &'a Program, variables: &[(&'static str, V<'a>)], budget: u64) -> (u64, Result<V<'a>>) {
    let evaluator = Evaluator {
        left: Cell::new(budget),
        program,
        regexes: RefCell::default(),
    };
    let value = evaluator.eval(&program.root, &Scope::Root(variables));
    (budget - evaluator.left.get(), value)
}

impl Evaluator<'_> {
    pub(super) fn charge(&self, cost: u64) -> Result<()> {
        match self.left.get().checked_sub(cost) {
            Some(left) => {
                self.left.set(left);
                Ok(())
            }
            None => {
                self.left.set(0);
                Err(Error::too_costly())
            }
        }
    }

    pub(super) fn eval<'a>(&self, expr: &'a IdedExpr, scope: &Scope<'_, 'a>) -> Result<V<'a>> {
        self.charge(1)?;
        match &expr.expr {
            Expr::Literal(literal) => Ok(literal_value(literal)),
            Expr::Ident(name) => match scope.get(name) {
                Some(value) => value,
                None => type_named(name).map(V::Type).ok_or_else(|| undeclared(name)),
            },
            Expr::Select(select) => {
                let operand = self.eval(&select.operand, scope)?;
                self.select(&operand, &select.field, select.test)
            }
            Expr::Call(call) => self.call(call, scope),
            Expr::List(list) => {
                let mut items = Vec::with_capacity(list.elements.len());
                for (at, element) in list.elements.iter().enumerate() {
                    match self.eval(element, scope)? {
                        V::Optional(inner) if list.optional_indices.contains(&at) => {
                            items.extend(inner.map(|it| (*it).clone()));
                        }
                        value => items.push(value),
                    }
                }
                Ok(V::List(Rc::new(items)))
            }
            Expr::Map(map) => {
                let mut entries = BTreeMap::new();
                for entry in &map.entries {
                    let EntryExpr::MapEntry(entry) = &entry.expr else {
                        return Err(Error::no_overload());
                    };
                    let key = Key::of(&self.eval(&entry.key, scope)?).ok_or_else(Error::no_overload)?;
                    match self.eval(&entry.value, scope)? {
                        V::Optional(inner) if entry.optional => {
                            entries.extend(inner.map(|it| (key, (*it).clone())));
                        }
                        value => {
                            entries.insert(key, value);
                        }
                    }
                }
                Ok(V::Map(Rc::new(entries)))
            }
            Expr::Comprehension(comprehension) => self.comprehension(comprehension, scope),
            Expr::Struct(_) | Expr::Unspecified => Err(Error::no_overload()),
        }
    }

    fn select<'a>(&self, operand: &V<'a>, field: &str, test: bool) -> Result<V<'a>> {
        if let V::Optional(inner) = operand {
            let value = match inner {
                Some(inner) => inner.field(field)?,
                None => None,
            };
            return Ok(if test {
                V::Bool(value.is_some())
            } else {
                V::Optional(value.map(Rc::new))
            });
        }
        let value = operand.field(field)?;
        if test {
            return Ok(V::Bool(value.is_some()));
        }
        value.ok_or_else(|| Error::no_key(field))
    }

    fn call<'a>(&self, call: &'a CallExpr, scope: &Scope<'_, 'a>) -> Result<V<'a>> {
        let name = call.func_name.as_str();
        match (name, call.args.as_slice()) {
            (operators::CONDITIONAL, [condition, then, otherwise]) => match self.eval(condition, scope)? {
                V::Bool(true) => self.eval(then, scope),
                V::Bool(false) => self.eval(otherwise, scope),
                _ => Err(Error::no_overload()),
            },
            (operators::LOGICAL_OR, [a, b]) => self.logic(a, b, scope, true),
            (operators::LOGICAL_AND, [a, b]) => self.logic(a, b, scope, false),
            (operators::NOT_STRICTLY_FALSE, [a]) => match self.eval(a, scope) {
                Ok(V::Bool(value)) => Ok(V::Bool(value)),
                Err(error) if error.is_cost() => Err(error),
                _ => Ok(V::Bool(true)),
            },
            (operators::LOGICAL_NOT, [a]) => match self.eval(a, scope)? {
                V::Bool(value) => Ok(V::Bool(!value)),
                _ => Err(Error::no_overload()),
            },
            (operators::NEGATE, [a]) => ops::negate(self, &self.eval(a, scope)?),
            (operators::OPT_SELECT, [operand, field]) => {
                let operand = self.eval(operand, scope)?;
                let field = self.eval(field, scope)?;
                let name = field.as_str().ok_or_else(Error::no_overload)?;
                self.optional(&operand, |value| value.field(name))
            }
            (operators::OPT_INDEX, [operand, at]) => {
                let (operand, at) = (self.eval(operand, scope)?, self.eval(at, scope)?);
                self.optional(&operand, |value| value.index(&at))
            }
            (operators::INDEX, [operand, at]) => {
                let (operand, at) = (self.eval(operand, scope)?, self.eval(at, scope)?);
                if matches!(operand, V::Optional(_)) {
                    return self.optional(&operand, |value| value.index(&at));
                }
                operand.index(&at)?.ok_or_else(|| match &at {
                    V::Int(at) if operand.items().is_some() => Error::new(format!("index out of bounds: {at}")),
                    at => Error::no_key(&ops::to_text(at).unwrap_or_default()),
                })
            }
            (operator, [a, b]) if call.target.is_none() && ops::is_binary(operator) => {
                let (a, b) = (self.eval(a, scope)?, self.eval(b, scope)?);
                ops::binary(self, operator, &a, &b)
            }
            _ => match macros::expand(self, call, scope) {
                Some(value) => value,
                None => functions::call(self, call, scope),
            },
        }
    }

    fn optional<'a>(&self, operand: &V<'a>, step: impl Fn(&V<'a>) -> Result<Option<V<'a>>>) -> Result<V<'a>> {
        let value = match operand {
            V::Optional(None) => None,
            V::Optional(Some(inner)) => step(inner)?,
            value => step(value)?,
        };
        Ok(V::Optional(value.map(Rc::new)))
    }

    /// `a || b` for `absorbing` true, `a && b` for false: either side may decide alone, whatever the other is.
    fn logic<'a>(&self, a: &'a IdedExpr, b: &'a IdedExpr, scope: &Scope<'_, 'a>, absorbing: bool) -> Result<V<'a>> {
        let decided = |value: &Result<V<'a>>| matches!(value, Ok(V::Bool(it)) if *it == absorbing);
        let left = self.eval(a, scope);
        if decided(&left) {
            return left;
        }
        if let Err(error) = &left
            && error.is_cost()
        {
            return left;
        }
        let right = self.eval(b, scope);
        if decided(&right) || matches!(&right, Err(error) if error.is_cost()) {
            return right;
        }
        match (left, right) {
            (Err(error), _) | (_, Err(error)) => Err(error),
            (Ok(V::Bool(_)), Ok(V::Bool(_))) => Ok(V::Bool(!absorbing)),
            _ => Err(Error::no_overload()),
        }
    }

    fn comprehension<'a>(&self, it: &'a ComprehensionExpr, scope: &Scope<'_, 'a>) -> Result<V<'a>> {
        let range = self.eval(&it.iter_range, scope)?;
        let items = range.iterate().ok_or_else(Error::no_overload)?;
        self.charge(items.len() as u64)?;
        let endless = matches!(&it.loop_cond.expr, Expr::Literal(LiteralValue::Boolean(_)));
        let mut accu = Ok(self.eval(&it.accu_init, scope)?);
        for item in items {
            let taken = std::mem::replace(&mut accu, Ok(V::Null));
            if !endless {
                let inner = scope.with(&it.accu_var, taken.clone());
                match self.eval(&it.loop_cond, &inner)? {
                    V::Bool(true) => {}
                    V::Bool(false) => {
                        accu = taken;
                        break;
                    }
                    _ => return Err(Error::no_overload()),
                }
            }
            accu = self.step(&it.loop_step, &it.accu_var, taken, &scope.with(&it.iter_var, Ok(item)));
            if let Err(error) = &accu
                && (endless || error.is_cost())
            {
                return Err(error.clone());
            }
        }
        self.eval(&it.result, &scope.with(&it.accu_var, accu))
    }

    /// One step of a loop. Appending to the result, which `map` and `filter` do, moves it instead of copying it.
    fn step<'a>(
        &self,
        expr: &'a IdedExpr,
        accu_var: &str,
        accu: Result<V<'a>>,
        scope: &Scope<'_, 'a>,
    ) -> Result<V<'a>> {
        let is_accu = |expr: &IdedExpr| matches!(&expr.expr, Expr::Ident(name) if name == accu_var);
        if is_accu(expr) {
            return accu;
        }
        if let Expr::Call(call) = &expr.expr {
            match (call.func_name.as_str(), call.args.as_slice()) {
                (operators::CONDITIONAL, [condition, then, otherwise])
                    if !super::program::reads(condition, accu_var) =>
                {
                    self.charge(1)?;
                    return match self.eval(condition, scope)? {
                        V::Bool(true) => self.step(then, accu_var, accu, scope),
                        V::Bool(false) => self.step(otherwise, accu_var, accu, scope),
                        _ => Err(Error::no_overload()),
                    };
                }
                (operators::ADD, [left, right]) if is_accu(left) && matches!(right.expr, Expr::List(_)) => {
                    if let Ok(V::List(mut list)) = accu {
                        let more = self.eval(right, scope)?;
                        let V::List(more) = more else {
                            return Err(Error::no_overload());
                        };
                        // The only holder: nothing is copied.
                        Rc::make_mut(&mut list).extend(more.iter().cloned());
                        return Ok(V::List(list));
                    }
                    return accu;
                }
                _ => {}
            }
        }
        self.eval(expr, &scope.with(accu_var, accu))
    }
}

fn undeclared(name: &str) -> Error {
    Error::new(format!("undeclared reference to '{name}'"))
}

fn literal_value(literal: &LiteralValue) -> V<'_> {
    match literal {
        LiteralValue::Boolean(it) => V::Bool(*it.inner()),
        LiteralValue::Bytes(it) => V::Bytes(it.inner().into()),
        LiteralValue::Double(it) => V::Double(*it.inner()),
        LiteralValue::Int(it) => V::Int(*it.inner()),
        LiteralValue::Null => V::Null,
        LiteralValue::String(it) => V::Text(it.inner()),
        LiteralValue::UInt(it) => V::UInt(*it.inner()),
    }
}

/// Types are values too: `type(x) == string`.
pub(super) fn type_named(name: &str) -> Option<&'static str> {
    const NAMES: [&str; 11] = [
        "bool",
        "bytes",
        "double",
        "int",
        "list",
        "map",
        "null_type",
        "string",
        "type",
        "uint",
        "optional_type",
    ];
    NAMES.into_iter().find(|it| *it == name)
}
