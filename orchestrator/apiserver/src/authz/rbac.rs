//! [`Rbac`]: Roles, `ClusterRoles` and their bindings, parsed once and kept as an index by subject.

use super::{
    Attributes, Authorizer, Decision, RulesOf,
    rule::{NonResourceRule, PolicyRule, ResourceRule},
};
use crate::{
    authn::{User, service_account},
    objects::{Objects, items, text},
};
use arc_swap::ArcSwap;
use serde_json::Value;
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

/// API group of everything here.
pub const GROUP: &str = "rbac.authorization.k8s.io";
/// Prefix of Roles in the store.
pub const ROLES: &str = "rbac.authorization.k8s.io/roles";
/// Prefix of `ClusterRoles` in the store.
pub const CLUSTER_ROLES: &str = "rbac.authorization.k8s.io/clusterroles";
/// Prefix of `RoleBindings` in the store.
pub const ROLE_BINDINGS: &str = "rbac.authorization.k8s.io/rolebindings";
/// Prefix of `ClusterRoleBindings` in the store.
pub const CLUSTER_ROLE_BINDINGS: &str = "rbac.authorization.k8s.io/clusterrolebindings";

/// The four prefixes: what to watch.
pub const PREFIXES: [&str; 4] = [ROLES, CLUSTER_ROLES, ROLE_BINDINGS, CLUSTER_ROLE_BINDINGS];

/// Role-based authorizer. Reads take no lock; a change costs the namespace that it is in.
#[derive(Debug, Default)]
pub struct Rbac {
    index: ArcSwap<Index>,
    /// Held while the index is replaced: two changes at once must not lose one.
    writer: Mutex<()>,
}

/// By namespace; the cluster's under "".
#[derive(Clone, Debug, Default)]
struct Index {
    scopes: HashMap<Box<str>, Arc<Scope>>,
}

/// Roles and bindings of one namespace, or `ClusterRoles` and `ClusterRoleBindings`.
#[derive(Clone, Debug, Default)]
struct Scope {
    roles: BTreeMap<Box<str>, Arc<[PolicyRule]>>,
    bindings: BTreeMap<Box<str>, Arc<Binding>>,
    users: HashMap<Box<str>, Vec<Grant>>,
    groups: HashMap<Box<str>, Vec<Grant>>,
}

/// A binding, and which of its subjects it is about.
#[derive(Clone, Debug)]
struct Grant {
    binding: Arc<Binding>,
    subject: usize,
}

#[derive(Debug, PartialEq, Eq)]
struct Binding {
    /// Empty: a `ClusterRoleBinding`.
    namespace: Box<str>,
    name: Box<str>,
    role: RoleRef,
    subjects: Box<[Subject]>,
}

/// `roleRef` of a binding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleRef {
    /// A `ClusterRole`, or a Role of the binding's namespace.
    pub cluster: bool,
    /// Its name.
    pub name: Box<str>,
}

#[derive(Debug, PartialEq, Eq)]
enum Subject {
    User(Box<str>),
    Group(Box<str>),
    ServiceAccount {
        namespace: Box<str>,
        name: Box<str>,
        user: Box<str>,
    },
}

impl RoleRef {
    /// The `roleRef` of a binding; `None` if it names no role that there can be.
    pub fn read(binding: &Value) -> Option<Self> {
        let cluster = match text(binding, "/roleRef/kind") {
            "ClusterRole" => true,
            "Role" => false,
            _ => return None,
        };
        Some(Self {
            cluster,
            name: text(binding, "/roleRef/name").into(),
        })
    }

    /// `clusterroles` or `roles`.
    pub fn resource(&self) -> &'static str {
        if self.cluster { "clusterroles" } else { "roles" }
    }

    fn kind(&self) -> &'static str {
        if self.cluster { "ClusterRole" } else { "Role" }
    }
}

impl Subject {
    /// A subject of a binding in `namespace`, which is where a service account without one is looked for.
    fn read(subject: &Value, namespace: &str) -> Option<Self> {
        let name = text(subject, "/name");
        match text(subject, "/kind") {
            "User" => Some(Self::User(name.into())),
            "Group" => Some(Self::Group(name.into())),
            "ServiceAccount" => {
                let own = text(subject, "/namespace");
                let namespace = if own.is_empty() { namespace } else { own };
                // Without a namespace it is nobody: a ClusterRoleBinding has none to lend.
                (!namespace.is_empty()).then(|| Self::ServiceAccount {
                    namespace: namespace.into(),
                    name: name.into(),
                    user: service_account::user_name(namespace, name).into(),
                })
            }
            _ => None,
        }
    }

    fn describe(&self) -> String {
        match self {
            Self::User(name) => format!("User {name:?}"),
            Self::Group(name) => format!("Group {name:?}"),
            Self::ServiceAccount { namespace, name, .. } => {
                format!("ServiceAccount {:?}", format!("{name}/{namespace}"))
            }
        }
    }
}

impl Binding {
    fn read(namespace: &str, name: &str, binding: &Value) -> Option<Self> {
        let subjects = items(binding, "/subjects").iter();
        Some(Self {
            namespace: namespace.into(),
            name: name.into(),
            role: RoleRef::read(binding)?,
            subjects: subjects.filter_map(|it| Subject::read(it, namespace)).collect(),
        })
    }
}

impl Grant {
    fn describe(&self) -> String {
        let Binding {
            namespace,
            name,
            role,
            subjects,
        } = &*self.binding;
        let subject = subjects[self.subject].describe();
        let (kind, role) = (role.kind(), &role.name);
        if namespace.is_empty() {
            format!("ClusterRoleBinding {name:?} of {kind} {role:?} to {subject}")
        } else {
            format!(
                "RoleBinding {:?} of {kind} {role:?} to {subject}",
                format!("{name}/{namespace}")
            )
        }
    }
}

impl Scope {
    fn put(&mut self, roles: bool, namespace: &str, name: &str, object: Option<&Value>) {
        if roles {
            match object {
                Some(role) => self.roles.insert(name.into(), PolicyRule::read_all(role).into()),
                None => self.roles.remove(name),
            };
            return;
        }
        match object.and_then(|it| Binding::read(namespace, name, it)) {
            Some(binding) => self.bindings.insert(name.into(), Arc::new(binding)),
            None => self.bindings.remove(name),
        };
    }

    fn reindex(&mut self) {
        self.users.clear();
        self.groups.clear();
        for binding in self.bindings.values() {
            for (at, subject) in binding.subjects.iter().enumerate() {
                let (map, key) = match subject {
                    Subject::User(name) => (&mut self.users, name),
                    Subject::Group(name) => (&mut self.groups, name),
                    Subject::ServiceAccount { user, .. } => (&mut self.users, user),
                };
                let grants = map.entry(key.clone()).or_default();
                // A subject that is listed twice grants once.
                if !grants.last().is_some_and(|it| Arc::ptr_eq(&it.binding, binding)) {
                    grants.push(Grant {
                        binding: Arc::clone(binding),
                        subject: at,
                    });
                }
            }
        }
    }

    fn grants<'a>(&'a self, user: &'a User) -> impl Iterator<Item = &'a Grant> {
        let own = self.users.get(user.name.as_str()).into_iter().flatten();
        let groups = user
            .groups
            .iter()
            .filter_map(|it| self.groups.get(it.as_str()))
            .flatten();
        own.chain(groups)
    }
}

impl Index {
    fn scope(&self, namespace: &str) -> Option<&Arc<Scope>> {
        self.scopes.get(namespace)
    }

    fn rules(&self, role: &RoleRef, namespace: &str) -> Option<&Arc<[PolicyRule]>> {
        // A ClusterRoleBinding has no namespace in which a Role could be; under "" are the ClusterRoles.
        if !role.cluster && namespace.is_empty() {
            return None;
        }
        self.scope(if role.cluster { "" } else { namespace })?
            .roles
            .get(&role.name)
    }

    /// Every grant to a user that counts in a namespace: the cluster's first, as upstream has it.
    fn grants<'a>(&'a self, user: &'a User, namespace: &'a str) -> impl Iterator<Item = &'a Grant> {
        let cluster = self.scope("").into_iter();
        let local = (!namespace.is_empty())
            .then(|| self.scope(namespace))
            .flatten()
            .into_iter();
        cluster.chain(local).flat_map(move |scope| scope.grants(user))
    }
}

impl Rbac {
    /// An index of what is stored now.
    pub fn load(objects: &dyn Objects) -> Self {
        let rbac = Self::default();
        rbac.reload(objects);
        rbac
    }

    /// Reads everything again.
    pub fn reload(&self, objects: &dyn Objects) {
        let _alone = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut scopes: HashMap<Box<str>, Scope> = HashMap::new();
        for prefix in PREFIXES {
            for object in objects.list(prefix, None) {
                let (namespace, name) = (text(&object, "/metadata/namespace"), text(&object, "/metadata/name"));
                let scope = scopes.entry(namespace.into()).or_default();
                scope.put(is_role(prefix), namespace, name, Some(&object));
            }
        }
        let scopes = scopes.into_iter().map(|(namespace, mut scope)| {
            scope.reindex();
            (namespace, Arc::new(scope))
        });
        self.index.store(Arc::new(Index {
            scopes: scopes.collect(),
        }));
    }

    /// Takes in one change; `None`: deleted. Other prefixes than [`PREFIXES`] are ignored. Decisions after its return see it.
    pub fn apply(&self, prefix: &str, namespace: &str, name: &str, object: Option<&Value>) {
        if !PREFIXES.contains(&prefix) {
            return;
        }
        let _alone = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut index = Index::clone(&self.index.load());
        let mut scope = index.scope(namespace).map(|it| Scope::clone(it)).unwrap_or_default();
        scope.put(is_role(prefix), namespace, name, object);
        if !is_role(prefix) {
            scope.reindex();
        }
        if scope.roles.is_empty() && scope.bindings.is_empty() {
            index.scopes.remove(namespace);
        } else {
            index.scopes.insert(namespace.into(), Arc::new(scope));
        }
        self.index.store(Arc::new(index));
    }

    /// The rules of the role that a binding in `namespace` refers to; `None` if there is no such role.
    pub fn role(&self, role: &RoleRef, namespace: &str) -> Option<Arc<[PolicyRule]>> {
        self.index.load().rules(role, namespace).cloned()
    }

    /// All rules that a user has in a namespace, and the roles that were bound but do not exist.
    pub fn rules(&self, user: &User, namespace: &str) -> (Vec<PolicyRule>, Vec<String>) {
        let index = self.index.load();
        let (mut rules, mut missing) = (Vec::new(), Vec::new());
        for grant in index.grants(user, namespace) {
            match index.rules(&grant.binding.role, &grant.binding.namespace) {
                Some(more) => rules.extend(more.iter().cloned()),
                None => missing.push(not_found(&grant.binding.role)),
            }
        }
        (rules, missing)
    }
}

fn is_role(prefix: &str) -> bool {
    prefix == ROLES || prefix == CLUSTER_ROLES
}

fn not_found(role: &RoleRef) -> String {
    format!(
        "{}.{GROUP} {:?} not found",
        role.resource().trim_end_matches('s'),
        role.name
    )
}

impl Authorizer for Rbac {
    fn authorize(&self, request: &Attributes<'_>) -> Decision {
        let index = self.index.load();
        // A path is nobody's namespace: only ClusterRoleBindings count.
        let namespace = if request.is_resource() { request.namespace } else { "" };
        let mut missing = Vec::new();
        for grant in index.grants(request.user, namespace) {
            match index.rules(&grant.binding.role, &grant.binding.namespace) {
                Some(rules) if rules.iter().any(|it| it.allows(request)) => {
                    return Decision::allow(format!("RBAC: allowed by {}", grant.describe()));
                }
                Some(_) => {}
                None => missing.push(&grant.binding.role),
            }
        }
        let errors: Vec<String> = missing.into_iter().map(not_found).collect();
        Decision::none(match errors.as_slice() {
            [] => String::new(),
            [one] => format!("RBAC: {one}"),
            many => format!("RBAC: [{}]", many.join(", ")),
        })
    }

    fn rules_of(&self, user: &User, namespace: &str) -> RulesOf {
        let (rules, errors) = self.rules(user, namespace);
        let mut all = RulesOf {
            incomplete: !errors.is_empty(),
            errors,
            ..RulesOf::default()
        };
        for PolicyRule {
            groups,
            resources,
            paths,
            names,
            verbs,
        } in rules
        {
            if !resources.is_empty() {
                all.resources.push(ResourceRule {
                    verbs: verbs.clone(),
                    groups,
                    resources,
                    names,
                });
            }
            if !paths.is_empty() {
                all.paths.push(NonResourceRule { verbs, paths });
            }
        }
        all
    }
}
