//! Volumes, claims, classes.

use super::{Function, Row, items, joined, joined_or, text, text_of, texts};
use serde_json::Value;

pub(super) fn function(name: &str) -> Option<Function> {
    Some(match name {
        "access-modes" => |row| access_modes(row.argument()).into(),
        "claim-status" | "volume-status" => |row| {
            if row.is_deleted() {
                "Terminating".into()
            } else {
                text(&row.object["status"]["phase"]).into()
            }
        },
        "claim-capacity" => |row| {
            if is_bound(row) {
                text_of(&row.object["status"]["capacity"]["storage"]).into()
            } else {
                "".into()
            }
        },
        "claim-access-modes" => |row| {
            if is_bound(row) {
                access_modes(&row.object["status"]["accessModes"]).into()
            } else {
                "".into()
            }
        },
        "volume-claim" => |row| {
            let claim = &row.object["spec"]["claimRef"];
            if claim.is_object() {
                format!("{}/{}", text(&claim["namespace"]), text(&claim["name"])).into()
            } else {
                "".into()
            }
        },
        "storage-class" => |row| {
            let old = &row.object["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-class"];
            old.as_str()
                .unwrap_or_else(|| text(&row.object["spec"]["storageClassName"]))
                .into()
        },
        "storage-class-name" => |row| {
            let metadata = &row.object["metadata"];
            let annotations = &metadata["annotations"];
            let default = [
                "storageclass.kubernetes.io/is-default-class",
                "storageclass.beta.kubernetes.io/is-default-class",
            ]
            .iter()
            .any(|it| annotations[*it] == "true");
            format!("{}{}", text(&metadata["name"]), if default { " (default)" } else { "" }).into()
        },
        "csi-token-requests" => |row| {
            let audiences = items(&row.object["spec"]["tokenRequests"]).map(|it| text(&it["audience"]));
            joined_or(audiences, ",", "<unset>").into()
        },
        "csi-modes" => |row| joined_or(texts(&row.object["spec"]["volumeLifecycleModes"]), ",", "<none>").into(),
        _ => return None,
    })
}

fn is_bound(row: &Row<'_>) -> bool {
    !text(&row.object["spec"]["volumeName"]).is_empty()
}

/// `RWO,ROX`: each once, in a fixed order.
fn access_modes(modes: &Value) -> String {
    let known = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    let has = |mode: &str| texts(modes).any(|it| it == mode);
    joined(known.iter().filter(|(mode, _)| has(mode)).map(|(_, short)| short), ",")
}
