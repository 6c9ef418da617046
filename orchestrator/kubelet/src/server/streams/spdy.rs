//! As much of SPDY/3.1 as it takes to be the client of a container runtime's stream server. Pure: frames to bytes and back.
//!
//! The runtime's server has no flow control of its own beyond TCP's, and none is done here. Source: SPDY protocol draft 3.1.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use tokio_util::codec::{Decoder, Encoder};

/// Control frames of SPDY/3: the first two bytes.
const CONTROL: u16 = 0x8003;
const SYN_STREAM: u16 = 1;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
/// This side of the stream is over.
const FLAG_FIN: u8 = 1;
/// Type or stream, flags, length.
const HEADER: usize = 8;
/// Most bytes of one data frame that is sent: as much as a client's message has.
const MOST_DATA: usize = 32 << 10;
/// Longest frame that is believed. The field allows 16 MiB; the runtime's servers copy 32 KiB at a time.
const LONGEST: usize = 1 << 20;

/// A frame that goes to the runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Send {
    /// Opens a stream, which carries this header.
    Open {
        /// Odd, and larger than all before.
        stream: u32,
        /// Lower case.
        name: &'static str,
        value: &'static str,
    },
    Data {
        stream: u32,
        bytes: Bytes,
    },
    /// No more data of ours.
    Finish {
        stream: u32,
    },
    /// The answer to a ping.
    Pong {
        id: u32,
    },
}

/// A frame that came from the runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Received {
    Data {
        stream: u32,
        bytes: Bytes,
        last: bool,
    },
    /// A stream that was cut off.
    Reset {
        stream: u32,
    },
    Ping {
        id: u32,
    },
    /// No new streams; those that are open go on.
    GoAway,
    /// Answers to streams that were opened, settings, windows: nothing to do.
    Other,
}

/// Why a connection is given up.
#[derive(Debug, thiserror::Error)]
pub(super) enum SpdyError {
    #[error("the runtime sent a frame of {0} bytes; at most {LONGEST} are taken")]
    TooLong(usize),
    #[error("the runtime's SPDY version is not 3")]
    Version,
    #[error("a frame of the runtime's is too short")]
    TooShort,
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// Frames of one connection.
#[derive(Debug, Default)]
pub(super) struct Codec {
    /// Headers of all streams are one zlib stream: its beginning was sent.
    zlib_begun: bool,
}

fn control(out: &mut BytesMut, kind: u16, length: usize) {
    out.put_u16(CONTROL);
    out.put_u16(kind);
    // Flags 0. Lengths of control frames are small numbers of ours.
    out.put_u32(u32::try_from(length).unwrap_or_default());
}

fn data(out: &mut BytesMut, stream: u32, flags: u8, bytes: &[u8]) {
    out.put_u32(stream & 0x7fff_ffff);
    let length = u32::try_from(bytes.len()).unwrap_or_default();
    out.put_u32(u32::from(flags) << 24 | length & 0x00ff_ffff);
    out.extend_from_slice(bytes);
}

impl Codec {
    /// A block of one header, "compressed": zlib knows stored blocks, which spares a compressor and SPDY's dictionary. An
    /// empty block behind it makes the reader hand out what it has. Source: RFC 1950 §2.2, RFC 1951 §3.2.4.
    fn headers(&mut self, name: &str, value: &str) -> BytesMut {
        let mut plain = BytesMut::new();
        plain.put_u32(1);
        for text in [name, value] {
            plain.put_u32(u32::try_from(text.len()).unwrap_or_default());
            plain.extend_from_slice(text.as_bytes());
        }
        let mut out = BytesMut::new();
        if !std::mem::replace(&mut self.zlib_begun, true) {
            out.put_u16(0x7801);
        }
        let length = u16::try_from(plain.len()).unwrap_or_default();
        out.put_u8(0);
        out.put_u16_le(length);
        out.put_u16_le(!length);
        out.extend_from_slice(&plain);
        out.extend_from_slice(&[0, 0, 0, 0xff, 0xff]);
        out
    }
}

impl Encoder<Send> for Codec {
    type Error = SpdyError;

    fn encode(&mut self, frame: Send, out: &mut BytesMut) -> Result<(), SpdyError> {
        match frame {
            Send::Open { stream, name, value } => {
                let headers = self.headers(name, value);
                control(out, SYN_STREAM, 10 + headers.len());
                out.put_u32(stream);
                // Associated with no other stream; highest priority; no credential slot.
                out.put_u32(0);
                out.put_u16(0);
                out.extend_from_slice(&headers);
            }
            Send::Data { stream, bytes } => {
                for part in bytes.chunks(MOST_DATA) {
                    data(out, stream, 0, part);
                }
            }
            Send::Finish { stream } => data(out, stream, FLAG_FIN, &[]),
            Send::Pong { id } => {
                control(out, PING, 4);
                out.put_u32(id);
            }
        }
        Ok(())
    }
}

impl Decoder for Codec {
    type Item = Received;
    type Error = SpdyError;

    fn decode(&mut self, bytes: &mut BytesMut) -> Result<Option<Received>, SpdyError> {
        let Some(mut header) = bytes.get(..HEADER) else {
            return Ok(None);
        };
        let (first, second) = (header.get_u32(), header.get_u32());
        let (flags, length) = ((second >> 24) as u8, (second & 0x00ff_ffff) as usize);
        if length > LONGEST {
            return Err(SpdyError::TooLong(length));
        }
        if bytes.len() < HEADER + length {
            bytes.reserve(HEADER + length - bytes.len());
            return Ok(None);
        }
        bytes.advance(HEADER);
        let mut body = bytes.split_to(length).freeze();
        if first & 0x8000_0000 == 0 {
            return Ok(Some(Received::Data {
                stream: first,
                bytes: body,
                last: flags & FLAG_FIN != 0,
            }));
        }
        if (first >> 16) as u16 != CONTROL {
            return Err(SpdyError::Version);
        }
        let mut number = || body.try_get_u32().map_err(|_| SpdyError::TooShort);
        Ok(Some(match (first & 0xffff) as u16 {
            RST_STREAM => Received::Reset { stream: number()? },
            PING => Received::Ping { id: number()? },
            GOAWAY => Received::GoAway,
            _ => Received::Other,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes_of(codec: &mut Codec, frame: Send) -> Vec<u8> {
        let mut out = BytesMut::new();
        codec.encode(frame, &mut out).unwrap();
        out.to_vec()
    }

    #[test]
    fn a_stream_is_opened_as_the_protocol_has_it() {
        let mut codec = Codec::default();
        let open = |stream| Send::Open {
            stream,
            name: "streamtype",
            value: "error",
        };
        let first = bytes_of(&mut codec, open(1));
        let mut expected = vec![0x80, 3, 0, 1, 0, 0, 0, 49];
        expected.extend([0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        expected.extend([0x78, 0x01, 0, 27, 0, 228, 255]);
        expected.extend([0, 0, 0, 1, 0, 0, 0, 10]);
        expected.extend(b"streamtype");
        expected.extend([0, 0, 0, 5]);
        expected.extend(b"error");
        expected.extend([0, 0, 0, 255, 255]);
        assert_eq!(first, expected);
        // A zlib header is a multiple of 31, and there is one per connection.
        assert_eq!(0x7801 % 31, 0);
        assert_eq!(bytes_of(&mut codec, open(3)).len(), first.len() - 2);
    }

    #[test]
    fn frames_there_and_back() {
        let mut codec = Codec::default();
        let bytes = Bytes::from(vec![7; MOST_DATA + 1]);
        let mut wire = BytesMut::from(&*bytes_of(&mut codec, Send::Data { stream: 5, bytes }));
        wire.extend(bytes_of(&mut codec, Send::Finish { stream: 5 }));
        wire.extend(bytes_of(&mut codec, Send::Pong { id: 9 }));
        wire.extend([0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 5, 0, 0, 0, 1]);
        wire.extend([0x80, 3, 0, 7, 0, 0, 0, 8, 0, 0, 0, 5, 0, 0, 0, 0]);
        wire.extend([0x80, 3, 0, 2, 0, 0, 0, 4, 0, 0, 0, 5]);
        let mut got = Vec::new();
        while let Some(frame) = codec.decode(&mut wire).unwrap() {
            got.push(match frame {
                Received::Data { stream, bytes, last } => format!("data {stream} {} {last}", bytes.len()),
                other => format!("{other:?}"),
            });
        }
        let first = format!("data 5 {MOST_DATA} false");
        let expected = [
            &first,
            "data 5 1 false",
            "data 5 0 true",
            "Ping { id: 9 }",
            "Reset { stream: 5 }",
            "GoAway",
            "Other",
        ];
        assert_eq!(got, expected);
    }

    #[test]
    fn nonsense_is_refused() {
        for wire in [
            &[0x80, 2, 0, 6, 0, 0, 0, 0][..],
            &[0x80, 3, 0, 6, 0, 0, 0, 0],
            &[0, 0, 0, 1, 0, 0xff, 0xff, 0xff],
        ] {
            assert!(Codec::default().decode(&mut BytesMut::from(wire)).is_err(), "{wire:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(wire in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut wire = BytesMut::from(&*wire);
            while let Ok(Some(_)) = Codec::default().decode(&mut wire) {}
        }

        #[test]
        fn frames_may_come_in_pieces(
            frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..50), 1..10), cut in 1usize..20,
        ) {
            let mut codec = Codec::default();
            let wire: Vec<u8> = frames.iter()
                .flat_map(|it| bytes_of(&mut codec, Send::Data { stream: 3, bytes: Bytes::copy_from_slice(it) }))
                .collect();
            let (mut buffer, mut got) = (BytesMut::new(), Vec::new());
            for piece in wire.chunks(cut) {
                buffer.extend_from_slice(piece);
                while let Some(Received::Data { bytes, .. }) = codec.decode(&mut buffer).unwrap() {
                    got.push(bytes.to_vec());
                }
            }
            prop_assert_eq!(got, frames);
        }
    }
}
