//! Which names a definition gets, and what its conditions say.
//! Source: `pkg/controller/{status,establish,nonstructuralschema}` of apiextensions.

use super::{check, structural::array};
use serde_json::{Value, json};
use std::collections::HashSet;

/// Names that are taken in one group.
#[derive(Clone, Debug, Default)]
pub struct Taken {
    /// Plurals, singulars and short names.
    pub resources: HashSet<String>,
    /// Kinds and list kinds.
    pub kinds: HashSet<String>,
}

impl Taken {
    /// Takes the names that a definition has been given.
    pub fn take(&mut self, accepted: &Value) {
        let text = |name: &str| accepted[name].as_str().filter(|it| !it.is_empty()).map(str::to_owned);
        self.resources.extend(text("plural"));
        self.resources.extend(text("singular"));
        self.resources.extend(
            array(accepted, "shortNames")
                .filter_map(Value::as_str)
                .map(str::to_owned),
        );
        self.kinds.extend(text("kind"));
        self.kinds.extend(text("listKind"));
    }
}

/// The status that a definition should have, given what is taken by others. `now`: RFC 3339, for conditions that change.
pub fn status(crd: &Value, taken: &Taken, now: &str) -> Value {
    let mut status = if crd["status"].is_object() {
        crd["status"].clone()
    } else {
        json!({})
    };
    let (accepted, conflict) = accept(crd, taken);
    status["acceptedNames"] = accepted;
    let mut conditions: Vec<Value> = array(&crd["status"], "conditions").cloned().collect();
    match &conflict {
        Some((reason, message)) => set(&mut conditions, "NamesAccepted", "False", reason, message, now),
        None => set(
            &mut conditions,
            "NamesAccepted",
            "True",
            "NoConflicts",
            "no conflicts found",
            now,
        ),
    }
    let established = conditions
        .iter()
        .any(|it| it["type"] == "Established" && it["status"] == "True");
    if !established {
        match conflict {
            Some(_) => set(
                &mut conditions,
                "Established",
                "False",
                "NotAccepted",
                "not all names are accepted",
                now,
            ),
            None => {
                let message = "the initial names have been accepted";
                set(
                    &mut conditions,
                    "Established",
                    "True",
                    "InitialNamesAccepted",
                    message,
                    now,
                );
            }
        }
    }
    match not_structural(crd) {
        Some(message) => set(
            &mut conditions,
            "NonStructuralSchema",
            "True",
            "Violations",
            &message,
            now,
        ),
        None => conditions.retain(|it| it["type"] != "NonStructuralSchema"),
    }
    status["conditions"] = Value::Array(conditions);
    status
}

/// Names that may be given, and why others may not.
fn accept(crd: &Value, taken: &Taken) -> (Value, Option<(String, String)>) {
    let wanted = &crd["spec"]["names"];
    let had = &crd["status"]["acceptedNames"];
    let mut accepted = if had.is_object() { had.clone() } else { json!({}) };
    let mut conflict = None;
    let mut single = |field: &str, reason: &str, names: &HashSet<String>, conflict: &mut Option<(String, String)>| {
        let name = wanted[field].as_str().unwrap_or_default();
        if wanted[field] != had[field] && names.contains(name) {
            *conflict = Some((reason.to_owned(), in_use(name)));
        } else {
            accepted[field] = wanted[field].clone();
        }
    };
    // Of several conflicts the last is told, as upstream does.
    single("plural", "PluralConflict", &taken.resources, &mut conflict);
    single("singular", "SingularConflict", &taken.resources, &mut conflict);
    let own: Vec<&Value> = array(had, "shortNames").collect();
    let lost = array(wanted, "shortNames")
        .filter(|it| !own.contains(it))
        .filter_map(Value::as_str);
    let lost: Vec<String> = lost.filter(|it| taken.resources.contains(*it)).map(in_use).collect();
    if !lost.is_empty() {
        let message = if lost.len() == 1 {
            lost[0].clone()
        } else {
            format!("[{}]", lost.join(", "))
        };
        conflict = Some(("ShortNamesConflict".to_owned(), message));
    }
    single("kind", "KindConflict", &taken.kinds, &mut conflict);
    single("listKind", "ListKindConflict", &taken.kinds, &mut conflict);
    if lost.is_empty() {
        copy(wanted, &mut accepted, "shortNames");
    }
    copy(wanted, &mut accepted, "categories");
    (accepted, conflict)
}

fn copy(from: &Value, to: &mut Value, field: &str) {
    match from.get(field).filter(|it| !it.is_null()) {
        Some(value) => to[field] = value.clone(),
        None => {
            if let Some(fields) = to.as_object_mut() {
                fields.remove(field);
            }
        }
    }
}

fn in_use(name: &str) -> String {
    format!("{name:?} is already in use")
}

/// Why a stored schema is not structural. New ones are refused; this speaks of what an earlier server let in.
fn not_structural(crd: &Value) -> Option<String> {
    let mut messages = Vec::new();
    for (at, version) in array(&crd["spec"], "versions").enumerate() {
        let schema = &version["schema"]["openAPIV3Schema"];
        if schema.is_object() {
            let path = format!("spec.versions[{at}].schema.openAPIV3Schema");
            let faults = check::structural(schema, &path);
            messages.extend(faults.into_iter().map(|it| format!("{}: {}", it.field, it.message)));
        }
    }
    match messages.as_slice() {
        [] => None,
        [one] => Some(one.clone()),
        many => Some(format!("[{}]", many.join(", "))),
    }
}

/// Sets a condition; its time changes with its status only.
pub(crate) fn set(conditions: &mut Vec<Value>, ty: &str, status: &str, reason: &str, message: &str, now: &str) {
    let mut condition = json!({
        "type": ty, "status": status, "reason": reason, "message": message, "lastTransitionTime": now,
    });
    match conditions.iter_mut().find(|it| it["type"] == ty) {
        Some(old) => {
            if old["status"] == status && old["lastTransitionTime"].is_string() {
                condition["lastTransitionTime"] = old["lastTransitionTime"].clone();
            }
            *old = condition;
        }
        None => conditions.push(condition),
    }
}
