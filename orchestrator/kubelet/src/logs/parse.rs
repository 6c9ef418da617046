//! One record of a container's log file, as the runtime writes it: `2026-11-20T10:00:00.123456789Z stdout F text\n`.
//! Source: `kubelet-cri-logging.md` of the CRI: time in RFC 3339 with nanoseconds, stream, tags joined by `:`, and the bytes.

use jiff::Timestamp;

/// Where the container wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// File descriptor 1.
    Stdout,
    /// File descriptor 2.
    Stderr,
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// As it is in the file, to be shown unchanged.
    pub time: &'a str,
    /// The same, to be compared.
    pub at: Timestamp,
    /// Where the container wrote.
    pub stream: Stream,
    /// The line goes on in the next record of this stream: tag `P`. The runtime cuts lines that are longer than its buffer.
    pub partial: bool,
    /// What the container wrote, without the newline.
    pub text: &'a [u8],
}

/// Why a line is no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Fewer than four fields.
    #[error("not `time stream tag text`")]
    Fields,
    /// The first field.
    #[error("no RFC 3339 time")]
    Time,
    /// The second field.
    #[error("neither stdout nor stderr")]
    Stream,
    /// The third field.
    #[error("neither tag P nor F")]
    Tag,
}

/// Reads one line, which is given without its newline.
///
/// # Errors
/// A line that is no record.
pub fn parse(line: &[u8]) -> Result<Record<'_>, Malformed> {
    let (time, rest) = field(line)?;
    let (stream, rest) = field(rest)?;
    // An empty line may end right behind its tag.
    let (tags, text) = field(rest).unwrap_or((rest, b""));
    let time = std::str::from_utf8(time).map_err(|_| Malformed::Time)?;
    let at: Timestamp = time.parse().map_err(|_| Malformed::Time)?;
    let stream = match stream {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return Err(Malformed::Stream),
    };
    // Only the first tag has a meaning so far; others may follow it.
    let partial = match tags.split(|it| *it == b':').next() {
        Some(b"P") => true,
        Some(b"F") => false,
        _ => return Err(Malformed::Tag),
    };
    Ok(Record {
        time,
        at,
        stream,
        partial,
        text,
    })
}

fn field(line: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let end = line.iter().position(|it| *it == b' ').ok_or(Malformed::Fields)?;
    let (field, rest) = line.split_at(end);
    Ok((field, rest.get(1..).unwrap_or_default()))
}

/// Whether this line, without its newline, ends a line of the container's. One that cannot be read counts as one.
pub(super) fn ends_line(line: &[u8]) -> bool {
    !parse(line).is_ok_and(|it| it.partial)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TIME: &str = "2026-11-20T10:00:00.123456789Z";

    #[test]
    fn records() {
        let line = format!("{TIME} stderr P:x a  b ");
        let record = parse(line.as_bytes()).unwrap();
        assert_eq!(
            (record.time, record.stream, record.partial),
            (TIME, Stream::Stderr, true)
        );
        assert_eq!(record.text, b"a  b ");
        for empty in [format!("{TIME} stdout F "), format!("{TIME} stdout F")] {
            assert_eq!(parse(empty.as_bytes()).unwrap().text, b"");
        }
        let offset = parse(b"2026-11-20T12:00:00.5+02:00 stdout F x").unwrap();
        assert_eq!(offset.at, "2026-11-20T10:00:00.5Z".parse().unwrap());
    }

    #[test]
    fn lines_that_are_none() {
        for (line, expected) in [
            ("".to_owned(), Malformed::Fields),
            (TIME.to_owned(), Malformed::Fields),
            ("yesterday stdout F x".to_owned(), Malformed::Time),
            (format!("{TIME} stdin F x"), Malformed::Stream),
            (format!("{TIME} stdout Q x"), Malformed::Tag),
            (format!("{TIME} stdout  x"), Malformed::Tag),
        ] {
            assert_eq!(parse(line.as_bytes()), Err(expected), "{line:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&line);
        }

        #[test]
        fn any_bytes_pass(text in proptest::collection::vec(any::<u8>(), 0..200), partial: bool, stderr: bool) {
            let mut line = format!("{TIME} {} {} ", if stderr { "stderr" } else { "stdout" }, if partial { "P" } else { "F" });
            let mut bytes = std::mem::take(&mut line).into_bytes();
            bytes.extend(&text);
            let record = parse(&bytes).unwrap();
            prop_assert_eq!(record.text, &text[..]);
            prop_assert_eq!(record.partial, partial);
            prop_assert_eq!(record.stream == Stream::Stderr, stderr);
        }
    }
}
