//! Who owns whom: pure. Nodes are objects by uid; an owner that nobody saw yet is only a list of its dependents.

use super::{FOREGROUND, ORPHAN};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

/// `metadata.uid`
pub(crate) type Uid = Arc<str>;

/// Where an object is found.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    /// As `apps/v1`.
    pub(crate) api_version: Arc<str>,
    /// As `ReplicaSet`.
    pub(crate) kind: Arc<str>,
    /// Empty for objects of the cluster.
    pub(crate) namespace: Arc<str>,
    /// `metadata.name`
    pub(crate) name: Arc<str>,
}

impl Identity {
    /// The API group; versions of one kind are the same object.
    fn group(&self) -> &str {
        group(&self.api_version)
    }
}

fn group(api_version: &str) -> &str {
    api_version.rsplit_once('/').map_or("", |(group, _)| group)
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Owner {
    uid: Uid,
    blocks: bool,
}

/// One object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) identity: Identity,
    owners: Vec<Owner>,
    /// It has a deletion time.
    pub(crate) deleting: bool,
    /// It waits for its dependents to go.
    pub(crate) foreground: bool,
    /// It waits for its dependents to be freed.
    pub(crate) orphaning: bool,
}

impl Node {
    pub(crate) fn of(identity: Identity, meta: &ObjectMeta) -> Self {
        let has = |name: &str| meta.finalizers.iter().flatten().any(|it| it == name);
        let deleting = meta.deletion_timestamp.is_some();
        let owners = meta.owner_references.iter().flatten().map(|it| Owner {
            uid: it.uid.as_str().into(),
            blocks: it.block_owner_deletion.unwrap_or(false),
        });
        Self {
            identity,
            owners: owners.collect(),
            deleting,
            foreground: deleting && has(FOREGROUND),
            orphaning: deleting && has(ORPHAN),
        }
    }

    fn blocks(&self, owner: &str) -> bool {
        self.owners.iter().any(|it| &*it.uid == owner && it.blocks)
    }
}

/// What is to be looked at.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Work {
    /// Whether this object may stay, or go at last.
    Judge(Uid),
    /// This object's dependents must forget it.
    Orphan(Uid),
}

/// A dependent that names an owner in another namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Misplaced {
    /// The dependent's uid.
    pub(crate) dependent: Uid,
    /// The dependent, which may be gone by the time this is reported.
    pub(crate) identity: Identity,
    /// The owner's uid.
    pub(crate) owner: Uid,
    /// Where the owner really is.
    pub(crate) owner_identity: Identity,
}

/// All objects that were seen.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    nodes: HashMap<Uid, Node>,
    /// Owner -> those that name it.
    dependents: HashMap<Uid, HashSet<Uid>>,
}

impl Graph {
    /// An object.
    pub(crate) fn get(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    /// Everything that names this object as an owner.
    pub(crate) fn dependents(&self, uid: &str) -> Vec<(Uid, Node)> {
        let all = self.dependents.get(uid).into_iter().flatten();
        all.filter_map(|it| Some((Arc::clone(it), self.nodes.get(it)?.clone())))
            .collect()
    }

    /// Dependents that keep an object from going in the foreground.
    pub(crate) fn blocking(&self, uid: &str) -> Vec<(Uid, Node)> {
        let mut all = self.dependents(uid);
        all.retain(|(_, node)| node.blocks(uid));
        all
    }

    /// Takes in an object as it is. What it asks for comes back, each thing once.
    pub(crate) fn observe(&mut self, uid: &Uid, node: &Node, meta: &ObjectMeta) -> (Vec<Work>, Vec<Misplaced>) {
        let (mut work, mut misplaced) = (Vec::new(), Vec::new());
        let old = self.nodes.insert(Arc::clone(uid), node.clone());
        let before: &[Owner] = old.as_ref().map_or(&[], |it| &it.owners);
        for owner in before
            .iter()
            .filter(|it| !node.owners.iter().any(|new| new.uid == it.uid))
        {
            self.unlink(&owner.uid, uid);
        }
        // What stopped blocking its owner may have been the last.
        for owner in before.iter().filter(|it| it.blocks && !node.blocks(&it.uid)) {
            self.nudge(&owner.uid, &mut work);
        }
        for reference in meta.owner_references.iter().flatten() {
            let owner: Uid = reference.uid.as_str().into();
            let new = !before.iter().any(|it| it.uid == owner);
            self.dependents
                .entry(Arc::clone(&owner))
                .or_default()
                .insert(Arc::clone(uid));
            if !new {
                continue;
            }
            match self.nodes.get(&owner) {
                None => work.push(Work::Judge(Arc::clone(uid))),
                Some(it) if !fits(reference, &it.identity, &node.identity) => {
                    work.push(Work::Judge(Arc::clone(uid)));
                    if !near(&it.identity, &node.identity) {
                        misplaced.push(Misplaced {
                            dependent: Arc::clone(uid),
                            identity: node.identity.clone(),
                            owner,
                            owner_identity: it.identity.clone(),
                        });
                    }
                }
                // It came while its owner was going.
                Some(it) if it.foreground => work.push(Work::Judge(Arc::clone(uid))),
                Some(_) => {}
            }
        }
        if old.is_none() {
            // Those that were seen before it, and cannot mean it.
            let distant = self.dependents(uid).into_iter();
            for (dependent, its) in distant.filter(|(_, its)| !near(&node.identity, &its.identity)) {
                work.push(Work::Judge(Arc::clone(&dependent)));
                misplaced.push(Misplaced {
                    dependent,
                    identity: its.identity,
                    owner: Arc::clone(uid),
                    owner_identity: node.identity.clone(),
                });
            }
        }
        let was = |pick: fn(&Node) -> bool| old.as_ref().is_some_and(pick);
        if node.orphaning && !was(|it| it.orphaning) {
            work.push(Work::Orphan(Arc::clone(uid)));
        }
        if node.foreground && !was(|it| it.foreground) {
            let all = self.dependents.get(uid).into_iter().flatten();
            work.extend(all.map(|it| Work::Judge(Arc::clone(it))));
            work.push(Work::Judge(Arc::clone(uid)));
        }
        work.sort();
        work.dedup();
        (work, misplaced)
    }

    /// An object is gone.
    pub(crate) fn gone(&mut self, uid: &str) -> Vec<Work> {
        let Some(node) = self.nodes.remove(uid) else {
            return Vec::new();
        };
        let mut work: Vec<Work> = self
            .dependents
            .get(uid)
            .into_iter()
            .flatten()
            .map(|it| Work::Judge(Arc::clone(it)))
            .collect();
        for owner in &node.owners {
            self.unlink(&owner.uid, uid);
            self.nudge(&owner.uid, &mut work);
        }
        work
    }

    fn unlink(&mut self, owner: &Uid, dependent: &str) {
        if let Some(all) = self.dependents.get_mut(owner) {
            all.remove(dependent);
            if all.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }

    /// An owner that waits for its dependents looks again.
    fn nudge(&self, owner: &Uid, work: &mut Vec<Work>) {
        if self.nodes.get(owner).is_some_and(|it| it.foreground) {
            work.push(Work::Judge(Arc::clone(owner)));
        }
    }
}

/// Whether a reference says of its owner what the owner is: kind, name, and a place that the dependent can refer to.
fn fits(reference: &OwnerReference, owner: &Identity, dependent: &Identity) -> bool {
    near(owner, dependent)
        && reference.kind == *owner.kind
        && reference.name == *owner.name
        && group(&reference.api_version) == owner.group()
}

/// Whether a dependent can refer to an owner that is there: in its own namespace, or in none.
fn near(owner: &Identity, dependent: &Identity) -> bool {
    owner.namespace.is_empty() || owner.namespace == dependent.namespace
}
