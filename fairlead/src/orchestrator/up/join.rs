//! `fairlead agent`: a node of a cluster whose server is elsewhere.
//!
//! The token names the CA by its digest and is good for asking for certificates; with those the node is who it says it is,
//! and the token is needed no more.

mod authority;
mod certificate;

use super::{
    Ends, block_on,
    layout::Layout,
    lock::Lock,
    node::{self, ClusterFacts, Identity, Node, Settings},
    progress::Progress,
    token::Token,
};
use crate::{
    logging,
    orchestrator::{flags::AgentArgs, kubeconfig::write},
    preflight,
};
use anyhow::{Context as _, Result, bail};
use authority::Server;
use certificate::{Kind, Pair};
use fairlead_kubelet::ServingTls;
use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use std::{fs, path::Path, time::Instant};

/// Joins and serves, until Ctrl-C.
///
/// # Errors
/// What keeps the node from joining or from going on.
pub(crate) fn main(args: &AgentArgs) -> Result<()> {
    let layout = Layout::make(&args.data_dir, args.node.run_dir.as_deref())?;
    logging::start_to_file(&layout.log().join("fairlead.log"), args.log_format, &args.log_level)?;
    preflight::check_capabilities()?;
    let _lock = Lock::take(&layout)?;
    let facts = ClusterFacts {
        pods: args.cluster_cidr.clone(),
        services: args.service_cluster_ip_range.clone(),
        domain: args.cluster_domain.clone(),
    };
    let settings = Settings::resolve(&args.node, layout, facts)?;
    block_on(run(args, &settings))
}

async fn run(args: &AgentArgs, settings: &Settings) -> Result<()> {
    let mut end = Ends::new()?;
    let progress = Progress::new();
    progress.line(format_args!("Joining {} as {}", args.server, settings.name));
    let starting = async {
        let (identity, containers) =
            tokio::try_join!(join(args, settings, progress), node::runtime(settings, progress))?;
        Node::start(settings, identity, &containers, progress).await
    };
    let mut node = tokio::select! {
        started = starting => started?,
        () = end.asked() => return Ok(()),
    };
    progress.total("The node is ready");
    let result = tokio::select! {
        () = end.asked() => Ok(()),
        error = node.ended() => Err(error),
    };
    node.stop().await;
    result
}

/// Certificates of this node: those of the data directory while they are good, else new ones.
async fn join(args: &AgentArgs, settings: &Settings, progress: Progress) -> Result<Identity> {
    let since = Instant::now();
    let directory = settings.layout.data.join("pki");
    fs::create_dir_all(&directory).with_context(|| format!("{} cannot be made", directory.display()))?;
    let token = args.token.as_deref().map(Token::read).transpose()?;
    let authority = directory.join("ca.crt");
    let known = match read(&authority)? {
        Some(pem) => Some(Server::known(&args.server, &pem)?),
        None => None,
    };
    // A token of another cluster: this node leaves the old one.
    let known = known.filter(|it| token.as_ref().is_none_or(|token| token.authority == it.digest()));
    let server = match known {
        Some(server) => server,
        None => {
            let Some(token) = &token else {
                bail!(
                    "--token: this node has not joined yet; give the line that `fairlead token` prints on the server"
                );
            };
            let server = Server::find(&args.server, &token.authority).await?;
            write(&authority, &server.pem)?;
            for old in ["node.crt", "node.key", "kubelet.crt", "kubelet.key"] {
                // Mostly there is none.
                let _ = fs::remove_file(directory.join(old));
            }
            server
        }
    };
    let pair = match Pair::read(&directory.join("node"))? {
        Some(pair) => pair,
        None => {
            let Some(token) = &token else {
                bail!("--token: this node's certificate is missing or has expired; give a token to join again");
            };
            let client = server.client_with_token(&token.bearer)?;
            let pair = certificate::ask(&client, &Kind::Node(&settings.name)).await?;
            pair.write(&directory.join("node"))?;
            pair
        }
    };
    let client = server.client(&pair)?;
    register(&client, settings).await?;
    let kind = Kind::Kubelet(&settings.name, &settings.addresses);
    let serving = match Pair::read(&directory.join("kubelet"))?.filter(|it| it.names(&settings.addresses)) {
        Some(pair) => pair,
        None => {
            let pair = certificate::ask(&client, &kind).await?;
            pair.write(&directory.join("kubelet"))?;
            pair
        }
    };
    progress.done("certificates", since, format_args!("system:node:{}", settings.name));
    Ok(Identity {
        client,
        tls: ServingTls {
            certificates: serving.certificate.into_bytes(),
            key: serving.key.into_bytes(),
            client_ca: server.pem.into_bytes(),
        },
    })
}

/// Makes the Node with its addresses: a serving certificate is signed only for what the Node shows.
async fn register(client: &Client, settings: &Settings) -> Result<()> {
    let nodes: Api<NodeObject> = Api::all(client.clone());
    let name = &settings.name;
    let node: NodeObject = serde_json::from_value(json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
    }))?;
    match nodes.create(&PostParams::default(), &node).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        Err(error) => return Err(error).with_context(|| format!("node {name} cannot be registered")),
    }
    let addresses = settings.addresses.iter();
    let addresses = addresses.map(|it| json!({"type": "InternalIP", "address": it}));
    let host = json!({"type": "Hostname", "address": name});
    let addresses: Vec<_> = addresses.chain([host]).collect();
    let patch = Patch::Merge(json!({"status": {"addresses": addresses}}));
    nodes
        .patch_status(name, &PatchParams::default(), &patch)
        .await
        .with_context(|| format!("addresses of node {name} cannot be written"))?;
    Ok(())
}

/// A file's text, `None` if there is none.
fn read(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("{} cannot be read", path.display())),
    }
}
