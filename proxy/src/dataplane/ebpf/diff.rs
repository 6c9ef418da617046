//! Image → Image as ordered ops: grow, commit, shrink.
//!
//! Why every prefix serves the old plan or the new one:
//! * **Grow** writes what nothing reads yet: backends under new ids, source ranges under a flag that is not set, slots
//!   beyond the count. Slots below the count are rewritten in place: each holds an old or a new backend of its set,
//!   both bound, so a frontend sees a mixture of two legal choices and never a hole.
//! * **Commit** replaces one frontend at a time: sets, counts and flags of both sides in one atomic write.
//! * **Shrink** removes what nothing reads any more, readers first: frontends, slots beyond the count, ranges; then
//!   backends, whose generation is bumped so that flows, and packets that are between two lookups, notice.
//!
//! In-place slots keep a set's id, and with it the clients' affinity. The price: while a frontend changes its policy and
//! the endpoints change too, it may for a moment choose a new endpoint under the old policy.

use super::image::{Image, Op};
use proxy_common::abi::{BackendV4, BackendV6};
use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    iter::Peekable,
};

/// The ops that turn `have` into `want`, in an order whose every prefix is legal.
pub fn diff(have: &Image, want: &Image) -> Vec<Op> {
    let mut ops = Vec::new();
    let mut shrink = Vec::new();

    backends(
        &have.backends_v4,
        &want.backends_v4,
        &mut ops,
        &mut shrink,
        Op::PutBackendV4,
        Op::FreeBackendV4,
    );
    backends(
        &have.backends_v6,
        &want.backends_v6,
        &mut ops,
        &mut shrink,
        Op::PutBackendV6,
        Op::FreeBackendV6,
    );
    sets(&have.ranges_v4, &want.ranges_v4, |key| ops.push(Op::PutRangeV4(key)));
    sets(&have.ranges_v6, &want.ranges_v6, |key| ops.push(Op::PutRangeV6(key)));
    let mut stale_slots = Vec::new();
    maps(&have.slots, &want.slots, |key, slot| match slot {
        Some(slot) => ops.push(Op::PutSlot(key, slot)),
        None => stale_slots.push(Op::RemoveSlot(key)),
    });

    let mut stale_frontends = Vec::new();
    maps(&have.frontends_v4, &want.frontends_v4, |key, frontend| match frontend {
        Some(frontend) => ops.push(Op::PutFrontendV4(key, frontend)),
        None => stale_frontends.push(Op::RemoveFrontendV4(key)),
    });
    maps(&have.frontends_v6, &want.frontends_v6, |key, frontend| match frontend {
        Some(frontend) => ops.push(Op::PutFrontendV6(key, frontend)),
        None => stale_frontends.push(Op::RemoveFrontendV6(key)),
    });

    ops.append(&mut stale_frontends);
    ops.append(&mut stale_slots);
    sets(&want.ranges_v4, &have.ranges_v4, |key| ops.push(Op::RemoveRangeV4(key)));
    sets(&want.ranges_v6, &have.ranges_v6, |key| ops.push(Op::RemoveRangeV6(key)));
    ops.append(&mut shrink);
    ops
}

/// The parts of `BackendV4` and `BackendV6` that ordering depends on.
trait Entry: Copy + PartialEq {
    fn generation(&self) -> u32;
    fn flags(&self) -> u16;
    fn with_flags(self, flags: u16) -> Self;
}

macro_rules! entry {
    ($($ty:ty)*) => {$(
        impl Entry for $ty {
            fn generation(&self) -> u32 {
                self.generation
            }
            fn flags(&self) -> u16 {
                self.flags
            }
            fn with_flags(self, flags: u16) -> Self {
                Self { flags, ..self }
            }
        }
    )*};
}
entry!(BackendV4 BackendV6);

/// Flags that come are written before the slots that need them, flags that go after the slots that went.
fn backends<B: Entry>(
    have: &BTreeMap<u32, B>,
    want: &BTreeMap<u32, B>,
    grow: &mut Vec<Op>,
    shrink: &mut Vec<Op>,
    put: fn(u32, B) -> Op,
    free: fn(u32, u32) -> Op,
) {
    let mut gone = Vec::new();
    merge(have.iter(), want.iter(), |id, old, new| match (old, new) {
        (Some(old), Some(new)) if old == new => {}
        (Some(old), Some(new)) if old.with_flags(new.flags()) == *new => {
            let both = old.flags() | new.flags();
            if both != old.flags() {
                grow.push(put(*id, old.with_flags(both)));
            }
            if both != new.flags() {
                shrink.push(put(*id, *new));
            }
        }
        (_, Some(new)) => grow.push(put(*id, *new)),
        (Some(old), None) => gone.push(free(*id, old.generation().wrapping_add(1))),
        (None, None) => {}
    });
    shrink.append(&mut gone);
}

/// Calls `change` with each new or changed entry, and with `None` for each key that is gone.
fn maps<K: Ord + Copy, V: PartialEq + Copy>(
    have: &BTreeMap<K, V>,
    want: &BTreeMap<K, V>,
    mut change: impl FnMut(K, Option<V>),
) {
    merge(have.iter(), want.iter(), |key, old, new| {
        if old != new {
            change(*key, new.copied());
        }
    });
}

/// Calls `missing` with what `want` has and `have` lacks.
fn sets<K: Ord + Copy>(have: &BTreeSet<K>, want: &BTreeSet<K>, missing: impl FnMut(K)) {
    want.difference(have).copied().for_each(missing);
}

/// Walks two sorted maps side by side.
fn merge<'a, K: Ord + 'a, V: 'a>(
    have: impl Iterator<Item = (&'a K, &'a V)>,
    want: impl Iterator<Item = (&'a K, &'a V)>,
    mut visit: impl FnMut(&'a K, Option<&'a V>, Option<&'a V>),
) {
    let (mut have, mut want) = (have.peekable(), want.peekable());
    while let Some(order) = next_order(&mut have, &mut want) {
        let old = if order.is_le() { have.next() } else { None };
        let new = if order.is_ge() { want.next() } else { None };
        if let Some((key, _)) = old.or(new) {
            visit(key, old.map(|(_, value)| value), new.map(|(_, value)| value));
        }
    }
}

/// Which side holds the smaller key; `None` at the end of both.
fn next_order<'a, K: Ord + 'a, V: 'a>(
    have: &mut Peekable<impl Iterator<Item = (&'a K, &'a V)>>,
    want: &mut Peekable<impl Iterator<Item = (&'a K, &'a V)>>,
) -> Option<Ordering> {
    match (have.peek(), want.peek()) {
        (Some((old, _)), Some((new, _))) => Some(old.cmp(new)),
        (Some(_), None) => Some(Ordering::Less),
        (None, Some(_)) => Some(Ordering::Greater),
        (None, None) => None,
    }
}
