//! Counts over the plan and what is not served, kept in step by service so that a change costs what it changes.

use super::{Changed, SyncReport};
use crate::{
    error::Skipped,
    model::ObjectName,
    plan::{Decision, HealthCheck, Plan, ServicePlan},
    status::{PlanCounts, SkippedObject},
};
use std::collections::{BTreeMap, BTreeSet};

/// Most skipped objects that are kept and shown.
const SKIPPED_KEPT: usize = 1000;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Summary {
    counts: PlanCounts,
    by_service: BTreeMap<ObjectName, PlanCounts>,
    checks: BTreeMap<ObjectName, HealthCheck>,
    /// By object, as the source names it, until it is reviewed; at most [`SKIPPED_KEPT`] reports.
    by_source: BTreeMap<String, Vec<SkippedObject>>,
    source_reports: usize,
    by_plan: BTreeMap<ObjectName, Vec<Skipped>>,
    by_dataplane: BTreeSet<SkippedObject>,
    deferred: Vec<SkippedObject>,
}

impl Summary {
    pub(super) fn counts(&self) -> PlanCounts {
        self.counts
    }

    pub(super) fn checks(&self) -> &BTreeMap<ObjectName, HealthCheck> {
        &self.checks
    }

    /// Everything that is not served, at most [`SKIPPED_KEPT`].
    pub(super) fn skipped(&self) -> Vec<SkippedObject> {
        let shown = |object: &str, field: &str, reason: &str| SkippedObject {
            object: object.to_owned(),
            field: field.to_owned(),
            reason: reason.to_owned(),
        };
        let source = self.by_source.values().flatten().cloned();
        let plan = self
            .by_plan
            .values()
            .flatten()
            .map(|s| shown(&s.object, &s.field, &s.reason));
        let rest = self.by_dataplane.iter().chain(&self.deferred).cloned();
        source.chain(plan).chain(rest).take(SKIPPED_KEPT).collect()
    }

    /// What the source said of an object is over.
    pub(super) fn source_reviewed(&mut self, object: &str) {
        let over = self.by_source.remove(object).unwrap_or_default();
        self.source_reports -= over.len();
    }

    /// The source left something out.
    pub(super) fn source_skipped(&mut self, skipped: Skipped) {
        if self.source_reports >= SKIPPED_KEPT {
            return;
        }
        let shown = SkippedObject {
            object: skipped.object.clone(),
            field: skipped.field,
            reason: skipped.reason,
        };
        let of_object = self.by_source.entry(skipped.object).or_default();
        if !of_object.contains(&shown) {
            of_object.push(shown);
            self.source_reports += 1;
        }
    }

    /// Takes `changed` services of `plan` in; returns what is newly skipped.
    pub(super) fn update(&mut self, plan: &Plan, changed: &BTreeSet<ObjectName>) -> Vec<Skipped> {
        let mut new = Vec::new();
        for name in changed {
            let service = plan.services.get(name);
            let held = self.by_service.remove(name).unwrap_or_default();
            self.counts = combine(self.counts, held, |sum, old| sum - old);
            let before = self.by_plan.remove(name).unwrap_or_default();
            self.checks.remove(name);
            let Some(service) = service else { continue };
            let counts = count(service);
            self.counts = combine(self.counts, counts, |sum, new| sum + new);
            self.by_service.insert(name.clone(), counts);
            self.checks
                .extend(service.health_check.map(|check| (name.clone(), check)));
            if !service.skipped.is_empty() {
                new.extend(
                    service
                        .skipped
                        .iter()
                        .filter(|skipped| !before.contains(skipped))
                        .cloned(),
                );
                self.by_plan.insert(name.clone(), service.skipped.clone());
            }
        }
        new
    }

    /// Takes the dataplane's complaints in: those about compared services replace the earlier ones.
    pub(super) fn dataplane_said(&mut self, changed: &Changed, report: &SyncReport) {
        match changed {
            Changed::All => self.by_dataplane.clear(),
            Changed::Services(names) if !self.by_dataplane.is_empty() => {
                let compared: BTreeSet<String> = names.iter().map(|name| format!("Service {name}")).collect();
                self.by_dataplane.retain(|skipped| !compared.contains(&skipped.object));
            }
            Changed::Services(_) => {}
        }
        self.by_dataplane
            .extend(report.skipped.iter().map(|skipped| SkippedObject {
                object: skipped.object.clone(),
                field: skipped.field.clone(),
                reason: skipped.reason.clone(),
            }));
        let deferred = report.deferred.iter().map(|(name, error)| SkippedObject {
            object: format!("Service {name}"),
            field: String::new(),
            reason: error.to_string(),
        });
        self.deferred = deferred.collect();
    }
}

fn count(service: &ServicePlan) -> PlanCounts {
    let frontends = || service.ports.iter().flat_map(|port| &port.frontends);
    PlanCounts {
        services: usize::from(frontends().next().is_some()),
        frontends: frontends().count(),
        backends: service.ports.iter().map(|port| port.backends.len()).sum(),
        no_local_internal: usize::from(frontends().any(|frontend| frontend.internal == Decision::Drop)),
        no_local_external: usize::from(frontends().any(|frontend| frontend.external == Decision::Drop)),
    }
}

fn combine(a: PlanCounts, b: PlanCounts, with: impl Fn(usize, usize) -> usize) -> PlanCounts {
    PlanCounts {
        services: with(a.services, b.services),
        frontends: with(a.frontends, b.frontends),
        backends: with(a.backends, b.backends),
        no_local_internal: with(a.no_local_internal, b.no_local_internal),
        no_local_external: with(a.no_local_external, b.no_local_external),
    }
}
