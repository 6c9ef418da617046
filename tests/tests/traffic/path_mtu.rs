//! A path narrower than its ends: ICMP errors find the right end, in terms of the addresses that it knows.

use crate::cluster::{Findings, Mode, cluster_ip, every_frontend, in_every_mode, load_balancer, with_cluster};
use harness::{Ask, Failure, Topology, addr::FAMILIES, manifest::Slices};
use std::time::Duration;

in_every_mode!(clients_learn_a_narrow_path_behind_a_service clients_learn_of_a_narrow_pod servers_learn_a_narrow_path_to_the_client);

const NARROW: u32 = 1_400;
/// More than fits the narrow path, less than the link.
const TOO_LARGE: usize = 1_430;

fn clients_learn_a_narrow_path_behind_a_service(mode: Mode) {
    clients_learn(mode, |topology| {
        topology.narrow_between(topology.node("node-a"), topology.node("node-b"), NARROW)
    });
}

fn clients_learn_of_a_narrow_pod(mode: Mode) {
    clients_learn(mode, |topology| {
        topology.narrow_pod(topology.node("node-b"), topology.pod("b1"), NARROW)
    });
}

/// `narrow` makes some link on the way from node-a to b1 narrow.
fn clients_learn(mode: Mode, narrow: impl Fn(&Topology) -> anyhow::Result<()>) {
    with_cluster(
        mode,
        |topology| vec![(every_frontend("far", 50), Slices::ready("far", [topology.pod("b1")]))],
        |cluster| {
            let topology = cluster.topology;
            narrow(topology).unwrap();
            let mut findings = Findings::default();
            for family in FAMILIES {
                for (client, dst) in [
                    (cluster.client(), cluster_ip(family, 50)),
                    (cluster.outside(), load_balancer(family, 50)),
                ] {
                    let what = format!("{} → {dst}", client.name());
                    let ask = Ask::udp(dst)
                        .bytes(TOO_LARGE, 0)
                        .dont_fragment()
                        .timeout(Duration::from_millis(700));
                    let outcome = client.ask(&ask);
                    let told = outcome
                        .as_ref()
                        .is_err_and(|error| error.kind == Failure::MessageTooLong && error.path_mtu == Some(NARROW));
                    findings.check(&format!("{what}: a datagram with DF"), told, &outcome);
                    let fits = client.ask(&ask.bytes(NARROW as usize - 100, 0));
                    findings.answered_by(&format!("{what}: a datagram that fits"), &fits, "b1");
                    let whole = client.ask(&Ask::tcp(dst).bytes(300_000, 300_000).timeout(Duration::from_secs(5)));
                    findings.answered_by(&format!("{what}: a transfer"), &whole, "b1");
                    findings.check(
                        &format!("{what}: the connection knows the path"),
                        whole.as_ref().is_ok_and(|answer| answer.path_mtu == Some(NARROW)),
                        &whole,
                    );
                }
            }
            findings.none();
        },
    );
}

fn servers_learn_a_narrow_path_to_the_client(mode: Mode) {
    with_cluster(
        mode,
        |topology| {
            vec![
                (every_frontend("near", 51), Slices::ready("near", [topology.pod("a2")])),
                (every_frontend("far", 52), Slices::ready("far", [topology.pod("b1")])),
                (
                    every_frontend("kept", 53).external_local(),
                    Slices::ready("kept", [topology.pod("a3")]),
                ),
            ]
        },
        |cluster| {
            cluster.topology.narrow_outside(NARROW).unwrap();
            let mut findings = Findings::default();
            for family in FAMILIES {
                for (n, backend) in [(51, "a2"), (52, "b1"), (53, "a3")] {
                    let dst = load_balancer(family, n);
                    let ask = Ask::tcp(dst).bytes(0, 300_000).timeout(Duration::from_secs(5));
                    let whole = cluster.outside().ask(&ask);
                    findings.answered_by(&format!("outside → {dst}: a transfer"), &whole, backend);
                    // The first large answer is lost where the path is not known yet; its sender is told, and cuts the
                    // next one into fragments.
                    let ask = Ask::udp(dst).bytes(0, TOO_LARGE).timeout(Duration::from_millis(700));
                    let answers: Vec<_> = (0..3).map(|_| cluster.outside().ask(&ask)).collect();
                    findings.check(
                        &format!("outside → {dst}: a large datagram back"),
                        answers[2].is_ok(),
                        &answers,
                    );
                }
            }
            findings.none();
        },
    );
}
