//! What happened goes in, what is to be done comes out: the scheduler without clock, network and tasks.

use crate::{
    decide::{Chooser, decide},
    hints::{Change, may_help},
    node::NodeFacts,
    pod::{Key, PodInfo},
    preempt,
    queue::{Lengths, Queue},
    selector::{Labels, NodeTerm, Selector},
    verdict::{Plugin, Unfit},
    world::{Budget, Claim, PodChange, World},
};
use std::{
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

/// Kinds of objects that are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Pods that have not ended.
    Pod,
    /// Nodes.
    Node,
    /// Namespaces.
    Namespace,
    /// `PersistentVolumeClaims`.
    Claim,
    /// PersistentVolumes.
    Volume,
    /// Services.
    Service,
    /// `ReplicationControllers`.
    ReplicationController,
    /// `ReplicaSets`.
    ReplicaSet,
    /// `StatefulSets`.
    StatefulSet,
    /// PodDisruptionBudgets.
    Budget,
}

/// What the API server says. Objects of the cluster have an empty namespace.
#[derive(Clone, Debug)]
pub enum Input {
    /// A pod, and its `status.nominatedNodeName`.
    Pod(Arc<PodInfo>, Option<String>),
    /// A node.
    Node(String, Box<NodeFacts>),
    /// Labels of a namespace.
    Namespace(String, Labels),
    /// A claim.
    Claim(Key, Claim),
    /// Node terms of a volume.
    Volume(String, Option<Vec<NodeTerm>>),
    /// The pods of a Service.
    Service(Key, Selector),
    /// The pods of an owner: its kind, and what it selects.
    Owner(&'static str, Key, Selector),
    /// A budget.
    Budget(Key, Budget),
    /// An object is gone.
    Gone(Kind, Key),
    /// These are all that there are.
    Only(Kind, BTreeSet<Key>),
}

/// What becomes of a pod's promise that a node is being cleared for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Nomination {
    /// As it is.
    Keep,
    /// There is none any more.
    Clear,
    /// This node.
    Set(String),
}

/// What is to be done.
#[derive(Clone, Debug)]
pub enum Decision {
    /// A pod gets a node. It counts there already; [`Scheduler::refused`] takes that back.
    Bind {
        /// The pod.
        pod: Arc<PodInfo>,
        /// The node's name.
        node: String,
        /// Since it could first be tried.
        waited: Duration,
    },
    /// There is none.
    Unfit {
        /// The pod.
        pod: Arc<PodInfo>,
        /// For people.
        message: String,
        /// `Unschedulable`, or `SchedulerError`.
        reason: &'static str,
        /// What its `status.nominatedNodeName` should say.
        nomination: Nomination,
        /// Pods that make way.
        victims: Vec<Arc<PodInfo>>,
    },
}

/// The scheduler's state.
#[derive(Debug)]
pub struct Scheduler {
    name: String,
    world: World,
    queue: Queue,
    chooser: Chooser,
}

impl Scheduler {
    /// A scheduler for pods that ask for this name. Equal seeds make equal choices among equals.
    pub fn new(name: &str, seed: u64) -> Self {
        Self {
            name: name.to_owned(),
            world: World::default(),
            queue: Queue::default(),
            chooser: Chooser::new(seed),
        }
    }

    /// What it knows of the cluster.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// What waits.
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// How many pods wait where.
    pub fn lengths(&self) -> Lengths {
        self.queue.lengths()
    }

    fn wake(&mut self, change: &Change, now: Duration) {
        let world = &self.world;
        self.queue
            .wake(now, |pod, objectors| may_help(change, pod, objectors, world));
    }

    /// Takes in what the API server says.
    pub fn apply(&mut self, input: Input, now: Duration) {
        match input {
            Input::Pod(pod, nominated) => self.apply_pod(&pod, nominated, now),
            Input::Node(name, facts) => {
                let change = match self.world.set_node(&name, NodeFacts::clone(&facts)) {
                    None => Change::NodeAdded(name),
                    Some(old) if old == *facts => return,
                    Some(old) => Change::NodeChanged(name, Box::new(old)),
                };
                self.wake(&change, now);
            }
            Input::Namespace(name, labels) => {
                let old = self.world.namespaces.insert(name.clone(), labels).unwrap_or_default();
                self.wake(&Change::Namespace(name, old), now);
            }
            Input::Claim(key, claim) => {
                if self.world.claims.insert(key.clone(), claim.clone()) != Some(claim) {
                    self.wake(&Change::Claim(key), now);
                }
            }
            Input::Volume(name, terms) => {
                if self.world.volumes.insert(name, terms.clone()) != Some(terms) {
                    self.wake(&Change::Volume, now);
                }
            }
            Input::Service(key, selector) => drop(self.world.services.insert(key, selector)),
            Input::Owner(kind, key, selector) => {
                self.world.owners.insert((kind.to_owned(), key), selector);
            }
            Input::Budget(key, budget) => drop(self.world.budgets.insert(key, budget)),
            Input::Gone(kind, key) => self.gone(kind, &key, now),
            Input::Only(kind, keys) => {
                for key in self.known(kind).into_iter().filter(|it| !keys.contains(it)) {
                    self.gone(kind, &key, now);
                }
            }
        }
    }

    fn apply_pod(&mut self, pod: &Arc<PodInfo>, nominated: Option<String>, now: Duration) {
        for change in self.world.set_pod(pod) {
            let change = match change {
                PodChange::Placed(pod) => Change::PodPlaced(pod),
                PodChange::Changed(old, new) => Change::PodChanged(old, new),
                PodChange::Gone(pod) => Change::PodGone(pod),
            };
            self.wake(&change, now);
        }
        let waits = pod.node.is_none() && !pod.finished && !pod.terminating && pod.scheduler == self.name;
        if !waits {
            self.queue.remove(&pod.key);
            if pod.node.is_none() {
                self.world.nominated.remove(&pod.key);
            }
            return;
        }
        let known = self.queue.get(&pod.key).is_some_and(|it| it.pod.uid == pod.uid);
        if let (false, Some(node)) = (known, nominated) {
            // From before we started.
            self.world.nominated.insert(pod.key.clone(), (node, Arc::clone(pod)));
        }
        self.queue.set(pod, now);
    }

    fn gone(&mut self, kind: Kind, key: &Key, now: Duration) {
        let owner = |kind: &str| (kind.to_owned(), key.clone());
        let change = match kind {
            Kind::Pod => {
                self.queue.remove(key);
                let promised = self.world.nominated.get(key).map(|(_, pod)| Arc::clone(pod));
                match (self.world.remove_pod(key), promised) {
                    (Some(PodChange::Gone(pod)), _) => Change::PodGone(pod),
                    // What was kept free for it is free for others.
                    (_, Some(pod)) => Change::PodGone(pod),
                    _ => return,
                }
            }
            Kind::Node if self.world.remove_node(&key.name) => Change::NodeGone,
            Kind::Node => return,
            Kind::Namespace => match self.world.namespaces.remove(&key.name) {
                Some(old) => Change::Namespace(key.name.clone(), old),
                None => return,
            },
            Kind::Claim => {
                self.world.claims.remove(key);
                return;
            }
            Kind::Volume => {
                self.world.volumes.remove(&key.name);
                return;
            }
            Kind::Service => return drop(self.world.services.remove(key)),
            Kind::ReplicationController => {
                return drop(self.world.owners.remove(&owner("ReplicationController")));
            }
            Kind::ReplicaSet => return drop(self.world.owners.remove(&owner("ReplicaSet"))),
            Kind::StatefulSet => return drop(self.world.owners.remove(&owner("StatefulSet"))),
            Kind::Budget => return drop(self.world.budgets.remove(key)),
        };
        self.wake(&change, now);
    }

    fn known(&self, kind: Kind) -> Vec<Key> {
        let named = |name: &String| Key::new("", name);
        let owners = |kind: &str| -> Vec<Key> {
            let own = self.world.owners.keys().filter(|(it, _)| it == kind);
            own.map(|(_, key)| key.clone()).collect()
        };
        match kind {
            Kind::Pod => self.world.placed_keys().chain(self.queue.keys()).cloned().collect(),
            Kind::Node => self.world.nodes().map(|it| named(&it.name)).collect(),
            Kind::Namespace => self.world.namespaces.keys().map(named).collect(),
            Kind::Claim => self.world.claims.keys().cloned().collect(),
            Kind::Volume => self.world.volumes.keys().map(named).collect(),
            Kind::Service => self.world.services.keys().cloned().collect(),
            Kind::ReplicationController => owners("ReplicationController"),
            Kind::ReplicaSet => owners("ReplicaSet"),
            Kind::StatefulSet => owners("StatefulSet"),
            Kind::Budget => self.world.budgets.keys().cloned().collect(),
        }
    }

    /// Decides about the next pod. None if none is to be tried now.
    pub fn step(&mut self, now: Duration) -> Option<Decision> {
        let pod = self.queue.pop(now)?;
        let (world, chooser) = (&self.world, &mut self.chooser);
        // Deciding changes nothing, so that a decision which panics harms the pod that it was about, and no other.
        let decided = catch_unwind(AssertUnwindSafe(|| {
            decide(&pod, world, chooser).map_err(|unfit| {
                let plan = preempt::plan(&pod, world, &unfit);
                Box::new((unfit, plan))
            })
        }));
        Some(match decided {
            Ok(Ok(node)) => {
                let added = self.queue.get(&pod.key).map_or(now, |it| it.added);
                self.world.assume(&pod, &node);
                let placed = self.world.placed(&pod.key).map(|(it, _)| Arc::clone(it));
                if let Some(placed) = placed {
                    self.wake(&Change::PodPlaced(placed), now);
                }
                Decision::Bind {
                    pod,
                    node,
                    waited: now.saturating_sub(added),
                }
            }
            Ok(Err(why)) => self.unfit(pod, why.0, why.1, now),
            Err(_) => {
                self.queue.erred(&pod.key, &pod.uid, now);
                Decision::Unfit {
                    message: "deciding about this pod failed; this is a fault of the scheduler, whose log has more"
                        .to_owned(),
                    reason: "SchedulerError",
                    nomination: Nomination::Keep,
                    victims: Vec::new(),
                    pod,
                }
            }
        })
    }

    fn unfit(
        &mut self,
        pod: Arc<PodInfo>,
        mut unfit: Unfit,
        plan: Result<preempt::Plan, preempt::NoPlan>,
        now: Duration,
    ) -> Decision {
        let mut objectors = unfit.plugins();
        let (nomination, victims) = match plan {
            Ok(plan) => {
                for victim in &plan.victims {
                    self.world.set_leaving(&victim.key, true);
                }
                // They leave for the pod's sake, whoever it was that objected.
                objectors.insert(Plugin::NodeResourcesFit);
                let promise = (plan.node.clone(), Arc::clone(&pod));
                self.world.nominated.insert(pod.key.clone(), promise);
                (Nomination::Set(plan.node), plan.victims)
            }
            Err(no) => {
                unfit.preemption = (unfit.nodes > 0).then_some(no.message);
                let had = self.world.nominated.contains_key(&pod.key);
                if had && !no.keeps_promise {
                    self.world.nominated.remove(&pod.key);
                    self.wake(&Change::PodGone(Arc::clone(&pod)), now);
                    (Nomination::Clear, Vec::new())
                } else {
                    if had {
                        objectors.insert(Plugin::NodeResourcesFit);
                    }
                    (Nomination::Keep, Vec::new())
                }
            }
        };
        self.queue.failed(&pod, objectors, now);
        Decision::Unfit {
            message: unfit.to_string(),
            reason: "Unschedulable",
            nomination,
            victims,
            pod,
        }
    }

    /// The API server would not have a binding. The pod is tried again after a pause.
    pub fn refused(&mut self, key: &Key, uid: &str, now: Duration) {
        if let Some(pod) = self.world.forget(key, uid) {
            self.wake(&Change::PodGone(pod), now);
        }
        self.queue.erred(key, uid, now);
    }

    /// A pod that was to make way could not be deleted.
    pub fn stayed(&mut self, key: &Key) {
        self.world.set_leaving(key, false);
    }

    /// Moves pods whose time has come.
    pub fn tick(&mut self, now: Duration) {
        self.queue.tick(now);
    }

    /// When something is to be done though nothing happens.
    pub fn next_tick(&self) -> Option<Duration> {
        self.queue.next_tick()
    }
}
