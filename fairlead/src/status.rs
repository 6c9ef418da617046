//! `fairlead status`.

use crate::{
    client,
    flags::{Output, StatusArgs},
};
use ::proxy::status::Status;
use anyhow::{Context, ensure};
use std::fmt::Write as _;

/// Fetches and prints.
///
/// # Errors
/// No agent, or the batches waited for did not come.
pub(crate) fn main(args: &StatusArgs) -> anyhow::Result<()> {
    let path = match args.applied_at_least {
        Some(batches) => format!("/status?applied_at_least={batches}"),
        None => "/status".to_owned(),
    };
    let body = client::get(&args.address, &path)?;
    let status: Status = serde_json::from_str(&body).with_context(|| {
        format!(
            "the answer of {} is not a status; is another program there?",
            args.address
        )
    })?;
    if let Some(wanted) = args.applied_at_least {
        let found = status.applied_events;
        ensure!(
            found >= wanted,
            "only {found} of {wanted} batches are in the kernel; see the agent's log"
        );
    }
    match args.output {
        Output::Text => print!("{}", render(&status)),
        Output::Json => println!("{}", serde_json::to_string_pretty(&status)?),
    }
    Ok(())
}

/// The status for people.
fn render(status: &Status) -> String {
    let mut text = String::new();
    // Writing to a String does not fail.
    let mut line = |label: &str, value: String| _ = writeln!(text, "{label:<12} {value}");
    line(
        "Agent",
        format!(
            "fairlead {} on {}, since {}",
            status.version, status.node, status.started
        ),
    );
    line("Mode", format!("{} ({})", status.mode, status.mode_reason));
    let state = match (&status.error, status.ready) {
        (Some(error), _) => format!("FAILING: {error}"),
        (None, true) => "serving".to_owned(),
        (None, false) => "waiting for the first full read of the source".to_owned(),
    };
    line("State", state);
    if let Some(at) = &status.retry_at {
        line("", format!("tried again at {at}"));
    }
    let plan = status.plan;
    line(
        "Plan",
        format!(
            "{} services, {} frontends, {} backends",
            plan.services, plan.frontends, plan.backends
        ),
    );
    if plan.no_local_internal + plan.no_local_external > 0 {
        let counts = format!(
            "{} internal, {} external",
            plan.no_local_internal, plan.no_local_external
        );
        line("", format!("services with policy Local and no endpoint here: {counts}"));
    }
    let ports: Vec<_> = status.node_port_addresses.iter().map(ToString::to_string).collect();
    line(
        "NodePorts on",
        if ports.is_empty() {
            "no address".to_owned()
        } else {
            ports.join(", ")
        },
    );
    if let Some(sync) = &status.last_sync {
        let kind = if sync.full { "full" } else { "of changes" };
        let took = sync.seconds * 1e3;
        let what = format!("{} services compared, {} ops in {took:.1} ms", sync.services, sync.ops);
        line("Last sync", format!("{}, {kind}: {what}", sync.at));
    }
    line(
        "Batches",
        format!("{} applied, last {}", status.applied_events, status.last_batch_digest),
    );

    let interfaces = status.interfaces.iter().map(|link| {
        let mode = if link.mode.is_empty() {
            "NOT ATTACHED"
        } else {
            &link.mode
        };
        [
            link.name.clone(),
            link.ifindex.to_string(),
            link.role.clone(),
            mode.to_owned(),
            link.detail.clone(),
        ]
    });
    table(&mut text, ["INTERFACE", "INDEX", "ROLE", "MODE", "DETAIL"], interfaces);
    let maps = status.maps.iter().map(|map| {
        let percent = map.entries.saturating_mul(100) / map.max_entries.max(1);
        let flag = if map.flag.is_empty() {
            String::new()
        } else {
            format!("--{}", map.flag)
        };
        [
            map.name.clone(),
            map.entries.to_string(),
            map.max_entries.to_string(),
            format!("{percent}%"),
            flag,
        ]
    });
    table(&mut text, ["MAP", "ENTRIES", "MAX", "FILL", "RAISED BY"], maps);
    let probes = status.probes.iter().map(|probe| {
        let answer = if probe.available { "yes" } else { "no" };
        [probe.name.clone(), answer.to_owned(), probe.detail.clone()]
    });
    table(&mut text, ["KERNEL FEATURE", "THERE", "DETAIL"], probes);
    let skipped = status
        .skipped
        .iter()
        .map(|s| [s.object.clone(), s.field.clone(), s.reason.clone()]);
    table(&mut text, ["NOT SERVED", "FIELD", "REASON"], skipped);
    text
}

/// Appends a table with columns as wide as their content, unless it would be empty.
fn table<const N: usize>(text: &mut String, head: [&str; N], rows: impl Iterator<Item = [String; N]>) {
    let rows: Vec<[String; N]> = rows.collect();
    if rows.is_empty() {
        return;
    }
    let mut widths = head.map(str::len);
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    text.push('\n');
    for row in [head.map(str::to_owned)].iter().chain(&rows) {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        text.push_str(line.trim_end());
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::proxy::{
        config::KubeProxyConfiguration,
        http::{Shared, bind, metrics_router},
        metrics::Metrics,
        status::{Interface, LastSync, MapFill, PlanCounts, Probe, SkippedObject, StatusHolder},
    };
    use std::{net::TcpListener, sync::Arc};

    fn status() -> Status {
        Status {
            version: "0.1.0".to_owned(),
            node: "node-a".to_owned(),
            mode: "ebpf".to_owned(),
            mode_reason: "asked for by --mode".to_owned(),
            started: "2026-03-01T12:00:00Z".to_owned(),
            ready: true,
            applied_events: 7,
            last_batch_digest: "00000000000000ff".to_owned(),
            plan: PlanCounts {
                services: 2,
                frontends: 5,
                backends: 3,
                no_local_internal: 0,
                no_local_external: 1,
            },
            node_port_addresses: vec!["192.168.0.10".parse().unwrap()],
            probes: vec![Probe {
                name: "tcx".to_owned(),
                available: false,
                detail: "clsact is used".to_owned(),
            }],
            interfaces: vec![
                Interface {
                    name: "eth0".to_owned(),
                    ifindex: 2,
                    role: "device".to_owned(),
                    mode: "clsact".to_owned(),
                    detail: String::new(),
                },
                Interface {
                    name: "cali1".to_owned(),
                    ifindex: 14,
                    role: "pod".to_owned(),
                    mode: String::new(),
                    detail: "link is gone".to_owned(),
                },
            ],
            maps: vec![MapFill {
                name: "FRONTENDS_V4".to_owned(),
                entries: 50,
                max_entries: 200,
                flag: "max-frontends".to_owned(),
            }],
            last_sync: Some(LastSync {
                at: "2026-03-01T12:00:01Z".to_owned(),
                seconds: 0.0015,
                ops: 12,
                services: 2,
                full: true,
            }),
            error: None,
            retry_at: None,
            skipped: vec![SkippedObject {
                object: "Service d/x".to_owned(),
                field: "spec.ports[0].protocol".to_owned(),
                reason: "unknown".to_owned(),
            }],
        }
    }

    #[test]
    fn text_for_people() {
        assert_eq!(render(&status()), include_str!("../tests/status.txt"));
        let failing = Status {
            error: Some("map is full".to_owned()),
            ..status()
        };
        assert!(render(&failing).contains("FAILING: map is full"));
    }

    #[test]
    fn no_agent_is_a_clear_error() {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let args = |address: &str| StatusArgs {
            output: Output::Text,
            address: address.to_owned(),
            applied_at_least: None,
        };
        let error = format!("{:#}", main(&args(&free.to_string())).unwrap_err());
        assert!(
            error.contains(&free.to_string()) && error.contains("fairlead proxy") && error.contains("refused"),
            "{error}"
        );
        assert!(
            main(&args("nowhere"))
                .unwrap_err()
                .to_string()
                .contains("write it as in")
        );
    }

    #[test]
    fn a_live_agent_is_asked() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let listener = runtime.block_on(bind("127.0.0.1:0".parse().unwrap(), "--x")).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let shared = Shared {
            status: StatusHolder::new(status()),
            metrics: Arc::new(Metrics::new()),
            config: Arc::new(KubeProxyConfiguration::default()),
        };
        runtime.spawn(async move { axum::serve(listener, metrics_router(shared)).await });
        let body = client::get(&address, "/status?applied_at_least=7").unwrap();
        assert_eq!(serde_json::from_str::<Status>(&body).unwrap().applied_events, 7);
        let error = client::get(&address, "/nothing").unwrap_err().to_string();
        assert!(error.contains("has no /nothing"), "{error}");
        runtime.shutdown_background();
    }
}
