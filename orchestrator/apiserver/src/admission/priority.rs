//! `Priority`: the number behind `priorityClassName`.

use super::{Operation, Plugin, Request};
use crate::{
    objects::{flag, text},
    status::Status,
};
use serde_json::{Value, json};

pub(super) struct Priority;

impl Plugin for Priority {
    fn name(&self) -> &'static str {
        "Priority"
    }

    fn mutate(&self, request: &Request<'_>, pod: &mut Value) -> Result<(), Status> {
        if !request.attributes.is("", "pods", "") || !pod["spec"].is_object() {
            return Ok(());
        }
        if request.attributes.operation == Operation::Update {
            // Clients that do not know the fields must not be taken for ones that clear them.
            let old = request.old.map_or(&Value::Null, |it| &it["spec"]);
            for field in ["priority", "preemptionPolicy"] {
                if pod["spec"][field].is_null() && !old[field].is_null() {
                    pod["spec"][field] = old[field].clone();
                }
            }
            return Ok(());
        }
        let (name, priority, policy) = class(request, text(pod, "/spec/priorityClassName"))?;
        let given = pod["spec"]["priority"].as_i64();
        if given.is_some_and(|it| it != priority) {
            return Err(request.forbidden(format!(
                "the integer value of priority ({}) must not be provided in pod spec; priority admission controller \
                 computed {priority} from the given PriorityClass name",
                given.unwrap_or_default()
            )));
        }
        let given = text(pod, "/spec/preemptionPolicy");
        if !given.is_empty() && given != policy {
            return Err(request.forbidden(format!(
                "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission \
                 controller computed {policy} from the given PriorityClass name"
            )));
        }
        if !name.is_empty() {
            pod["spec"]["priorityClassName"] = json!(name);
        }
        pod["spec"]["priority"] = json!(priority);
        pod["spec"]["preemptionPolicy"] = json!(policy);
        Ok(())
    }

    fn validate(&self, request: &Request<'_>, class: Option<&Value>) -> Result<(), Status> {
        let Some(class) = class.filter(|_| request.attributes.is("scheduling.k8s.io", "priorityclasses", "")) else {
            return Ok(());
        };
        if !flag(class, "/globalDefault") {
            return Ok(());
        }
        let name = text(class, "/metadata/name");
        let all = request.objects.list("scheduling.k8s.io/priorityclasses", None);
        let other = all
            .iter()
            .find(|it| flag(it, "/globalDefault") && text(it, "/metadata/name") != name);
        match other {
            Some(other) => Err(request.forbidden(format!(
                "PriorityClass {} is already marked as default. Only one default can exist",
                text(other, "/metadata/name")
            ))),
            None => Ok(()),
        }
    }
}

/// Name, value and preemption policy of a class, or of the default one.
fn class(request: &Request<'_>, name: &str) -> Result<(String, i64, String), Status> {
    const PREEMPT: &str = "PreemptLowerPriority";
    let found = if name.is_empty() {
        let all = request.objects.list("scheduling.k8s.io/priorityclasses", None);
        // Should there be two, the smaller does less harm.
        all.into_iter()
            .filter(|it| flag(it, "/globalDefault"))
            .min_by_key(|it| it["value"].as_i64())
    } else {
        let class = request.objects.get("scheduling.k8s.io/priorityclasses", "", name);
        Some(class.ok_or_else(|| request.forbidden(format!("no PriorityClass with name {name} was found")))?)
    };
    let Some(found) = found else {
        return Ok((String::new(), 0, PREEMPT.to_owned()));
    };
    let policy = text(&found, "/preemptionPolicy");
    let policy = if policy.is_empty() { PREEMPT } else { policy };
    Ok((
        text(&found, "/metadata/name").to_owned(),
        found["value"].as_i64().unwrap_or(0),
        policy.to_owned(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{admission::fixture::Case, objects::fake::Map};

    fn world() -> Map {
        let mut world = Map::default();
        world.put(
            "scheduling.k8s.io/priorityclasses",
            json!({"metadata": {"name": "high"}, "value": 1000,
            "preemptionPolicy": "Never"}),
        );
        world
    }

    #[test]
    fn names_become_numbers() {
        let world = world();
        let mut with_default = world.clone();
        with_default.put(
            "scheduling.k8s.io/priorityclasses",
            json!({"metadata": {"name": "usual"}, "value": 7,
            "globalDefault": true}),
        );
        for (world, spec, outcome) in [
            (&world, json!({}), Ok((0, "PreemptLowerPriority", None))),
            (
                &world,
                json!({"priorityClassName": "high"}),
                Ok((1000, "Never", Some("high"))),
            ),
            (
                &world,
                json!({"priorityClassName": "high", "priority": 1000}),
                Ok((1000, "Never", Some("high"))),
            ),
            (
                &world,
                json!({"priorityClassName": "high", "priority": 1}),
                Err("must not be provided"),
            ),
            (&world, json!({"priority": 5}), Err("computed 0 from")),
            (
                &world,
                json!({"priorityClassName": "gone"}),
                Err("no PriorityClass with name gone was found"),
            ),
            (
                &world,
                json!({"preemptionPolicy": "Never"}),
                Err("PreemptionPolicy (Never)"),
            ),
            (&with_default, json!({}), Ok((7, "PreemptLowerPriority", Some("usual")))),
        ] {
            let pod = json!({"metadata": {"namespace": "ns", "name": "p"}, "spec": spec});
            match (Case::create(world, "pods", pod).run(&Priority), outcome) {
                (Ok((pod, _)), Ok((priority, policy, class))) => {
                    let spec = &pod["spec"];
                    assert_eq!(
                        (&spec["priority"], &spec["preemptionPolicy"]),
                        (&json!(priority), &json!(policy))
                    );
                    assert_eq!(spec["priorityClassName"].as_str(), class);
                }
                (Err(refused), Err(part)) => assert!(refused.message.contains(part), "{refused}"),
                (result, _) => panic!("{spec}: {result:?}"),
            }
        }
    }

    #[test]
    fn there_is_one_default() {
        let mut world = world();
        let class = |name: &str| json!({"metadata": {"name": name}, "globalDefault": true, "value": 1});
        assert!(
            Case::create(&world, "priorityclasses", class("a"))
                .run(&Priority)
                .is_ok()
        );
        world.put("scheduling.k8s.io/priorityclasses", class("a"));
        assert!(
            Case::create(&world, "priorityclasses", class("a"))
                .run(&Priority)
                .is_ok()
        );
        assert!(
            Case::create(&world, "priorityclasses", class("b"))
                .run(&Priority)
                .is_err()
        );
    }
}
