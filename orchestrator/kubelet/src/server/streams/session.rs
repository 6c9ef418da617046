//! Translates between a client's WebSocket messages (`v5.channel.k8s.io`: the first byte is the channel) and the runtime's
//! SPDY streams. Pure. Source: KEP-4006.
//!
//! Towards the runtime it is SPDY and not the WebSocket `v4.channel.k8s.io` that it speaks too: in that one the end of stdin
//! cannot be said.

use super::spdy::{Received, Send};
use bytes::{BufMut as _, Bytes, BytesMut};

/// Channels of a message.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// Its second byte is the channel on which nothing more comes.
const CLOSE: u8 = 255;

/// What the client wants to be connected with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) stdin: bool,
    pub(super) stdout: bool,
    pub(super) stderr: bool,
    pub(super) tty: bool,
}

/// What a frame of the runtime's means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reaction {
    /// A message for the client.
    ToClient(Bytes),
    /// A frame for the runtime.
    ToRuntime(Send),
    Nothing,
}

/// One command or attached container.
#[derive(Debug)]
pub(super) struct Session {
    /// Open streams: id, channel.
    streams: Vec<(u32, u8)>,
    /// Streams of the runtime's that are not over.
    open: Vec<u32>,
    /// Channels on which the client sends nothing more.
    finished: Vec<u8>,
    told_status: bool,
}

impl Session {
    /// A session, and the frames that open its streams. The order is that of upstream's clients.
    pub(super) fn start(wanted: Wanted) -> (Self, Vec<Send>) {
        let channels = [
            (true, ERROR, "error"),
            (wanted.stdin, STDIN, "stdin"),
            (wanted.stdout, STDOUT, "stdout"),
            // A terminal has one output only.
            (wanted.stderr && !wanted.tty, STDERR, "stderr"),
            (wanted.tty, RESIZE, "resize"),
        ];
        let channels = channels.into_iter().filter(|(wanted, ..)| *wanted);
        let mut session = Self {
            streams: Vec::new(),
            open: Vec::new(),
            finished: Vec::new(),
            told_status: false,
        };
        let mut frames = Vec::new();
        for ((_, channel, value), stream) in channels.zip((1..).step_by(2)) {
            session.streams.push((stream, channel));
            if matches!(channel, ERROR | STDOUT | STDERR) {
                session.open.push(stream);
            }
            frames.push(Send::Open {
                stream,
                name: "streamtype",
                value,
            });
            if channel == ERROR {
                // Nothing is ever written to it from here.
                frames.push(Send::Finish { stream });
            }
        }
        (session, frames)
    }

    /// Everything that the runtime has to say has been said.
    pub(super) fn is_over(&self) -> bool {
        self.open.is_empty()
    }

    /// Takes a message of the client's. What belongs to no stream is left out.
    pub(super) fn client_says(&mut self, message: &Bytes) -> Option<Send> {
        match *message.first()? {
            CLOSE => {
                let channel = *message.get(1)?;
                self.finish(channel)
            }
            channel @ (STDIN | RESIZE) if message.len() > 1 && !self.finished.contains(&channel) => Some(Send::Data {
                stream: self.stream(channel)?,
                bytes: message.slice(1..),
            }),
            _ => None,
        }
    }

    fn finish(&mut self, channel: u8) -> Option<Send> {
        if !matches!(channel, STDIN | RESIZE) || self.finished.contains(&channel) {
            return None;
        }
        let stream = self.stream(channel)?;
        self.finished.push(channel);
        Some(Send::Finish { stream })
    }

    fn stream(&self, channel: u8) -> Option<u32> {
        self.streams
            .iter()
            .find(|(_, it)| *it == channel)
            .map(|(stream, _)| *stream)
    }

    /// Takes a frame of the runtime's.
    pub(super) fn runtime_says(&mut self, frame: Received) -> Reaction {
        match frame {
            Received::Ping { id } => Reaction::ToRuntime(Send::Pong { id }),
            Received::Data { stream, bytes, last } => {
                let channel = self
                    .streams
                    .iter()
                    .find(|(it, _)| *it == stream)
                    .map(|(_, channel)| *channel);
                if last {
                    self.open.retain(|it| *it != stream);
                }
                match channel {
                    Some(channel @ (STDOUT | STDERR | ERROR)) if !bytes.is_empty() => {
                        self.told_status |= channel == ERROR;
                        Reaction::ToClient(on_channel(channel, &bytes))
                    }
                    _ => Reaction::Nothing,
                }
            }
            Received::Reset { stream } => {
                self.open.retain(|it| *it != stream);
                Reaction::Nothing
            }
            Received::GoAway | Received::Other => Reaction::Nothing,
        }
    }

    /// The runtime's side is over: the message that the client still needs, if it was not told how it ended.
    pub(super) fn end(&mut self, cause: &str) -> Option<Bytes> {
        if std::mem::replace(&mut self.told_status, true) {
            return None;
        }
        let status = serde_json::json!({
            "metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500,
            "message": format!("the container runtime ended the connection without a status: {cause}"),
        });
        Some(on_channel(ERROR, status.to_string().as_bytes()))
    }
}

fn on_channel(channel: u8, bytes: &[u8]) -> Bytes {
    let mut message = BytesMut::with_capacity(1 + bytes.len());
    message.put_u8(channel);
    message.extend_from_slice(bytes);
    message.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn opened(frames: &[Send]) -> Vec<String> {
        let names = frames.iter().filter_map(|it| match it {
            Send::Open { stream, value, .. } => Some(format!("{stream}={value}")),
            _ => None,
        });
        names.collect()
    }

    fn wanted(text: &str) -> Wanted {
        Wanted {
            stdin: text.contains('i'),
            stdout: text.contains('o'),
            stderr: text.contains('e'),
            tty: text.contains('t'),
        }
    }

    #[test]
    fn streams_are_those_that_were_asked_for() {
        for (asked, expected) in [
            ("oe", &["1=error", "3=stdout", "5=stderr"][..]),
            ("ioe", &["1=error", "3=stdin", "5=stdout", "7=stderr"]),
            ("ioet", &["1=error", "3=stdin", "5=stdout", "7=resize"]),
            ("", &["1=error"]),
        ] {
            assert_eq!(opened(&Session::start(wanted(asked)).1), expected, "{asked}");
        }
    }

    #[test]
    fn stdin_has_an_end() {
        let (mut session, _) = Session::start(wanted("io"));
        let bytes = Bytes::from_static(b"hello");
        let data = Send::Data { stream: 3, bytes };
        assert_eq!(session.client_says(&Bytes::from_static(b"\0hello")), Some(data));
        for nothing in [
            &b"\0"[..],
            b"",
            b"\x01x",
            b"\x04{}",
            b"\xff",
            b"\xff\x01",
            b"\xff\x07",
            b"\x07x",
        ] {
            assert_eq!(session.client_says(&Bytes::from_static(nothing)), None, "{nothing:?}");
        }
        let end = Bytes::from_static(b"\xff\0");
        assert_eq!(session.client_says(&end), Some(Send::Finish { stream: 3 }));
        assert_eq!(session.client_says(&end), None);
        assert_eq!(session.client_says(&Bytes::from_static(b"\0late")), None);
    }

    #[test]
    fn it_is_over_when_status_and_output_are() {
        let (mut session, _) = Session::start(wanted("oe"));
        let mut data = |stream, text: &'static str, last| {
            let bytes = Bytes::from_static(text.as_bytes());
            let reaction = session.runtime_says(Received::Data { stream, bytes, last });
            (reaction, session.is_over())
        };
        let message = |text: &'static str| Reaction::ToClient(Bytes::from_static(text.as_bytes()));
        assert_eq!(data(3, "out", false), (message("\x01out"), false));
        assert_eq!(data(5, "err", true), (message("\x02err"), false));
        assert_eq!(data(1, "{}", true), (message("\x03{}"), false));
        assert_eq!(data(9, "?", false), (Reaction::Nothing, false));
        assert_eq!(data(3, "", true), (Reaction::Nothing, true));
        assert_eq!(session.end("x"), None);
    }

    #[test]
    fn a_connection_that_breaks_is_told() {
        let (mut session, _) = Session::start(wanted("o"));
        assert_eq!(session.runtime_says(Received::Reset { stream: 3 }), Reaction::Nothing);
        assert_eq!(
            session.runtime_says(Received::Ping { id: 2 }),
            Reaction::ToRuntime(Send::Pong { id: 2 })
        );
        assert!(!session.is_over());
        let status = session.end("broken pipe").unwrap();
        assert_eq!(status[0], ERROR);
        let status: serde_json::Value = serde_json::from_slice(&status[1..]).unwrap();
        assert_eq!(status["status"], "Failure");
        assert!(status["message"].as_str().unwrap().contains("broken pipe"));
    }

    proptest! {
        #[test]
        fn whatever_a_client_sends_goes_to_its_own_streams(messages in proptest::collection::vec(
            proptest::collection::vec(any::<u8>(), 0..5), 0..50,
        )) {
            let (mut session, _) = Session::start(wanted("iot"));
            let mut ended = Vec::new();
            for message in messages {
                match session.client_says(&message.into()) {
                    Some(Send::Data { stream, bytes }) => {
                        prop_assert!([3, 7].contains(&stream) && !bytes.is_empty() && !ended.contains(&stream));
                    }
                    Some(Send::Finish { stream }) => {
                        prop_assert!([3, 7].contains(&stream) && !ended.contains(&stream));
                        ended.push(stream);
                    }
                    other => prop_assert!(other.is_none()),
                }
            }
        }
    }
}
