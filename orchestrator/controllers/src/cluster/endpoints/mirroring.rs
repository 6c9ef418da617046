//! The mirroring controller: slices of Endpoints that somebody wrote by hand.

use super::{
    FROM_ENDPOINTS,
    desired::Family,
    mirror,
    pack::{self, Meta, Plan},
    slices,
};
use crate::frame::{Cache, Controller, Frame, Key, Next, Outcome, Recorder, Writer, reference};
use k8s_openapi::api::{
    core::v1::{Endpoints, Service},
    discovery::v1::EndpointSlice,
};
use std::sync::Arc;

const NAME: &str = "endpointslicemirroring-controller";
/// Index of slices made from Endpoints: `<namespace>/<service>`.
const BY_SERVICE: &str = "service-from-endpoints";

struct Mirroring {
    writer: Writer,
    recorder: Recorder,
    services: Arc<Cache<Service>>,
    endpoints: Arc<Cache<Endpoints>>,
    slices: Arc<Cache<EndpointSlice>>,
    max: usize,
}

pub(crate) fn controller(frame: &Arc<Frame>) -> Controller {
    let this = Arc::new(Mirroring {
        writer: Writer::new(frame.client(NAME)),
        recorder: frame.recorder(NAME),
        services: frame.cache(),
        endpoints: frame.cache(),
        slices: frame.cache(),
        max: frame.config.cluster.endpoints_per_slice.max(1),
    });
    this.slices.add_index(BY_SERVICE, |it| {
        slices::service_of(it, FROM_ENDPOINTS).map(|key| key.to_string())
    });
    let written = this.writer.written().clone();
    let (services, endpoints, slices) = (
        Arc::clone(&this.services),
        Arc::clone(&this.endpoints),
        Arc::clone(&this.slices),
    );
    Controller::new(NAME, 2, move |key| {
        let this = Arc::clone(&this);
        async move { this.reconcile(&key).await }
    })
    .after(&written)
    .on_own(&services)
    .on_own(&endpoints)
    .on(&slices, |change, queue| {
        for slice in change.sides() {
            slices::service_of(slice, FROM_ENDPOINTS)
                .into_iter()
                .for_each(|key| queue.add(key));
        }
    })
}

impl Mirroring {
    async fn reconcile(&self, key: &Key) -> Outcome {
        let mut existing: Vec<EndpointSlice> = Vec::new();
        for slice in self.slices.indexed(BY_SERVICE, &key.to_string()) {
            if slice.metadata.deletion_timestamp.is_none() {
                existing.push((*slice).clone());
            }
        }
        let service = self.services.get(&key.namespace, &key.name);
        let endpoints = self.endpoints.get(&key.namespace, &key.name);
        let source = service
            .zip(endpoints)
            .filter(|(service, endpoints)| mirror::is_mirrored(service, endpoints));
        let plan = match source {
            None => Plan {
                delete: existing,
                ..Plan::default()
            },
            Some((service, endpoints)) => self.plan(key, &service, &endpoints, existing),
        };
        slices::write(&self.writer, key, &self.slices, plan).await?;
        Ok(Next::Change)
    }

    fn plan(&self, key: &Key, service: &Service, endpoints: &Endpoints, existing: Vec<EndpointSlice>) -> Plan {
        let (mut wanted, left_out) = mirror::desired(endpoints);
        for one in left_out {
            self.recorder.warning(endpoints, "SkippedEndpoints", one.to_string());
        }
        let meta = Meta {
            namespace: key.namespace.to_string(),
            base_name: key.name.to_string(),
            owner: reference(endpoints),
            labels: mirror::labels(service, endpoints),
            annotations: mirror::annotations(endpoints),
            max: self.max,
        };
        let families = [Family::V4, Family::V6];
        let (mut mine, foreign) = pack::by_family(existing, &families);
        let mut plan = Plan {
            delete: foreign,
            ..Plan::default()
        };
        for family in families {
            let wanted = wanted.remove(&family).unwrap_or_default();
            let existing = mine.remove(&family).unwrap_or_default();
            let part = pack::pack(&meta, family, wanted, &existing, false);
            plan.create.extend(part.create);
            plan.update.extend(part.update);
            plan.delete.extend(part.delete);
        }
        plan
    }
}
