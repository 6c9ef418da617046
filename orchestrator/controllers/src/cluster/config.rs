//! What the controllers of the cluster are told.

use ipnet::IpNet;
use std::{fmt, time::Duration};

/// What these controllers are told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Certificate in PEM by which pods know the API server: the ConfigMap `kube-root-ca.crt`. Empty: not published.
    pub root_ca_pem: String,
    /// The CA that signs CertificateSigningRequests; without it none is signed.
    pub authority: Option<AuthorityPem>,
    /// Ranges that nodes get their pods' subnets from, at most one per family; empty: nodes get none from us.
    pub cluster_cidrs: Vec<IpNet>,
    /// Prefix length of a node's IPv4 subnet. Source: upstream's `--node-cidr-mask-size-ipv4`.
    pub node_mask_v4: u8,
    /// Prefix length of a node's IPv6 subnet. Source: upstream's `--node-cidr-mask-size-ipv6`.
    pub node_mask_v6: u8,
    /// Where addresses of Services of type LoadBalancer come from.
    pub load_balancers: AddressPool,
    /// Most endpoints in one EndpointSlice.
    pub endpoints_per_slice: usize,
    /// How long a node may be silent before it counts as unknown.
    pub node_grace: Duration,
    /// How long a new node may take for its first word.
    pub node_startup_grace: Duration,
    /// Nodes per second and zone that get a `NoExecute` taint while most nodes of the zone are well.
    pub eviction_rate: f64,
    /// The same while 55 % or more of a zone of more than [`Config::large_zone`] nodes are not well.
    pub secondary_eviction_rate: f64,
    /// Nodes up to which a zone counts as small: nothing is evicted there while most of it is not well.
    pub large_zone: usize,
    /// Pods that have ended and are kept for their logs; the oldest beyond that are deleted.
    pub terminated_pods: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root_ca_pem: String::new(),
            authority: None,
            cluster_cidrs: Vec::new(),
            node_mask_v4: 24,
            node_mask_v6: 64,
            load_balancers: AddressPool::None,
            endpoints_per_slice: super::endpoints::MAX_PER_SLICE,
            node_grace: Duration::from_secs(40),
            node_startup_grace: Duration::from_secs(60),
            eviction_rate: 0.1,
            secondary_eviction_rate: 0.01,
            large_zone: 50,
            terminated_pods: 12_500,
        }
    }
}

/// Certificate and key of a CA. Debug output shows no key.
#[derive(Clone)]
pub struct AuthorityPem {
    /// The certificate.
    pub certificate: String,
    /// Its private key, PKCS #8.
    pub key: String,
}

impl fmt::Debug for AuthorityPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthorityPem").finish_non_exhaustive()
    }
}

/// Where addresses of Services of type LoadBalancer come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AddressPool {
    /// Somebody else gives them.
    #[default]
    None,
    /// One address of these ranges per Service and family.
    Ranges(Vec<IpNet>),
    /// The addresses of all nodes, for every Service: two of them cannot use the same port.
    Nodes,
}
