//! The distribution's kubectl, unmodified, in two versions, into containers of a real containerd, through our API server and
//! our kubelet's port. Needs root; says so where it cannot run.

#[path = "streams/cluster.rs"]
mod cluster;
mod containerd;
#[path = "../../apiserver/tests/kubectl/programs.rs"]
mod programs;
#[path = "../../apiserver/tests/support/mod.rs"]
mod support;

use cluster::{Cluster, NODE, POD, line_with};
use fairlead_kubelet::logs::{Limits, Rotator};
use futures::FutureExt as _;
use programs::{KUBECTLS, kubectl, python};
use std::{path::PathBuf, process::Stdio, sync::Arc};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// Every kubectl there is.
fn kubectls() -> impl Iterator<Item = PathBuf> {
    KUBECTLS.into_iter().map(kubectl)
}

/// Bytes that look like none before them.
fn noise(length: usize) -> Vec<u8> {
    use std::iter::successors;
    let numbers = successors(Some(1u64), |it| {
        Some(it.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1))
    });
    numbers.map(|it| (it >> 56) as u8).take(length).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_end_as_they_end() {
    if !containerd::possible() {
        return;
    }
    let cluster = Cluster::start().await;
    for kubectl in kubectls() {
        let script = [
            "exec",
            POD,
            "-c",
            "main",
            "--",
            "sh",
            "-c",
            "echo out; echo err >&2; exit 7",
        ];
        let (code, output, errors) = cluster.run(&kubectl, &script, b"").await;
        assert_eq!((code, &*output), (7, &b"out\n"[..]), "{errors}");
        assert!(errors.contains("err\n") && errors.contains("exit code 7"), "{errors}");
        let missing = ["exec", POD, "-c", "main", "--", "/no/such"];
        let (code, _, errors) = cluster.run(&kubectl, &missing, b"").await;
        assert!(code != 0 && errors.contains("/no/such"), "{code} {errors}");
        let away = ["exec", POD, "-c", "new", "--", "true"];
        let (code, _, errors) = cluster.run(&kubectl, &away, b"").await;
        assert!(
            code != 0 && errors.contains("container not found (\"new\")"),
            "{code} {errors}"
        );
        // A command that does not read its input. It fits into a pipe: with more, containerd 1.6 may wait for ever, by
        // whatever protocol it is asked, since its copy of stdin is stuck in a FIFO that nobody reads.
        let deaf = [
            "exec",
            "-i",
            POD,
            "-c",
            "main",
            "--",
            "sh",
            "-c",
            "head -c 3; echo done",
        ];
        let (code, output, errors) = cluster.run(&kubectl, &deaf, &noise(50_000)).await;
        assert_eq!((code, &output[3..]), (0, &b"done\n"[..]), "{errors}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_megabytes_there_and_back_are_the_same() {
    if !containerd::possible() {
        return;
    }
    let cluster = Cluster::start().await;
    let sent = noise(20 << 20);
    for kubectl in kubectls() {
        let cat = ["exec", "-i", POD, "-c", "main", "--", "cat"];
        let (code, output, errors) = cluster.run(&kubectl, &cat, &sent).await;
        assert_eq!((code, output.len()), (0, sent.len()), "{errors}");
        assert!(output == sent, "bytes changed on the way");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_has_the_size_of_the_clients() {
    if !containerd::possible() {
        return;
    }
    let cluster = Cluster::start().await;
    for (n, kubectl) in kubectls().enumerate() {
        // In the container: wait for the first size, say so to the second command, wait for the next size.
        let inside = format!(
            "until stty size | grep -q '^41 97$'; do sleep 0.1; done; stty size; touch /tmp/{n}; \
             until stty size | grep -q '^30 80$'; do sleep 0.1; done; stty size; exit 5"
        );
        let plain = cluster.kubectl(&kubectl, &["exec", POD, "-c", "main", "--"]);
        let words: Vec<_> = plain
            .as_std()
            .get_args()
            .map(|it| it.to_str().unwrap().to_owned())
            .collect();
        let command = format!("{} {}", kubectl.display(), words.join(" "));
        let terminal = command.replace(" exec ", " exec -it ");
        let script = cluster.server.directory.path().join("terminal.sh");
        let text = format!(
            "stty rows 41 cols 97\n(until {command} test -e /tmp/{n}; do sleep 0.1; done; stty rows 30 cols 80 < /dev/tty) &\n\
             {terminal} sh -c \"{inside}\"\n"
        );
        std::fs::write(&script, text).unwrap();
        let shell = format!("sh {}", script.display());
        let mut outer = tokio::process::Command::new("script");
        let log = cluster.server.directory.path().join("terminal.log");
        outer
            .args(["--quiet", "--return", "--flush", "--command", &shell])
            .arg(&log);
        outer
            .env("HOME", cluster.server.directory.path())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = tokio::time::timeout(std::time::Duration::from_secs(120), outer.output()).await;
        let log = || std::fs::read_to_string(&log).unwrap_or_default();
        let output = output
            .unwrap_or_else(|_| panic!("the terminal hangs: {}", log()))
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("41 97\r\n") && text.contains("30 80\r\n"), "{text}");
        assert_eq!(output.status.code(), Some(5), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_copied_both_ways() {
    if !containerd::possible() {
        return;
    }
    let cluster = Cluster::start().await;
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).display().to_string();
    std::fs::create_dir(at("a")).unwrap();
    std::fs::write(at("a/big"), noise(5_000_000)).unwrap();
    std::fs::write(at("a/small"), "small").unwrap();
    for (n, kubectl) in kubectls().enumerate() {
        let inside = format!("default/{POD}:/tmp/{n}");
        let back = at(&format!("back{n}"));
        cluster.ok(&kubectl, &["cp", &at("a"), &inside, "-c", "main"]).await;
        cluster.ok(&kubectl, &["cp", &inside, &back, "-c", "main"]).await;
        for file in ["big", "small"] {
            let (sent, got) = (
                std::fs::read(at(&format!("a/{file}"))),
                std::fs::read(format!("{back}/{file}")),
            );
            assert!(sent.unwrap() == got.unwrap(), "{file}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attaching_talks_to_the_container_itself() {
    if !containerd::possible() {
        return;
    }
    for kubectl in kubectls() {
        let cluster = Cluster::start().await;
        let attach = ["attach", "-i", POD, "-c", "talk"];
        let (code, output, errors) = cluster.run(&kubectl, &attach, b"one\ntwo\n").await;
        let output = String::from_utf8_lossy(&output);
        assert_eq!(code, 0, "{errors}");
        assert!(output.ends_with("got one\ngot two\nend\n"), "{output:?} {errors}");
    }
}

/// Gives back every byte until it is stopped; its port.
async fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = socket.split();
                // The other side may go when it has what it wants.
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    port
}

/// Sends much more than any buffer on the way holds, and expects it back.
async fn there_and_back(port: u16, seed: usize) {
    let sent = noise(4_000_000 + seed);
    let (mut read, mut write) = TcpStream::connect(("127.0.0.1", port)).await.unwrap().into_split();
    let mut back = vec![0; sent.len()];
    let (written, got) = tokio::join!(write.write_all(&sent), read.read_exact(&mut back));
    written.unwrap();
    got.unwrap();
    assert!(back == sent, "bytes changed on the way");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_are_forwarded_for_many_connections_at_once() {
    if !containerd::possible() {
        return;
    }
    let cluster = Cluster::start().await;
    // The pod is in this host's network.
    let port = echo().await;
    for kubectl in kubectls() {
        let mut command = cluster.kubectl(&kubectl, &["port-forward", POD, &format!(":{port}")]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let line = line_with(&mut child, "Forwarding from 127.0.0.1:").await;
        let local = line.split([':', ' ']).find_map(|it| it.parse().ok()).unwrap();
        let all = futures::future::join_all((0..6).map(|seed| there_and_back(local, seed)));
        tokio::time::timeout(std::time::Duration::from_secs(120), all)
            .await
            .expect("port-forward hangs");
        there_and_back(local, 7).await;
        child.kill().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_are_shown_as_asked_and_followed_through_rotations() {
    if !containerd::possible() {
        return;
    }
    let cluster = Cluster::start().await;
    let path = cluster.containerd.log_directory(POD).join("main/1.log");
    // What the container's first process would write.
    let newest = kubectls().next().unwrap();
    let write = |text: &'static str| {
        let (cluster, newest) = (&cluster, &newest);
        async move {
            let script = format!("for line in {text}; do echo $line; done > /proc/1/fd/1");
            cluster
                .ok(newest, &["exec", POD, "-c", "main", "--", "sh", "-c", &script])
                .await;
        }
    };
    let runtime = cluster.containerd.runtime.clone();
    let id = cluster.table.all().remove(0);
    let id = id.containers["main"].current.clone().unwrap();
    let active_path = path.clone();
    let rotator = Rotator::new(
        Limits {
            max_bytes: 1,
            max_files: 3,
        },
        Arc::new(move || vec![(id.clone(), active_path.clone())]),
        Arc::new(move |id| {
            let runtime = runtime.clone();
            async move { Ok(runtime.reopen_log(&id).await?) }.boxed()
        }),
    );
    for kubectl in kubectls() {
        let start = std::fs::metadata(&path).map_or(0, |it| it.len());
        let mut command = cluster.kubectl(&kubectl, &["logs", "-f", "--tail=0", POD, "-c", "main"]);
        if start == 0 {
            command = cluster.kubectl(&kubectl, &["logs", "-f", POD, "-c", "main"]);
        }
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        // It may be late: what was written before it looks is not for it.
        if start == 0 {
            write("one two").await;
            line_with(&mut child, "two").await;
        } else {
            loop {
                write("sync").await;
                let synced = line_with(&mut child, "sync");
                if tokio::time::timeout(std::time::Duration::from_secs(2), synced)
                    .await
                    .is_ok()
                {
                    break;
                }
            }
        }
        rotator.round(jiff::Timestamp::now()).await;
        write("three").await;
        line_with(&mut child, "three").await;
        rotator.round(jiff::Timestamp::now()).await;
        write("four five six").await;
        line_with(&mut child, "six").await;
        child.kill().await.unwrap();

        let logs = |more: &'static [&'static str]| {
            let (cluster, kubectl) = (&cluster, &kubectl);
            async move {
                cluster
                    .ok(kubectl, &[&["logs", POD, "-c", "main"], more].concat())
                    .await
            }
        };
        assert_eq!(logs(&[]).await, "four\nfive\nsix\n");
        assert_eq!(logs(&["--tail=2"]).await, "five\nsix\n");
        assert_eq!(logs(&["--limit-bytes=7"]).await, "four\nfi");
        assert_eq!(logs(&["--since=1h", "--tail=1"]).await, "six\n");
        assert_eq!(logs(&["--since-time=2099-01-01T00:00:00Z"]).await, "");
        assert_eq!(logs(&["--previous"]).await, "before\n");
        let stamped = logs(&["--timestamps", "--tail=1"]).await;
        let (time, text) = stamped.split_once(' ').unwrap();
        assert_eq!(text, "six\n");
        let _: jiff::Timestamp = time.parse().unwrap();
        for (more, expected) in [
            (
                &["logs", POD, "-c", "new"][..],
                "is waiting to start: ContainerCreating",
            ),
            (
                &["logs", POD, "-c", "talk", "--previous"],
                "previous terminated container \"talk\" in pod \"p\" not found",
            ),
        ] {
            let (code, _, errors) = cluster.run(&kubectl, more, b"").await;
            assert!(code == 1 && errors.contains(expected), "{errors}");
        }
    }
    // The end of the container is the end of the log.
    let mut command = cluster.kubectl(&newest, &["logs", "-f", POD, "-c", "main"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    line_with(&mut child, "six").await;
    let pod = cluster.table.all().remove(0);
    let id = pod.containers["main"].current.clone().unwrap();
    cluster
        .containerd
        .runtime
        .stop_container(&id, std::time::Duration::from_secs(30))
        .await
        .unwrap();
    let ended = tokio::time::timeout(std::time::Duration::from_secs(60), child.wait()).await;
    assert!(ended.expect("logs -f does not end").unwrap().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_older_websockets_are_served_too() {
    if !containerd::possible() {
        return;
    }
    let cluster = Cluster::start().await;
    let program = r#"
import sys
from kubernetes import client, config
from kubernetes.stream import stream, portforward
config.load_kube_config(sys.argv[1])
api = client.CoreV1Api()
command = ["sh", "-c", "read line; echo got $line; echo err >&2; exit 3"]
it = stream(api.connect_get_namespaced_pod_exec, "p", "default", container="main", command=command,
            stdin=True, stdout=True, stderr=True, tty=False, _preload_content=False)
it.write_stdin("hello\n")
it.run_forever(timeout=60)
print(it.read_stdout().strip(), it.read_stderr().strip(), it.returncode)
port = int(sys.argv[2])
forward = portforward(api.connect_get_namespaced_pod_portforward, "p", "default", ports=str(port))
socket = forward.socket(port)
socket.setblocking(True)
socket.settimeout(60)
socket.sendall(b"x" * 100000)
got = 0
while got < 100000:
    got += len(socket.recv(65536))
print(got, forward.error(port))
"#;
    let file = cluster.server.directory.path().join("client.py");
    std::fs::write(&file, program).unwrap();
    let mut python = tokio::process::Command::new(python());
    python
        .arg("-u")
        .arg(&file)
        .arg(cluster.server.kubeconfig())
        .arg(echo().await.to_string())
        .kill_on_drop(true);
    let output = tokio::time::timeout(std::time::Duration::from_secs(120), python.output()).await;
    let output = output.expect("the client hangs").unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(
        text,
        "got hello err 3\n100000 None\n",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_port_is_for_those_who_may() {
    if !containerd::possible() {
        return;
    }
    let cluster = Cluster::start().await;
    let kubectl = kubectls().next().unwrap();
    // As the API server, which may do everything.
    let raw = |path: &str| format!("/api/v1/nodes/{NODE}/proxy{path}");
    let ok = |path: &'static str| {
        let (cluster, kubectl) = (&cluster, &kubectl);
        async move { cluster.ok(kubectl, &["get", "--raw", &raw(path)]).await }
    };
    assert_eq!(ok("/healthz").await, "ok");
    assert_eq!(ok("/metrics").await, "up 1\n");
    assert!(ok("/pods").await.contains("\"PodList\""));
    assert_eq!(ok("/configz").await, r#"{"kubeletconfig":{"maxPods":110}}"#);
    let metrics = ok("/metrics/resource").await;
    assert!(
        metrics.contains("container_cpu_usage_seconds_total{container=\"main\""),
        "{metrics}"
    );
    assert!(metrics.contains("resource_scrape_error 0"), "{metrics}");
    let summary: serde_json::Value = serde_json::from_str(&ok("/stats/summary").await).unwrap();
    assert!(
        summary["pods"][0]["containers"][0]["memory"]["workingSetBytes"].is_u64(),
        "{summary}"
    );
    for (path, expected) in [("/nothing", "NotFound"), ("/run/default/p/main", "MethodNotAllowed")] {
        let (code, _, errors) = cluster.run(&kubectl, &["get", "--raw", &raw(path)], b"").await;
        assert!(code == 1 && errors.contains(expected), "{errors}");
    }

    // Directly, by token.
    let client = |token: Option<String>| {
        let mut config = kube::Config::new(format!("https://127.0.0.1:{}", cluster.kubelet).parse().unwrap());
        config.root_cert = Some(vec![cluster.server.running.pki.authority.der().to_vec()]);
        config.auth_info.token = token.map(Into::into);
        kube::Client::try_from(config).unwrap()
    };
    let ask = |token: Option<String>, method: &'static str, path: &'static str| {
        let client = client(token);
        async move {
            let request = http::Request::builder()
                .method(method)
                .uri(path)
                .body(Vec::new())
                .unwrap();
            match client.request_text(request).await {
                Ok(_) => 200,
                Err(kube::Error::Api(status)) => status.code,
                Err(error) => panic!("{error}"),
            }
        }
    };
    assert_eq!(ask(None, "GET", "/pods").await, 401);
    assert_eq!(ask(Some("nonsense".to_owned()), "GET", "/pods").await, 401);
    let token = |account: &'static str| {
        let (cluster, kubectl) = (&cluster, &kubectl);
        async move {
            cluster.ok(kubectl, &["create", "serviceaccount", account]).await;
            Some(
                cluster
                    .ok(kubectl, &["create", "token", account])
                    .await
                    .trim()
                    .to_owned(),
            )
        }
    };
    let stranger = token("stranger").await;
    assert_eq!(ask(stranger, "GET", "/metrics/resource").await, 403);
    let reader = token("reader").await;
    let role = [
        "create",
        "clusterrole",
        "reader",
        "--verb=get",
        "--resource=nodes/metrics,nodes/proxy",
    ];
    cluster.ok(&kubectl, &role).await;
    let binding = [
        "create",
        "clusterrolebinding",
        "reader",
        "--clusterrole=reader",
        "--serviceaccount=default:reader",
    ];
    cluster.ok(&kubectl, &binding).await;
    assert_eq!(ask(reader.clone(), "GET", "/metrics/resource").await, 200);
    assert_eq!(ask(reader.clone(), "GET", "/pods").await, 200);
    assert_eq!(ask(reader.clone(), "GET", "/stats/summary").await, 403);
    // Reading is not running, by whatever method it is asked.
    assert_eq!(
        ask(reader.clone(), "GET", "/exec/default/p/main?command=true&output=1").await,
        403
    );
    assert_eq!(ask(reader, "POST", "/run/default/p/main?cmd=true").await, 403);
}
