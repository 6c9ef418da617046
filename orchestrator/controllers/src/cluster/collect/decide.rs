//! What becomes of an object, from what is known of its owners: pure.

use super::{FOREGROUND, ORPHAN};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

/// How an owner is, as the API server says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// There is none of that kind, name and uid where the dependent could refer to it.
    Absent,
    /// It is there.
    Solid,
    /// It waits for its dependents to go.
    Leaving,
}

/// How dependents of a deleted object are treated. Source: `DeleteOptions.propagationPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    Background,
    Foreground,
    Orphan,
}

/// What becomes of an object.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Verdict {
    /// It stays as it is.
    Stay,
    /// It stays, and forgets owners that are gone or going: these references remain.
    Forget(Vec<OwnerReference>),
    /// It goes. `unblock`: it is part of a circle that waits for itself, so it stops blocking its owners first.
    Go { policy: Policy, unblock: bool },
}

/// What is to be known of an object besides its owners.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Own<'a> {
    /// `metadata.finalizers`
    pub(crate) finalizers: &'a [String],
    /// Something names it as its owner.
    pub(crate) has_dependents: bool,
    /// One of its dependents waits for dependents in turn.
    pub(crate) dependent_waits: bool,
}

/// The verdict on an object that is not being deleted.
pub(crate) fn decide(owners: &[(OwnerReference, Owner)], own: Own<'_>) -> Verdict {
    let is = |state: Owner| owners.iter().any(|it| it.1 == state);
    if owners.is_empty() {
        return Verdict::Stay;
    }
    if is(Owner::Solid) {
        if !is(Owner::Absent) && !is(Owner::Leaving) {
            return Verdict::Stay;
        }
        let solid = owners.iter().filter(|it| it.1 == Owner::Solid);
        return Verdict::Forget(solid.map(|it| it.0.clone()).collect());
    }
    if is(Owner::Leaving) && own.has_dependents {
        return Verdict::Go {
            policy: Policy::Foreground,
            unblock: own.dependent_waits,
        };
    }
    let has = |name: &str| own.finalizers.iter().any(|it| it == name);
    let policy = match () {
        () if has(ORPHAN) => Policy::Orphan,
        () if has(FOREGROUND) => Policy::Foreground,
        () => Policy::Background,
    };
    Verdict::Go { policy, unblock: false }
}
