//! [`Services`]: addresses and ports of Services.
//!
//! Nothing is stored besides the Services themselves: what is taken follows from them, so that a crash can leak nothing,
//! and the start is the repair. A request holds what it takes until its object is stored.

use crate::{
    object,
    status::{Cause, Result, Status},
};
use fairlead_schema::Resource;
use ipnet::IpNet;
use rand::RngExt as _;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Namespace, name and uid of the Service that has something: one made again under the same name is another.
type Owner = Arc<str>;

/// What is taken, and from where.
#[derive(Debug)]
pub struct Services {
    /// The default family first.
    ranges: Vec<IpNet>,
    /// Both ends included.
    ports: (u16, u16),
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    addresses: HashMap<IpAddr, Claim>,
    ports: BTreeMap<u16, Claim>,
}

/// Who has a number, and why: because it is in a stored Service, or because requests are about to store it.
#[derive(Debug)]
struct Claim {
    owner: Owner,
    stored: bool,
    holds: usize,
}

impl Claim {
    fn stored(owner: Owner) -> Self {
        Self {
            owner,
            stored: true,
            holds: 0,
        }
    }

    /// One more request is about to store it.
    fn hold(claim: Option<&mut Self>, owner: &Owner) -> Option<Self> {
        if let Some(claim) = claim {
            claim.holds += 1;
            return None;
        }
        Some(Self {
            owner: Arc::clone(owner),
            stored: false,
            holds: 1,
        })
    }

    /// A request has ended. Says whether nobody wants the number any more.
    fn end(&mut self, stored: bool) -> bool {
        self.holds = self.holds.saturating_sub(1);
        self.stored |= stored;
        self.holds == 0 && !self.stored
    }

    /// It is no longer in a stored Service. Says whether nobody wants the number any more.
    fn forget(&mut self) -> bool {
        self.stored = false;
        self.holds == 0
    }
}

/// Addresses and ports that one request took.
#[derive(Debug)]
#[must_use = "given back when dropped"]
pub(crate) struct Held {
    taken: Arc<Mutex<Taken>>,
    addresses: Vec<IpAddr>,
    ports: Vec<u16>,
    stored: bool,
}

impl Held {
    /// The object is stored.
    pub(crate) fn keep(mut self) {
        self.stored = true;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut taken = lock(&self.taken);
        for address in &self.addresses {
            if taken.addresses.get_mut(address).is_some_and(|it| it.end(self.stored)) {
                taken.addresses.remove(address);
            }
        }
        for port in &self.ports {
            if taken.ports.get_mut(port).is_some_and(|it| it.end(self.stored)) {
                taken.ports.remove(port);
            }
        }
    }
}

fn lock(taken: &Mutex<Taken>) -> MutexGuard<'_, Taken> {
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How many numbers at the lower end of a range are left to those who ask for one by name. Source: KEP-3070, KEP-3668.
fn reserved(size: u128, step: u128, least: u128, most: u128) -> u128 {
    if size <= least {
        0
    } else {
        (size / step).clamp(least, most)
    }
}

fn invalid(field: &str, reason: &'static str, message: String) -> Cause {
    Cause::new(reason, message, field)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn of(address: &IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }

    fn parse(name: &str) -> Option<Self> {
        [Self::V4, Self::V6].into_iter().find(|it| it.name() == name)
    }
}

/// What kind of addresses a Service has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Addressing {
    /// Virtual addresses.
    Virtual,
    /// `clusterIP: None`.
    Headless,
    /// ExternalName.
    None,
}

fn addressing(service: &Value) -> Addressing {
    let spec = &service["spec"];
    if spec["type"] == "ExternalName" {
        Addressing::None
    } else if spec["clusterIP"] == "None" || spec["clusterIPs"][0] == "None" {
        Addressing::Headless
    } else {
        Addressing::Virtual
    }
}

fn owner(service: &Value) -> Owner {
    let meta = |name| object::meta(service, name);
    format!("{}/{} {}", meta("namespace"), meta("name"), meta("uid")).into()
}

fn addresses(service: &Value) -> Vec<IpAddr> {
    let all = service["spec"]["clusterIPs"].as_array().into_iter().flatten();
    all.filter_map(|it| it.as_str()?.parse().ok()).collect()
}

fn node_ports(service: &Value) -> Vec<u16> {
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    let ports = ports
        .map(|port| &port["nodePort"])
        .chain([&service["spec"]["healthCheckNodePort"]]);
    ports
        .filter_map(|it| u16::try_from(it.as_u64()?).ok().filter(|it| *it > 0))
        .collect()
}

impl Services {
    /// Ranges of addresses, the default family first, and of ports, both ends included.
    pub fn new(ranges: Vec<IpNet>, ports: (u16, u16)) -> Self {
        Self {
            ranges,
            ports,
            taken: Arc::default(),
        }
    }

    /// The first address of the first range: that of the Service `kubernetes`.
    pub fn first_address(&self) -> Option<IpAddr> {
        Some(nth(*self.ranges.first()?, 1))
    }

    /// Takes note of what the stored Services have. Returns what two of them claim, or what is outside every range: to be
    /// reported, and otherwise left as it is.
    pub fn load<'a>(&self, services: impl IntoIterator<Item = &'a Value>) -> Vec<String> {
        let mut faults = Vec::new();
        let mut taken = lock(&self.taken);
        *taken = Taken::default();
        for service in services {
            let owner = owner(service);
            for address in addresses(service) {
                if !self.ranges.iter().any(|range| range.contains(&address)) {
                    faults.push(format!(
                        "ClusterIP {address} of {owner} is in none of the service ranges"
                    ));
                }
                match taken.addresses.get(&address) {
                    Some(Claim { owner: other, .. }) if *other != owner => {
                        faults.push(format!("ClusterIP {address} of {owner} is already that of {other}"));
                    }
                    _ => drop(taken.addresses.insert(address, Claim::stored(Arc::clone(&owner)))),
                }
            }
            for port in node_ports(service) {
                match taken.ports.get(&port) {
                    Some(Claim { owner: other, .. }) if *other != owner => {
                        faults.push(format!("node port {port} of {owner} is already that of {other}"));
                    }
                    _ => drop(taken.ports.insert(port, Claim::stored(Arc::clone(&owner)))),
                }
            }
        }
        faults
    }

    /// Completes a Service with addresses and ports, and holds those that it did not have.
    ///
    /// # Errors
    /// 422 that names the field: taken, out of range, none left, or not possible with this cluster's families.
    pub(crate) fn allocate(&self, resource: &Resource, new: &mut Value) -> Result<Held> {
        let mut held = Held {
            taken: Arc::clone(&self.taken),
            addresses: Vec::new(),
            ports: Vec::new(),
            stored: false,
        };
        let mut taken = lock(&self.taken);
        let result = self
            .families(new)
            .and_then(|families| self.take_addresses(&mut taken, &mut held, new, &families))
            .and_then(|()| self.take_ports(&mut taken, &mut held, new));
        drop(taken);
        result.map_err(|cause| Status::invalid(resource, object::meta(new, "name"), vec![cause]))?;
        Ok(held)
    }

    /// Gives back everything of a Service.
    pub(crate) fn release(&self, service: &Value) {
        let owner = owner(service);
        let mut taken = lock(&self.taken);
        for address in addresses(service) {
            let claim = taken.addresses.get_mut(&address).filter(|it| it.owner == owner);
            if claim.is_some_and(Claim::forget) {
                taken.addresses.remove(&address);
            }
        }
        for port in node_ports(service) {
            let claim = taken.ports.get_mut(&port).filter(|it| it.owner == owner);
            if claim.is_some_and(Claim::forget) {
                taken.ports.remove(&port);
            }
        }
    }

    /// Gives back what a changed Service no longer has.
    pub(crate) fn release_difference(&self, old: &Value, new: &Value) {
        let (kept_addresses, kept_ports) = (addresses(new), node_ports(new));
        let mut gone = json!({ "metadata": old["metadata"], "spec": {} });
        let addresses = addresses(old).into_iter().filter(|it| !kept_addresses.contains(it));
        gone["spec"]["clusterIPs"] = addresses.map(|it| json!(it.to_string())).collect();
        let ports = node_ports(old).into_iter().filter(|it| !kept_ports.contains(it));
        gone["spec"]["ports"] = ports.map(|port| json!({ "nodePort": port })).collect();
        self.release(&gone);
    }

    fn default_family(&self) -> Family {
        self.ranges
            .first()
            .map_or(Family::V4, |range| Family::of(&range.addr()))
    }

    fn range(&self, family: Family) -> Option<IpNet> {
        self.ranges
            .iter()
            .copied()
            .find(|range| Family::of(&range.addr()) == family)
    }

    /// Which families a Service has, in order; fills `ipFamilies` and `ipFamilyPolicy`.
    fn families(&self, new: &mut Value) -> Result<Vec<Family>, Cause> {
        let how = addressing(new);
        let fields = object::child_mut(new, "spec");
        if how == Addressing::None {
            for field in ["ipFamilies", "ipFamilyPolicy", "clusterIP", "clusterIPs"] {
                fields.remove(field);
            }
            return Ok(Vec::new());
        }
        let given: Vec<Family> = fields
            .get("ipFamilies")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|it| Family::parse(it.as_str()?))
            .collect();
        let asked: Vec<IpAddr> = fields
            .get("clusterIPs")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|it| it.as_str()?.parse().ok())
            .collect();
        let asked = if asked.is_empty() {
            let one = fields
                .get("clusterIP")
                .and_then(Value::as_str)
                .and_then(|it| it.parse().ok());
            one.into_iter().collect()
        } else {
            asked
        };
        let mut families = given;
        for (at, address) in asked.iter().enumerate() {
            match families.get(at) {
                Some(family) if *family != Family::of(address) => {
                    let message = format!(
                        "Invalid value: {:?}: ipFamily {} does not match clusterIP {address}",
                        family.name(),
                        family.name()
                    );
                    return Err(invalid(&format!("spec.ipFamilies[{at}]"), "FieldValueInvalid", message));
                }
                Some(_) => {}
                None => families.push(Family::of(address)),
            }
        }
        let selectorless = fields
            .get("selector")
            .and_then(Value::as_object)
            .is_none_or(serde_json::Map::is_empty);
        // Endpoints of such a Service are somebody else's business, and may be of any family.
        let foreign = how == Addressing::Headless && selectorless;
        let policy = match fields.get("ipFamilyPolicy").and_then(Value::as_str) {
            Some(policy) => policy.to_owned(),
            None if families.len() > 1 || foreign => "RequireDualStack".to_owned(),
            None => "SingleStack".to_owned(),
        };
        let dual = self.ranges.len() > 1;
        if policy == "RequireDualStack" && !dual && !foreign {
            let message = "Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services"
                .to_owned();
            return Err(invalid("spec.ipFamilyPolicy", "FieldValueInvalid", message));
        }
        if policy == "SingleStack" && families.len() > 1 {
            let message =
                "Invalid value: \"SingleStack\": must be 'RequireDualStack' or 'PreferDualStack' when multiple \
                           IP families are specified"
                    .to_owned();
            return Err(invalid("spec.ipFamilyPolicy", "FieldValueInvalid", message));
        }
        if families.is_empty() {
            families.push(self.default_family());
        }
        if policy != "SingleStack" && families.len() == 1 && (dual || foreign) {
            families.push(families[0].other());
        }
        if !foreign {
            for (at, family) in families.iter().enumerate() {
                if self.range(*family).is_none() {
                    let message = format!("Invalid value: {:?}: not configured on this cluster", family.name());
                    return Err(invalid(&format!("spec.ipFamilies[{at}]"), "FieldValueInvalid", message));
                }
            }
        }
        fields.insert("ipFamilyPolicy".to_owned(), json!(policy));
        fields.insert(
            "ipFamilies".to_owned(),
            families.iter().map(|it| json!(it.name())).collect(),
        );
        Ok(families)
    }

    fn take_addresses(
        &self,
        taken: &mut Taken,
        held: &mut Held,
        new: &mut Value,
        families: &[Family],
    ) -> Result<(), Cause> {
        match addressing(new) {
            Addressing::None => return Ok(()),
            Addressing::Headless => {
                new["spec"]["clusterIP"] = json!("None");
                new["spec"]["clusterIPs"] = json!(["None"]);
                return Ok(());
            }
            Addressing::Virtual => {}
        }
        let owner = owner(new);
        let mut asked: Vec<Option<IpAddr>> = Vec::new();
        let given = new["spec"]["clusterIPs"].as_array().cloned().unwrap_or_default();
        let single = new["spec"]["clusterIP"].as_str().unwrap_or_default().to_owned();
        for (at, family) in families.iter().enumerate() {
            let text = given
                .get(at)
                .and_then(Value::as_str)
                .or((at == 0).then_some(single.as_str()))
                .unwrap_or_default();
            let address: Option<IpAddr> = match text {
                "" => None,
                text => Some(text.parse().map_err(|_| {
                    let message = format!("Invalid value: {text:?}: must be a valid IP address");
                    invalid(&format!("spec.clusterIPs[{at}]"), "FieldValueInvalid", message)
                })?),
            };
            if let Some(address) = address {
                let problem = match self.range(*family) {
                    Some(range) if !usable(range, address) => Some(format!(
                        "provided IP is not in the valid range. The range of valid IPs is {range}"
                    )),
                    _ => None,
                };
                let other = taken.addresses.get(&address).filter(|other| other.owner != owner);
                let problem = problem.or(other.map(|_| "provided IP is already allocated".to_owned()));
                if let Some(problem) = problem {
                    let message = format!("Invalid value: [{text:?}]: failed to allocate IP {address}: {problem}");
                    return Err(invalid("spec.clusterIPs", "FieldValueInvalid", message));
                }
            }
            asked.push(address);
        }
        let mut all = Vec::new();
        for (family, address) in families.iter().zip(asked) {
            let address = match address {
                Some(address) => address,
                None => {
                    let range = self.range(*family).unwrap_or(self.ranges[0]);
                    free_address(range, taken).ok_or_else(|| {
                        let message = format!("Internal error: failed to allocate a serviceIP: range {range} is full");
                        invalid("spec.clusterIPs", "InternalError", message)
                    })?
                }
            };
            if let Some(claim) = Claim::hold(taken.addresses.get_mut(&address), &owner) {
                taken.addresses.insert(address, claim);
            }
            held.addresses.push(address);
            all.push(address.to_string());
        }
        new["spec"]["clusterIP"] = json!(all.first());
        new["spec"]["clusterIPs"] = json!(all);
        Ok(())
    }

    fn take_ports(&self, taken: &mut Taken, held: &mut Held, new: &mut Value) -> Result<(), Cause> {
        let owner = owner(new);
        let spec = &new["spec"];
        let balanced = spec["type"] == "LoadBalancer";
        let wants = spec["type"] == "NodePort" || (balanced && spec["allocateLoadBalancerNodePorts"] != json!(false));
        let local = balanced && spec["externalTrafficPolicy"] == "Local";
        let (low, high) = self.ports;
        let mut hold = |taken: &mut Taken, port: u16| {
            if let Some(claim) = Claim::hold(taken.ports.get_mut(&port), &owner) {
                taken.ports.insert(port, claim);
            }
            held.ports.push(port);
        };
        let check = |taken: &Taken, port: u64, field: &str| -> Result<u16, Cause> {
            let number = u16::try_from(port).ok().filter(|port| (low..=high).contains(port));
            let Some(number) = number else {
                let message = format!(
                    "Invalid value: {port}: provided port is not in the valid range. The range of valid ports is {low}-{high}"
                );
                return Err(invalid(field, "FieldValueInvalid", message));
            };
            if taken.ports.get(&number).is_some_and(|other| other.owner != owner) {
                let message = format!("Invalid value: {port}: provided port is already allocated");
                return Err(invalid(field, "FieldValueInvalid", message));
            }
            Ok(number)
        };
        let full = |field: &str| {
            let message = "Internal error: failed to allocate a nodePort: range is full".to_owned();
            invalid(field, "InternalError", message)
        };
        let mut ports = new["spec"]["ports"].as_array().cloned().unwrap_or_default();
        // Asked-for ports first, so that a random one cannot take what the next entry wants.
        for (at, port) in ports.iter().enumerate() {
            if let Some(asked) = port["nodePort"].as_u64().filter(|it| *it > 0) {
                let number = check(taken, asked, &format!("spec.ports[{at}].nodePort"))?;
                hold(taken, number);
            }
        }
        // The same port over two protocols gets one node port, as upstream.
        let mut by_port: HashMap<u64, u16> = HashMap::new();
        for (at, port) in ports.iter_mut().enumerate() {
            let number = port["port"].as_u64().unwrap_or(0);
            let known = port["nodePort"]
                .as_u64()
                .and_then(|it| u16::try_from(it).ok())
                .filter(|it| *it > 0);
            let known = match known {
                Some(known) => Some(known),
                None if wants => match by_port.get(&number) {
                    Some(shared) => Some(*shared),
                    None => {
                        let free = free_port(self.ports, taken);
                        let free = free.ok_or_else(|| full(&format!("spec.ports[{at}].nodePort")))?;
                        hold(taken, free);
                        Some(free)
                    }
                },
                None => None,
            };
            if let Some(known) = known {
                by_port.entry(number).or_insert(known);
                port["nodePort"] = json!(known);
            }
        }
        if !ports.is_empty() {
            new["spec"]["ports"] = Value::Array(ports);
        }
        if local {
            let field = "spec.healthCheckNodePort";
            let port = match new["spec"]["healthCheckNodePort"].as_u64().filter(|it| *it > 0) {
                Some(asked) => check(taken, asked, field)?,
                None => free_port(self.ports, taken).ok_or_else(|| full(field))?,
            };
            hold(taken, port);
            new["spec"]["healthCheckNodePort"] = json!(port);
        }
        Ok(())
    }
}

/// What a client that leaves a field out means to keep, and what a changed type no longer has.
pub(crate) fn carry_over(old: &Value, new: &mut Value) {
    let (had, has) = (addressing(old), addressing(new));
    let spec = object::child_mut(new, "spec");
    let empty = |value: Option<&Value>| value.is_none_or(|it| it.is_null() || it == "" || it == &json!([]));
    if had != Addressing::None && has != Addressing::None {
        let (single, many) = (empty(spec.get("clusterIP")), empty(spec.get("clusterIPs")));
        if single && many {
            for field in ["clusterIP", "clusterIPs"] {
                if let Some(value) = old["spec"].get(field) {
                    spec.insert(field.to_owned(), value.clone());
                }
            }
        } else if many && spec.get("clusterIP") == old["spec"].get("clusterIP") {
            spec.insert("clusterIPs".to_owned(), old["spec"]["clusterIPs"].clone());
        }
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            if empty(spec.get(field))
                && let Some(value) = old["spec"].get(field)
            {
                spec.insert(field.to_owned(), value.clone());
            }
        }
    }
    if has == Addressing::None {
        // The old type's addresses mean nothing to the new one.
        for field in ["clusterIP", "clusterIPs"] {
            if spec.get(field) == old["spec"].get(field) {
                spec.remove(field);
            }
        }
    }
    if spec.get("ipFamilyPolicy").and_then(Value::as_str) == Some("SingleStack") {
        for field in ["ipFamilies", "clusterIPs"] {
            if spec.get(field) == old["spec"].get(field)
                && let Some(all) = spec.get_mut(field).and_then(Value::as_array_mut)
            {
                all.truncate(1);
            }
        }
    }
    let needs_ports = |kind: Option<&str>| matches!(kind, Some("NodePort" | "LoadBalancer"));
    let (was, is) = (old["spec"]["type"].as_str(), spec.get("type").and_then(Value::as_str));
    let (needed, needs) = (needs_ports(was), needs_ports(is));
    let same_entry = |a: &Value, b: &Value| a["port"] == b["port"] && a["protocol"] == b["protocol"];
    let old_ports = old["spec"]["ports"].as_array().cloned().unwrap_or_default();
    for port in spec
        .get_mut("ports")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        let before = old_ports
            .iter()
            .find(|it| same_entry(it, port))
            .and_then(|it| it["nodePort"].as_u64());
        let own = port["nodePort"].as_u64().filter(|it| *it > 0);
        match (own, before) {
            (None, Some(before)) if needed && needs => port["nodePort"] = json!(before),
            (Some(own), Some(before)) if own == before && needed && !needs => {
                port.as_object_mut().and_then(|port| port.remove("nodePort"));
            }
            _ => {}
        }
    }
    let checked = |kind: Option<&str>, policy: Option<&str>| kind == Some("LoadBalancer") && policy == Some("Local");
    let was = checked(was, old["spec"]["externalTrafficPolicy"].as_str());
    let policy = spec.get("externalTrafficPolicy").and_then(Value::as_str);
    let is = checked(spec.get("type").and_then(Value::as_str), policy);
    let before = &old["spec"]["healthCheckNodePort"];
    let own = spec
        .get("healthCheckNodePort")
        .and_then(Value::as_u64)
        .filter(|it| *it > 0);
    if was && is && own.is_none() && !before.is_null() {
        spec.insert("healthCheckNodePort".to_owned(), before.clone());
    } else if was && !is && spec.get("healthCheckNodePort") == Some(before) {
        spec.remove("healthCheckNodePort");
    }
}

fn size(range: IpNet) -> u128 {
    let bits = range.max_prefix_len() - range.prefix_len();
    // Nobody needs more than 2^64 of them.
    1u128 << u32::from(bits).min(64)
}

/// Address number `n` of a range.
fn nth(range: IpNet, n: u128) -> IpAddr {
    match range.network() {
        IpAddr::V4(first) => Ipv4Addr::from(u32::from(first).wrapping_add(n as u32)).into(),
        IpAddr::V6(first) => Ipv6Addr::from(u128::from(first).wrapping_add(n)).into(),
    }
}

/// All but the first address (the network's) and, in IPv4, the last (its broadcast).
fn usable(range: IpNet, address: IpAddr) -> bool {
    range.contains(&address)
        && address != range.network()
        && !(address.is_ipv4() && address == range.broadcast() && size(range) > 2)
}

/// Random tries before a range is searched in order: enough until it is nearly full.
const GUESSES: usize = 32;

/// A free address: above the reserved lower band at random, then in order, then in the band.
fn free_address(range: IpNet, taken: &Taken) -> Option<IpAddr> {
    let size = size(range);
    let band = reserved(size, 16, 16, 256);
    let free = |n: u128| {
        let address = nth(range, n);
        (usable(range, address) && !taken.addresses.contains_key(&address)).then_some(address)
    };
    let mut rng = rand::rng();
    if band + 1 < size {
        for _ in 0..GUESSES {
            if let Some(address) = free(rng.random_range(band + 1..size)) {
                return Some(address);
            }
        }
    }
    // A range that is full cannot hold more than what is taken: the search ends.
    let most = taken.addresses.len() as u128 + 2;
    let upper = (band + 1..size).take(usize::try_from(most).unwrap_or(usize::MAX));
    upper.chain(1..=band).find_map(free)
}

/// A free port: above the reserved lower band at random, then in order, then in the band.
fn free_port((low, high): (u16, u16), taken: &Taken) -> Option<u16> {
    let size = u128::from(high - low) + 1;
    let band = reserved(size, 32, 16, 128) as u16;
    let free = |port: u16| (!taken.ports.contains_key(&port)).then_some(port);
    let mut rng = rand::rng();
    for _ in 0..GUESSES {
        if let Some(port) = free(rng.random_range(low + band..=high)) {
            return Some(port);
        }
    }
    (low + band..=high).chain(low..low + band).find_map(free)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fairlead_schema::Registry;

    fn services() -> Services {
        Services::new(
            vec!["10.96.0.0/16".parse().unwrap(), "fd00:96::/112".parse().unwrap()],
            (30000, 32767),
        )
    }

    #[expect(clippy::needless_pass_by_value, reason = "called with literals")]
    fn service(name: &str, spec: Value) -> Value {
        json!({ "metadata": { "namespace": "default", "name": name }, "spec": spec })
    }

    fn allocate(services: &Services, old: Option<&Value>, mut new: Value) -> Result<Value> {
        if let Some(old) = old {
            carry_over(old, &mut new);
        }
        let registry = Registry::builtin();
        let resource = registry.resource("", "v1", "services").unwrap();
        services.allocate(resource, &mut new)?.keep();
        Ok(new)
    }

    #[test]
    fn a_plain_service_gets_one_address_of_the_default_family() {
        let services = services();
        let made = allocate(
            &services,
            None,
            service("a", json!({ "type": "ClusterIP", "selector": { "a": "b" } })),
        )
        .unwrap();
        let address: IpAddr = made["spec"]["clusterIP"].as_str().unwrap().parse().unwrap();
        assert!(services.ranges[0].contains(&address));
        assert_eq!(made["spec"]["clusterIPs"], json!([address.to_string()]));
        assert_eq!(made["spec"]["ipFamilies"], json!(["IPv4"]));
        assert_eq!(made["spec"]["ipFamilyPolicy"], "SingleStack");
    }

    #[test]
    fn families_headless_and_external_names() {
        let services = services();
        let dual = allocate(
            &services,
            None,
            service("d", json!({ "ipFamilyPolicy": "PreferDualStack" })),
        )
        .unwrap();
        assert_eq!(dual["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
        assert_eq!(dual["spec"]["clusterIPs"].as_array().unwrap().len(), 2);
        let six = allocate(&services, None, service("s", json!({ "ipFamilies": ["IPv6"] }))).unwrap();
        assert!(six["spec"]["clusterIP"].as_str().unwrap().starts_with("fd00:96::"));
        let headless = allocate(
            &services,
            None,
            service("h", json!({ "clusterIP": "None", "selector": { "a": "b" } })),
        )
        .unwrap();
        assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
        let external = allocate(&services, None, service("e", json!({ "type": "ExternalName" }))).unwrap();
        assert!(external["spec"].get("clusterIP").is_none());
    }

    #[test]
    fn what_is_taken_or_out_of_range_is_refused_by_name() {
        let services = services();
        let fixed =
            json!({ "clusterIP": "10.96.0.10", "type": "NodePort", "ports": [{ "port": 80, "nodePort": 30080 }] });
        allocate(&services, None, service("a", fixed.clone())).unwrap();
        let twice = allocate(&services, None, service("b", fixed)).unwrap_err();
        assert!(
            twice
                .message
                .contains("failed to allocate IP 10.96.0.10: provided IP is already allocated"),
            "{twice}"
        );
        let spec = json!({ "type": "NodePort", "ports": [{ "port": 80, "nodePort": 30080 }] });
        let port = allocate(&services, None, service("b", spec)).unwrap_err();
        assert_eq!(port.details.causes[0].field, "spec.ports[0].nodePort");
        assert!(port.message.contains("provided port is already allocated"), "{port}");
        for spec in [
            json!({ "clusterIP": "10.97.0.1" }),
            json!({ "clusterIP": "10.96.0.0" }),
            json!({ "clusterIP": "10.96.255.255" }),
        ] {
            let outside = allocate(&services, None, service("c", spec)).unwrap_err();
            assert!(outside.message.contains("not in the valid range"), "{outside}");
        }
        let spec = json!({ "type": "NodePort", "ports": [{ "port": 80, "nodePort": 80 }] });
        assert!(allocate(&services, None, service("c", spec)).is_err());
    }

    #[test]
    fn what_is_not_stored_is_given_back_and_what_is_released_can_be_taken() {
        let services = services();
        let spec =
            json!({ "clusterIP": "10.96.0.10", "type": "NodePort", "ports": [{ "port": 80, "nodePort": 30080 }] });
        let registry = Registry::builtin();
        let resource = registry.resource("", "v1", "services").unwrap();
        let mut new = service("a", spec.clone());
        drop(services.allocate(resource, &mut new).unwrap());
        let b = allocate(&services, None, service("b", spec.clone())).unwrap();
        services.release(&b);
        allocate(&services, None, service("c", spec)).unwrap();
    }

    #[test]
    fn a_request_that_fails_takes_nothing_from_one_that_did_not() {
        let services = services();
        let spec =
            json!({ "clusterIP": "10.96.0.10", "type": "NodePort", "ports": [{ "port": 80, "nodePort": 30080 }] });
        let registry = Registry::builtin();
        let resource = registry.resource("", "v1", "services").unwrap();
        let (mut first, mut second) = (service("a", spec.clone()), service("a", spec.clone()));
        let slow = services.allocate(resource, &mut first).unwrap();
        services.allocate(resource, &mut second).unwrap().keep();
        drop(slow);
        assert!(
            allocate(&services, None, service("b", spec.clone())).is_err(),
            "still that of a"
        );
        // A deletion that is told late takes nothing from a request on its way.
        let again = services.allocate(resource, &mut first).unwrap();
        services.release(&second);
        assert!(
            allocate(&services, None, service("b", spec.clone())).is_err(),
            "about to be that of a"
        );
        drop(again);
        allocate(&services, None, service("b", spec)).unwrap();
    }

    #[test]
    fn updates_keep_what_they_do_not_mention() {
        let services = services();
        let ports =
            json!([{ "name": "a", "port": 80, "protocol": "TCP" }, { "name": "b", "port": 80, "protocol": "UDP" }]);
        let old = allocate(
            &services,
            None,
            service("a", json!({ "type": "NodePort", "ports": ports })),
        )
        .unwrap();
        let port = old["spec"]["ports"][0]["nodePort"].as_u64().unwrap();
        assert_eq!(old["spec"]["ports"][1]["nodePort"], json!(port));
        let new = allocate(
            &services,
            Some(&old),
            service("a", json!({ "type": "NodePort", "ports": ports })),
        )
        .unwrap();
        assert_eq!(new["spec"], old["spec"]);
        let mut smaller = old.clone();
        smaller["spec"]["type"] = json!("ClusterIP");
        let smaller = allocate(&services, Some(&old), smaller).unwrap();
        services.release_difference(&old, &smaller);
        assert!(smaller["spec"]["ports"][0].get("nodePort").is_none());
        assert_eq!(smaller["spec"]["clusterIP"], old["spec"]["clusterIP"]);
        let spec = json!({ "type": "NodePort", "ports": [{ "port": 80, "nodePort": port }] });
        allocate(&services, None, service("b", spec)).unwrap();
        let mut external = smaller.clone();
        external["spec"]["type"] = json!("ExternalName");
        let external = allocate(&services, Some(&smaller), external).unwrap();
        services.release_difference(&smaller, &external);
        assert!(external["spec"].get("clusterIP").is_none());
        let address = smaller["spec"]["clusterIP"].clone();
        allocate(&services, None, service("c", json!({ "clusterIP": address }))).unwrap();
    }

    #[test]
    fn the_start_finds_double_claims() {
        let services = services();
        let a = service(
            "a",
            json!({ "clusterIPs": ["10.96.0.10"], "ports": [{ "port": 1, "nodePort": 30001 }] }),
        );
        let b = service(
            "b",
            json!({ "clusterIPs": ["10.96.0.10"], "ports": [{ "port": 1, "nodePort": 30001 }] }),
        );
        let c = service("c", json!({ "clusterIPs": ["192.0.2.1"] }));
        assert_eq!(services.load([&a, &b, &c]).len(), 3);
        assert_eq!(services.load([&a]).len(), 0);
        assert!(allocate(&services, None, service("d", json!({ "clusterIP": "10.96.0.10" }))).is_err());
    }

    #[test]
    fn a_full_range_says_so() {
        let services = Services::new(vec!["10.96.0.0/29".parse().unwrap()], (30000, 30001));
        for n in 0..6 {
            allocate(&services, None, service(&format!("s{n}"), json!({}))).unwrap();
        }
        let full = allocate(&services, None, service("x", json!({}))).unwrap_err();
        assert!(full.message.contains("range 10.96.0.0/29 is full"), "{full}");
        for n in 0..2 {
            let spec = json!({ "type": "NodePort", "clusterIP": "None", "ports": [{ "port": 80 }] });
            allocate(&services, None, service(&format!("p{n}"), spec)).unwrap();
        }
        let spec = json!({ "type": "NodePort", "clusterIP": "None", "ports": [{ "port": 80 }] });
        assert!(
            allocate(&services, None, service("y", spec))
                .unwrap_err()
                .message
                .contains("range is full")
        );
    }
}
