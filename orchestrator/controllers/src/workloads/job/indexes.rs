//! Sets of completion indexes, as `status.completedIndexes` writes them: `1,3-5,7`.

use std::{collections::BTreeSet, fmt};

/// Completion indexes in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Indexes(BTreeSet<u32>);

impl Indexes {
    /// Reads them; what cannot be read or is not below `completions` is left out.
    pub(crate) fn parse(text: &str, completions: u32) -> Self {
        let mut all = BTreeSet::new();
        for part in text.split(',').filter(|it| !it.is_empty()) {
            let (from, to) = part.split_once('-').unwrap_or((part, part));
            let (Ok(from), Ok(to)) = (from.trim().parse::<u32>(), to.trim().parse::<u32>()) else {
                continue;
            };
            all.extend(from..to.saturating_add(1).min(completions));
        }
        Self(all)
    }

    pub(crate) fn insert(&mut self, index: u32) {
        self.0.insert(index);
    }

    pub(crate) fn contains(&self, index: u32) -> bool {
        self.0.contains(&index)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> {
        self.0.iter().copied()
    }
}

impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for index in self.iter() {
            match runs.last_mut() {
                Some((_, last)) if *last + 1 == index => *last = index,
                _ => runs.push((index, index)),
            }
        }
        for (position, (from, to)) in runs.into_iter().enumerate() {
            if position > 0 {
                f.write_str(",")?;
            }
            match to - from {
                0 => write!(f, "{from}")?,
                // Two are written as two.
                1 => write!(f, "{from},{to}")?,
                _ => write!(f, "{from}-{to}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_and_written() {
        for text in ["", "0", "0,1", "1,3-5,7", "0-9"] {
            assert_eq!(Indexes::parse(text, 10).to_string(), text);
        }
        assert_eq!(Indexes::parse("0-4294967295", 3).to_string(), "0-2");
        assert_eq!(Indexes::parse("x,2,5-y,11", 10).to_string(), "2");
    }
}
