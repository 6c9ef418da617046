//! Pods: what of them is ready, and the one word that says how they are.

use super::{Function, Row, condition, items, joined, text, text_or};
use jiff::Timestamp;
use serde_json::Value;
use std::collections::HashSet;

pub(super) fn function(name: &str) -> Option<Function> {
    Some(match name {
        "pod-ready" => |row| {
            let summary = Summary::of(row);
            format!("{}/{}", summary.ready, summary.containers).into()
        },
        "pod-status" => |row| Summary::of(row).status.into(),
        "pod-restarts" => |row| Summary::of(row).restarts(row.now).into(),
        "pod-ip" => |row| {
            let status = &row.object["status"];
            text_or(&status["podIPs"][0]["ip"], text_or(&status["podIP"], "<none>")).into()
        },
        "pod-readiness-gates" => readiness_gates,
        "containers" => |row| {
            joined(
                items(&row.argument()["spec"]["containers"]).map(|it| text(&it["name"])),
                ",",
            )
            .into()
        },
        "images" => |row| {
            joined(
                items(&row.argument()["spec"]["containers"]).map(|it| text(&it["image"])),
                ",",
            )
            .into()
        },
        _ => return None,
    })
}

fn readiness_gates(row: &Row<'_>) -> Value {
    let gates = items(&row.object["spec"]["readinessGates"]);
    let (mut all, mut open) = (0, 0);
    for gate in gates {
        all += 1;
        open += i32::from(condition(row.object, text(&gate["conditionType"])) == Some("True"));
    }
    if all == 0 {
        "<none>".into()
    } else {
        format!("{open}/{all}").into()
    }
}

#[derive(Default)]
struct Restarts {
    count: i64,
    last: Option<Timestamp>,
}

impl Restarts {
    fn add(&mut self, status: &Value) {
        self.count = self.count.saturating_add(status["restartCount"].as_i64().unwrap_or(0));
        let finished = text(&status["lastState"]["terminated"]["finishedAt"]).parse().ok();
        self.last = self.last.max(finished);
    }
}

struct Summary {
    containers: usize,
    ready: usize,
    status: String,
    restarts: Restarts,
}

impl Summary {
    /// Containers that run before the others and go on beside them (`restartPolicy: Always` in `initContainers`) count as
    /// containers; the first init container that is not through decides the status while the pod is being initialised.
    fn of(row: &Row<'_>) -> Self {
        let (spec, status) = (&row.object["spec"], &row.object["status"]);
        let phase = text(&status["phase"]);
        let sidecars: HashSet<&str> = items(&spec["initContainers"])
            .filter(|it| text(&it["restartPolicy"]) == "Always")
            .map(|it| text(&it["name"]))
            .collect();
        let mut all = Self {
            containers: items(&spec["containers"]).count() + sidecars.len(),
            ready: 0,
            status: text_or(&status["reason"], phase).to_owned(),
            restarts: Restarts::default(),
        };
        let gated = |it: &Value| text(&it["type"]) == "PodScheduled" && text(&it["reason"]) == "SchedulingGated";
        if items(&status["conditions"]).any(gated) {
            all.status = "SchedulingGated".into();
        }
        let mut of_sidecars = Restarts::default();
        let mut initialising = false;
        for (index, container) in items(&status["initContainerStatuses"]).enumerate() {
            let state = &container["state"];
            let sidecar = sidecars.contains(text(&container["name"]));
            all.restarts.add(container);
            if sidecar {
                of_sidecars.add(container);
            }
            let terminated = &state["terminated"];
            if terminated.is_object() && terminated["exitCode"].as_i64().unwrap_or(0) == 0 {
                continue;
            }
            if sidecar && container["started"] == true {
                all.ready += usize::from(container["ready"] == true);
                continue;
            }
            let waiting = text(&state["waiting"]["reason"]);
            all.status = if terminated.is_object() {
                format!("Init:{}", end_of(terminated))
            } else if !waiting.is_empty() && waiting != "PodInitializing" {
                format!("Init:{waiting}")
            } else {
                format!("Init:{index}/{}", items(&spec["initContainers"]).count())
            };
            initialising = true;
            break;
        }
        if !initialising || condition(row.object, "Initialized") == Some("True") {
            all.restarts = of_sidecars;
            all.look_at_containers(row.object);
        }
        if row.is_deleted() {
            if text(&status["reason"]) == "NodeLost" {
                all.status = "Unknown".into();
            } else if !matches!(phase, "Succeeded" | "Failed") {
                all.status = "Terminating".into();
            }
        }
        all
    }

    /// The first container that waits or has ended decides the status.
    fn look_at_containers(&mut self, pod: &Value) {
        let mut running = false;
        for container in items(&pod["status"]["containerStatuses"]).rev() {
            let state = &container["state"];
            self.restarts.add(container);
            let waiting = text(&state["waiting"]["reason"]);
            if !waiting.is_empty() {
                self.status = waiting.into();
            } else if state["terminated"].is_object() {
                self.status = end_of(&state["terminated"]);
            } else if container["ready"] == true && state["running"].is_object() {
                running = true;
                self.ready += 1;
            }
        }
        if running && self.status == "Completed" {
            let ready = condition(pod, "Ready") == Some("True");
            self.status = if ready { "Running" } else { "NotReady" }.into();
        }
    }

    fn restarts(&self, now: Timestamp) -> String {
        match (self.restarts.count, self.restarts.last) {
            (0, _) | (_, None) => self.restarts.count.to_string(),
            (count, Some(last)) => format!("{count} ({} ago)", super::human_duration(now.duration_since(last))),
        }
    }
}

/// How a container ended, in a word.
fn end_of(terminated: &Value) -> String {
    let reason = text(&terminated["reason"]);
    if !reason.is_empty() {
        return reason.into();
    }
    match terminated["signal"].as_i64() {
        None | Some(0) => format!("ExitCode:{}", terminated["exitCode"].as_i64().unwrap_or(0)),
        Some(signal) => format!("Signal:{signal}"),
    }
}
