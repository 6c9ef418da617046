//! The status of a budget: pure, from its pods and the scale of their controllers.

use crate::cluster::podview;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{
        core::v1::Pod,
        policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus},
    },
    apimachinery::pkg::{
        apis::meta::v1::{Condition, LabelSelector, Time},
        util::intstr::IntOrString,
    },
};
use kube::core::{Selector, SelectorExt as _};
use std::collections::{BTreeMap, HashMap};

/// How long an eviction that was granted may take to show as a deletion. Source: upstream's `DeletionTimeout`.
const DELETION: SignedDuration = SignedDuration::from_mins(2);

/// Which pods a budget is about. Source: policy/v1: an empty selector means all pods of the namespace, none means none.
///
/// # Errors
/// A selector that cannot be understood.
pub(crate) fn selector(budget: &PodDisruptionBudget) -> Result<Option<Selector>, String> {
    let selector: Option<LabelSelector> = budget.spec.as_ref().and_then(|it| it.selector.clone());
    selector
        .map(|it| Selector::try_from(it).map_err(|error| error.to_string()))
        .transpose()
}

/// Whether a selector selects a pod.
pub(crate) fn selects(selector: &Selector, pod: &Pod) -> bool {
    selector.matches(&pod.metadata.labels.clone().unwrap_or_default())
}

/// What the budget wants of how many.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Pods that there should be.
    pub(crate) expected: i32,
    /// Of those, healthy ones.
    pub(crate) desired: i32,
}

/// Whether the scale of controllers has to be known.
pub(crate) fn needs_scale(budget: &PodDisruptionBudget) -> bool {
    let spec = budget.spec.as_ref();
    spec.is_some_and(|it| it.max_unavailable.is_some() || matches!(it.min_available, Some(IntOrString::String(_))))
}

/// A number of `total`; percentages are rounded up.
fn scaled(value: &IntOrString, total: i32) -> Result<i32, String> {
    match value {
        IntOrString::Int(number) => Ok(*number),
        IntOrString::String(text) => {
            let percent = text.strip_suffix('%').and_then(|it| it.parse::<i64>().ok());
            let percent = percent.filter(|it| *it >= 0);
            let percent = percent.ok_or_else(|| format!("{text:?} is neither a number nor a percentage"))?;
            let exact = (i64::from(total) * percent + 99) / 100;
            i32::try_from(exact).map_err(|_| format!("{text:?} of {total} is too many"))
        }
    }
}

/// What is wanted, by the budget's `minAvailable` or `maxUnavailable`. `scale`: the sum over the pods' controllers.
///
/// # Errors
/// A value that cannot be understood.
pub(crate) fn wanted(budget: &PodDisruptionBudget, pods: usize, scale: i32) -> Result<Wanted, String> {
    let pods = i32::try_from(pods).unwrap_or(i32::MAX);
    let spec = budget.spec.clone().unwrap_or_default();
    if let Some(most) = &spec.max_unavailable {
        let most = scaled(most, scale)?;
        return Ok(Wanted {
            expected: scale,
            desired: (scale - most).max(0),
        });
    }
    match &spec.min_available {
        None => Ok(Wanted {
            expected: pods,
            desired: 0,
        }),
        Some(IntOrString::Int(number)) => Ok(Wanted {
            expected: pods,
            desired: *number,
        }),
        Some(percentage) => Ok(Wanted {
            expected: scale,
            desired: scaled(percentage, scale)?,
        }),
    }
}

/// Evictions that were granted and not seen yet; those that are over by now, by pod; and when to look again.
pub(crate) fn disrupted(
    budget: &PodDisruptionBudget,
    pods: &[&Pod],
    now: Timestamp,
) -> (BTreeMap<String, Time>, Vec<String>, Option<Timestamp>) {
    let there: HashMap<&str, &Pod> = pods
        .iter()
        .filter_map(|it| Some((it.metadata.name.as_deref()?, *it)))
        .collect();
    let status = budget.status.as_ref();
    let all = status.and_then(|it| it.disrupted_pods.clone()).unwrap_or_default();
    let (mut kept, mut over, mut again) = (BTreeMap::new(), Vec::new(), None::<Timestamp>);
    for (name, since) in all {
        if there.get(name.as_str()).is_none_or(|it| podview::is_terminating(it)) {
            continue;
        }
        let until = since.0.checked_add(DELETION).unwrap_or(Timestamp::MAX);
        if until <= now {
            over.push(name);
        } else {
            again = Some(again.map_or(until, |it| it.min(until)));
            kept.insert(name, since);
        }
    }
    (kept, over, again)
}

/// The whole status. `wanted`: or why it cannot be known, in which case nothing may be evicted.
pub(crate) fn status(
    budget: &PodDisruptionBudget,
    pods: &[&Pod],
    wanted: &Result<Wanted, String>,
    disrupted: BTreeMap<String, Time>,
    now: Timestamp,
) -> PodDisruptionBudgetStatus {
    let old = budget.status.clone().unwrap_or_default();
    let generation = budget.metadata.generation;
    let wanted = match wanted {
        Ok(wanted) => wanted,
        Err(why) => {
            return PodDisruptionBudgetStatus {
                disruptions_allowed: Some(0),
                observed_generation: generation,
                conditions: Some(conditions(&old, ("False", "SyncFailed", why), generation, now)),
                ..old
            };
        }
    };
    let healthy = pods.iter().filter(|it| {
        let name = it.metadata.name.as_deref().unwrap_or_default();
        !podview::is_terminating(it) && podview::is_ready(it) && !disrupted.contains_key(name)
    });
    let healthy = i32::try_from(healthy.count()).unwrap_or(i32::MAX);
    let allowed = if wanted.expected > 0 {
        healthy.saturating_sub(wanted.desired).max(0)
    } else {
        0
    };
    let verdict = if allowed > 0 {
        ("True", "SufficientPods", "")
    } else {
        ("False", "InsufficientPods", "")
    };
    PodDisruptionBudgetStatus {
        conditions: Some(conditions(&old, verdict, generation, now)),
        current_healthy: Some(healthy),
        desired_healthy: Some(wanted.desired),
        disrupted_pods: (!disrupted.is_empty()).then_some(disrupted),
        disruptions_allowed: Some(allowed),
        expected_pods: Some(wanted.expected),
        observed_generation: generation,
    }
}

fn conditions(
    old: &PodDisruptionBudgetStatus,
    (status, reason, message): (&str, &str, &str),
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    const KIND: &str = "DisruptionAllowed";
    let mut all = old.conditions.clone().unwrap_or_default();
    let before = all.iter().find(|it| it.type_ == KIND && it.status == status);
    let since = before.map_or(Time(now), |it| it.last_transition_time.clone());
    let new = Condition {
        type_: KIND.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        last_transition_time: since,
        observed_generation: generation,
    };
    match all.iter_mut().find(|it| it.type_ == KIND) {
        Some(it) => *it = new,
        None => all.push(new),
    }
    all
}
