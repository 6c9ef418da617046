//! [`Row`]: one write as it lies in the write-ahead log and in the table of history.

use crate::{Change, Key, Record, Revision};
use bytes::Bytes;

/// One write. Layout, all numbers little-endian: CRC-32 of all that follows and of the revision (4 bytes), kind (1), revision
/// that created the object (8), revision of the state before (8), length of the key (4), key, value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) key: Key,
    /// Revision that created the object; 0 in a deletion.
    pub(super) created: Revision,
    /// Revision of the state before; 0: there was none.
    pub(super) previous: Revision,
    /// `None`: deleted.
    pub(super) value: Option<Bytes>,
}

const HEAD: usize = 4 + 1 + 8 + 8 + 4;
const PUT: u8 = 1;
const DELETE: u8 = 2;

impl Row {
    pub(super) fn of(change: &Change) -> Self {
        Self {
            key: change.key.clone(),
            created: change.now.as_ref().map_or(0, |it| it.created),
            previous: change.before.as_ref().map_or(0, |it| it.modified),
            value: change.now.as_ref().map(|it| it.value.clone()),
        }
    }

    pub(super) fn encode(&self, revision: Revision, out: &mut Vec<u8>) {
        let start = out.len();
        let key = encode_key(&self.key);
        let value = self.value.as_deref().unwrap_or_default();
        out.reserve(HEAD + key.len() + value.len());
        out.extend_from_slice(&[0; 4]);
        out.push(if self.value.is_some() { PUT } else { DELETE });
        out.extend_from_slice(&self.created.to_le_bytes());
        out.extend_from_slice(&self.previous.to_le_bytes());
        // Keys are bounded far below 4 GiB by `writer::check_key`.
        out.extend_from_slice(&u32::try_from(key.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend_from_slice(&key);
        out.extend_from_slice(value);
        let sum = checksum(revision, &out[start + 4..]);
        out[start..start + 4].copy_from_slice(&sum.to_le_bytes());
    }

    /// What is wrong with the bytes, if they are not a row.
    pub(super) fn decode(revision: Revision, bytes: &[u8]) -> Result<Self, String> {
        let (sum, rest) = bytes.split_first_chunk::<4>().ok_or("cut short")?;
        if checksum(revision, rest) != u32::from_le_bytes(*sum) {
            return Err("wrong checksum".into());
        }
        let (&[kind], rest) = rest.split_first_chunk::<1>().ok_or("cut short")?;
        let (created, rest) = rest.split_first_chunk::<8>().ok_or("cut short")?;
        let (previous, rest) = rest.split_first_chunk::<8>().ok_or("cut short")?;
        let (length, rest) = rest.split_first_chunk::<4>().ok_or("cut short")?;
        let (key, value) = rest
            .split_at_checked(u32::from_le_bytes(*length) as usize)
            .ok_or("cut short")?;
        let value = match kind {
            PUT => Some(Bytes::copy_from_slice(value)),
            DELETE => None,
            other => return Err(format!("unknown kind {other}")),
        };
        let (created, previous) = (u64::from_le_bytes(*created), u64::from_le_bytes(*previous));
        Ok(Self {
            key: decode_key(key)?,
            created,
            previous,
            value,
        })
    }

    /// The object as of this row.
    pub(super) fn record(&self, revision: Revision) -> Option<Record> {
        let value = self.value.clone()?;
        Some(Record {
            key: self.key.clone(),
            value,
            created: self.created,
            modified: revision,
        })
    }
}

fn checksum(revision: Revision, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&revision.to_le_bytes());
    hasher.update(bytes);
    hasher.finalize()
}

/// The key's bytes, ordered as keys are: no part contains the separator, and it sorts before everything else.
pub(super) fn encode_key(key: &Key) -> Vec<u8> {
    [key.prefix.as_bytes(), key.namespace.as_bytes(), key.name.as_bytes()].join(&0)
}

/// The reverse of [`encode_key`].
pub(super) fn decode_key(bytes: &[u8]) -> Result<Key, String> {
    let text = str::from_utf8(bytes).map_err(|_| "a key that is not UTF-8")?;
    match *text.split('\0').collect::<Vec<_>>() {
        [prefix, namespace, name] => Ok(Key {
            prefix: prefix.into(),
            namespace: namespace.into(),
            name: name.into(),
        }),
        _ => Err(format!("the key {text:?}, which has not three parts")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key() -> impl Strategy<Value = Key> {
        ("[a-z./-]{1,12}", "[a-z-]{0,6}", "[a-z0-9.-]{1,8}").prop_map(|(prefix, namespace, name)| Key {
            prefix: prefix.into(),
            namespace: namespace.into(),
            name: name.into(),
        })
    }

    proptest! {
        #[test]
        fn keys_sort_as_their_bytes(a in key(), b in key()) {
            prop_assert_eq!(encode_key(&a).cmp(&encode_key(&b)), a.cmp(&b));
            prop_assert_eq!(decode_key(&encode_key(&a)).unwrap(), a);
        }

        #[test]
        fn a_row_comes_back_and_any_flipped_bit_is_seen(
            key in key(), created: u64, previous: u64, value: Option<Vec<u8>>, revision: u64, at: prop::sample::Index,
            bit in 0..8u8,
        ) {
            let row = Row { key, created, previous, value: value.map(Bytes::from) };
            let mut bytes = Vec::new();
            row.encode(revision, &mut bytes);
            prop_assert_eq!(Row::decode(revision, &bytes).unwrap(), row);
            prop_assert!(Row::decode(revision ^ 1, &bytes).is_err());
            let at = at.index(bytes.len());
            bytes[at] ^= 1u8 << bit;
            prop_assert!(Row::decode(revision, &bytes).is_err());
            prop_assert!(Row::decode(revision, &bytes[..at]).is_err());
        }
    }
}
