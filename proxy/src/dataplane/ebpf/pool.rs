//! Pools of ids: what is free, what waits for the kernel to forget it, what was found there.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};

/// Backend ids of one family: those never used first, then the ones that have been free for longest.
#[derive(Debug)]
pub(super) struct BackendIds {
    /// Largest id.
    last: u32,
    /// Smallest id never used.
    next: u32,
    free: VecDeque<u32>,
    pending: BTreeSet<u32>,
    /// Bound in the kernel, to be claimed.
    pub(super) found: BTreeSet<u32>,
    /// By id; ids beyond the end have generation 0.
    generations: Vec<u32>,
}

impl BackendIds {
    pub(super) fn new(last: u32) -> Self {
        Self {
            last,
            next: 1,
            free: VecDeque::new(),
            pending: BTreeSet::new(),
            found: BTreeSet::new(),
            generations: Vec::new(),
        }
    }

    pub(super) fn generation(&self, id: u32) -> u32 {
        self.generations.get(id as usize).copied().unwrap_or_default()
    }

    pub(super) fn set_generation(&mut self, id: u32, generation: u32) {
        // The kernel's array may be larger than what we were told; ids beyond are never given away.
        if id > self.last {
            return;
        }
        let at = id as usize;
        if at >= self.generations.len() {
            self.generations.resize(at + 1, 0);
        }
        self.generations[at] = generation;
    }

    /// Binds a free id under a new generation.
    pub(super) fn take(&mut self) -> Option<u32> {
        let id = if self.next <= self.last {
            self.next += 1;
            self.next - 1
        } else {
            self.free.pop_front()?
        };
        self.set_generation(id, self.generation(id).wrapping_add(1));
        Some(id)
    }

    /// Undoes the newest [`BackendIds::take`].
    pub(super) fn untake(&mut self, id: u32) {
        self.set_generation(id, self.generation(id).wrapping_sub(1));
        if id + 1 == self.next {
            self.next = id;
        } else {
            self.free.push_front(id);
        }
    }

    /// Takes an id that the kernel still has bound, with the generation it has; false if it is not to be had.
    pub(super) fn claim(&mut self, id: u32) -> bool {
        self.found.remove(&id)
    }

    pub(super) fn unclaim(&mut self, id: u32) {
        self.found.insert(id);
    }

    pub(super) fn release(&mut self, id: u32) {
        self.pending.insert(id);
    }

    pub(super) fn settle(&mut self) {
        self.pending.append(&mut self.found);
        self.free.extend(std::mem::take(&mut self.pending));
    }

    pub(super) fn adopt(
        &mut self,
        bound: impl Iterator<Item = (u32, u32)>,
        free: &BTreeMap<u32, u32>,
        owned: &HashSet<u32>,
    ) {
        self.pending.append(&mut self.found);
        let mut newest = 0;
        let valid = 1..=self.last;
        for (id, generation) in bound.filter(|(id, _)| valid.contains(id)) {
            newest = newest.max(id);
            if !owned.contains(&id) {
                self.set_generation(id, generation);
                self.pending.remove(&id);
                self.found.insert(id);
            }
        }
        for (id, generation) in free
            .iter()
            .filter(|(id, _)| valid.contains(*id) && !owned.contains(*id))
        {
            newest = newest.max(*id);
            self.set_generation(*id, *generation);
        }
        let found = &self.found;
        self.free.retain(|id| !found.contains(id));
        // Ids between those seen were either used by somebody before us or never: both are free.
        while self.next <= newest {
            if !found.contains(&self.next) && !owned.contains(&self.next) {
                self.free.push_back(self.next);
            }
            self.next += 1;
        }
    }
}

/// Ids 1 to `last`, given away in a circle.
#[derive(Debug)]
pub(super) struct Rolling {
    last: u32,
    cursor: u32,
    /// In use, pending or found.
    taken: HashSet<u32>,
    pending: BTreeSet<u32>,
    /// Used by the kernel, to be claimed.
    pub(super) found: BTreeSet<u32>,
}

impl Rolling {
    pub(super) fn new(last: u32) -> Self {
        Self {
            last,
            cursor: 1,
            taken: HashSet::new(),
            pending: BTreeSet::new(),
            found: BTreeSet::new(),
        }
    }

    /// Never fails: there are more ids than any machine's memory holds services.
    pub(super) fn take(&mut self) -> u32 {
        loop {
            let id = self.cursor;
            self.cursor = if id >= self.last { 1 } else { id + 1 };
            if self.taken.insert(id) {
                return id;
            }
        }
    }

    /// Undoes the newest [`Rolling::take`].
    pub(super) fn untake(&mut self, id: u32) {
        self.taken.remove(&id);
        self.cursor = id;
    }

    pub(super) fn claim(&mut self, id: u32) -> bool {
        self.found.remove(&id)
    }

    pub(super) fn unclaim(&mut self, id: u32) {
        self.found.insert(id);
    }

    pub(super) fn release(&mut self, id: u32) {
        self.pending.insert(id);
    }

    pub(super) fn settle(&mut self) {
        self.pending.append(&mut self.found);
        for id in std::mem::take(&mut self.pending) {
            self.taken.remove(&id);
        }
    }

    pub(super) fn adopt(&mut self, found: impl Iterator<Item = u32>, owned: &HashSet<u32>) {
        let first = self.taken.is_empty();
        self.pending.append(&mut self.found);
        let mut newest = 0;
        for id in found.filter(|id| (1..=self.last).contains(id)) {
            newest = newest.max(id);
            if !owned.contains(&id) {
                self.taken.insert(id);
                self.pending.remove(&id);
                self.found.insert(id);
            }
        }
        if first {
            self.cursor = if newest >= self.last { 1 } else { newest + 1 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_released_backend_id_waits_for_success_and_then_its_turn() {
        let mut ids = BackendIds::new(3);
        assert_eq!(
            [ids.take(), ids.take(), ids.take(), ids.take()],
            [Some(1), Some(2), Some(3), None]
        );
        ids.release(2);
        assert_eq!(ids.take(), None);
        ids.settle();
        ids.release(1);
        ids.settle();
        assert_eq!([ids.take(), ids.take()], [Some(2), Some(1)]);
        assert_eq!(ids.generation(2), 2, "each binding has its own generation");
    }

    #[test]
    fn untake_restores_the_order() {
        let mut ids = BackendIds::new(2);
        assert_eq!(ids.take(), Some(1));
        ids.release(1);
        ids.settle();
        let taken = [ids.take().unwrap(), ids.take().unwrap()];
        taken.into_iter().rev().for_each(|id| ids.untake(id));
        assert_eq!([ids.take().unwrap(), ids.take().unwrap()], taken);
        assert_eq!((ids.generation(1), ids.generation(2)), (2, 1));
    }

    #[test]
    fn adopting_never_gives_away_what_the_kernel_has_bound() {
        let mut ids = BackendIds::new(5);
        ids.adopt([(2, 7), (4, 1)].into_iter(), &[(3, 8)].into(), &HashSet::new());
        let taken: Vec<_> = std::iter::from_fn(|| ids.take()).collect();
        assert_eq!(taken, [5, 1, 3]);
        assert_eq!(ids.generation(3), 9, "generations go on where the kernel's stopped");
        assert!(ids.claim(2) && !ids.claim(2));
        assert_eq!(ids.generation(2), 7);
        ids.settle();
        assert_eq!(ids.take(), Some(4));
    }

    #[test]
    fn a_circle_goes_all_the_way_round() {
        let mut ids = Rolling::new(4);
        assert_eq!(ids.take(), 1);
        ids.release(1);
        ids.settle();
        assert_eq!([ids.take(), ids.take(), ids.take(), ids.take()], [2, 3, 4, 1]);
    }
}
