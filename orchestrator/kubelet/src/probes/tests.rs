//! When probes run and what they tell, on paused time with containers that do as they are told.

use super::*;
use futures::future::{BoxFuture, FutureExt as _};
use serde_json::{Value, json};
use std::collections::VecDeque;
use tokio::time::Instant;

/// Answers by the command of the probe: `s`, `f`, `u` in turn, the last one again and again. Notes when it was asked.
#[derive(Default)]
struct Script {
    answers: Mutex<HashMap<String, VecDeque<char>>>,
    asked: Mutex<Vec<(String, u64)>>,
    start: Mutex<Option<Instant>>,
}

impl Check for Script {
    fn check<'a>(&'a self, _: &'a str, action: &'a Action, timeout: Duration) -> BoxFuture<'a, Attempt> {
        async move {
            let Action::Exec { command } = action else {
                panic!("{action:?}");
            };
            let start = self.start.lock().unwrap().unwrap();
            self.asked
                .lock()
                .unwrap()
                .push((command[0].clone(), start.elapsed().as_secs()));
            let answer = {
                let mut all = self.answers.lock().unwrap();
                let mine = all.get_mut(&command[0]).unwrap();
                if mine.len() > 1 {
                    mine.pop_front().unwrap()
                } else {
                    mine[0]
                }
            };
            match answer {
                's' => Attempt::Success,
                'f' => Attempt::Failure("no".to_owned()),
                'u' => Attempt::Unknown("runtime away".to_owned()),
                _ => {
                    tokio::time::sleep(timeout).await;
                    Attempt::Failure("timed out".to_owned())
                }
            }
        }
        .boxed()
    }
}

struct Setup {
    script: Arc<Script>,
    prober: Prober,
    outcomes: mpsc::Receiver<Outcome>,
}

fn probe(name: &str, more: &Value) -> Value {
    let mut probe = json!({ "exec": { "command": [name] } });
    probe.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    probe
}

impl Setup {
    fn new(answers: &[(&str, &str)]) -> Self {
        let script = Arc::new(Script::default());
        let answers = answers
            .iter()
            .map(|(name, script)| ((*name).to_owned(), script.chars().collect()));
        *script.answers.lock().unwrap() = answers.collect();
        *script.start.lock().unwrap() = Some(Instant::now());
        let (sender, outcomes) = mpsc::channel(100);
        let prober = Prober::with(Arc::clone(&script) as Arc<dyn Check>, sender);
        Self {
            script,
            prober,
            outcomes,
        }
    }

    fn ensure(&self, container: &Value, status: &Value, age: u64) {
        let pod = json!({ "metadata": { "uid": "u" }, "status": status });
        let (pod, container) = (
            serde_json::from_value(pod).unwrap(),
            serde_json::from_value(container.clone()).unwrap(),
        );
        self.prober
            .ensure(&pod, &container, "id", None, Duration::from_secs(age));
    }

    /// Lets so much time pass; the verdicts that were told, as `ready=s`.
    async fn after(&mut self, seconds: u64) -> Vec<String> {
        let verdicts = self.outcomes_after(seconds).await.into_iter().filter_map(|it| {
            let verdict = match it.result? {
                Verdict::Success => 's',
                Verdict::Failure => 'f',
            };
            Some(format!("{}={verdict}", it.kind))
        });
        verdicts.collect()
    }

    async fn outcomes_after(&mut self, seconds: u64) -> Vec<Outcome> {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        std::iter::from_fn(|| self.outcomes.try_recv().ok()).collect()
    }

    fn asked(&self, name: &str) -> Vec<u64> {
        let asked = self.script.asked.lock().unwrap();
        asked.iter().filter(|(it, _)| it == name).map(|(_, at)| *at).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn delays_and_periods() {
    let mut setup = Setup::new(&[("r", "s"), ("l", "s")]);
    let container = json!({
        "name": "c",
        "readinessProbe": probe("r", &json!({ "initialDelaySeconds": 5, "periodSeconds": 3 })),
        "livenessProbe": probe("l", &json!({})),
    });
    setup.ensure(&container, &json!({}), 0);
    setup.ensure(&container, &json!({}), 0);
    assert_eq!(setup.after(15).await, ["Liveness=s", "Readiness=s"]);
    assert_eq!(setup.asked("r"), [5, 8, 11, 14]);
    assert_eq!(setup.asked("l"), [0, 10]);
    setup.prober.forget("id");
    assert!(setup.after(100).await.is_empty());
    assert_eq!(setup.asked("l"), [0, 10]);
}

#[tokio::test(start_paused = true)]
async fn delays_count_from_the_start_of_the_container() {
    let mut setup = Setup::new(&[("r", "s")]);
    let delay = json!({ "initialDelaySeconds": 60 });
    setup.ensure(
        &json!({ "name": "c", "readinessProbe": probe("r", &delay) }),
        &json!({}),
        58,
    );
    assert_eq!(setup.after(3).await, ["Readiness=s"]);
    assert_eq!(setup.asked("r"), [2]);
}

#[tokio::test(start_paused = true)]
async fn nothing_else_is_asked_before_the_container_has_started() {
    let mut setup = Setup::new(&[("s", "ffffs"), ("r", "s"), ("l", "s")]);
    let container = json!({
        "name": "c",
        "startupProbe": probe("s", &json!({ "periodSeconds": 10, "failureThreshold": 6 })),
        "readinessProbe": probe("r", &json!({ "initialDelaySeconds": 45 })),
        "livenessProbe": probe("l", &json!({})),
    });
    setup.ensure(&container, &json!({}), 0);
    assert!(setup.after(39).await.is_empty());
    assert!(setup.asked("l").is_empty());
    assert_eq!(setup.after(2).await, ["Startup=s", "Liveness=s"]);
    assert_eq!(setup.after(5).await, ["Readiness=s"]);
    assert_eq!(
        (setup.asked("s").len(), setup.asked("l"), setup.asked("r")),
        (5, vec![40], vec![45])
    );
}

#[tokio::test(start_paused = true)]
async fn a_container_that_does_not_start_is_given_up() {
    let mut setup = Setup::new(&[("s", "f"), ("l", "s")]);
    let container = json!({
        "name": "c",
        "startupProbe": probe("s", &json!({ "periodSeconds": 1, "failureThreshold": 3 })),
        "livenessProbe": probe("l", &json!({})),
    });
    setup.ensure(&container, &json!({}), 0);
    assert_eq!(setup.after(100).await, ["Startup=f"]);
    assert_eq!((setup.asked("s"), setup.asked("l")), (vec![0, 1, 2], vec![]));
}

#[tokio::test(start_paused = true)]
async fn an_adopted_container_that_has_started_is_not_asked_again_whether_it_has() {
    let container = json!({
        "name": "c", "startupProbe": probe("s", &json!({})), "livenessProbe": probe("l", &json!({})),
    });
    for (id, started, expected) in [
        ("containerd://id", true, vec!["Liveness=s"]),
        ("containerd://id", false, vec!["Startup=s", "Liveness=s"]),
        ("containerd://other", true, vec!["Startup=s", "Liveness=s"]),
    ] {
        let mut setup = Setup::new(&[("s", "s"), ("l", "s")]);
        let status = json!({ "containerStatuses": [
            { "name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 0, "containerID": id, "started": started },
        ] });
        setup.ensure(&container, &status, 0);
        assert_eq!(setup.after(1).await, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_container_is_told_once_and_its_readiness_goes_on() {
    let mut setup = Setup::new(&[("l", "sfff"), ("r", "sfs")]);
    let container = json!({
        "name": "c",
        "livenessProbe": probe("l", &json!({ "periodSeconds": 10 })),
        "readinessProbe": probe("r", &json!({ "periodSeconds": 10, "failureThreshold": 1 })),
    });
    setup.ensure(&container, &json!({}), 0);
    let told = setup.outcomes_after(15).await;
    assert_eq!(told[2].message, "Liveness probe failed: no");
    assert_eq!(
        (told[2].result, &*told[2].pod_uid, &*told[2].container_id),
        (None, "u", "id")
    );
    assert_eq!(told[3].message, "Readiness probe failed: no");
    assert_eq!(told[3].result, Some(Verdict::Failure));
    assert_eq!(setup.after(100).await, ["Readiness=s", "Liveness=f"]);
    assert_eq!(setup.asked("l"), [0, 10, 20, 30]);
    assert!(setup.asked("r").len() > 10);
}

#[tokio::test(start_paused = true)]
async fn a_slow_answer_delays_the_next_try() {
    let mut setup = Setup::new(&[("l", "t")]);
    let slow = json!({ "periodSeconds": 2, "timeoutSeconds": 5, "failureThreshold": 2 });
    setup.ensure(
        &json!({ "name": "c", "livenessProbe": probe("l", &slow) }),
        &json!({}),
        0,
    );
    assert_eq!(setup.after(60).await, ["Liveness=f"]);
    assert_eq!(setup.asked("l"), [0, 5]);
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_tried_counts_as_no_try() {
    let mut setup = Setup::new(&[("l", "fuuuufs")]);
    let twice = json!({ "periodSeconds": 1, "failureThreshold": 2 });
    setup.ensure(
        &json!({ "name": "c", "livenessProbe": probe("l", &twice) }),
        &json!({}),
        0,
    );
    let told = setup.outcomes_after(60).await;
    assert_eq!(told[1].message, "Liveness probe errored: runtime away");
    assert_eq!(told.last().unwrap().result, Some(Verdict::Failure));
    assert_eq!(setup.asked("l").len(), 6);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_ends_is_asked_only_whether_it_is_ready() {
    let mut setup = Setup::new(&[("l", "sf"), ("r", "sf")]);
    let container = json!({
        "name": "c", "livenessProbe": probe("l", &json!({})), "readinessProbe": probe("r", &json!({})),
    });
    setup.ensure(&container, &json!({}), 0);
    setup.after(1).await;
    setup.prober.terminating("id");
    assert_eq!(setup.after(100).await, ["Readiness=f"]);
    assert_eq!(setup.asked("l"), [0]);
}

#[tokio::test(start_paused = true)]
async fn nothing_to_ask_makes_no_task() {
    let setup = Setup::new(&[]);
    setup.ensure(&json!({ "name": "c" }), &json!({}), 0);
    assert!(setup.prober.tasks.lock().unwrap().is_empty());
}
