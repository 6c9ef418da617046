//! Whether a Job is to end, and how.

use super::{
    plan::condition,
    pod, policy,
    tally::{self, Tally},
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{JobSpec, JobStatus};

/// How a Job ends. Reasons and messages are those of upstream's conditions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Success { reason: String, message: String },
    Failure { reason: String, message: String },
}

impl End {
    /// Reason and message.
    pub(crate) fn words(&self) -> (&str, &str) {
        match self {
            Self::Success { reason, message } | Self::Failure { reason, message } => (reason, message),
        }
    }
}

fn failure(reason: &str, message: &str) -> End {
    End::Failure {
        reason: reason.to_owned(),
        message: message.to_owned(),
    }
}

fn success(reason: &str, message: &str) -> End {
    End::Success {
        reason: reason.to_owned(),
        message: message.to_owned(),
    }
}

/// How the Job ends, if it does. What was decided before stays decided.
pub(crate) fn end(status: &JobStatus, spec: &JobSpec, tally: &Tally, now: Timestamp) -> Option<End> {
    let words = |kind: &str| {
        let found = condition(status, kind)?;
        Some((
            found.reason.clone().unwrap_or_default(),
            found.message.clone().unwrap_or_default(),
        ))
    };
    if let Some((reason, message)) = words("FailureTarget") {
        return Some(End::Failure { reason, message });
    }
    if let Some((reason, message)) = words("SuccessCriteriaMet") {
        return Some(End::Success { reason, message });
    }
    if let Some(why) = &tally.verdict {
        return Some(failure("PodFailurePolicy", why));
    }
    let indexed = tally::is_indexed(spec);
    let size = tally::completions(spec);
    if indexed
        && let Some(policy) = &spec.success_policy
        && let Some(why) = policy::succeeded(policy, &tally.done, size)
    {
        return Some(success("SuccessPolicy", &why));
    }
    limits(status, spec, tally, now).or_else(|| {
        let complete = match spec.completions {
            None => tally.succeeded > 0 && tally.active.is_empty(),
            Some(completions) => tally.succeeded >= completions,
        };
        complete.then(|| success("CompletionsReached", "Reached expected number of succeeded pods"))
    })
}

fn limits(status: &JobStatus, spec: &JobSpec, tally: &Tally, now: Timestamp) -> Option<End> {
    let too_often = || {
        Some(failure(
            "BackoffLimitExceeded",
            "Job has reached the specified backoff limit",
        ))
    };
    // With a limit per index the API server defaults the common one to the largest number.
    let limit = spec.backoff_limit.unwrap_or(6);
    if tally.failed > limit {
        return too_often();
    }
    let template = spec.template.spec.as_ref();
    if template.and_then(|it| it.restart_policy.as_deref()) == Some("OnFailure") {
        let restarts: i32 = tally.active.iter().map(|it| pod::restarts(it)).sum();
        if if limit == 0 { restarts > 0 } else { restarts >= limit } {
            return too_often();
        }
    }
    let started = status.start_time.as_ref().map(|it| it.0);
    if let (Some(seconds), Some(started)) = (spec.active_deadline_seconds, started)
        && spec.suspend != Some(true)
        && now.duration_since(started) >= SignedDuration::from_secs(seconds)
    {
        return Some(failure(
            "DeadlineExceeded",
            "Job was active longer than specified deadline",
        ));
    }
    if tally::is_indexed(spec) && spec.backoff_limit_per_index.is_some() {
        let lost = tally.lost.len();
        let allowed = spec.max_failed_indexes.and_then(|it| usize::try_from(it).ok());
        if allowed.is_some_and(|it| lost > it) {
            let message = "Job has exceeded the specified maximal number of failed indexes";
            return Some(failure("MaxFailedIndexesExceeded", message));
        }
        let size = usize::try_from(tally::completions(spec)).unwrap_or(usize::MAX);
        if lost > 0 && lost + tally.done.len() >= size {
            return Some(failure("FailedIndexes", "Job has failed indexes"));
        }
    }
    None
}
