//! [`Interner`]: one allocation for each distinct name.

use std::{collections::HashSet, sync::Arc};

/// Shares equal strings. Namespaces, node names, zones, port names and service names repeat once per endpoint or
/// slice; with tens of thousands of endpoints that is most of what a source would allocate.
///
/// Names that nobody uses any more are dropped now and then, so a cluster whose services come and go does not grow it.
#[derive(Debug, Default)]
pub struct Interner {
    strings: HashSet<Arc<str>>,
    after_last_sweep: usize,
}

impl Interner {
    /// The shared copy of `text`.
    pub fn intern(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.strings.get(text) {
            return Arc::clone(known);
        }
        if self.strings.len() >= 2 * self.after_last_sweep + 1024 {
            self.strings.retain(|known| Arc::strong_count(known) > 1);
            self.after_last_sweep = self.strings.len();
        }
        let new: Arc<str> = Arc::from(text);
        self.strings.insert(Arc::clone(&new));
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_share_one_allocation() {
        let mut strings = Interner::default();
        let (a, b) = (strings.intern("node-a"), strings.intern("node-a"));
        assert!(Arc::ptr_eq(&a, &b));
    }

    #[test]
    fn names_out_of_use_are_dropped() {
        let mut strings = Interner::default();
        let kept = strings.intern("kept");
        for n in 0..100_000 {
            strings.intern(&format!("gone-{n}"));
        }
        assert!(strings.strings.len() < 3000, "{}", strings.strings.len());
        assert!(Arc::ptr_eq(&kept, &strings.intern("kept")));
    }
}
