//! `DefaultIngressClass`.

use super::{Plugin, Request, storage::newest};
use crate::{objects::annotation, status::Status};
use serde_json::Value;

pub(super) struct DefaultIngressClass;

impl Plugin for DefaultIngressClass {
    fn name(&self) -> &'static str {
        "DefaultIngressClass"
    }

    fn mutate(&self, request: &Request<'_>, ingress: &mut Value) -> Result<(), Status> {
        let chosen = !ingress["spec"]["ingressClassName"].is_null()
            || annotation(ingress, "kubernetes.io/ingress.class").is_some();
        if chosen || !request.creates("networking.k8s.io", "ingresses") || !ingress["spec"].is_object() {
            return Ok(());
        }
        let is_default = |it: &Value| annotation(it, "ingressclass.kubernetes.io/is-default-class") == Some("true");
        let classes = request.objects.list("networking.k8s.io/ingressclasses", None);
        if let Some(class) = newest(classes.into_iter().filter(|it| is_default(it))) {
            ingress["spec"]["ingressClassName"] = class["metadata"]["name"].clone();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{admission::fixture::Case, objects::fake::Map};
    use serde_json::json;

    #[test]
    fn the_default_class_is_filled_in_unless_one_is_chosen() {
        let mut world = Map::default();
        world.put(
            "networking.k8s.io/ingressclasses",
            json!({"metadata": {"name": "usual", "annotations":
            {"ingressclass.kubernetes.io/is-default-class": "true"}}}),
        );
        for (metadata, spec, class) in [
            (json!({}), json!({}), json!("usual")),
            (json!({}), json!({"ingressClassName": "own"}), json!("own")),
            (
                json!({"annotations": {"kubernetes.io/ingress.class": "old"}}),
                json!({}),
                json!(null),
            ),
        ] {
            let ingress = json!({"metadata": metadata, "spec": spec});
            let (ingress, _) = Case::create(&world, "ingresses", ingress)
                .run(&DefaultIngressClass)
                .unwrap();
            assert_eq!(ingress["spec"]["ingressClassName"], class);
        }
    }
}
