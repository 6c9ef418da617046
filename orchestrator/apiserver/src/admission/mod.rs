//! Admission: what objects must look like besides being valid, and what is filled in for their authors.
//!
//! Plugins are pure: they read other objects and change the one of the request. None waits for anything, so none is async;
//! webhooks and CEL policies, which do, belong behind this chain and not in it.

mod certificates;
mod ingress;
mod limits;
mod namespaces;
mod node_restriction;
mod pod_security;
mod priority;
pub mod quantity;
pub mod quota;
mod roles;
mod runtime_class;
mod service_account;
mod storage;
mod tolerations;

use crate::{authn::User, authz, authz::rbac::Rbac, objects::Objects, status::Status};
use fairlead_schema::Resource;
use quota::Ledger;
use serde_json::Value;
use std::{cell::RefCell, fmt, sync::Arc};

/// What a request does to the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Makes it.
    Create,
    /// Changes it.
    Update,
    /// Removes it, or begins to.
    Delete,
}

impl Operation {
    /// As in `AdmissionReview` and in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
        }
    }
}

/// One request, as far as admission looks at it.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a> {
    /// What it does.
    pub operation: Operation,
    /// The resource of its path.
    pub resource: &'a Resource,
    /// As `status`; empty: none.
    pub subresource: &'a str,
    /// Empty: cluster scope.
    pub namespace: &'a str,
    /// Of the object.
    pub name: &'a str,
    /// Who asks.
    pub user: &'a User,
    /// Nothing will be stored: reserve nothing.
    pub dry_run: bool,
}

impl Attributes<'_> {
    /// Whether it is about a resource and subresource.
    pub fn is(&self, group: &str, resource: &str, subresource: &str) -> bool {
        &*self.resource.group == group && &*self.resource.plural == resource && self.subresource == subresource
    }

    /// A refusal worded as upstream words those of admission.
    pub fn forbidden(&self, why: impl fmt::Display) -> Status {
        Status::forbidden(self.resource, self.name, why)
    }
}

/// What a plugin sees besides the object.
pub struct Request<'a> {
    /// The request.
    pub attributes: &'a Attributes<'a>,
    /// The object before; `None` for a create.
    pub old: Option<&'a Value>,
    /// Other objects.
    pub objects: &'a dyn Objects,
    warnings: RefCell<Vec<String>>,
}

impl Request<'_> {
    /// Tells the client something that is no error.
    pub fn warn(&self, text: impl Into<String>) {
        self.warnings.borrow_mut().push(text.into());
    }

    /// Whether it makes an object of this resource.
    fn creates(&self, group: &str, resource: &str) -> bool {
        self.attributes.operation == Operation::Create && self.attributes.is(group, resource, "")
    }

    fn forbidden(&self, why: impl fmt::Display) -> Status {
        self.attributes.forbidden(why)
    }
}

/// One rule of admission.
pub trait Plugin: Send + Sync {
    /// Name as in upstream's `--enable-admission-plugins`.
    fn name(&self) -> &'static str;

    /// First phase, creates and updates: may change the object.
    ///
    /// # Errors
    /// Why the request is refused.
    fn mutate(&self, request: &Request<'_>, object: &mut Value) -> Result<(), Status> {
        let _ = (request, object);
        Ok(())
    }

    /// Second phase, after validation, and deletes: `object` is `None` for a delete.
    ///
    /// # Errors
    /// Why the request is refused.
    fn validate(&self, request: &Request<'_>, object: Option<&Value>) -> Result<(), Status> {
        let _ = (request, object);
        Ok(())
    }
}

/// The plugins of a server, in upstream's order.
pub struct Chain {
    plugins: Vec<Box<dyn Plugin>>,
    ledger: Arc<Ledger>,
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.plugins.iter().map(|it| it.name())).finish()
    }
}

impl Default for Chain {
    fn default() -> Self {
        Self::builtin()
    }
}

impl Chain {
    /// All that need no authorizer; see [`Chain::guarded`].
    pub fn builtin() -> Self {
        let ledger = Arc::new(Ledger::default());
        let plugins: Vec<Box<dyn Plugin>> = vec![
            Box::new(namespaces::Lifecycle),
            Box::new(limits::LimitRanger),
            Box::new(service_account::ServiceAccount),
            Box::new(node_restriction::NodeRestriction),
            Box::new(tolerations::TaintNodesByCondition),
            Box::new(pod_security::PodSecurity),
            Box::new(priority::Priority),
            Box::new(tolerations::DefaultTolerationSeconds),
            Box::new(storage::DefaultStorageClass),
            Box::new(storage::StorageObjectInUseProtection),
            Box::new(storage::ClaimResize),
            Box::new(runtime_class::RuntimeClass),
            Box::new(ingress::DefaultIngressClass),
            Box::new(certificates::SubjectRestriction),
            // Last: it counts, so everything before it must have agreed.
            Box::new(quota::ResourceQuota(Arc::clone(&ledger))),
        ];
        Self { plugins, ledger }
    }

    /// With the rules that ask what the user may do otherwise: nobody grants more than they have, and only those who may
    /// approve and sign certificates do.
    #[must_use]
    pub fn guarded(mut self, rbac: Arc<Rbac>, authorizer: authz::Chain) -> Self {
        let at = self.plugins.len().saturating_sub(1);
        self.plugins
            .insert(at, Box::new(certificates::ApproveAndSign(authorizer.clone())));
        self.plugins
            .insert(at, Box::new(roles::Escalation { rbac, authorizer }));
        self
    }

    /// First phase, creates and updates: fills in. Returns warnings for the client.
    ///
    /// # Errors
    /// The first plugin's that refuses.
    pub fn mutate(
        &self,
        attributes: &Attributes<'_>,
        old: Option<&Value>,
        object: &mut Value,
        objects: &dyn Objects,
    ) -> Result<Vec<String>, Status> {
        let request = Request {
            attributes,
            old,
            objects,
            warnings: RefCell::default(),
        };
        for plugin in &self.plugins {
            plugin.mutate(&request, object)?;
        }
        Ok(request.warnings.into_inner())
    }

    /// Second phase: judges the finished object, or the deletion of `old`. Returns warnings for the client. Reserves quota,
    /// unless the request is a dry run.
    ///
    /// # Errors
    /// The first plugin's that refuses.
    pub fn validate(
        &self,
        attributes: &Attributes<'_>,
        old: Option<&Value>,
        object: Option<&Value>,
        objects: &dyn Objects,
    ) -> Result<Vec<String>, Status> {
        let request = Request {
            attributes,
            old,
            objects,
            warnings: RefCell::default(),
        };
        for plugin in &self.plugins {
            plugin.validate(&request, object)?;
        }
        Ok(request.warnings.into_inner())
    }

    /// Takes in one committed change, so that quota counts what is there; `None`: deleted.
    pub fn follow(&self, prefix: &str, namespace: &str, name: &str, object: Option<&Value>) {
        self.ledger.follow(prefix, namespace, name, object);
    }
}

/// What plugins' tests need.
#[cfg(test)]
pub(crate) mod fixture {
    use super::{Attributes, Operation, Plugin, Request};
    use crate::{
        authn::User,
        objects::{fake::Map, text},
        status::Status,
    };
    use fairlead_schema::{Registry, Resource};
    use serde_json::Value;
    use std::{
        cell::RefCell,
        sync::{Arc, LazyLock},
    };

    pub(crate) fn resource(plural: &str) -> Arc<Resource> {
        static REGISTRY: LazyLock<Registry> = LazyLock::new(Registry::builtin);
        let found = REGISTRY.resources().find(|it| &*it.plural == plural);
        Arc::clone(found.unwrap_or_else(|| panic!("no resource {plural}")))
    }

    /// One request to one plugin.
    pub(crate) struct Case<'a> {
        pub(crate) operation: Operation,
        pub(crate) resource: &'a str,
        pub(crate) subresource: &'a str,
        pub(crate) user: User,
        pub(crate) old: Option<Value>,
        pub(crate) object: Option<Value>,
        pub(crate) world: &'a Map,
    }

    impl<'a> Case<'a> {
        pub(crate) fn create(world: &'a Map, resource: &'a str, object: Value) -> Self {
            Self {
                operation: Operation::Create,
                resource,
                subresource: "",
                user: User::authenticated("test", ["testers"]),
                old: None,
                object: Some(object),
                world,
            }
        }

        /// Both phases; the object as it became, and the warnings.
        pub(crate) fn run(self, plugin: &dyn Plugin) -> Result<(Value, Vec<String>), Status> {
            let resource = resource(self.resource);
            let subject = self.object.clone().or_else(|| self.old.clone()).unwrap_or_default();
            let attributes = Attributes {
                operation: self.operation,
                resource: &resource,
                subresource: self.subresource,
                namespace: text(&subject, "/metadata/namespace"),
                name: text(&subject, "/metadata/name"),
                user: &self.user,
                dry_run: false,
            };
            let request = Request {
                attributes: &attributes,
                old: self.old.as_ref(),
                objects: self.world,
                warnings: RefCell::default(),
            };
            let mut object = self.object;
            if let Some(object) = &mut object {
                plugin.mutate(&request, object)?;
            }
            plugin.validate(&request, object.as_ref())?;
            Ok((object.unwrap_or_default(), request.warnings.into_inner()))
        }
    }
}
