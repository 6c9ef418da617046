//! Events, of the core and of `events.k8s.io`, which names the same things otherwise.

use super::{Function, Row, text, text_or};
use serde_json::Value;

pub(super) fn function(name: &str) -> Option<Function> {
    Some(match name {
        "event-last-seen" => |row| {
            let event = row.object;
            let last = either(&event["series"]["lastObservedTime"], &event["lastTimestamp"]);
            row.since(
                either(either(last, &event["deprecatedLastTimestamp"]), first_seen(event)),
                "<unknown>",
            )
        },
        "event-first-seen" => |row| row.since(first_seen(row.object), "<unknown>"),
        "event-object" => |row| {
            let about = either(&row.object["involvedObject"], &row.object["regarding"]);
            let (kind, name) = (text(&about["kind"]).to_ascii_lowercase(), text(&about["name"]));
            if name.is_empty() {
                kind.into()
            } else {
                format!("{kind}/{name}").into()
            }
        },
        "event-source" => event_source,
        "event-message" => |row| text(either(&row.object["message"], &row.object["note"])).trim().into(),
        "event-count" => |row| {
            let event = row.object;
            let count = either(&event["count"], &event["deprecatedCount"]);
            let count = either(&event["series"]["count"], count).as_i64();
            count.filter(|it| *it != 0).unwrap_or(1).into()
        },
        _ => return None,
    })
}

/// The first, unless it is null.
fn either<'a>(first: &'a Value, second: &'a Value) -> &'a Value {
    if first.is_null() { second } else { first }
}

fn first_seen(event: &Value) -> &Value {
    either(
        either(&event["firstTimestamp"], &event["deprecatedFirstTimestamp"]),
        &event["eventTime"],
    )
}

fn event_source(row: &Row<'_>) -> Value {
    let event = row.object;
    let source = either(&event["source"], &event["deprecatedSource"]);
    let reporter = text_or(&event["reportingComponent"], text(&event["reportingController"]));
    let component = text_or(&source["component"], reporter);
    let instance = text_or(&source["host"], text(&event["reportingInstance"]));
    if instance.is_empty() {
        component.into()
    } else {
        format!("{component}, {instance}").into()
    }
}
