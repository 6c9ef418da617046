//! The loop that makes a kernel follow a plan: only what changed, unless memory may be wrong.

use super::Dataplane;
use crate::{
    error::{ApplyError, Skipped},
    model::ObjectName,
    plan::Plan,
};
use std::collections::{BTreeMap, BTreeSet};

/// Which services may differ from the last plan that was synced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    /// Any of them.
    All,
    /// Only these, including those that are gone, and **both** services when a frontend moves from one to another.
    Services(BTreeSet<ObjectName>),
}

impl Changed {
    /// No service.
    pub const fn nothing() -> Self {
        Self::Services(BTreeSet::new())
    }

    /// Adds what `other` says.
    pub fn extend(&mut self, other: impl IntoIterator<Item = ObjectName>) {
        if let Self::Services(names) = self {
            names.extend(other);
        }
    }

    /// Whether this is [`Changed::nothing`].
    pub fn is_nothing(&self) -> bool {
        matches!(self, Self::Services(names) if names.is_empty())
    }
}

/// What one [`Reconciler::sync`] did.
#[derive(Debug, Default)]
pub struct SyncReport {
    /// Mutations executed.
    pub ops: usize,
    /// Services compared.
    pub services: usize,
    /// Services that did not fit and were left as they were, each with the reason. They are tried again in every sync;
    /// the caller needs to do nothing but tell a human.
    pub deferred: Vec<(ObjectName, ApplyError)>,
    /// What the dataplane cannot express of the compared services. The same again whenever such a service is compared.
    pub skipped: Vec<Skipped>,
}

/// Keeps one dataplane in step with a plan.
///
/// Remembers what it wrote, by service. That memory is a guess: after any error, and after [`Reconciler::forget`], the
/// next sync reads the kernel and compares everything.
#[derive(Debug)]
pub struct Reconciler<D: Dataplane> {
    dataplane: D,
    /// What was lowered last, by service, whether or not it reached the kernel; see `known`.
    images: BTreeMap<ObjectName, D::Image>,
    /// The kernel holds exactly the union of `images`.
    known: bool,
    /// Services whose newest plan did not fit.
    deferred: BTreeSet<ObjectName>,
}

impl<D: Dataplane> Reconciler<D> {
    /// Knows nothing yet: the first sync observes.
    pub fn new(dataplane: D) -> Self {
        Self {
            dataplane,
            images: BTreeMap::new(),
            known: false,
            deferred: BTreeSet::new(),
        }
    }

    /// The dataplane.
    pub fn dataplane(&self) -> &D {
        &self.dataplane
    }

    /// The dataplane. Whoever changes the kernel through it calls [`Reconciler::forget`] afterwards.
    pub fn dataplane_mut(&mut self) -> &mut D {
        &mut self.dataplane
    }

    /// What the kernel holds for one service, as far as we know.
    pub fn image(&self, service: &ObjectName) -> Option<&D::Image> {
        self.images.get(service)
    }

    /// What the kernel holds for all services; `None` = unknown.
    pub fn have(&self) -> Option<D::Image> {
        self.known.then(|| union::<D>(self.images.values()))
    }

    /// Stops trusting memory: the next sync observes and repairs. For the periodic audit.
    pub fn forget(&mut self) {
        self.known = false;
    }

    /// Makes the kernel follow `plan`, of which only the `changed` services may differ from the last successful sync.
    /// Idempotent: a second call does 0 ops.
    ///
    /// # Errors
    /// Those of [`Dataplane::observe`] and [`Dataplane::execute`]. The kernel then serves a mixture of the old plan and
    /// the new one, legal at every moment; the next sync covers everything, whatever its `changed` says. A service that
    /// does not fit is no error, see [`SyncReport::deferred`].
    pub fn sync(&mut self, plan: &Plan, changed: &Changed) -> Result<SyncReport, ApplyError> {
        let mut report = SyncReport::default();
        let (mut names, mut have) = match changed {
            Changed::Services(names) if self.known => {
                let names: BTreeSet<_> = names.union(&self.deferred).cloned().collect();
                let have = union::<D>(names.iter().filter_map(|name| self.images.get(name)));
                (names, have)
            }
            _ => {
                let names = plan.services.keys().chain(self.images.keys()).cloned().collect();
                let have = match self.known {
                    true => union::<D>(self.images.values()),
                    false => self.dataplane.observe()?,
                };
                (names, have)
            }
        };
        report.services = names.len();
        loop {
            let ops = self.round(plan, &names, &have, &mut report)?;
            report.ops += ops;
            // What this round removed may be the room that was missing. Each further round with ops has fitted in at
            // least one more service, so this ends.
            if self.deferred.is_empty() || ops == 0 {
                return Ok(report);
            }
            names = self.deferred.clone();
            have = union::<D>(names.iter().filter_map(|name| self.images.get(name)));
        }
    }

    /// Lowers `names`, compares with `have`, executes the difference; returns the number of ops.
    fn round(
        &mut self,
        plan: &Plan,
        names: &BTreeSet<ObjectName>,
        have: &D::Image,
        report: &mut SyncReport,
    ) -> Result<usize, ApplyError> {
        // Until the end: the images below are promises.
        self.known = false;
        let mut want = D::Image::default();
        report.deferred.clear();
        for name in names {
            let service = plan.services.get(name);
            match self.dataplane.lower(name, service.map(AsRef::as_ref), have) {
                Ok(lowered) => {
                    D::merge(&mut want, &lowered.image);
                    report.skipped.extend(lowered.skipped);
                    self.deferred.remove(name);
                    match service {
                        Some(_) => self.images.insert(name.clone(), lowered.image),
                        None => self.images.remove(name),
                    };
                }
                Err(error) => {
                    self.deferred.insert(name.clone());
                    report.deferred.push((name.clone(), error));
                }
            }
        }
        for (name, _) in &report.deferred {
            if let Some(image) = self.images.get_mut(name) {
                D::cede(image, &want);
                D::merge(&mut want, image);
            }
        }
        let ops = D::diff(have, &want);
        self.dataplane.execute(&ops)?;
        self.known = true;
        Ok(ops.len())
    }
}

fn union<'a, D: Dataplane>(images: impl Iterator<Item = &'a D::Image>) -> D::Image
where
    D::Image: 'a,
{
    images.fold(D::Image::default(), |mut all, image| {
        D::merge(&mut all, image);
        all
    })
}
