//! Deleting a definition: first all its objects, then itself.
//! Source: `pkg/controller/finalizer` of apiextensions.

use super::{definition::condition, names, structural::array};
use serde_json::{Value, json};
use std::future::Future;

/// Holds a definition until its objects are gone.
pub const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

/// What to do next about one definition.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Nothing.
    Rest,
    /// Store the definition so: with the finalizer, before objects of it can exist.
    Hold(Value),
    /// Store the definition so, its condition saying what happens; then delete all its objects, then look again.
    Delete(Value),
    /// Store the definition so: without the finalizer. It goes with this write.
    Release(Value),
}

/// Decides. `remaining`: how many objects there are, once that was looked at.
pub fn next(crd: &Value, remaining: Option<usize>, now: &str) -> Step {
    let deleting = !crd["metadata"]["deletionTimestamp"].is_null();
    let held = array(&crd["metadata"], "finalizers").any(|it| it == FINALIZER);
    match (deleting, held) {
        (false, true) | (true, false) => Step::Rest,
        (false, false) => {
            let mut crd = crd.clone();
            match crd["metadata"]["finalizers"].as_array_mut() {
                Some(finalizers) => finalizers.push(json!(FINALIZER)),
                None => crd["metadata"]["finalizers"] = json!([FINALIZER]),
            }
            Step::Hold(crd)
        }
        (true, true) => {
            let established = condition(crd, "Established") == Some("True");
            match (established, remaining) {
                (false, _) => Step::Release(released(crd, "NeverEstablished", "resource was never established", now)),
                (true, Some(0)) => {
                    Step::Release(released(crd, "InstanceDeletionCompleted", "removed all instances", now))
                }
                // What it says of its end stays until there is something new to say: each write causes another look.
                (true, _) if condition(crd, "Terminating") == Some("True") => Step::Delete(crd.clone()),
                (true, _) => {
                    let message = "CustomResource deletion is in progress";
                    Step::Delete(terminating(crd, "True", "InstanceDeletionInProgress", message, now))
                }
            }
        }
    }
}

/// The definition with a condition that says why its objects do not go.
pub fn failed(crd: &Value, why: &str, now: &str) -> Value {
    terminating(
        crd,
        "True",
        "InstanceDeletionFailed",
        &format!("could not issue all deletes: {why}"),
        now,
    )
}

fn terminating(crd: &Value, status: &str, reason: &str, message: &str, now: &str) -> Value {
    let mut crd = crd.clone();
    let mut conditions: Vec<Value> = array(&crd["status"], "conditions").cloned().collect();
    names::set(&mut conditions, "Terminating", status, reason, message, now);
    if !crd["status"].is_object() {
        crd["status"] = json!({});
    }
    crd["status"]["conditions"] = Value::Array(conditions);
    crd
}

fn released(crd: &Value, reason: &str, message: &str, now: &str) -> Value {
    let mut crd = terminating(crd, "False", reason, message, now);
    if let Some(finalizers) = crd["metadata"]["finalizers"].as_array_mut() {
        finalizers.retain(|it| it != FINALIZER);
    }
    crd
}

/// What carries out [`Step`]s.
pub trait Executor {
    /// Stores a definition, if it is still what was read. The definition as stored; `None`: it is gone, or another writer
    /// was faster, who causes another look.
    fn store(&self, crd: &Value) -> impl Future<Output = Result<Option<Value>, String>> + Send;

    /// Deletes every object of a definition, of whatever version. How many are left: those that finalizers hold.
    fn delete_objects(&self, crd: &Value) -> impl Future<Output = Result<usize, String>> + Send;
}

/// Takes all steps that can be taken now. Whether to look again later: objects are left, or something failed.
pub async fn run(crd: &Value, executor: &impl Executor, now: &str) -> bool {
    let stored = match next(crd, None, now) {
        Step::Rest => return false,
        Step::Hold(crd) | Step::Release(crd) => return executor.store(&crd).await.is_err(),
        Step::Delete(marked) => {
            // A condition that says so already is not written again: each write would cause another look.
            let stored = if marked["status"] == crd["status"] {
                Ok(Some(marked))
            } else {
                executor.store(&marked).await
            };
            match stored {
                Ok(Some(stored)) => stored,
                Ok(None) => return false,
                Err(_) => return true,
            }
        }
    };
    match executor.delete_objects(&stored).await {
        Ok(0) => match next(&stored, Some(0), now) {
            Step::Release(crd) => executor.store(&crd).await.is_err(),
            _ => true,
        },
        Ok(_) => true,
        Err(why) => {
            // The next look tells whether this could be stored.
            let _ = executor.store(&failed(&stored, &why, now)).await;
            true
        }
    }
}
