//! Where the time of a pod goes: containerd's log says when it was asked for what, and when it had done it.

use super::{
    client::Times,
    report::{Report, Row},
};
use std::{
    collections::HashMap,
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

/// Names of the stages: each ends where the next one begins.
const STAGES: [&str; 7] = [
    "  scheduled to RunPodSandbox",
    "  RunPodSandbox, CNI included",
    "  to CreateContainer",
    "  CreateContainer",
    "  to StartContainer",
    "  StartContainer",
    "  started to running seen",
];

/// Times of the calls for one pod with one container.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Calls {
    /// Asked and answered: `RunPodSandbox`, `CreateContainer`, `StartContainer`.
    at: [Option<SystemTime>; 6],
}

/// Adds a row per stage; none where the log does not tell, as that of a runtime that is not ours.
pub(crate) fn report<'a>(log: &Path, pods: impl Iterator<Item = (&'a String, &'a Times)>, report: &mut Report) {
    let calls = read(&fs::read_to_string(log).unwrap_or_default());
    let mut stages: [Vec<f64>; STAGES.len()] = Default::default();
    for (name, times) in pods {
        let (Some(calls), Some(scheduled), Some(running)) = (calls.get(name), times.scheduled, times.running) else {
            continue;
        };
        let after = |at: std::time::Instant| times.sent_wall + (at - times.sent);
        let mut moments = vec![Some(after(scheduled))];
        moments.extend(calls.at);
        moments.push(Some(after(running)));
        let Some(moments) = moments.into_iter().collect::<Option<Vec<_>>>() else {
            continue;
        };
        for (stage, pair) in stages.iter_mut().zip(moments.windows(2)) {
            // The clocks of two processes agree, but who sees a change first is open.
            let time = pair[1].duration_since(pair[0]).unwrap_or(Duration::ZERO);
            stage.push(time.as_secs_f64() * 1e3);
        }
    }
    for (name, times) in STAGES.iter().zip(&stages).filter(|(_, times)| !times.is_empty()) {
        report.add(Row::of(name, "ms", times));
    }
}

/// By name of the pod.
fn read(log: &str) -> HashMap<String, Calls> {
    let mut pods: HashMap<String, Calls> = HashMap::new();
    // Who a sandbox and a container belong to.
    let (mut sandboxes, mut containers) = (HashMap::new(), HashMap::new());
    for line in log.lines() {
        let parsed = (|| {
            let time: jiff::Timestamp = between(line, "time=\"", "\"")?.parse().ok()?;
            let (_, message) = line.split_once("msg=\"")?;
            Some((SystemTime::from(time), message))
        })();
        let Some((time, message)) = parsed else { continue };
        let mut note = |pod: Option<&String>, call: usize| {
            if let Some(pod) = pod {
                pods.entry(pod.clone()).or_default().at[call].get_or_insert(time);
            }
        };
        if message.starts_with("RunPodSandbox for ") {
            let pod = between(message, "Name:", ",").map(str::to_owned);
            match between(message, "returns sandbox id \\\"", "\\\"") {
                None => note(pod.as_ref(), 0),
                Some(id) => {
                    note(pod.as_ref(), 1);
                    sandboxes.insert(id, pod.unwrap_or_default());
                }
            }
        } else if let Some(id) = between(message, "CreateContainer within sandbox \\\"", "\\\"") {
            let pod = sandboxes.get(id);
            match between(message, "returns container id \\\"", "\\\"") {
                None => note(pod, 2),
                Some(container) => {
                    note(pod, 3);
                    containers.insert(container, pod.cloned().unwrap_or_default());
                }
            }
        } else if let Some(id) = between(message, "StartContainer for \\\"", "\\\"") {
            note(
                containers.get(id),
                if message.contains("returns successfully") { 5 } else { 4 },
            );
        }
    }
    pods
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(before)?;
    Some(rest.split_once(after)?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_read_from_the_log() {
        let log = r#"time="2026-01-01T00:00:01.000000000Z" level=info msg="RunPodSandbox for &PodSandboxMetadata{Name:a,Uid:u,Namespace:default,Attempt:0,}"
time="2026-01-01T00:00:02.000000000Z" level=info msg="RunPodSandbox for &PodSandboxMetadata{Name:a,Uid:u,Namespace:default,Attempt:0,} returns sandbox id \"s1\""
time="2026-01-01T00:00:03.000000000Z" level=info msg="CreateContainer within sandbox \"s1\" for container &ContainerMetadata{Name:c,Attempt:0,}"
time="2026-01-01T00:00:04.000000000Z" level=info msg="CreateContainer within sandbox \"s1\" for &ContainerMetadata{Name:c,Attempt:0,} returns container id \"c1\""
time="2026-01-01T00:00:05.000000000Z" level=info msg="StartContainer for \"c1\""
words without a time
time="2026-01-01T00:00:06.500000000Z" level=info msg="StartContainer for \"c1\" returns successfully"
time="2026-01-01T00:00:07.000000000Z" level=info msg="StartContainer for \"another\""
"#;
        let pods = read(log);
        assert_eq!(pods.len(), 1);
        let at: Vec<_> = pods["a"].at.iter().flatten().collect();
        let gaps = at
            .windows(2)
            .map(|pair| pair[1].duration_since(*pair[0]).unwrap().as_millis());
        assert_eq!(gaps.collect::<Vec<_>>(), [1_000, 1_000, 1_000, 1_000, 1_500]);
    }
}
