//! Statuses of pods, from what the runtime has.

use super::{Facts, compute, patch_body};
use crate::{
    pod::tests::pod_of,
    worker::{
        observed::{Container, Exit, Observed, Sandbox, State},
        plan::{Decision, Health, Memory, Waiting},
    },
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde_json::{Value, json};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn exited(code: i32) -> State {
    State::Exited(Exit {
        started: Some(at(10)),
        finished: at(20),
        code,
        reason: String::new(),
        message: String::new(),
    })
}

const RUNNING: State = State::Running {
    started: Timestamp::UNIX_EPOCH,
};

fn seen(containers: &[(&str, State)]) -> Observed {
    let containers = containers.iter().map(|(name, state)| Container {
        id: format!("{name}-id"),
        name: (*name).to_owned(),
        sandbox_id: "s".to_owned(),
        restart_count: 0,
        hash: String::new(),
        created: at(5),
        state: state.clone(),
        image: "image".to_owned(),
        image_ref: "sha".to_owned(),
    });
    Observed {
        sandboxes: vec![Sandbox {
            id: "s".to_owned(),
            attempt: 0,
            ready: true,
            created: at(1),
            ips: vec!["fd00::1".parse().unwrap(), "10.1.0.1".parse().unwrap()],
        }],
        containers: containers.collect(),
    }
}

fn status_of(pod: &Pod, seen: &Observed, memory: &Memory, decision: &Decision, previous: &PodStatus) -> PodStatus {
    let facts = Facts {
        pod,
        seen,
        memory,
        decision,
        previous,
        node_ips: &["192.168.0.1".parse().unwrap()],
    };
    compute(facts, at(100))
}

fn condition(status: &PodStatus, type_: &str) -> (String, Option<String>) {
    let found = status.conditions.iter().flatten().find(|it| it.type_ == type_).unwrap();
    (found.status.clone(), found.reason.clone())
}

/// Restart policy, containers with their states, and the phase that follows.
type Case<'a> = (&'a str, Vec<(&'a str, State)>, &'a str);

#[test]
fn phases_follow_from_containers_and_policies() {
    let table: [Case<'_>; 12] = [
        ("Always", vec![], "Pending"),
        ("Always", vec![("a", RUNNING)], "Pending"),
        ("Always", vec![("a", RUNNING), ("b", RUNNING)], "Running"),
        ("Always", vec![("a", exited(0)), ("b", RUNNING)], "Running"),
        ("Always", vec![("a", exited(1)), ("b", exited(0))], "Running"),
        ("OnFailure", vec![("a", exited(1)), ("b", exited(0))], "Running"),
        ("OnFailure", vec![("a", exited(0)), ("b", exited(0))], "Succeeded"),
        ("Never", vec![("a", exited(0)), ("b", exited(0))], "Succeeded"),
        ("Never", vec![("a", exited(1)), ("b", exited(0))], "Failed"),
        ("Never", vec![("a", exited(1)), ("b", RUNNING)], "Running"),
        ("Never", vec![("a", exited(1)), ("b", State::Created)], "Pending"),
        ("Never", vec![("a", State::Unknown), ("b", RUNNING)], "Pending"),
    ];
    for (policy, containers, phase) in table {
        let pod = pod_of(json!({"restartPolicy": policy, "containers": [{"name": "a"}, {"name": "b"}]}));
        let (memory, decision) = (Memory::default(), Decision::default());
        let status = status_of(&pod, &seen(&containers), &memory, &decision, &PodStatus::default());
        assert_eq!(status.phase.as_deref(), Some(phase), "{policy} {containers:?}");
    }
}

#[test]
fn init_containers_hold_the_phase_and_their_condition() {
    let spec = json!({"restartPolicy": "Never", "initContainers": [{"name": "i"}], "containers": [{"name": "a"}]});
    let pod = pod_of(spec);
    let memory = Memory::default();
    let mut decision = Decision::default();
    let waits = status_of(&pod, &seen(&[("i", RUNNING)]), &memory, &decision, &PodStatus::default());
    assert_eq!(waits.phase.as_deref(), Some("Pending"));
    assert_eq!(condition(&waits, "Initialized"), ("False".to_owned(), Some("ContainersNotInitialized".to_owned())));
    let failed = status_of(&pod, &seen(&[("i", exited(1))]), &memory, &decision, &PodStatus::default());
    assert_eq!(failed.phase.as_deref(), Some("Failed"));
    decision.initialized = true;
    let runs = status_of(&pod, &seen(&[("i", exited(0)), ("a", RUNNING)]), &memory, &decision, &PodStatus::default());
    assert_eq!(runs.phase.as_deref(), Some("Running"));
    assert_eq!(condition(&runs, "Initialized").0, "True");
}

#[test]
fn readiness_needs_probes_and_gates() {
    let pod = pod_of(json!({
        "readinessGates": [{"conditionType": "example.com/lb"}],
        "containers": [{"name": "a", "readinessProbe": {"tcpSocket": {"port": 80}}}],
    }));
    let seen = seen(&[("a", RUNNING)]);
    let mut memory = Memory::default();
    let decision = Decision {
        initialized: true,
        ..Decision::default()
    };
    let none = PodStatus::default();
    let status = status_of(&pod, &seen, &memory, &decision, &none);
    assert_eq!(condition(&status, "Ready"), ("False".to_owned(), Some("ContainersNotReady".to_owned())));
    let health = Health {
        ready: Some(true),
        ..Health::default()
    };
    memory.health.insert("a-id".to_owned(), health);
    let status = status_of(&pod, &seen, &memory, &decision, &none);
    assert_eq!(condition(&status, "ContainersReady").0, "True");
    assert_eq!(condition(&status, "Ready"), ("False".to_owned(), Some("ReadinessGatesNotReady".to_owned())));
    let gate = json!({"conditions": [{"type": "example.com/lb", "status": "True"}]});
    let previous: PodStatus = serde_json::from_value(gate).unwrap();
    let status = status_of(&pod, &seen, &memory, &decision, &previous);
    assert_eq!(condition(&status, "Ready").0, "True");
    assert_eq!(condition(&status, "example.com/lb").0, "True", "conditions of others stay");
    let body = patch_body("u", &status);
    let sent: Vec<&str> = body["status"]["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["type"].as_str().unwrap())
        .collect();
    assert!(!sent.contains(&"example.com/lb"), "and are not sent: {sent:?}");
}

#[test]
fn times_of_transitions_and_the_last_state_are_kept() {
    let pod = pod_of(json!({"containers": [{"name": "a"}]}));
    let (memory, mut decision) = (Memory::default(), Decision::default());
    decision.initialized = true;
    let runs = status_of(&pod, &seen(&[("a", RUNNING)]), &memory, &decision, &PodStatus::default());
    assert_eq!(runs.pod_ip.as_deref(), Some("10.1.0.1"), "the node's family comes first");
    let mut later = runs.clone();
    for condition in later.conditions.iter_mut().flatten() {
        condition.last_transition_time = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(50)));
    }
    let waiting = Waiting {
        reason: "CrashLoopBackOff".to_owned(),
        message: "back-off".to_owned(),
    };
    decision.waiting.insert("a".to_owned(), waiting);
    let crashed = status_of(&pod, &seen(&[("a", exited(2))]), &memory, &decision, &later);
    let value: Value = serde_json::to_value(&crashed).unwrap();
    let container = &value["containerStatuses"][0];
    assert_eq!(container["state"]["waiting"]["reason"], "CrashLoopBackOff");
    assert_eq!(container["lastState"]["terminated"]["exitCode"], 2);
    let times: Vec<_> = crashed.conditions.iter().flatten().map(|it| (it.type_.as_str(), it.last_transition_time.clone().unwrap().0)).collect();
    for (type_, time) in times {
        let changed = matches!(type_, "Ready" | "ContainersReady");
        assert_eq!(time, if changed { at(100) } else { at(50) }, "{type_}");
    }
    // A pod that has ended stays so, whatever is removed of it.
    let ended: PodStatus = serde_json::from_value(json!({"phase": "Failed", "reason": "Evicted", "podIP": "10.1.0.1"})).unwrap();
    let status = status_of(&pod, &Observed::default(), &memory, &Decision::default(), &ended);
    assert_eq!((status.phase.as_deref(), status.reason.as_deref()), (Some("Failed"), Some("Evicted")));
    assert_eq!(status.pod_ip.as_deref(), Some("10.1.0.1"));
}
