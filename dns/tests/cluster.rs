//! A real API server in this process: names follow its objects, through churn and through watches that fall silent.

mod support;

use fairlead_apiserver::{
    Inside, Settings,
    authn::User,
    open::{Running as ApiServer, Start},
};
use fairlead_dns::{Source, corefile::default_corefile};
use fairlead_store::testing::EtcdDouble;
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{
        RData, Record,
        RecordType::{A, PTR, SRV},
    },
};
use http::Method;
use serde_json::{Value, json};
use std::sync::Arc;
use support::{Running, page};
use tempfile::TempDir;

struct Cluster {
    _directory: TempDir,
    api: ApiServer,
}

impl Cluster {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let start = Start::new(directory.path().to_owned(), listener.local_addr().unwrap().port());
        let api = ApiServer::start(Arc::new(EtcdDouble::new()), Settings::default(), &start, listener)
            .await
            .unwrap();
        Self {
            _directory: directory,
            api,
        }
    }

    fn inside(&self) -> Inside {
        Inside::new(
            Arc::clone(&self.api.server),
            User::authenticated("admin", ["system:masters"]),
        )
    }

    fn client(&self) -> kube::Client {
        kube::Client::new(self.inside(), "default")
    }

    async fn send(&self, method: Method, path: &str, object: Option<&Value>) {
        let (code, answer) = self
            .inside()
            .request(method.clone(), path, "application/json", object)
            .await;
        assert!(code < 300, "{method} {path}: {code} {answer}");
    }

    async fn service(&self, name: &str, spec: Value) {
        let object = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec});
        self.send(Method::POST, "/api/v1/namespaces/default/services", Some(&object))
            .await;
    }

    async fn slice(&self, name: &str, owner: &str, addresses: &[String]) {
        let endpoints: Vec<Value> = addresses
            .iter()
            .map(|it| json!({"addresses": [it], "conditions": {"ready": true}}))
            .collect();
        let object = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": owner}},
            "ports": [{"name": "p", "port": 80, "protocol": "TCP"}], "endpoints": endpoints});
        self.send(
            Method::POST,
            "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices",
            Some(&object),
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_follow_the_objects_of_an_api_server() {
    let cluster = Cluster::start().await;
    let text = default_corefile("cluster.local").replace("lameduck 5s", "lameduck 0s");
    let server = Running::start(Source::Text(text), cluster.client()).await;
    // The API server's own Service.
    server
        .until("kubernetes.default.svc.cluster.local", A, "NOERROR A 10.96.0.1;")
        .await;
    let ready = page(server.bound.ready.unwrap(), "/ready").await;
    assert_eq!(ready, (200, "OK".to_owned()));
    assert_eq!(page(server.bound.health.unwrap(), "/health").await.0, 200);
    assert_eq!(
        server.tell("1.0.96.10.in-addr.arpa", PTR).await,
        "NOERROR PTR kubernetes.default.svc.cluster.local.;"
    );
    cluster
        .service("db", json!({"clusterIP": "None", "ports": [{"name": "p", "port": 80}]}))
        .await;
    // Churn: slices come and go; what is left in the end is what names tell.
    for round in 0..20 {
        let address = format!("10.1.0.{round}");
        cluster.slice(&format!("db-{round}"), "db", &[address]).await;
        if round % 2 == 1 {
            let path = format!(
                "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/db-{}",
                round - 1
            );
            cluster.send(Method::DELETE, &path, None).await;
        }
    }
    let mut addresses: Vec<String> = (0..10).map(|it| format!(" A 10.1.0.{}", it * 2 + 1)).collect();
    addresses.sort();
    server
        .until(
            "db.default.svc.cluster.local",
            A,
            &format!("NOERROR{};", addresses.join(";")),
        )
        .await;
    // Ten records with their targets are more than 512 bytes.
    let srv = server.ask("_p._tcp.db.default.svc.cluster.local", SRV).await;
    assert!(srv.metadata.truncation && srv.answers.len() > 5);
    cluster
        .send(Method::DELETE, "/api/v1/namespaces/default/services/db", None)
        .await;
    server.until("db.default.svc.cluster.local", A, "NXDOMAIN -").await;
    let (_, text) = page(server.bound.metrics.unwrap(), "/metrics").await;
    assert!(
        text.contains("fairlead_dns_watch_age_seconds{resource=\"services\"} "),
        "{text}"
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dig_reads_the_answers() {
    let cluster = Cluster::start().await;
    let text = ". {\n kubernetes cluster.local in-addr.arpa {\n pods insecure\n ttl 30\n }\n}".to_owned();
    let server = Running::start(Source::Text(text), cluster.client()).await;
    server
        .until("kubernetes.default.svc.cluster.local", A, "NOERROR A 10.96.0.1;")
        .await;
    let address = server.bound.dns[0];
    let dig = async |arguments: &str| {
        let mut command = tokio::process::Command::new("dig");
        command
            .arg(format!("@{}", address.ip()))
            .arg("-p")
            .arg(address.port().to_string())
            .args(["+nostats", "+tries=1"]);
        let output = command.args(arguments.split(' ')).output().await;
        output.map(|output| String::from_utf8(output.stdout).unwrap())
    };
    let Ok(answer) = dig("+short kubernetes.default.svc.cluster.local").await else {
        eprintln!("SKIPPED: dig is not installed (Debian: bind9-dnsutils)");
        server.stop().await;
        return;
    };
    assert_eq!(answer, "10.96.0.1\n");
    // The search path of a pod: five dots or the list first.
    let search = "+short +search +ndots=5 +domain=svc.cluster.local kubernetes.default";
    assert_eq!(dig(search).await.unwrap(), "10.96.0.1\n");
    assert_eq!(
        dig("+short +tcp -t SRV _https._tcp.kubernetes.default.svc.cluster.local")
            .await
            .unwrap(),
        "0 100 443 kubernetes.default.svc.cluster.local.\n"
    );
    let whole = dig("+dnssec +qr kubernetes.default.svc.cluster.local AAAA")
        .await
        .unwrap();
    assert!(
        !whole.contains("malformed") && !whole.contains("Warning") && whole.contains("status: NOERROR"),
        "{whole}"
    );
    assert!(
        dig("+short +tcp +keepopen -x 10.96.0.1")
            .await
            .unwrap()
            .starts_with("kubernetes.default.svc")
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn aliases_to_the_outside_are_followed_by_the_upstream() {
    let cluster = Cluster::start().await;
    let upstream = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let text = format!(
        ". {{\n kubernetes cluster.local in-addr.arpa {{\n fallthrough in-addr.arpa\n }}\n forward . {}\n cache\n}}",
        upstream.local_addr().unwrap()
    );
    // Knows one name; everything else does not exist.
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        loop {
            let (length, peer) = upstream.recv_from(&mut buffer).await.unwrap();
            let query = Message::from_vec(&buffer[..length]).unwrap();
            let mut answer = query.clone().into_response();
            let name = query.queries[0].name().clone();
            if name.to_string() == "known.example." {
                let address = RData::A(std::net::Ipv4Addr::new(192, 0, 2, 1).into());
                answer.answers.push(Record::from_rdata(name, 300, address));
            } else {
                answer.metadata.response_code = ResponseCode::NXDomain;
            }
            upstream.send_to(&answer.to_vec().unwrap(), peer).await.unwrap();
        }
    });
    let server = Running::start(Source::Text(text), cluster.client()).await;
    let external = |name: &str| json!({"type": "ExternalName", "externalName": name});
    cluster.service("outside", external("known.example")).await;
    cluster.service("lost", external("absent.example")).await;
    cluster
        .service("twice", external("outside.default.svc.cluster.local"))
        .await;
    let known = "NOERROR A 192.0.2.1; CNAME known.example.;";
    server.until("outside.default.svc.cluster.local", A, known).await;
    let answer = server.ask("outside.default.svc.cluster.local", A).await;
    assert_eq!(answer.answers[1].name.to_string().to_lowercase(), "known.example.");
    let lost = "NXDOMAIN CNAME absent.example.;";
    server.until("lost.default.svc.cluster.local", A, lost).await;
    let twice = "NOERROR A 192.0.2.1; CNAME known.example.; CNAME outside.default.svc.cluster.local.;";
    server.until("twice.default.svc.cluster.local", A, twice).await;
    // Reverse names that are not the cluster's are the upstream's.
    assert_eq!(server.tell("1.2.0.192.in-addr.arpa", PTR).await, "NXDOMAIN");
    server.stop().await;
}

/// An API server of the test whose lists are empty and whose watches never say a word.
mod silent {
    use super::*;
    use fairlead_dns::{metrics::Metrics, watch, zone::store::Options};
    use http::{Request, Response};
    use http_body::Frame;
    use std::{
        convert::Infallible,
        pin::Pin,
        sync::atomic::{AtomicUsize, Ordering},
        task::{Context, Poll},
        time::Duration,
    };
    use tokio_util::sync::CancellationToken;

    #[tokio::test(start_paused = true)]
    async fn a_silent_watch_is_resumed_and_at_last_reported() {
        let watches = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&watches);
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let watching = request.uri().query().unwrap_or_default().contains("watch=true");
            let count = if watching {
                counted.fetch_add(1, Ordering::SeqCst)
            } else {
                0
            };
            async move {
                let list = json!({"metadata": {"resourceVersion": "7"}, "items": []}).to_string();
                // The first watches open and stay silent; later ones do not even open.
                if watching && count >= 3 {
                    std::future::pending::<()>().await;
                }
                let body = if watching { Said(None) } else { Said(Some(list.into())) };
                Ok::<_, Infallible>(Response::new(body))
            }
        });
        let client = kube::Client::new(service, "default");
        let stop = CancellationToken::new();
        let (zone, state) = watch::start(&client, &Options::default(), &Arc::new(Metrics::new()), &stop);
        assert_eq!(state.complaints().len(), 3, "nothing has been read");
        assert!(state.synced().await && zone.is_ready());
        tokio::time::sleep(Duration::from_secs(140)).await;
        assert_eq!((state.complaints(), watches.load(Ordering::SeqCst)), (Vec::new(), 3));
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert_eq!(watches.load(Ordering::SeqCst), 6, "taken for dead, asked for again");
        tokio::time::sleep(Duration::from_secs(100)).await;
        let complaints = state.complaints();
        assert!(
            complaints.len() == 3 && complaints[0].contains("silent for 2"),
            "{complaints:?}"
        );
        stop.cancel();
    }

    /// A body of one text, or one that never says anything.
    struct Said(Option<bytes::Bytes>);

    impl http_body::Body for Said {
        type Data = bytes::Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<bytes::Bytes>, Infallible>>> {
            match self.0.take() {
                Some(text) if !text.is_empty() => {
                    self.0 = Some(bytes::Bytes::new());
                    Poll::Ready(Some(Ok(Frame::data(text))))
                }
                Some(_) => Poll::Ready(None),
                None => Poll::Pending,
            }
        }
    }
}
