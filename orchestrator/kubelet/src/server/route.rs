//! What a request is for, and which right it takes. Pure.

use http::Method;

/// A container of a pod, as a path names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) namespace: String,
    pub(super) pod: String,
    /// Where it was given.
    pub(super) uid: Option<String>,
    /// Empty for port-forward, which is about the pod.
    pub(super) container: String,
}

/// What this server knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    Healthz,
    Pods,
    Metrics,
    MetricsResource,
    StatsSummary,
    Configz,
    Logs(Place),
    Exec(Place),
    Attach(Place),
    PortForward(Place),
    Run(Place),
}

impl Route {
    /// None: there is nothing at this path.
    pub(super) fn parse(path: &str) -> Option<Self> {
        let steps: Vec<&str> = path.trim_start_matches('/').trim_end_matches('/').split('/').collect();
        let place = |namespace: &str, pod: &str, uid: Option<&str>, container: &str| Place {
            namespace: namespace.to_owned(),
            pod: pod.to_owned(),
            uid: uid.map(str::to_owned),
            container: container.to_owned(),
        };
        Some(match steps.as_slice() {
            ["healthz"] | ["healthz", "ping" | "syncloop"] => Self::Healthz,
            ["pods"] => Self::Pods,
            ["metrics"] => Self::Metrics,
            ["metrics", "resource"] => Self::MetricsResource,
            ["stats", "summary"] => Self::StatsSummary,
            ["configz"] => Self::Configz,
            ["containerLogs", namespace, pod, container] => Self::Logs(place(namespace, pod, None, container)),
            ["portForward", namespace, pod] => Self::PortForward(place(namespace, pod, None, "")),
            ["portForward", namespace, pod, uid] => Self::PortForward(place(namespace, pod, Some(uid), "")),
            [what, namespace, pod, rest @ ..] => {
                let place = match rest {
                    [container] => place(namespace, pod, None, container),
                    [uid, container] => place(namespace, pod, Some(uid), container),
                    _ => return None,
                };
                match *what {
                    "exec" => Self::Exec(place),
                    "attach" => Self::Attach(place),
                    "run" => Self::Run(place),
                    _ => return None,
                }
            }
            _ => return None,
        })
    }

    /// Which methods make sense.
    pub(super) fn allows(&self, method: &Method) -> bool {
        match self {
            // A WebSocket begins with GET, SPDY with POST.
            Self::Exec(_) | Self::Attach(_) | Self::PortForward(_) => matches!(*method, Method::GET | Method::POST),
            Self::Run(_) => *method == Method::POST,
            _ => *method == Method::GET,
        }
    }

    /// The subresources of `nodes` of which one must be allowed, and the verb. Source: upstream's kubelet authorization with
    /// the finer subresources of KEP-2862.
    pub(super) fn right(&self) -> (&'static str, &'static [&'static str]) {
        match self {
            Self::Healthz => ("get", &["healthz", "proxy"]),
            Self::Pods => ("get", &["pods", "proxy"]),
            Self::Configz => ("get", &["configz", "proxy"]),
            Self::Metrics | Self::MetricsResource => ("get", &["metrics"]),
            Self::StatsSummary => ("get", &["stats"]),
            Self::Logs(_) => ("get", &["proxy"]),
            // Always "create", as for the API's own exec: a WebSocket begins with GET, and who may only read must not run
            // commands by it. Upstream asks for the verb of the method.
            Self::Exec(_) | Self::Attach(_) | Self::PortForward(_) | Self::Run(_) => ("create", &["proxy"]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn place(uid: Option<&str>, container: &str) -> Place {
        Place {
            namespace: "n".to_owned(),
            pod: "p".to_owned(),
            uid: uid.map(str::to_owned),
            container: container.to_owned(),
        }
    }

    #[test]
    fn paths() {
        for (path, expected) in [
            ("/healthz", Some(Route::Healthz)),
            ("/pods/", Some(Route::Pods)),
            ("/metrics/resource", Some(Route::MetricsResource)),
            ("/containerLogs/n/p/c", Some(Route::Logs(place(None, "c")))),
            ("/exec/n/p/c", Some(Route::Exec(place(None, "c")))),
            ("/exec/n/p/u/c", Some(Route::Exec(place(Some("u"), "c")))),
            ("/attach/n/p/c", Some(Route::Attach(place(None, "c")))),
            ("/run/n/p/c", Some(Route::Run(place(None, "c")))),
            ("/portForward/n/p", Some(Route::PortForward(place(None, "")))),
            ("/portForward/n/p/u", Some(Route::PortForward(place(Some("u"), "")))),
            ("/", None),
            ("/exec/n/p", None),
            ("/exec/n/p/u/c/x", None),
            ("/containerLogs/n/p/../c", None),
            ("/debug/pprof/x/y", None),
        ] {
            assert_eq!(Route::parse(path), expected, "{path}");
        }
    }

    #[test]
    fn who_may_only_read_runs_nothing() {
        for path in ["/exec/n/p/c", "/attach/n/p/c", "/run/n/p/c", "/portForward/n/p"] {
            assert_eq!(Route::parse(path).unwrap().right(), ("create", &["proxy"][..]));
        }
        assert!(!Route::parse("/run/n/p/c").unwrap().allows(&Method::GET));
        assert!(!Route::parse("/pods").unwrap().allows(&Method::POST));
    }

    proptest! {
        #[test]
        fn nothing_panics(path in ".*") {
            let _ = Route::parse(&path);
        }
    }
}
