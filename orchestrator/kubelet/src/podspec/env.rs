//! [`environment`]: a container's variables from all sources.

use super::{Cause, Facts, Invalid, downward, expand, links};
use crate::pod::{self, ContainerRef};
use k8s_openapi::api::core::v1::{ConfigMap, EnvFromSource, EnvVar, EnvVarSource, Pod, Secret, Service};
use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

/// Objects that a container's variables come from, all of the pod's namespace but the Service `default/kubernetes`.
#[derive(Clone, Debug, Default)]
pub struct EnvObjects {
    /// Each ConfigMap by name; `None` if there is none of that name.
    pub config_maps: BTreeMap<String, Option<Arc<ConfigMap>>>,
    /// Each Secret by name; `None` if there is none of that name.
    pub secrets: BTreeMap<String, Option<Arc<Secret>>>,
    /// Services of the pod's namespace, and `default/kubernetes`; others do no harm.
    pub services: Vec<Arc<Service>>,
}

/// The variables of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// In this order: `envFrom`, `env`, Services; no name twice.
    pub variables: Vec<(String, String)>,
    /// Messages about keys of `envFrom` that cannot be names of variables: events with the reason
    /// `InvalidEnvironmentVariableNames`.
    pub skipped: Vec<String>,
}

impl Environment {
    /// The value of a variable.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.variables.iter().find(|it| it.0 == name);
        found.map(|it| it.1.as_str())
    }

    /// For many lookups.
    pub(crate) fn by_name(&self) -> HashMap<&str, &str> {
        self.variables
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect()
    }
}

/// The variables of one container. `pod_ips` are the sandbox's addresses, the node's for pods on its network.
///
/// # Errors
/// An object or key that must exist and does not, a field that has no value, a Secret that is not text.
pub fn environment(
    pod: &Pod,
    container: &ContainerRef,
    facts: &Facts,
    objects: &EnvObjects,
    pod_ips: &[IpAddr],
) -> Result<Environment, Invalid> {
    let Some(spec) = container.spec(pod) else {
        let cause = Cause::Malformed("the pod has no such container".to_owned());
        return Err(Invalid::new(pod, Some(&container.name), "name", cause));
    };
    let at = |field: String| move |cause: Cause| Invalid::new(pod, Some(&container.name), field, cause);
    let links = pod.spec.as_ref().and_then(|it| it.enable_service_links).unwrap_or(true);
    let services = objects.services.iter().map(AsRef::as_ref);
    let services = links::variables(services, pod::namespace(pod), links);
    let by_service: HashMap<&str, &str> = services
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let mut set = Variables::default();
    let mut skipped = Vec::new();
    for (index, source) in spec.env_from.iter().flatten().enumerate() {
        let all = from_object(source, objects).map_err(at(format!("envFrom[{index}]")))?;
        let prefix = source.prefix.as_deref().unwrap_or_default();
        let (good, bad): (Vec<_>, Vec<_>) = all
            .into_iter()
            .map(|(key, value)| (format!("{prefix}{key}"), value))
            .partition(|it| is_name(&it.0));
        good.into_iter().for_each(|(name, value)| set.insert(&name, value));
        if !bad.is_empty() {
            let keys: Vec<_> = bad.iter().map(|it| it.0.as_str()).collect();
            skipped.push(format!(
                "Keys [{}] from the EnvFrom {} were skipped since they are considered invalid environment variable names.",
                keys.join(", "),
                described(source, pod::namespace(pod)),
            ));
        }
    }
    for (index, variable) in spec.env.iter().flatten().enumerate() {
        let value = match (&variable.value, &variable.value_from) {
            (Some(text), _) if !text.is_empty() => {
                let lookup = |name: &str| set.get(name).or_else(|| by_service.get(name).copied());
                Some(expand(text, lookup).text)
            }
            (_, Some(source)) => from_source(pod, container, variable, source, facts, objects, pod_ips)
                .map_err(at(format!("env[{index}].valueFrom")))?,
            _ => Some(String::new()),
        };
        if let Some(value) = value {
            set.insert(&variable.name, value);
        }
    }
    for (name, value) in &services {
        if set.get(name).is_none() {
            set.insert(name, value.clone());
        }
    }
    Ok(Environment {
        variables: set.all,
        skipped,
    })
}

/// Variables in the order in which they came; a later value of a name takes the place of the earlier one.
#[derive(Default)]
struct Variables {
    all: Vec<(String, String)>,
    places: HashMap<String, usize>,
}

impl Variables {
    fn get(&self, name: &str) -> Option<&str> {
        let place = self.places.get(name)?;
        Some(&self.all[*place].1)
    }

    fn insert(&mut self, name: &str, value: String) {
        match self.places.get(name) {
            Some(place) => self.all[*place].1 = value,
            None => {
                self.places.insert(name.to_owned(), self.all.len());
                self.all.push((name.to_owned(), value));
            }
        }
    }
}

/// Any printable ASCII but `=`. Source: KEP-4369.
fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|it| (b' '..=b'~').contains(&it) && it != b'=')
}

fn described(source: &EnvFromSource, namespace: &str) -> String {
    match (&source.config_map_ref, &source.secret_ref) {
        (Some(it), _) => format!("configMap {namespace}/{}", it.name),
        (None, Some(it)) => format!("secret {namespace}/{}", it.name),
        (None, None) => "nothing".to_owned(),
    }
}

/// All keys of a ConfigMap or Secret; none if it need not exist and does not.
fn from_object(source: &EnvFromSource, objects: &EnvObjects) -> Result<Vec<(String, String)>, Cause> {
    if let Some(it) = &source.config_map_ref {
        let Some(found) = config_map(objects, &it.name, it.optional)? else {
            return Ok(Vec::new());
        };
        let data = found.data.iter().flatten();
        return Ok(data.map(|(key, value)| (key.clone(), value.clone())).collect());
    }
    if let Some(it) = &source.secret_ref {
        let Some(found) = secret(objects, &it.name, it.optional)? else {
            return Ok(Vec::new());
        };
        let data = found.data.iter().flatten();
        return data
            .map(|(key, value)| Ok((key.clone(), text(&it.name, key, &value.0)?)))
            .collect();
    }
    Ok(Vec::new())
}

/// `None` if the variable is not to be set: its optional source does not exist.
fn from_source(
    pod: &Pod,
    container: &ContainerRef,
    variable: &EnvVar,
    source: &EnvVarSource,
    facts: &Facts,
    objects: &EnvObjects,
    pod_ips: &[IpAddr],
) -> Result<Option<String>, Cause> {
    let missing_key = |kind: &'static str, name: &str, key: &str| Cause::MissingKey {
        key: key.to_owned(),
        kind,
        object: format!("{}/{name}", pod::namespace(pod)),
    };
    if let Some(it) = &source.field_ref {
        return downward::field(pod, &it.field_path, facts, pod_ips).map(Some);
    }
    if let Some(it) = &source.resource_field_ref {
        return downward::resource(pod, Some(&container.name), it, facts).map(Some);
    }
    if let Some(it) = &source.config_map_key_ref {
        let Some(found) = config_map(objects, &it.name, it.optional)? else {
            return Ok(None);
        };
        let value = found.data.as_ref().and_then(|data| data.get(&it.key));
        return match value {
            None if it.optional != Some(true) => Err(missing_key("ConfigMap", &it.name, &it.key)),
            value => Ok(value.cloned()),
        };
    }
    if let Some(it) = &source.secret_key_ref {
        let Some(found) = secret(objects, &it.name, it.optional)? else {
            return Ok(None);
        };
        return match found.data.as_ref().and_then(|data| data.get(&it.key)) {
            None if it.optional != Some(true) => Err(missing_key("Secret", &it.name, &it.key)),
            None => Ok(None),
            Some(value) => text(&it.name, &it.key, &value.0).map(Some),
        };
    }
    if source.file_key_ref.is_some() {
        return Err(Cause::Unsupported(format!(
            "{}: fileKeyRef is not supported by this kubelet",
            variable.name
        )));
    }
    Err(Cause::Malformed(format!(
        "{}: valueFrom names no source",
        variable.name
    )))
}

fn config_map<'a>(objects: &'a EnvObjects, name: &str, optional: Option<bool>) -> Result<Option<&'a ConfigMap>, Cause> {
    let found = objects.config_maps.get(name).and_then(Option::as_deref);
    found_or(found, "configmap", name, optional)
}

fn secret<'a>(objects: &'a EnvObjects, name: &str, optional: Option<bool>) -> Result<Option<&'a Secret>, Cause> {
    let found = objects.secrets.get(name).and_then(Option::as_deref);
    found_or(found, "secret", name, optional)
}

fn found_or<'a, T>(
    found: Option<&'a T>,
    kind: &'static str,
    name: &str,
    optional: Option<bool>,
) -> Result<Option<&'a T>, Cause> {
    match found {
        None if optional != Some(true) => Err(Cause::Missing {
            kind,
            name: name.to_owned(),
        }),
        found => Ok(found),
    }
}

/// Runtimes before CRI 1.36 take text alone, and refuse a container with anything else.
fn text(name: &str, key: &str, value: &[u8]) -> Result<String, Cause> {
    let malformed = |_| Cause::Malformed(format!("key {key} of secret \"{name}\" is not UTF-8 text"));
    std::str::from_utf8(value).map(str::to_owned).map_err(malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::tests::pod_of;
    use serde_json::{Value, json};

    fn objects() -> EnvObjects {
        let map = json!({"data": {"color": "red", "not=good": "x", "size": "3"}});
        let secret = json!({"data": {"pass": "c2VjcmV0", "raw": "/w=="}});
        let service = json!({"metadata": {"name": "db", "namespace": "shop"},
            "spec": {"clusterIP": "10.96.0.7", "ports": [{"port": 5432}]}});
        EnvObjects {
            config_maps: [("conf".to_owned(), Some(Arc::new(serde_json::from_value(map).unwrap())))].into(),
            secrets: [(
                "sec".to_owned(),
                Some(Arc::new(serde_json::from_value(secret).unwrap())),
            )]
            .into(),
            services: vec![Arc::new(serde_json::from_value(service).unwrap())],
        }
    }

    #[allow(clippy::needless_pass_by_value)] // literals read better by value
    fn resolve(container: Value) -> Result<Environment, Invalid> {
        resolve_in(json!({"containers": [container], "enableServiceLinks": false}))
    }

    fn resolve_in(spec: Value) -> Result<Environment, Invalid> {
        let pod = pod_of(spec);
        let container = ContainerRef::all(&pod).remove(0);
        let ips = ["10.1.0.5".parse().unwrap()];
        environment(&pod, &container, &Facts::default(), &objects(), &ips)
    }

    fn pairs(environment: &Environment) -> Vec<(&str, &str)> {
        environment
            .variables
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect()
    }

    #[test]
    fn variables_come_from_all_sources_and_refer_to_earlier_ones() {
        let it = resolve(json!({"name": "app",
            "envFrom": [{"configMapRef": {"name": "conf"}}, {"prefix": "P_", "configMapRef": {"name": "conf"}},
                {"secretRef": {"name": "none", "optional": true}}],
            "env": [
                {"name": "size", "value": "4"},
                {"name": "PLAIN", "value": "$(color)-$(size)-$(LATER)"},
                {"name": "LATER", "value": "x"},
                {"name": "EMPTY"},
                {"name": "KEY", "valueFrom": {"configMapKeyRef": {"name": "conf", "key": "color"}}},
                {"name": "PASS", "valueFrom": {"secretKeyRef": {"name": "sec", "key": "pass"}}},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "requests.cpu"}}},
                {"name": "GONE", "valueFrom": {"configMapKeyRef": {"name": "none", "key": "a", "optional": true}}},
                {"name": "GONE2", "valueFrom": {"secretKeyRef": {"name": "sec", "key": "a", "optional": true}}},
                {"name": "RAW", "value": "$(EMPTY)$$(size)"},
            ],
        }))
        .unwrap();
        assert_eq!(
            pairs(&it),
            [
                ("color", "red"),
                ("size", "4"),
                ("P_color", "red"),
                ("P_size", "3"),
                ("PLAIN", "red-4-$(LATER)"),
                ("LATER", "x"),
                ("EMPTY", ""),
                ("KEY", "red"),
                ("PASS", "secret"),
                ("IP", "10.1.0.5"),
                ("CPU", "0"),
                ("RAW", "$(size)"),
            ]
        );
        assert_eq!(it.skipped.len(), 2);
        assert!(it.skipped[0].starts_with("Keys [not=good] from the EnvFrom configMap shop/conf were skipped"));
        assert_eq!((it.get("size"), it.get("none")), (Some("4"), None));
    }

    #[test]
    fn services_are_named_unless_the_container_names_them_itself() {
        let own = json!({"name": "DB_SERVICE_PORT", "value": "1"});
        let refers = json!({"name": "URL", "value": "$(DB_SERVICE_HOST):$(DB_SERVICE_PORT)"});
        let it = resolve_in(json!({"containers": [{"name": "app", "env": [own, refers]}]})).unwrap();
        assert_eq!(it.get("URL"), Some("10.96.0.7:1"));
        assert_eq!(it.get("DB_SERVICE_PORT"), Some("1"));
        assert_eq!(it.get("DB_PORT_5432_TCP_ADDR"), Some("10.96.0.7"));
        let mut names: Vec<_> = it.variables.iter().map(|it| &it.0).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), it.variables.len());
    }

    #[test]
    fn what_is_missing_is_told_in_the_words_people_search_for() {
        for (container, message, field) in [
            (
                json!({"envFrom": [{"configMapRef": {"name": "x"}}]}),
                "configmap \"x\" not found",
                "envFrom[0]",
            ),
            (
                json!({"envFrom": [{"secretRef": {"name": "x"}}]}),
                "secret \"x\" not found",
                "envFrom[0]",
            ),
            (
                json!({"env": [{"name": "A"}, {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "x", "key": "k"}}}]}),
                "configmap \"x\" not found",
                "env[1].valueFrom",
            ),
            (
                json!({"env": [{"name": "B", "valueFrom": {"configMapKeyRef": {"name": "conf", "key": "k"}}}]}),
                "couldn't find key k in ConfigMap shop/conf",
                "env[0].valueFrom",
            ),
            (
                json!({"env": [{"name": "B", "valueFrom": {"secretKeyRef": {"name": "sec", "key": "k"}}}]}),
                "couldn't find key k in Secret shop/sec",
                "env[0].valueFrom",
            ),
            (
                json!({"env": [{"name": "B", "valueFrom": {"secretKeyRef": {"name": "sec", "key": "raw"}}}]}),
                "key raw of secret \"sec\" is not UTF-8 text",
                "env[0].valueFrom",
            ),
            (
                json!({"env": [{"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "status.phase"}}}]}),
                "unsupported fieldPath: status.phase",
                "env[0].valueFrom",
            ),
            (
                json!({"env": [{"name": "B", "valueFrom": {}}]}),
                "B: valueFrom names no source",
                "env[0].valueFrom",
            ),
        ] {
            let mut container = container;
            container["name"] = json!("app");
            let error = resolve(container).unwrap_err();
            assert_eq!((error.message().as_str(), error.field.as_ref()), (message, field));
            assert_eq!(
                error.to_string(),
                format!("pod shop/web, container app: {field}: {message}")
            );
        }
    }
}
