//! Any JSON as each API object: conversions neither panic nor let through what they promise to keep out.
#![no_main]

use k8s_openapi::api::{core::v1, discovery};
use libfuzzer_sys::fuzz_target;
use proxy::model::{Converted, EndpointSlice, Interner, Node, Service};

fuzz_target!(|bytes: &[u8]| {
    let mut strings = Interner::default();
    if let Ok(api) = serde_json::from_slice::<v1::Service>(bytes) {
        if let (Converted::Ours(service), _) = Service::from_api(&api, &mut strings) {
            let all = [service.cluster_ips, service.external_ips, service.load_balancer_ips].concat();
            assert!(
                all.iter()
                    .all(|ip| !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast())
            );
        }
    }
    if let Ok(api) = serde_json::from_slice::<discovery::v1::EndpointSlice>(bytes) {
        if let (Converted::Ours(slice), _) = EndpointSlice::from_api(&api, &mut strings) {
            assert!(slice.endpoints.len() <= 1000 && slice.ports.len() <= 100);
            assert!(slice.endpoints.iter().all(|endpoint| !endpoint.addr.is_loopback()));
        }
    }
    if let Ok(api) = serde_json::from_slice::<v1::Node>(bytes) {
        Node::from_api(&api, &mut strings);
    }
});
