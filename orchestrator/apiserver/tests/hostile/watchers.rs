//! Very many watches, and watches that nobody reads.

use crate::{requests::MAPS, support::TestServer};
use bytes::Bytes;
use fairlead_apiserver::{Settings, http::Body};
use fairlead_store::{Limits, testing::EtcdDouble};
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use serde_json::{Value, json};
use std::sync::Arc;
use tower::ServiceExt as _;

async fn watch(server: &TestServer) -> Body {
    let uri = format!("{MAPS}?watch=true");
    let request = Request::builder().uri(uri).body(Empty::<Bytes>::new()).unwrap();
    let response = server.admin().oneshot(request).await.unwrap();
    assert_eq!(response.status(), 200);
    response.into_body()
}

/// The events of the next frame.
async fn events(body: &mut Body) -> Option<Vec<Value>> {
    let frame = body.frame().await?.unwrap().into_data().unwrap();
    let lines = frame.split(|it| *it == b'\n').filter(|it| !it.is_empty());
    Some(lines.map(|line| serde_json::from_slice(line).unwrap()).collect())
}

fn resident_kb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|it| it.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse().unwrap()
}

#[tokio::test]
async fn very_many_watches_share_what_they_are_told() {
    let server = TestServer::start().await;
    let number: usize = std::env::var("HOSTILE_WATCHERS").map_or(2_000, |it| it.parse().unwrap());
    let before = resident_kb();
    let mut open = Vec::with_capacity(number);
    for _ in 0..number {
        open.push(watch(&server).await);
    }
    let grown = resident_kb().saturating_sub(before);
    println!(
        "{number} watches: {grown} KiB, {} bytes each",
        grown * 1024 / number as u64
    );
    let (code, _) = server.post(MAPS, &json!({ "metadata": { "name": "a" } })).await;
    assert_eq!(code, 201, "others are served");
    for body in &mut open {
        assert_eq!(events(body).await.unwrap()[0]["object"]["metadata"]["name"], "a");
    }
}

#[tokio::test]
async fn a_watch_that_nobody_reads_is_cut() {
    let history = Limits {
        min_events: 4,
        max_events: 16,
        ..Limits::default()
    };
    let settings = Settings {
        history,
        ..Settings::default()
    };
    let server = TestServer::over(Arc::new(EtcdDouble::new()), settings).await;
    let (mut slow, mut quick) = (watch(&server).await, watch(&server).await);
    for n in 0..100 {
        let (code, _) = server
            .post(MAPS, &json!({ "metadata": { "name": format!("m{n}") } }))
            .await;
        assert_eq!(code, 201);
        assert_eq!(
            events(&mut quick).await.unwrap()[0]["object"]["metadata"]["name"],
            format!("m{n}")
        );
    }
    let cut = events(&mut slow).await.unwrap();
    assert_eq!(
        (&cut[0]["type"], &cut[0]["object"]["code"]),
        (&json!("ERROR"), &json!(410)),
        "{cut:?}"
    );
    assert_eq!(cut[0]["object"]["reason"], "Expired");
    assert!(events(&mut slow).await.is_none(), "a watch that was cut has ended");
}
