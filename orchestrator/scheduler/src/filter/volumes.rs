//! Claims must be bound already, and their volumes within reach of the node.

use crate::{
    node::NodeInfo,
    pod::{Key, PodInfo},
    selector::{NodeTerm, any},
    verdict::{Plugin, Verdict},
    world::World,
};

/// Where the volumes of a pod can be reached.
pub(super) struct Reach<'a> {
    terms: Vec<&'a [NodeTerm]>,
    missing: bool,
}

impl<'a> Reach<'a> {
    pub(super) fn new(pod: &PodInfo, world: &'a World) -> Result<Self, String> {
        let mut reach = Self {
            terms: Vec::new(),
            missing: false,
        };
        for name in &pod.claims {
            let Some(claim) = world.claims.get(&Key::new(&pod.key.namespace, name)) else {
                return Err(format!("persistentvolumeclaim {name:?} not found"));
            };
            if claim.terminating {
                return Err(format!("persistentvolumeclaim {name:?} is being deleted"));
            }
            let Some(volume) = &claim.volume else {
                return Err("pod has unbound immediate PersistentVolumeClaims".to_owned());
            };
            if claim.lost {
                return Err(format!(
                    "persistentvolumeclaim {name:?} bound to non-existent persistentvolume {volume:?}"
                ));
            }
            match world.volumes.get(volume) {
                Some(terms) => reach.terms.extend(terms.as_deref()),
                None => reach.missing = true,
            }
        }
        Ok(reach)
    }

    pub(super) fn judge(&self, node: &NodeInfo) -> Option<Verdict> {
        let refuse = |reason| Some(Verdict::for_good(Plugin::VolumeBinding, reason));
        if self.missing {
            return refuse("node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)");
        }
        if self.terms.iter().all(|it| any(it, &node.name, &node.facts.labels)) {
            return None;
        }
        refuse("node(s) didn't match PersistentVolume's node affinity")
    }
}
