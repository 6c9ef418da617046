//! `NamespaceLifecycle`: nothing in namespaces that are not there, nothing new in those that go.

use super::{Operation, Plugin, Request};
use crate::{
    objects::{terminating, text},
    status::Status,
};
use serde_json::Value;

pub(super) struct Lifecycle;

/// May not be deleted.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

impl Plugin for Lifecycle {
    fn name(&self) -> &'static str {
        "NamespaceLifecycle"
    }

    fn mutate(&self, request: &Request<'_>, _object: &mut Value) -> Result<(), Status> {
        let attributes = request.attributes;
        let namespace = attributes.namespace;
        if namespace.is_empty() || attributes.is("", "namespaces", attributes.subresource) {
            return Ok(());
        }
        // Whether a namespace exists is told only to those who may know.
        if attributes.is("authorization.k8s.io", "localsubjectaccessreviews", "") {
            return Ok(());
        }
        let Some(found) = request.objects.get("core/namespaces", "", namespace) else {
            return Err(Status::not_found(("", "namespaces"), namespace));
        };
        let going = text(&found, "/status/phase") == "Terminating" || terminating(&found);
        if attributes.operation == Operation::Create && going {
            let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
            return Err(request.forbidden(why).with_cause(
                "NamespaceTerminating",
                format!("namespace {namespace} is being terminated"),
                "metadata.namespace",
            ));
        }
        Ok(())
    }

    fn validate(&self, request: &Request<'_>, _object: Option<&Value>) -> Result<(), Status> {
        let attributes = request.attributes;
        let deletes = attributes.operation == Operation::Delete && attributes.is("", "namespaces", "");
        if deletes && IMMORTAL.contains(&attributes.name) {
            return Err(request.forbidden("this namespace may not be deleted"));
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
    fn objects_need_a_living_namespace() {
        let mut world = Map::default();
        world.put(
            "core/namespaces",
            json!({"metadata": {"name": "here"}, "status": {"phase": "Active"}}),
        );
        world.put(
            "core/namespaces",
            json!({"metadata": {"name": "going"}, "status": {"phase": "Terminating"}}),
        );
        for (namespace, operation, code, message) in [
            ("here", Operation::Create, None, ""),
            (
                "nowhere",
                Operation::Create,
                Some(404),
                "namespaces \"nowhere\" not found",
            ),
            (
                "nowhere",
                Operation::Update,
                Some(404),
                "namespaces \"nowhere\" not found",
            ),
            (
                "going",
                Operation::Create,
                Some(403),
                "configmaps \"x\" is forbidden: unable to create new content in \
                namespace going because it is being terminated",
            ),
            ("going", Operation::Update, None, ""),
        ] {
            let object = json!({"metadata": {"namespace": namespace, "name": "x"}});
            let case = Case {
                operation,
                ..Case::create(&world, "configmaps", object)
            };
            let refused = case.run(&Lifecycle).err();
            assert_eq!(refused.as_ref().map(|it| it.code), code, "{namespace} {operation:?}");
            assert_eq!(refused.map(|it| it.message).unwrap_or_default(), message);
        }
    }

    #[test]
    fn some_namespaces_stay() {
        let world = Map::default();
        for (name, stays) in [("default", true), ("kube-system", true), ("mine", false)] {
            let case = Case {
                operation: Operation::Delete,
                old: Some(json!({"metadata": {"name": name}})),
                object: None,
                ..Case::create(&world, "namespaces", json!({}))
            };
            assert_eq!(case.run(&Lifecycle).is_err(), stays, "{name}");
        }
    }
}
