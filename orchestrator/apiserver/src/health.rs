//! `/healthz`, `/livez`, `/readyz`: plain text, each check by name with `?verbose`.

use crate::{
    core::ApiServer,
    http::{Body, body},
    request_info::parameters,
    status::{Result, Status},
};
use http::{Response, StatusCode};
use std::sync::atomic::Ordering;

const PATHS: [&str; 3] = ["healthz", "livez", "readyz"];

/// Whether a path asks for health.
pub(crate) fn is_health(path: &str) -> bool {
    let mut parts = path.split('/').filter(|part| !part.is_empty());
    parts.next().is_some_and(|first| PATHS.contains(&first))
}

/// One check: its name, and what is wrong.
type Check = (&'static str, std::result::Result<(), &'static str>);

fn checks(server: &ApiServer, which: &str) -> Vec<Check> {
    let check = |holds: bool, why| if holds { Ok(()) } else { Err(why) };
    let started = server.ready.load(Ordering::Acquire);
    let mut all = vec![("ping", Ok(())), ("log", Ok(()))];
    let store = check(!server.cache.is_closed(), "the store is closed");
    all.push(("etcd", store));
    if which != "livez" {
        all.push(("informer-sync", check(started, "the start has not finished")));
    }
    all.push(("poststarthook/rbac/bootstrap-roles", check(started, "not finished")));
    all.push((
        "poststarthook/start-service-ip-repair-controllers",
        check(started, "not finished"),
    ));
    if which == "readyz" {
        all.push(("shutdown", check(!*server.stop.borrow(), "the server is stopping")));
    }
    all
}

/// Answers `/healthz` and its kin, with the checks behind them as sub-paths.
pub(crate) fn answer(server: &ApiServer, path: &str, query: &str) -> Result<Response<Body>> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let (which, one) = parts.split_first().ok_or_else(Status::no_such_path)?;
    let mut checks = checks(server, which);
    if !one.is_empty() {
        let name = one.join("/");
        checks.retain(|(check, _)| *check == name);
        if checks.is_empty() {
            return Err(Status::no_such_path());
        }
    }
    let excluded: Vec<_> = parameters(query)
        .filter(|(name, _)| name == "exclude")
        .map(|(_, value)| value)
        .collect();
    checks.retain(|(check, _)| !excluded.iter().any(|it| it == check));
    let failed = checks.iter().any(|(_, result)| result.is_err());
    let verbose = parameters(query).any(|(name, value)| name == "verbose" && value != "false" && value != "0");
    if !failed && !verbose {
        return Ok(body::text(StatusCode::OK, "ok"));
    }
    let mut text = String::new();
    for (name, result) in &checks {
        match result {
            Ok(()) => text.push_str(&format!("[+]{name} ok\n")),
            Err(why) => text.push_str(&format!("[-]{name} failed: {why}\n")),
        }
    }
    let (code, end) = if failed {
        (StatusCode::INTERNAL_SERVER_ERROR, "failed")
    } else {
        (StatusCode::OK, "passed")
    };
    text.push_str(&format!("{which} check {end}\n"));
    Ok(body::text(code, text))
}
