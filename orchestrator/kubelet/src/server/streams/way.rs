//! How a client's upgrade is carried to the runtime. Pure: headers in, a way out.

use http::{HeaderMap, HeaderName, header};

/// Subprotocol of exec and attach in which the end of stdin can be said. Source: KEP-4006.
pub(super) const V5: &str = "v5.channel.k8s.io";
/// Subprotocol of port-forward: the bytes of SPDY in binary messages. Source: KEP-4006.
pub(super) const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// exec or attach
    Command,
    /// Ports of a pod.
    Forward,
}

/// Client to runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Both speak the same: SPDY, or a WebSocket of an older subprotocol.
    Pass,
    /// WebSocket messages of v5 become SPDY streams.
    Translate,
    /// Binary messages hold the bytes of SPDY.
    Unwrap,
}

/// Chooses.
///
/// # Errors
/// A request that asks for no upgrade, or for one that nobody here knows.
pub(super) fn choose(purpose: Purpose, headers: &HeaderMap) -> Result<Way, &'static str> {
    let asks = values(headers, &header::CONNECTION).any(|it| it.eq_ignore_ascii_case("upgrade"));
    let to = headers.get(header::UPGRADE).and_then(|it| it.to_str().ok());
    let Some(to) = to.filter(|_| asks) else {
        return Err("upgrade required: SPDY/3.1 or websocket");
    };
    if to.eq_ignore_ascii_case("SPDY/3.1") {
        return Ok(Way::Pass);
    }
    if !to.eq_ignore_ascii_case("websocket") {
        return Err("only SPDY/3.1 and websocket can be upgraded to");
    }
    let offers = |wanted: &str| values(headers, &header::SEC_WEBSOCKET_PROTOCOL).any(|it| it == wanted);
    Ok(match purpose {
        Purpose::Command if offers(V5) => Way::Translate,
        Purpose::Forward if offers(TUNNEL) => Way::Unwrap,
        _ => Way::Pass,
    })
}

/// What a header lists, over all its lines.
fn values<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let lines = headers.get_all(name).iter().filter_map(|it| it.to_str().ok());
    lines.flat_map(|it| it.split(',')).map(str::trim)
}

/// Headers that the runtime sees as the client wrote them.
pub(super) fn is_passed_on(name: &HeaderName) -> bool {
    name == header::UPGRADE || name.as_str().starts_with("sec-websocket-") || name.as_str().starts_with("x-stream-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways() {
        let v4 = "v4.channel.k8s.io";
        for (purpose, upgrade, protocols, expected) in [
            (Purpose::Command, "SPDY/3.1", &[][..], Ok(Way::Pass)),
            (Purpose::Forward, "SPDY/3.1", &[], Ok(Way::Pass)),
            (Purpose::Command, "websocket", &[v4], Ok(Way::Pass)),
            (Purpose::Command, "websocket", &[], Ok(Way::Pass)),
            (
                Purpose::Command,
                "WebSocket",
                &["v5.channel.k8s.io, v4.channel.k8s.io"],
                Ok(Way::Translate),
            ),
            (Purpose::Command, "websocket", &[v4, V5], Ok(Way::Translate)),
            (Purpose::Forward, "websocket", &[V5, v4], Ok(Way::Pass)),
            (Purpose::Forward, "websocket", &[TUNNEL], Ok(Way::Unwrap)),
            (
                Purpose::Command,
                "h2c",
                &[],
                Err("only SPDY/3.1 and websocket can be upgraded to"),
            ),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONNECTION, "keep-alive, Upgrade".parse().unwrap());
            headers.insert(header::UPGRADE, upgrade.parse().unwrap());
            for protocol in protocols {
                headers.append(header::SEC_WEBSOCKET_PROTOCOL, protocol.parse().unwrap());
            }
            assert_eq!(
                choose(purpose, &headers),
                expected,
                "{purpose:?} {upgrade} {protocols:?}"
            );
            headers.remove(header::CONNECTION);
            assert!(choose(purpose, &headers).is_err());
        }
    }
}
