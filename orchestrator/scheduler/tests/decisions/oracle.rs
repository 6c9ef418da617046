//! The rules once more, as slowly and as plainly as they can be written: nothing is kept, everything is looked up.

use fairlead_scheduler::{
    node::NodeInfo,
    pod::{AffinityTerm, PodInfo},
    world::World,
};

fn means(term: &AffinityTerm, pod: &PodInfo, world: &World) -> bool {
    term.matches(pod, world.namespace(&pod.key.namespace))
}

/// Whether a pod may be on a node beside the pods that are there.
pub(crate) fn may(pod: &PodInfo, node: &NodeInfo, world: &World) -> bool {
    let others = || {
        let nodes = world.nodes();
        nodes.flat_map(|node| node.pods.values().map(move |pod| (node, pod)))
    };
    let here = || others().filter(|(it, _)| it.name == node.name).map(|(_, pod)| pod);
    let facts = &node.facts;
    let tolerated = facts.taints.iter().all(|it| {
        it.effect == "PreferNoSchedule"
            || pod.tolerations.iter().any(|own| {
                (own.key.is_empty() || own.key == it.key)
                    && (own.effect.is_empty() || own.effect == it.effect)
                    && own.value.as_ref().is_none_or(|value| *value == it.value)
            })
    });
    let cpu: i128 = here().map(|it| it.resources.requests.cpu).sum();
    let memory: i128 = here().map(|it| it.resources.requests.memory).sum();
    let asked = &pod.resources.requests;
    let fits = (asked.cpu == 0 || cpu + asked.cpu <= facts.allocatable.cpu)
        && (asked.memory == 0 || memory + asked.memory <= facts.allocatable.memory)
        && (here().count() as i128) < facts.allocatable.pods;
    let free = pod.ports.iter().all(|port| {
        here().all(|other| {
            other.ports.iter().all(|it| {
                it.port != port.port
                    || it.protocol != port.protocol
                    || !(it.address.is_empty() || port.address.is_empty() || it.address == port.address)
            })
        })
    });
    let same =
        |left: &NodeInfo, right: &NodeInfo, key: &str| left.label(key).is_some() && left.label(key) == right.label(key);
    let with = pod
        .terms
        .with
        .iter()
        .all(|term| node.label(&term.topology_key).is_some())
        && (pod.terms.with.iter().all(|term| {
            others().any(|(there, other)| {
                pod.terms.with.iter().all(|it| means(it, other, world)) && same(there, node, &term.topology_key)
            })
        }) || (pod.terms.with.iter().all(|it| means(it, pod, world))
            && !others().any(|(there, other)| {
                pod.terms.with.iter().all(|it| means(it, other, world))
                    && pod.terms.with.iter().any(|it| there.label(&it.topology_key).is_some())
            })));
    let apart = others().all(|(there, other)| {
        let mine = pod.terms.apart.iter();
        let theirs = other.terms.apart.iter();
        mine.filter(|it| means(it, other, world))
            .chain(theirs.filter(|it| means(it, pod, world)))
            .all(|it| !same(there, node, &it.topology_key))
    });
    !facts.unschedulable
        && tolerated
        && pod.selects(&node.name, &facts.labels)
        && fits
        && free
        && with
        && apart
        && spread(pod, node, world)
}

fn spread(pod: &PodInfo, node: &NodeInfo, world: &World) -> bool {
    let required: Vec<_> = pod.spread.iter().filter(|it| it.required).collect();
    required.iter().all(|spread| {
        let Some(own) = node.label(&spread.topology_key) else {
            return false;
        };
        let counted = |it: &&NodeInfo| {
            required.iter().all(|other| it.label(&other.topology_key).is_some())
                && pod.selects(&it.name, &it.facts.labels)
        };
        let in_place = |place: &str| {
            let nodes = world.nodes().filter(counted);
            let there = nodes.filter(|it| it.label(&spread.topology_key) == Some(place));
            there
                .flat_map(|it| it.pods.values())
                .filter(|it| !it.terminating && spread.selector.matches(&it.labels))
                .count()
        };
        let places: std::collections::BTreeSet<_> = world
            .nodes()
            .filter(counted)
            .filter_map(|it| it.label(&spread.topology_key))
            .collect();
        let fewest = if places.len() < spread.min_domains {
            0
        } else {
            places.iter().map(|it| in_place(it)).min().unwrap_or(0)
        };
        let mine = usize::from(spread.selector.matches(&pod.labels));
        i64::try_from(in_place(own) + mine - fewest).unwrap() <= spread.max_skew
    })
}
