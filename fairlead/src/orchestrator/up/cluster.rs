//! The parts that exist once in a cluster: API server, scheduler, controllers, and the objects that every cluster of ours has.

use super::{
    dns_endpoints,
    parts::{self, Parts},
    progress::Progress,
};
use crate::orchestrator::{apiserver::Server, flags::ClusterArgs};
use anyhow::{Context as _, Result, bail};
use fairlead_apiserver::{authn::User, core::ApiServer, inside::Inside};
use fairlead_controllers::{SHARED, cluster as settings};
use http::Method;
use ipnet::IpNet;
use kube::Client;
use serde_json::{Value, json};
use std::{fs, net::IpAddr, sync::Arc, time::Instant};
use tokio_util::sync::CancellationToken;

/// Offset of the cluster DNS's address in the range of ClusterIPs, as every distribution has it.
const DNS_OFFSET: u128 = 10;
/// The cluster DNS Service; its name is what clients and charts look for.
pub(crate) const DNS_SERVICE: &str = "kube-dns";
/// Port on which each node's DNS listens: 53 of a node may be somebody else's.
pub(crate) const DNS_PORT: u16 = 10053;

/// The running parts.
pub(crate) struct Cluster {
    server: Server,
    stop: CancellationToken,
    tasks: Parts,
}

impl Cluster {
    /// Starts them.
    ///
    /// # Errors
    /// What keeps the API server from starting.
    pub(crate) async fn start(args: &ClusterArgs, progress: Progress) -> Result<Self> {
        let since = Instant::now();
        check(args)?;
        let server = Server::start(&args.api).await?;
        let api = Arc::clone(&server.running.server);
        add_dns(&api, args).await?;
        progress.done("API server", since, &server.url);

        let since = Instant::now();
        let stop = CancellationToken::new();
        let scheduler = client(&api, User::authenticated("system:kube-scheduler", NOBODYS));
        let scheduler = fairlead_scheduler::run(fairlead_scheduler::Config::default(), scheduler, stop.child_token());
        let config = controllers(args, &server)?;
        let clients = {
            let api = Arc::clone(&api);
            Arc::new(move |name: &str| {
                let user = match name {
                    SHARED => User::authenticated("system:kube-controller-manager", NOBODYS),
                    name => User::service_account("kube-system", name, ""),
                };
                client(&api, user)
            })
        };
        let controllers = fairlead_controllers::run(config, clients, stop.child_token());
        let itself = Client::new(api.itself(), "default");
        let dns = dns_endpoints::run(itself, stop.child_token());
        let tasks = vec![
            ("scheduler", tokio::spawn(scheduler)),
            ("controllers", tokio::spawn(controllers)),
            ("endpoints of the cluster DNS", tokio::spawn(dns)),
        ];
        progress.done("control plane", since, "scheduler, controllers");
        Ok(Self { server, stop, tasks })
    }

    /// A client for one user, without a socket.
    pub(crate) fn client(&self, user: User) -> Client {
        client(&self.server.running.server, user)
    }

    /// The API server.
    pub(crate) fn server(&self) -> &Server {
        &self.server
    }

    /// Waits until a part ends by itself, which none should.
    pub(crate) async fn ended(&mut self) -> anyhow::Error {
        parts::ended(&mut self.tasks).await
    }

    /// Ends controllers and scheduler, then the API server.
    ///
    /// # Errors
    /// The store cannot be closed.
    pub(crate) async fn stop(self) -> Result<()> {
        self.stop.cancel();
        parts::finish(self.tasks).await;
        self.server.stop().await
    }
}

/// No groups but those that everybody is in.
const NOBODYS: [&str; 0] = [];

fn client(api: &Arc<ApiServer>, user: User) -> Client {
    Client::new(Inside::new(Arc::clone(api), user), "default")
}

/// Ranges that would make a cluster in which packets cannot be told apart.
fn check(args: &ClusterArgs) -> Result<()> {
    let services = &args.api.service_cluster_ip_range;
    let overlap = |a: &IpNet, b: &IpNet| a.contains(&b.network()) || b.contains(&a.network());
    for pods in &args.cluster_cidr {
        if let Some(both) = services.iter().find(|it| overlap(it, pods)) {
            bail!("--cluster-cidr {pods} and --service-cluster-ip-range {both} overlap; change one of them");
        }
        if let Some(both) = args.load_balancer_pool.iter().find(|it| overlap(it, pods)) {
            bail!("--cluster-cidr {pods} and --load-balancer-pool {both} overlap; change one of them");
        }
    }
    Ok(())
}

fn controllers(args: &ClusterArgs, server: &Server) -> Result<fairlead_controllers::Config> {
    let authority = &server.running.pki.authority;
    let key = args.api.data_dir.join("pki/ca.key");
    let key = fs::read_to_string(&key).with_context(|| format!("{} cannot be read", key.display()))?;
    let cluster = settings::Config {
        root_ca_pem: authority.pem().to_owned(),
        authority: Some(settings::AuthorityPem {
            certificate: authority.pem().to_owned(),
            key,
        }),
        cluster_cidrs: args.cluster_cidr.iter().map(IpNet::trunc).collect(),
        load_balancers: match args.load_balancer_pool.as_slice() {
            [] => settings::AddressPool::Nodes,
            ranges => settings::AddressPool::Ranges(ranges.to_vec()),
        },
        ..settings::Config::default()
    };
    Ok(fairlead_controllers::Config {
        cluster,
        ..fairlead_controllers::Config::default()
    })
}

/// Addresses of the cluster DNS, one of each range.
pub(crate) fn dns_addresses(ranges: &[IpNet]) -> Vec<IpAddr> {
    ranges
        .iter()
        .map(|range| match range {
            IpNet::V4(range) => {
                let first = u32::from(range.network());
                IpAddr::V4((first + DNS_OFFSET.min(u128::from(u32::from(range.broadcast()) - first) / 2) as u32).into())
            }
            IpNet::V6(range) => IpAddr::V6((u128::from(range.network()) + DNS_OFFSET).into()),
        })
        .collect()
}

/// Makes the Service of the cluster DNS. Its endpoints are those of `dns_endpoints`.
async fn add_dns(api: &Arc<ApiServer>, args: &ClusterArgs) -> Result<()> {
    let addresses = dns_addresses(&args.api.service_cluster_ip_range);
    let port =
        |name: &str, protocol: &str| json!({"name": name, "protocol": protocol, "port": 53, "targetPort": DNS_PORT});
    let labels = json!({
        "k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS",
    });
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": DNS_SERVICE, "namespace": "kube-system", "labels": labels},
        "spec": {
            "clusterIP": addresses[0], "clusterIPs": addresses,
            "ipFamilyPolicy": if addresses.len() > 1 { "RequireDualStack" } else { "SingleStack" },
            "ports": [port("dns", "UDP"), port("dns-tcp", "TCP")],
            "trafficDistribution": "PreferSameNode",
        },
    });
    create(api, "/api/v1/namespaces/kube-system/services", &service).await
}

/// Makes an object unless there is one of its name.
async fn create(api: &Arc<ApiServer>, path: &str, object: &Value) -> Result<()> {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let itself = api.itself();
    let (code, _) = itself
        .request(Method::GET, &format!("{path}/{name}"), "application/json", None)
        .await;
    if code == 200 {
        return Ok(());
    }
    let (code, answer) = itself
        .request(Method::POST, path, "application/json", Some(object))
        .await;
    match code {
        201 | 409 => Ok(()),
        _ => bail!(
            "{path}/{name} cannot be made: {code} {}",
            answer["message"].as_str().unwrap_or_default()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dns_has_the_usual_address() {
        let ranges: Vec<IpNet> = ["10.96.0.0/16", "fd00:1::/112"]
            .iter()
            .map(|it| it.parse().unwrap())
            .collect();
        let expected: Vec<IpAddr> = ["10.96.0.10", "fd00:1::a"]
            .iter()
            .map(|it| it.parse().unwrap())
            .collect();
        assert_eq!(dns_addresses(&ranges), expected);
        let small: IpNet = "10.0.0.0/29".parse().unwrap();
        assert!(small.contains(&dns_addresses(&[small])[0]));
    }
}
