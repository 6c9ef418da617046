//! From a log file's bytes to what was asked for: since, timestamps, one stream, at most so many bytes. No IO: bytes in, in
//! pieces as they come, and bytes out.

use super::parse::{Record, Stream, parse};
use bytes::{Bytes, BytesMut};
use jiff::Timestamp;

/// What of a log is wanted. Source: `PodLogOptions` of the core API.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Go on with what the container writes, until it ends.
    pub follow: bool,
    /// Lines from the end of the file that is read first; none: all of it.
    pub tail_lines: Option<u64>,
    /// Bytes after which there is no more, in the middle of a line if need be.
    pub limit_bytes: Option<u64>,
    /// Nothing older than this.
    pub since: Option<Timestamp>,
    /// The time in front of each line.
    pub timestamps: bool,
    /// Only what was written there.
    pub stream: Option<Stream>,
}

/// Longest record that is kept together. The runtime cuts lines at 16 KiB by default; a file without newlines must not fill
/// the memory.
const LONGEST_RECORD: usize = 1 << 20;

/// Applies [`Options`] to the bytes of a file.
#[derive(Debug)]
pub struct Selector {
    options: Options,
    /// The beginning of a record whose end is not there yet.
    torn: BytesMut,
    /// Inside a record that is too long: everything up to its end is dropped.
    skipping: bool,
    /// The next record begins a line, so that a time may stand in front.
    at_start: bool,
    remaining: u64,
    malformed: u64,
}

impl Selector {
    /// At the beginning of a record.
    #[must_use]
    pub fn new(options: Options) -> Self {
        Self {
            torn: BytesMut::new(),
            skipping: false,
            at_start: true,
            remaining: options.limit_bytes.unwrap_or(u64::MAX),
            malformed: 0,
            options,
        }
    }

    /// Nothing more will come out.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.remaining == 0
    }

    /// Lines that were no records, and were left out.
    #[must_use]
    pub fn malformed(&self) -> u64 {
        self.malformed
    }

    /// The next bytes of the file; what they give.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Bytes {
        let mut out = BytesMut::with_capacity(bytes.len());
        while !self.is_done() {
            let Some(end) = bytes.iter().position(|it| *it == b'\n') else {
                break;
            };
            let (line, rest) = bytes.split_at(end);
            bytes = rest.get(1..).unwrap_or_default();
            if std::mem::take(&mut self.skipping) {
                continue;
            }
            if self.torn.is_empty() {
                self.line(line, &mut out);
            } else {
                let mut whole = std::mem::take(&mut self.torn);
                whole.extend_from_slice(line);
                self.line(&whole, &mut out);
            }
        }
        if !self.skipping && !self.is_done() {
            if self.torn.len() + bytes.len() > LONGEST_RECORD {
                self.torn = BytesMut::new();
                self.skipping = true;
                self.malformed += 1;
            } else {
                self.torn.extend_from_slice(bytes);
            }
        }
        out.freeze()
    }

    /// The file is at its end and another one follows, or none: a record without a newline is taken if it can be read.
    pub fn end_of_file(&mut self) -> Bytes {
        let mut out = BytesMut::new();
        let torn = std::mem::take(&mut self.torn);
        if !std::mem::take(&mut self.skipping) && !torn.is_empty() && !self.is_done() {
            self.line(&torn, &mut out);
        }
        out.freeze()
    }

    fn line(&mut self, line: &[u8], out: &mut BytesMut) {
        match parse(line) {
            Ok(record) => self.record(&record, out),
            Err(_) => self.malformed += 1,
        }
    }

    fn record(&mut self, record: &Record<'_>, out: &mut BytesMut) {
        let other = self.options.stream.is_some_and(|wanted| wanted != record.stream);
        if other || self.options.since.is_some_and(|since| record.at < since) {
            return;
        }
        if self.options.timestamps && self.at_start {
            self.put(record.time.as_bytes(), out);
            self.put(b" ", out);
        }
        self.put(record.text, out);
        if !record.partial {
            self.put(b"\n", out);
        }
        self.at_start = !record.partial;
    }

    fn put(&mut self, bytes: &[u8], out: &mut BytesMut) {
        let room = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(bytes.len());
        out.extend_from_slice(&bytes[..room]);
        self.remaining -= room as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(options: Options, file: &str) -> String {
        let mut selector = Selector::new(options);
        let mut out = selector.feed(file.as_bytes()).to_vec();
        out.extend(selector.end_of_file());
        String::from_utf8(out).unwrap()
    }

    const FILE: &str = "2026-11-20T10:00:00Z stdout P one \n\
        2026-11-20T10:00:01Z stdout F line\n\
        garbage\n\
        2026-11-20T10:00:02Z stderr F two\n\
        2026-11-20T10:00:03Z stdout F \n";

    #[test]
    fn what_is_asked_for() {
        let none = Options::default();
        assert_eq!(all(none.clone(), FILE), "one line\ntwo\n\n");
        let since = Some("2026-11-20T10:00:02Z".parse().unwrap());
        assert_eq!(all(Options { since, ..none.clone() }, FILE), "two\n\n");
        let timestamps = Options {
            timestamps: true,
            ..none.clone()
        };
        assert_eq!(
            all(timestamps, FILE),
            "2026-11-20T10:00:00Z one line\n2026-11-20T10:00:02Z two\n2026-11-20T10:00:03Z \n"
        );
        let stream = Some(Stream::Stderr);
        assert_eq!(all(Options { stream, ..none.clone() }, FILE), "two\n");
        for (limit, expected) in [(0, ""), (5, "one l"), (9, "one line\n"), (99, "one line\ntwo\n\n")] {
            let limit_bytes = Some(limit);
            assert_eq!(
                all(
                    Options {
                        limit_bytes,
                        ..none.clone()
                    },
                    FILE
                ),
                expected
            );
        }
    }

    #[test]
    fn a_record_without_its_newline_is_taken_at_the_end_only() {
        let mut selector = Selector::new(Options::default());
        assert!(selector.feed(b"2026-11-20T10:00:00Z stdout F te").is_empty());
        assert_eq!(selector.feed(b"xt\n2026"), "text\n");
        assert!(selector.end_of_file().is_empty());
        assert_eq!(selector.malformed(), 1);
    }

    #[test]
    fn a_record_without_end_fills_no_memory() {
        let mut selector = Selector::new(Options::default());
        for _ in 0..40 {
            assert!(selector.feed(&vec![b'x'; 100_000]).is_empty());
            assert!(selector.torn.len() <= LONGEST_RECORD);
        }
        assert_eq!(selector.feed(b"x\n2026-11-20T10:00:00Z stdout F ok\n"), "ok\n");
        assert_eq!(selector.malformed(), 1);
    }

    /// What a container wrote, and in what pieces the runtime cut it.
    fn pieces() -> impl Strategy<Value = Vec<(Vec<u8>, bool)>> {
        let byte = any::<u8>().prop_filter("newlines end records", |it| *it != b'\n');
        proptest::collection::vec((proptest::collection::vec(byte, 0..40), any::<bool>()), 0..30)
    }

    proptest! {
        #[test]
        fn every_byte_comes_out_once_however_the_file_is_torn(
            pieces in pieces(), cuts in proptest::collection::vec(1usize..60, 1..20),
        ) {
            let (mut file, mut expected) = (Vec::new(), Vec::new());
            for (text, partial) in &pieces {
                file.extend(format!("2026-11-20T10:00:00Z stdout {} ", if *partial { "P" } else { "F" }).into_bytes());
                file.extend(text);
                file.push(b'\n');
                expected.extend(text);
                if !partial {
                    expected.push(b'\n');
                }
            }
            let mut selector = Selector::new(Options::default());
            let (mut out, mut rest, mut cuts) = (Vec::new(), &file[..], cuts.iter().cycle());
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
                out.extend(selector.feed(now));
                rest = later;
            }
            out.extend(selector.end_of_file());
            prop_assert_eq!(out, expected);
            prop_assert_eq!(selector.malformed(), 0);
        }

        #[test]
        fn a_limit_is_a_prefix(file in proptest::collection::vec(any::<u8>(), 0..400), limit in 0u64..100) {
            let run = |limit_bytes| {
                let mut selector = Selector::new(Options { limit_bytes, ..Options::default() });
                let mut out = selector.feed(FILE.as_bytes()).to_vec();
                out.extend(selector.feed(&file));
                out.extend(selector.end_of_file());
                out
            };
            let (whole, part) = (run(None), run(Some(limit)));
            prop_assert_eq!(&part[..], &whole[..whole.len().min(limit as usize)]);
        }
    }
}
