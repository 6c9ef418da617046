//! Looking into a pod, as one does every day.

use crate::{client, one_node, server, text};
use harness::{Cluster, cluster::IMAGE};

#[test]
fn kubectl_sees_into_pods_and_talks_with_them() {
    let topology = one_node();
    let cluster = Cluster::start(&topology, topology.node("node-a"), &[]).unwrap();
    client(&cluster);
    server(&cluster, "web", 1);

    let wide = cluster.kubectl(&["get", "pod", "client", "-o", "wide"]);
    assert!(
        wide.contains("Running") && wide.contains("10.244.0.") && wide.contains("node-a"),
        "{wide}"
    );
    let described = cluster.kubectl(&["describe", "pod", "client"]);
    for word in [
        "Successfully assigned default/client to node-a",
        "Started",
        "QoS Class:",
        "BestEffort",
    ] {
        assert!(described.contains(word), "{word}: {described}");
    }

    // exec: output, standard input, the exit code, a terminal of a given size.
    let output = cluster
        .try_kubectl(&["exec", "-i", "client", "--", "sh"], "echo said; exit 7")
        .unwrap();
    assert_eq!(
        (output.code, output.stdout.trim()),
        (Some(7), "said"),
        "{}",
        output.stderr
    );
    let config = cluster.data().join("admin.kubeconfig");
    let kubectl = harness::cluster::kubectl().unwrap();
    let typed = format!(
        "stty rows 33 cols 77; exec {} --kubeconfig {} exec -it client -- sh -c 'tty; stty size || ip link | head -1'",
        kubectl.display(),
        config.display()
    );
    let terminal = cluster
        .node
        .actor
        .run("script", &["-qec", &typed, "/dev/null"], "")
        .unwrap();
    assert!(terminal.stdout.contains("/dev/pts/"), "{terminal:?}");

    // Logs: what was said, and what is being said.
    let talk = "for i in 1 2 3; do echo line $i; done; sleep 1; echo last; sleep 3600";
    cluster.kubectl(&["run", "talker", "--image", IMAGE, "--", "sh", "-c", talk]);
    cluster.wait_ready("pod/talker");
    let followed = cluster
        .node
        .actor
        .run(
            "timeout",
            &[
                "3",
                &kubectl.to_string_lossy(),
                "--kubeconfig",
                &config.to_string_lossy(),
                "logs",
                "-f",
                "talker",
            ],
            "",
        )
        .unwrap();
    assert_eq!(followed.stdout, "line 1\nline 2\nline 3\nlast\n", "{followed:?}");
    assert_eq!(cluster.kubectl(&["logs", "talker", "--tail=1"]), "last");
    let stamped = cluster.kubectl(&["logs", "talker", "--timestamps", "--tail=1"]);
    assert!(stamped.starts_with("20") && stamped.ends_with("Z last"), "{stamped}");

    // attach: what the process reads and writes from then on.
    let echo = "while read line; do echo got $line; done";
    cluster.kubectl(&["run", "listener", "--image", IMAGE, "--stdin", "--", "sh", "-c", echo]);
    cluster.wait_ready("pod/listener");
    // The runtime ends a session with its standard input, so that stays open.
    let script = format!(
        "(printf 'one\\ntwo\\n'; sleep 2) | {} --kubeconfig {} attach -i listener",
        kubectl.display(),
        config.display()
    );
    let attached = cluster.node.actor.run("sh", &["-c", &script], "").unwrap();
    assert!(attached.stdout.contains("got one\ngot two"), "{attached:?}");

    // cp, both ways.
    let (there, back) = (cluster.node.dir.join("there"), cluster.node.dir.join("back"));
    let content: String = (0..200_000).map(|n| format!("{n}\n")).collect();
    std::fs::write(&there, &content).unwrap();
    cluster.kubectl(&["cp", &there.to_string_lossy(), "client:/tmp/copied"]);
    cluster.kubectl(&["cp", "client:/tmp/copied", &back.to_string_lossy()]);
    assert!(
        std::fs::read_to_string(&back).unwrap() == content,
        "bytes changed on the way"
    );

    // port-forward, from a port that kubectl chooses.
    let script = format!(
        "{0} --kubeconfig {1} port-forward deployment/web :8080 > {2} & pid=$!; \
         until port=$(sed -n 's/.*127.0.0.1:\\([0-9]*\\) .*/\\1/p' {2}) && [ -n \"$port\" ]; do sleep 0.1; done; \
         for i in 1 2 3; do curl -sS --max-time 5 http://127.0.0.1:$port/who; echo; done; kill $pid",
        kubectl.display(),
        config.display(),
        cluster.node.dir.join("forwarded").display()
    );
    let forwarded = cluster
        .node
        .actor
        .run("timeout", &["30", "sh", "-c", &script], "")
        .unwrap();
    assert_eq!(forwarded.stdout.matches("web-").count(), 3, "{forwarded:?}");
    assert!(forwarded.stdout.contains(" 127.0.0.1"), "{forwarded:?}");

    // Events of all that.
    let events = cluster.kubectl(&["get", "events", "-o", "json"]);
    let events: serde_json::Value = serde_json::from_str(&events).unwrap();
    let of_talker = events["items"].as_array().unwrap().iter();
    let reasons: Vec<&str> = of_talker
        .filter(|it| text(it, "/involvedObject/name") == "talker")
        .map(|it| text(it, "/reason"))
        .collect();
    for reason in ["Scheduled", "Pulled", "Created", "Started"] {
        assert!(reasons.contains(&reason), "{reason}: {reasons:?}");
    }
}
