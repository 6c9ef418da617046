//! The node IPAM controller: `spec.podCIDRs` of every node, from the cluster's ranges.

use super::cidr::{Ranges, Refused};
use crate::frame::{Cache, Controller, Fault, Frame, Key, Next, Outcome, Recorder};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use std::sync::{Arc, Mutex, PoisonError};

const NAME: &str = "node-ipam-controller";
const IDENTITY: &str = "node-controller";

struct Subnets {
    client: Client,
    recorder: Recorder,
    nodes: Arc<Cache<Node>>,
    ranges: Mutex<Option<Ranges>>,
    empty: Ranges,
}

/// `spec.podCIDRs`, or the one in `spec.podCIDR`; what is no subnet is left out.
fn subnets(node: &Node) -> Vec<IpNet> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let many: Vec<_> = spec
        .pod_cidrs
        .iter()
        .flatten()
        .filter_map(|it| it.parse().ok())
        .collect();
    if many.is_empty() {
        return spec.pod_cidr.iter().filter_map(|it| it.parse().ok()).collect();
    }
    many
}

pub(crate) fn controller(frame: &Arc<Frame>) -> Controller {
    let config = &frame.config.cluster;
    let ranges = Ranges::new(&config.cluster_cidrs, config.node_mask_v4, config.node_mask_v6);
    let empty = ranges.unwrap_or_else(|fault| {
        tracing::error!(
            fault,
            "--cluster-cidr, --node-cidr-mask-size-*: nodes get no subnets from us"
        );
        Ranges::default()
    });
    let this = Arc::new(Subnets {
        client: frame.client(IDENTITY),
        recorder: frame.recorder(IDENTITY),
        nodes: frame.cache(),
        ranges: Mutex::new(None),
        empty,
    });
    let nodes = Arc::clone(&this.nodes);
    Controller::new(NAME, 4, move |key: Key| {
        let this = Arc::clone(&this);
        async move { this.reconcile(&key).await }
    })
    .on_own(&nodes)
}

impl Subnets {
    /// Works on what is given out. The first time, everything that nodes have is noted before anything is given: the
    /// oldest node keeps what several claim.
    fn with<T>(&self, work: impl FnOnce(&mut Ranges) -> T) -> T {
        let mut ranges = self.ranges.lock().unwrap_or_else(PoisonError::into_inner);
        let ranges = ranges.get_or_insert_with(|| {
            let mut ranges = self.empty.clone();
            let mut nodes = self.nodes.all();
            nodes.sort_by_key(|it| it.metadata.creation_timestamp.clone());
            for node in nodes {
                let name = node.metadata.name.as_deref().unwrap_or_default();
                ranges.occupy(&subnets(&node), name);
            }
            ranges
        });
        work(ranges)
    }

    async fn reconcile(&self, key: &Key) -> Outcome {
        if self.empty.is_empty() {
            return Ok(Next::Change);
        }
        let Some(node) = self.nodes.get("", &key.name) else {
            self.with(|it| it.release(&key.name));
            return Ok(Next::Change);
        };
        let own = subnets(&node);
        if !own.is_empty() {
            let refused = self.with(|it| {
                it.release(&key.name);
                it.occupy(&own, &key.name)
            });
            for fault in refused {
                match fault {
                    Refused::Foreign(_) => tracing::debug!(node = %key, %fault, "a subnet that is not from us"),
                    // It cannot be changed once it is set, so somebody has to decide.
                    _ => self.recorder.warning(&*node, "CIDRConflict", fault.to_string()),
                }
            }
            return Ok(Next::Change);
        }
        if node.metadata.deletion_timestamp.is_some() {
            return Ok(Next::Change);
        }
        let given = match self.with(|it| it.allocate(&key.name)) {
            Ok(given) => given,
            Err(fault) => {
                self.recorder.warning(
                    &*node,
                    "CIDRNotAvailable",
                    format!("Node {key} gets no subnet: {fault}"),
                );
                return Err(Fault::Other(format!("node {key} gets no subnet: {fault}")));
            }
        };
        let given: Vec<String> = given.iter().map(IpNet::to_string).collect();
        let patch = json!({
            "metadata": { "uid": node.metadata.uid }, "spec": { "podCIDR": given.first(), "podCIDRs": given },
        });
        let api: Api<Node> = Api::all(self.client.clone());
        // If the answer is lost the subnets stay the node's: the next try gives it the same.
        let patched = api
            .patch(&key.name, &PatchParams::default(), &Patch::Merge(&patch))
            .await;
        patched.map_err(|error| Fault::api(format!("give subnets to node {key}"), error))?;
        tracing::info!(node = %key, subnets = ?given, "the node has subnets");
        Ok(Next::Change)
    }
}
