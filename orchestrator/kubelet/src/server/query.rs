//! Queries of requests. Pure. Source: `PodLogOptions`, and the kubelet's names for the streams of a command.

use super::{Refusal, streams::Streams};
use crate::logs::{Options, Stream};
use http::{StatusCode, Uri};
use jiff::{SignedDuration, Timestamp};

/// Name and value, unescaped, in order.
#[derive(Debug)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn of(uri: &Uri) -> Self {
        let text = uri.query().unwrap_or_default();
        Self(form_urlencoded::parse(text.as_bytes()).into_owned().collect())
    }

    fn get(&self, name: &str) -> Option<&str> {
        let mut all = self.0.iter();
        all.find(|(it, _)| it == name)
            .map(|(_, value)| value.as_str())
            .filter(|it| !it.is_empty())
    }

    pub(super) fn all(&self, name: &str) -> Vec<String> {
        let named = self.0.iter().filter(|(it, _)| it == name);
        named.map(|(_, value)| value.clone()).collect()
    }

    pub(super) fn is_set(&self, name: &str) -> bool {
        self.get(name)
            .is_some_and(|it| matches!(it, "1" | "true" | "True" | "TRUE" | "t" | "T"))
    }

    fn number(&self, name: &str) -> Result<Option<u64>, Refusal> {
        let parsed = self
            .get(name)
            .map(|it| it.parse().map_err(|_| bad(name, it, "a number that is not negative")));
        parsed.transpose()
    }

    /// What of a log is wanted; `now` is where `sinceSeconds` counts from.
    ///
    /// # Errors
    /// Values that mean nothing.
    pub(super) fn log_options(&self, now: Timestamp) -> Result<Options, Refusal> {
        let since = match (self.number("sinceSeconds")?, self.get("sinceTime")) {
            (Some(seconds), _) => {
                let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
                Some(
                    now.checked_sub(SignedDuration::from_secs(seconds))
                        .unwrap_or(Timestamp::MIN),
                )
            }
            (None, Some(time)) => Some(time.parse().map_err(|_| bad("sinceTime", time, "an RFC 3339 time"))?),
            (None, None) => None,
        };
        let stream = match self.get("stream") {
            None | Some("All") => None,
            Some("Stdout") => Some(Stream::Stdout),
            Some("Stderr") => Some(Stream::Stderr),
            Some(other) => return Err(bad("stream", other, "All, Stdout or Stderr")),
        };
        Ok(Options {
            follow: self.is_set("follow"),
            tail_lines: self.number("tailLines")?,
            limit_bytes: self.number("limitBytes")?,
            since,
            timestamps: self.is_set("timestamps"),
            stream,
        })
    }

    /// The streams of a command.
    ///
    /// # Errors
    /// None at all.
    pub(super) fn streams(&self) -> Result<Streams, Refusal> {
        let tty = self.is_set("tty");
        let streams = Streams {
            stdin: self.is_set("input"),
            stdout: self.is_set("output"),
            // A terminal has one output only.
            stderr: self.is_set("error") && !tty,
            tty,
        };
        if !streams.stdin && !streams.stdout && !streams.stderr {
            let text = "you must specify at least 1 of stdin, stdout, stderr";
            return Err(Refusal::new(StatusCode::BAD_REQUEST, text));
        }
        Ok(streams)
    }

    /// Ports of a port-forward. Only WebSocket v4 clients name them here.
    ///
    /// # Errors
    /// What is no port.
    pub(super) fn ports(&self) -> Result<Vec<i32>, Refusal> {
        let all = self.all("port").into_iter().chain(self.all("ports"));
        let each = all.flat_map(|it| it.split(',').map(str::to_owned).collect::<Vec<_>>());
        let port = |it: String| match it.trim().parse::<u16>() {
            Ok(port) if port != 0 => Ok(port.into()),
            _ => Err(bad("ports", &it, "numbers of ports")),
        };
        each.map(port).collect()
    }
}

fn bad(name: &str, value: &str, wanted: &str) -> Refusal {
    let text = format!("{name}: Invalid value: {value:?}: must be {wanted}");
    Refusal::new(StatusCode::BAD_REQUEST, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> Query {
        Query::of(&format!("/x?{text}").parse().unwrap())
    }

    #[test]
    fn logs() {
        let now: Timestamp = "2026-11-20T10:00:00Z".parse().unwrap();
        let options = |text| query(text).log_options(now).map_err(|it| it.text);
        assert_eq!(options(""), Ok(Options::default()));
        let all = "follow=true&tailLines=3&limitBytes=9&timestamps=true&sinceSeconds=60&stream=Stderr";
        let expected = Options {
            follow: true,
            tail_lines: Some(3),
            limit_bytes: Some(9),
            since: Some("2026-11-20T09:59:00Z".parse().unwrap()),
            timestamps: true,
            stream: Some(Stream::Stderr),
        };
        assert_eq!(options(all), Ok(expected));
        let since = options("sinceTime=2026-11-20T11%3A00%3A00%2B02%3A00").unwrap().since;
        assert_eq!(since, Some("2026-11-20T09:00:00Z".parse().unwrap()));
        assert_eq!(
            options("sinceSeconds=99999999999999999").unwrap().since,
            Some(Timestamp::MIN)
        );
        for wrong in [
            "tailLines=-1",
            "limitBytes=x",
            "sinceTime=yesterday",
            "stream=Both",
            "sinceSeconds=1.5",
        ] {
            assert!(options(wrong).unwrap_err().contains("Invalid value"), "{wrong}");
        }
    }

    #[test]
    fn commands() {
        let streams = query("input=1&output=1&error=1&tty=1").streams().unwrap();
        assert!(streams.stdin && streams.stdout && streams.tty && !streams.stderr);
        assert!(query("tty=1").streams().is_err());
        assert_eq!(
            query("command=sh&command=-c&command=a%20b").all("command"),
            ["sh", "-c", "a b"]
        );
        assert_eq!(query("ports=80,81&port=82").ports().unwrap(), [82, 80, 81]);
        assert!(query("ports=0").ports().is_err());
    }
}
