//! Internet checksum arithmetic (RFC 1071, incremental update RFC 1624).
//!
//! Words are summed in the byte order in which they lie in the packet: the one's complement sum does not care, as
//! long as the result is stored the same way.

/// Folds carries until 16 bits remain.
#[inline(always)]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// Adds a 32-bit word (two 16-bit words) to a running sum that stays below 2^32 for any real packet.
#[inline(always)]
pub const fn add32(sum: u32, word: u32) -> u32 {
    sum + (word & 0xffff) + (word >> 16)
}

/// RFC 1624 eqn. 3: `check` after `old` became `new`.
#[inline(always)]
pub const fn update16(check: u16, old: u16, new: u16) -> u16 {
    !fold((!check) as u32 + (!old) as u32 + new as u32)
}

/// [`update16`] for a 32-bit word.
#[inline(always)]
pub const fn update32(check: u16, old: u32, new: u32) -> u16 {
    let sum = (!check) as u32;
    let sum = add32(sum, !old);
    !fold(add32(sum, new))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn full(words: &[u16]) -> u16 {
        !fold(words.iter().map(|w| u32::from(*w)).sum())
    }

    proptest! {
        #[test]
        fn incremental_equals_full(mut words in proptest::collection::vec(any::<u16>(), 4..40), at in 0usize..3, new: u32) {
            // A header of only zero words has two representations of zero; real headers never are.
            words.push(0x4500);
            let check = full(&words);
            let old = u32::from(words[at]) | u32::from(words[at + 1]) << 16;
            words[at] = new as u16;
            words[at + 1] = (new >> 16) as u16;
            prop_assert_eq!(update32(check, old, new), full(&words));
        }
    }
}
