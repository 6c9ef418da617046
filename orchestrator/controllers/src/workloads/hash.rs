//! Short hashes of templates, which name ReplicaSets and revisions.

use serde::Serialize;

/// Letters and digits that make no words and cannot be mistaken for each other: upstream's choice.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// A number in decimal, each digit's character replaced by one of [`ALPHABET`].
pub(crate) fn safe(number: u32) -> String {
    let digits = number.to_string();
    let letters = digits.bytes().map(|it| ALPHABET[usize::from(it) % ALPHABET.len()]);
    letters.map(char::from).collect()
}

/// FNV-1a, 32 bits.
pub(crate) fn fnv(bytes: impl IntoIterator<Item = u8>) -> u32 {
    let step = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    bytes.into_iter().fold(0x811c_9dc5, step)
}

/// The hash of something, other for every number of collisions that there were.
pub(crate) fn of<T: Serialize>(thing: &T, collisions: Option<i32>) -> String {
    // Types of the API always serialise.
    let mut bytes = serde_json::to_vec(thing).unwrap_or_default();
    if let Some(collisions) = collisions {
        bytes.extend(collisions.to_le_bytes());
    }
    safe(fnv(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_have_the_alphabet_and_change_with_collisions() {
        let first = of(&"template", None);
        let second = of(&"template", Some(1));
        assert_ne!(first, second);
        assert_eq!(first, of(&"template", None));
        assert!((first + &second).bytes().all(|it| ALPHABET.contains(&it)));
        // '0' is 48, and 48 % 27 is 21.
        assert_eq!(safe(0), "4");
        assert_eq!(fnv(*b"a"), 0xe40c_292c);
    }
}
