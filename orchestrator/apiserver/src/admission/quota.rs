//! `ResourceQuota`: how much a namespace may hold. Requests reserve before they are stored, one at a time, so that two
//! that fit alone but not together are never both let in.

mod charge;

pub use charge::{status, used};

use super::{
    Operation, Plugin, Request,
    limits::{Amounts, add, amounts},
    quantity::Quantity,
};
use crate::{objects::text, status::Status};
use charge::{Charge, matches, missing};
use serde_json::Value;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How long a reservation holds without the write having been seen. Longer than any write takes; what is over then is
/// looked up, not forgotten.
const HOLD: Duration = Duration::from_secs(15);

/// What each object of a namespace with quotas costs, kept in step with the store.
#[derive(Debug, Default)]
pub struct Ledger {
    /// By namespace and prefix; only what a quota was asked about.
    books: Mutex<HashMap<(String, String), Book>>,
}

/// By name.
type Book = HashMap<String, Entry>;

#[derive(Debug, Default)]
struct Entry {
    stored: Option<Charge>,
    /// A write that was let in and is not seen yet.
    reserved: Option<(Instant, Charge)>,
}

impl Entry {
    /// What it may cost at most, whichever way its write ends.
    fn charges(&self) -> impl Iterator<Item = &Charge> {
        self.stored.iter().chain(self.reserved.as_ref().map(|(_, it)| it))
    }
}

impl Ledger {
    /// Takes in one committed change; `None`: deleted.
    pub(super) fn follow(&self, prefix: &str, namespace: &str, name: &str, object: Option<&Value>) {
        let mut books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
        if prefix == "core/resourcequotas" && object.is_none() {
            // While a namespace has no quota nobody keeps its books, so another quota begins with new ones.
            books.retain(|(of, _), _| of != namespace);
        }
        let Some(book) = books.get_mut(&(namespace.to_owned(), prefix.to_owned())) else {
            return;
        };
        match object {
            Some(object) => {
                let stored = Some(Charge::of(prefix, object));
                book.insert(name.to_owned(), Entry { stored, reserved: None });
            }
            None => {
                book.remove(name);
            }
        }
    }
}

pub(super) struct ResourceQuota(pub(super) Arc<Ledger>);

impl Plugin for ResourceQuota {
    fn name(&self) -> &'static str {
        "ResourceQuota"
    }

    fn validate(&self, request: &Request<'_>, object: Option<&Value>) -> Result<(), Status> {
        let attributes = request.attributes;
        let Some(object) = object else { return Ok(()) };
        let counted = attributes.subresource.is_empty() || attributes.is("", "pods", "resize");
        let Some(storage) = attributes.resource.storage.as_ref().filter(|_| counted) else {
            return Ok(());
        };
        if attributes.namespace.is_empty() {
            return Ok(());
        }
        let prefix = &*storage.prefix;
        let key = (attributes.namespace.to_owned(), prefix.to_owned());
        let quotas = request.objects.list("core/resourcequotas", Some(attributes.namespace));
        let mut books = self.0.books.lock().unwrap_or_else(PoisonError::into_inner);
        if quotas.is_empty() {
            books.remove(&key);
            return Ok(());
        }
        let new = Charge::of(prefix, object);
        let old = request
            .old
            .filter(|_| attributes.operation == Operation::Update)
            .map(|it| Charge::of(prefix, it));
        let book = books.entry(key).or_insert_with(|| {
            let all = request.objects.list(prefix, Some(attributes.namespace));
            let entry = |it: &Value| Entry {
                stored: Some(Charge::of(prefix, it)),
                reserved: None,
            };
            all.iter()
                .map(|it| (text(it, "/metadata/name").to_owned(), entry(it)))
                .collect()
        });
        settle(book, request, prefix);
        for quota in quotas.iter().filter(|it| matches(it, &new)) {
            check(request, quota, &new, old.as_ref(), object, book)?;
        }
        if !attributes.dry_run {
            let entry = book.entry(attributes.name.to_owned()).or_default();
            entry.reserved = Some((Instant::now(), new));
        }
        Ok(())
    }
}

/// Looks up what reservations came to whose time is over.
fn settle(book: &mut Book, request: &Request<'_>, prefix: &str) {
    book.retain(|name, entry| {
        if entry.reserved.as_ref().is_some_and(|(since, _)| since.elapsed() > HOLD) {
            let found = request.objects.get(prefix, request.attributes.namespace, name);
            *entry = Entry {
                stored: found.map(|it| Charge::of(prefix, &it)),
                reserved: None,
            };
        }
        entry.stored.is_some() || entry.reserved.is_some()
    });
}

fn check(
    request: &Request<'_>,
    quota: &Value,
    new: &Charge,
    old: Option<&Charge>,
    object: &Value,
    book: &Book,
) -> Result<(), Status> {
    let name = text(quota, "/metadata/name");
    let hard = amounts(quota, "/spec/hard");
    if old.is_none()
        && let Some(missing) = missing(&hard, new, object)
    {
        return Err(request.forbidden(format!("failed quota: {name}: must specify {missing}")));
    }
    // What more it asks for than before; asking for less is always allowed.
    let before = old.filter(|it| matches(quota, it));
    let asked = new
        .amounts
        .iter()
        .filter(|(resource, _)| hard.contains_key(*resource))
        .map(|(resource, it)| {
            let before = before
                .and_then(|old| old.amounts.get(resource))
                .copied()
                .unwrap_or(Quantity::ZERO);
            (resource.clone(), it.minus(before))
        });
    let asked: Amounts = asked.filter(|(_, it)| it.nanos() > 0).collect();
    if asked.is_empty() {
        return Ok(());
    }
    let used = total(quota, book, before.is_none().then_some(request.attributes.name));
    let over = |resource: &&String| {
        let used = used.get(*resource).copied().unwrap_or(Quantity::ZERO);
        used.plus(asked[*resource]).cmp_value(&hard[*resource]).is_gt()
    };
    let over: Vec<&String> = asked.keys().filter(over).collect();
    if over.is_empty() {
        return Ok(());
    }
    let show = |amounts: &Amounts| {
        let one = |it: &&String| format!("{it}={}", amounts.get(*it).copied().unwrap_or(Quantity::ZERO));
        over.iter().map(one).collect::<Vec<_>>().join(",")
    };
    Err(request.forbidden(format!(
        "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
        show(&asked),
        show(&used),
        show(&hard)
    )))
}

/// What the objects of a book cost a quota, except the one that is being made: its own earlier try is not another object.
fn total(quota: &Value, book: &Book, except: Option<&str>) -> Amounts {
    let mut total = Amounts::new();
    for (_, entry) in book.iter().filter(|(name, _)| except != Some(name.as_str())) {
        let mut most = Amounts::new();
        for charge in entry.charges().filter(|it| matches(quota, it)) {
            for (resource, amount) in &charge.amounts {
                let slot = most.entry(resource.clone()).or_insert(Quantity::ZERO);
                *slot = slot.max(*amount);
            }
        }
        add(&mut total, &most);
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        admission::{
            Attributes, Chain,
            fixture::{Case, resource},
        },
        authn::User,
        objects::fake::Map,
    };
    use serde_json::json;

    fn plugin() -> ResourceQuota {
        ResourceQuota(Arc::default())
    }

    #[allow(clippy::needless_pass_by_value)] // literals read better by value
    fn world(spec: Value) -> Map {
        let mut world = Map::default();
        world.put(
            "core/resourcequotas",
            json!({"metadata": {"namespace": "ns", "name": "q"}, "spec": spec}),
        );
        world
    }

    fn pod(name: &str, cpu: &str) -> Value {
        let resources = if cpu.is_empty() {
            json!({})
        } else {
            json!({"requests": {"cpu": cpu}})
        };
        json!({"metadata": {"namespace": "ns", "name": name}, "spec": {"containers": [{"name": "c",
            "resources": resources}]}})
    }

    fn said(result: Result<(Value, Vec<String>), Status>) -> String {
        result
            .err()
            .map(|it| it.message.split("forbidden: ").nth(1).unwrap_or_default().to_owned())
            .unwrap_or_default()
    }

    #[test]
    fn a_namespace_holds_no_more_than_its_quota() {
        let mut world = world(json!({"hard": {"pods": "2", "requests.cpu": "1"}}));
        world.put("core/pods", pod("a", "300m"));
        for (object, message) in [
            (pod("b", "700m"), ""),
            (
                pod("b", "701m"),
                "exceeded quota: q, requested: requests.cpu=701m, used: requests.cpu=300m, limited: \
                requests.cpu=1",
            ),
            (pod("b", ""), "failed quota: q: must specify requests.cpu for: c"),
        ] {
            assert_eq!(said(Case::create(&world, "pods", object).run(&plugin())), message);
        }
        world.put("core/pods", pod("b", "1m"));
        assert_eq!(
            said(Case::create(&world, "pods", pod("c", "1m")).run(&plugin())),
            "exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2"
        );
        let finished = |name: &str| {
            let mut pod = pod(name, "1m");
            pod["status"] = json!({"phase": "Succeeded"});
            pod
        };
        world.put("core/pods", finished("b"));
        assert_eq!(said(Case::create(&world, "pods", pod("c", "1m")).run(&plugin())), "");
    }

    #[test]
    fn what_is_counted_by_kind() {
        let service = |kind: &str, ports: usize| {
            json!({"metadata": {"namespace": "ns", "name": "new"}, "spec":
            {"type": kind, "ports": vec![json!({"port": 1}); ports]}})
        };
        let claim = json!({"metadata": {"namespace": "ns", "name": "new"}, "spec": {"storageClassName": "fast",
            "resources": {"requests": {"storage": "2Gi"}}}});
        let map = json!({"metadata": {"namespace": "ns", "name": "new"}});
        for (hard, plural, object, over) in [
            (
                json!({"services.nodeports": "1"}),
                "services",
                service("NodePort", 2),
                "services.nodeports=2",
            ),
            (
                json!({"services.nodeports": "0"}),
                "services",
                service("ClusterIP", 2),
                "",
            ),
            (
                json!({"services.loadbalancers": "0"}),
                "services",
                service("LoadBalancer", 1),
                "services.loadbalancers=1",
            ),
            (
                json!({"services": "0"}),
                "services",
                service("ClusterIP", 1),
                "services=1",
            ),
            (
                json!({"requests.storage": "1Gi"}),
                "persistentvolumeclaims",
                claim.clone(),
                "requests.storage=2Gi",
            ),
            (
                json!({"fast.storageclass.storage.k8s.io/requests.storage": "1Gi"}),
                "persistentvolumeclaims",
                claim.clone(),
                "fast.storageclass.storage.k8s.io/requests.storage=2Gi",
            ),
            (
                json!({"slow.storageclass.storage.k8s.io/requests.storage": "1Gi"}),
                "persistentvolumeclaims",
                claim,
                "",
            ),
            (
                json!({"count/configmaps": "0"}),
                "configmaps",
                map.clone(),
                "count/configmaps=1",
            ),
            (json!({"configmaps": "0"}), "configmaps", map.clone(), "configmaps=1"),
            (
                json!({"count/deployments.apps": "0"}),
                "deployments",
                map.clone(),
                "count/deployments.apps=1",
            ),
            (json!({"count/configmaps": "0"}), "deployments", map, ""),
        ] {
            let message = said(Case::create(&world(json!({"hard": hard})), plural, object).run(&plugin()));
            let expected = if over.is_empty() {
                String::new()
            } else {
                format!("requested: {over}, ")
            };
            assert!(
                message.contains(&expected) && message.is_empty() == over.is_empty(),
                "{hard}: {message}"
            );
        }
    }

    #[test]
    fn scopes_choose_pods() {
        let with = |field: &str, value: Value| {
            let mut pod = pod("new", "1");
            pod["spec"][field] = value;
            pod
        };
        let class = |operator: &str, values: Value| {
            json!({"scopeSelector": {"matchExpressions": [{"scopeName":
            "PriorityClass", "operator": operator, "values": values}]}, "hard": {"pods": "0"}})
        };
        let scoped = |scope: &str| json!({"scopes": [scope], "hard": {"pods": "0"}});
        for (spec, object, refused) in [
            (scoped("BestEffort"), pod("new", ""), true),
            (scoped("BestEffort"), pod("new", "1"), false),
            (scoped("NotBestEffort"), pod("new", "1"), true),
            (scoped("Terminating"), with("activeDeadlineSeconds", json!(5)), true),
            (scoped("Terminating"), pod("new", "1"), false),
            (scoped("NotTerminating"), pod("new", "1"), true),
            (
                class("In", json!(["high"])),
                with("priorityClassName", json!("high")),
                true,
            ),
            (
                class("In", json!(["high"])),
                with("priorityClassName", json!("low")),
                false,
            ),
            (class("In", json!(["high"])), pod("new", "1"), false),
            (
                class("NotIn", json!(["high"])),
                with("priorityClassName", json!("low")),
                true,
            ),
            (
                class("Exists", json!(null)),
                with("priorityClassName", json!("low")),
                true,
            ),
            (class("DoesNotExist", json!(null)), pod("new", "1"), true),
        ] {
            let result = Case::create(&world(spec.clone()), "pods", object).run(&plugin());
            assert_eq!(result.is_err(), refused, "{spec}");
        }
    }

    #[test]
    fn updates_are_charged_their_difference() {
        let mut world = world(json!({"hard": {"services.nodeports": "2"}}));
        let service = |name: &str, kind: &str, ports: usize| {
            json!({"metadata": {"namespace": "ns", "name": name},
            "spec": {"type": kind, "ports": vec![json!({"port": 1}); ports]}})
        };
        world.put("core/services", service("a", "NodePort", 1));
        world.put("core/services", service("b", "ClusterIP", 2));
        let update = |old: Value, new: Value| Case {
            operation: Operation::Update,
            old: Some(old),
            ..Case::create(&world, "services", new)
        };
        let nodes = service("b", "NodePort", 2);
        assert!(update(service("b", "ClusterIP", 2), nodes).run(&plugin()).is_err());
        assert!(
            update(service("a", "NodePort", 1), service("a", "NodePort", 2))
                .run(&plugin())
                .is_ok()
        );
        assert!(
            update(service("a", "NodePort", 1), service("a", "ClusterIP", 1))
                .run(&plugin())
                .is_ok()
        );
    }

    #[test]
    fn two_that_fit_alone_do_not_fit_together() {
        let mut world = world(json!({"hard": {"pods": "1"}}));
        let chain = Chain::builtin();
        let (pods, user) = (resource("pods"), User::authenticated("u", ["g"]));
        let create = |world: &Map, name: &str, dry_run| {
            let attributes = Attributes {
                operation: Operation::Create,
                resource: &pods,
                subresource: "",
                namespace: "ns",
                name,
                user: &user,
                dry_run,
            };
            chain
                .validate(&attributes, None, Some(&pod(name, "1")), world)
                .map(drop)
                .map_err(|it| it.code)
        };
        assert_eq!(create(&world, "dry", true), Ok(()));
        assert_eq!(create(&world, "a", false), Ok(()));
        // Nothing is stored yet, and still there is no room; the same object may try again.
        assert_eq!(create(&world, "b", false), Err(403));
        assert_eq!(create(&world, "a", false), Ok(()));
        world.put("core/pods", pod("a", "1"));
        chain.follow("core/pods", "ns", "a", Some(&pod("a", "1")));
        assert_eq!(create(&world, "b", false), Err(403));
        world.remove("core/pods", "ns", "a");
        chain.follow("core/pods", "ns", "a", None);
        assert_eq!(create(&world, "b", false), Ok(()));
    }

    #[test]
    fn many_at_once_never_exceed() {
        let world = world(json!({"hard": {"pods": "7"}}));
        let chain = Chain::builtin();
        let (pods, user) = (resource("pods"), User::authenticated("u", ["g"]));
        let admitted = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..32)
                .map(|at| {
                    let (chain, pods, user, world) = (&chain, &pods, &user, &world);
                    scope.spawn(move || {
                        let name = format!("p{at}");
                        let attributes = Attributes {
                            operation: Operation::Create,
                            resource: pods,
                            subresource: "",
                            namespace: "ns",
                            name: &name,
                            user,
                            dry_run: false,
                        };
                        chain.validate(&attributes, None, Some(&pod(&name, "1")), world).is_ok()
                    })
                })
                .collect();
            threads
                .into_iter()
                .filter(|_| true)
                .map(|it| it.join().unwrap())
                .filter(|it| *it)
                .count()
        });
        assert_eq!(admitted, 7);
    }

    #[test]
    fn the_status_tells_what_is_used() {
        let mut world = world(json!({"hard": {"pods": "2", "requests.cpu": "1", "count/secrets": "5"}}));
        world.put("core/pods", pod("a", "300m"));
        world.put("core/pods", pod("b", "300m"));
        let quota = crate::objects::Objects::get(&world, "core/resourcequotas", "ns", "q").unwrap();
        assert_eq!(
            status(&world, &quota),
            json!({
                "hard": {"pods": "2", "requests.cpu": "1", "count/secrets": "5"},
                "used": {"pods": "2", "requests.cpu": "600m", "count/secrets": "0"},
            })
        );
    }
}
