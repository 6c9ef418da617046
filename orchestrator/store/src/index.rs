//! [`Index`]: the objects of one resource in order, as a persistent B+ tree: copying it is one reference count, and a write
//! after that copies only the nodes on its path.

use crate::Entry;
use std::{mem, sync::Arc};

/// Most objects in a leaf, and most children of an inner node.
const WIDTH: usize = 64;
/// A node below this is joined with its neighbour, if both fit into one.
const NARROW: usize = WIDTH / 4;

/// Objects of one resource in the order of namespace and name.
#[derive(Clone, Debug)]
pub(crate) struct Index {
    root: Arc<Node>,
    len: usize,
}

#[derive(Clone, Debug)]
enum Node {
    Leaf(Vec<Arc<Entry>>),
    Inner(Vec<Child>),
}

#[derive(Clone, Debug)]
struct Child {
    /// Not above the smallest key below; the key alone, so that it keeps no object alive.
    least: Place,
    node: Arc<Node>,
}

#[derive(Clone, Debug)]
struct Place {
    namespace: Arc<str>,
    name: Arc<str>,
}

impl Place {
    fn of(entry: &Entry) -> Self {
        Self {
            namespace: Arc::clone(&entry.key.namespace),
            name: Arc::clone(&entry.key.name),
        }
    }

    fn key(&self) -> (&str, &str) {
        (&self.namespace, &self.name)
    }
}

fn key(entry: &Entry) -> (&str, &str) {
    (&entry.key.namespace, &entry.key.name)
}

impl Default for Index {
    fn default() -> Self {
        Self {
            root: Arc::new(Node::Leaf(Vec::new())),
            len: 0,
        }
    }
}

impl Index {
    /// Builds from objects that are in order already, with full nodes.
    pub(crate) fn from_sorted(entries: Vec<Arc<Entry>>) -> Self {
        let len = entries.len();
        debug_assert!(entries.is_sorted_by(|a, b| key(a) < key(b)));
        let mut level = Vec::with_capacity(len / WIDTH + 1);
        let mut entries = entries.into_iter().peekable();
        while let Some(first) = entries.peek() {
            let least = Place::of(first);
            level.push(Child {
                least,
                node: Arc::new(Node::Leaf(entries.by_ref().take(WIDTH).collect())),
            });
        }
        while level.len() > 1 {
            let mut children = mem::take(&mut level).into_iter().peekable();
            while let Some(first) = children.peek() {
                let least = first.least.clone();
                level.push(Child {
                    least,
                    node: Arc::new(Node::Inner(children.by_ref().take(WIDTH).collect())),
                });
            }
        }
        level
            .pop()
            .map_or_else(Self::default, |child| Self { root: child.node, len })
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<&Arc<Entry>> {
        let wanted = (namespace, name);
        let mut node = &*self.root;
        loop {
            match node {
                Node::Leaf(entries) => {
                    return entries
                        .binary_search_by(|it| key(it).cmp(&wanted))
                        .ok()
                        .map(|at| &entries[at]);
                }
                Node::Inner(children) => node = &children[child_for(children, wanted)].node,
            }
        }
    }

    /// Puts an object in; returns the one it replaces.
    pub(crate) fn insert(&mut self, entry: Arc<Entry>) -> Option<Arc<Entry>> {
        let mut replaced = None;
        if let Some(right) = insert(&mut self.root, entry, &mut replaced) {
            let left = Child {
                least: least(&self.root),
                node: Arc::clone(&self.root),
            };
            self.root = Arc::new(Node::Inner(vec![left, right]));
        }
        self.len += usize::from(replaced.is_none());
        replaced
    }

    /// Takes an object out.
    pub(crate) fn remove(&mut self, namespace: &str, name: &str) -> Option<Arc<Entry>> {
        // Looked up first: a miss must not copy nodes that a snapshot shares.
        self.get(namespace, name)?;
        let removed = remove(&mut self.root, (namespace, name));
        self.len -= usize::from(removed.is_some());
        while let Node::Inner(children) = &*self.root
            && let [only] = &children[..]
        {
            self.root = Arc::clone(&only.node);
        }
        removed
    }

    /// Objects behind `start`, in order.
    pub(crate) fn iter_from(&self, start: Start<'_>) -> Iter<'_> {
        let mut iter = Iter {
            inner: Vec::new(),
            leaf: [].iter(),
        };
        let mut node = &*self.root;
        loop {
            match node {
                Node::Leaf(entries) => {
                    let at = entries.partition_point(|it| start.is_behind(key(it)));
                    iter.leaf = entries[at..].iter();
                    return iter;
                }
                Node::Inner(children) => {
                    let at = children
                        .partition_point(|it| start.is_behind(it.least.key()))
                        .saturating_sub(1);
                    iter.inner.push(children[at + 1..].iter());
                    node = &children[at].node;
                }
            }
        }
    }
}

/// Where an iteration begins.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Start<'a> {
    /// At this namespace and name, or the next one.
    At(&'a str, &'a str),
    /// Behind this namespace and name.
    After(&'a str, &'a str),
}

impl Start<'_> {
    /// Whether the iteration starts behind this key.
    fn is_behind(self, key: (&str, &str)) -> bool {
        match self {
            Self::At(namespace, name) => key < (namespace, name),
            Self::After(namespace, name) => key <= (namespace, name),
        }
    }
}

/// Objects of an [`Index`] in order.
#[derive(Debug)]
pub(crate) struct Iter<'a> {
    inner: Vec<std::slice::Iter<'a, Child>>,
    leaf: std::slice::Iter<'a, Arc<Entry>>,
}

impl<'a> Iterator for Iter<'a> {
    type Item = &'a Arc<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(entry) = self.leaf.next() {
                return Some(entry);
            }
            let Some(child) = self.inner.last_mut()?.next() else {
                self.inner.pop();
                continue;
            };
            match &*child.node {
                Node::Leaf(entries) => self.leaf = entries.iter(),
                Node::Inner(children) => self.inner.push(children.iter()),
            }
        }
    }
}

/// Which child holds this key, if any does.
fn child_for(children: &[Child], wanted: (&str, &str)) -> usize {
    children
        .partition_point(|it| it.least.key() <= wanted)
        .saturating_sub(1)
}

fn least(node: &Node) -> Place {
    let mut node = node;
    loop {
        match node {
            // Never empty here: only a root may be an empty leaf, and a root is asked only after it was split.
            Node::Leaf(entries) => return Place::of(&entries[0]),
            Node::Inner(children) => node = &children[0].node,
        }
    }
}

/// Returns what was split off to the right.
fn insert(node: &mut Arc<Node>, entry: Arc<Entry>, replaced: &mut Option<Arc<Entry>>) -> Option<Child> {
    let right = match Arc::make_mut(node) {
        Node::Leaf(entries) => {
            match entries.binary_search_by(|it| key(it).cmp(&key(&entry))) {
                Ok(at) => *replaced = Some(mem::replace(&mut entries[at], entry)),
                Err(at) => entries.insert(at, entry),
            }
            Node::Leaf(split(entries)?)
        }
        Node::Inner(children) => {
            let at = child_for(children, key(&entry));
            if key(&entry) < children[at].least.key() {
                children[at].least = Place::of(&entry);
            }
            let right = insert(&mut children[at].node, entry, replaced)?;
            children.insert(at + 1, right);
            Node::Inner(split(children)?)
        }
    };
    Some(Child {
        least: least(&right),
        node: Arc::new(right),
    })
}

fn split<T>(items: &mut Vec<T>) -> Option<Vec<T>> {
    (items.len() > WIDTH).then(|| {
        let right = items.split_off(WIDTH / 2);
        items.shrink_to(WIDTH);
        right
    })
}

fn remove(node: &mut Arc<Node>, wanted: (&str, &str)) -> Option<Arc<Entry>> {
    match Arc::make_mut(node) {
        Node::Leaf(entries) => {
            let at = entries.binary_search_by(|it| key(it).cmp(&wanted)).ok()?;
            Some(entries.remove(at))
        }
        Node::Inner(children) => {
            let at = child_for(children, wanted);
            let removed = remove(&mut children[at].node, wanted);
            let left = children[at].node.width();
            if left == 0 {
                children.remove(at);
            } else if left < NARROW && children.len() > 1 {
                join(children, if at == 0 { 0 } else { at - 1 });
            }
            removed
        }
    }
}

/// Joins a child with its right neighbour, if both fit into one node.
fn join(children: &mut Vec<Child>, at: usize) {
    if children[at].node.width() + children[at + 1].node.width() > WIDTH {
        return;
    }
    let right = children.remove(at + 1).node;
    match (Arc::make_mut(&mut children[at].node), &*right) {
        (Node::Leaf(left), Node::Leaf(right)) => left.extend(right.iter().cloned()),
        (Node::Inner(left), Node::Inner(right)) => left.extend(right.iter().cloned()),
        _ => unreachable!("all leaves are at the same depth"),
    }
}

impl Node {
    fn width(&self) -> usize {
        match self {
            Self::Leaf(entries) => entries.len(),
            Self::Inner(children) => children.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Indexed, Key};
    use bytes::Bytes;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn entry(namespace: &str, name: &str, revision: u64) -> Arc<Entry> {
        let key = Key {
            prefix: "core/pods".into(),
            namespace: namespace.into(),
            name: name.into(),
        };
        Arc::new(Entry {
            key,
            json: Bytes::new(),
            revision,
            indexed: Indexed::default(),
        })
    }

    type Model = BTreeMap<(String, String), u64>;

    fn contents(index: &Index) -> Vec<((String, String), u64)> {
        index
            .iter_from(Start::At("", ""))
            .map(|it| ((it.key.namespace.to_string(), it.key.name.to_string()), it.revision))
            .collect()
    }

    fn check(index: &Index, model: &Model) {
        assert_eq!(
            contents(index),
            model
                .iter()
                .map(|(key, value)| (key.clone(), *value))
                .collect::<Vec<_>>()
        );
        assert_eq!(index.len(), model.len());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn behaves_as_an_ordered_map_and_copies_stay(
            steps in prop::collection::vec((0u8..4, 0u16..600, prop::bool::weighted(0.02)), 1..3000),
            removal in 0u8..4,
            start in (0u8..4, 0u16..600),
        ) {
            let (mut index, mut model) = (Index::default(), Model::new());
            let mut copies = Vec::new();
            for (revision, (namespace, name, copy)) in steps.into_iter().enumerate() {
                let (namespace, name) = (format!("n{namespace}"), format!("{name}"));
                if revision as u8 % 4 < removal {
                    let removed = index.remove(&namespace, &name).map(|it| it.revision);
                    prop_assert_eq!(removed, model.remove(&(namespace, name)));
                } else {
                    let replaced = index.insert(entry(&namespace, &name, revision as u64)).map(|it| it.revision);
                    prop_assert_eq!(replaced, model.insert((namespace.clone(), name.clone()), revision as u64));
                    prop_assert_eq!(index.get(&namespace, &name).map(|it| it.revision), Some(revision as u64));
                }
                if copy {
                    copies.push((index.clone(), model.clone()));
                }
            }
            check(&index, &model);
            for (index, model) in &copies {
                check(index, model);
            }
            let (namespace, name) = (format!("n{}", start.0), format!("{}", start.1));
            let at: Vec<_> = index.iter_from(Start::At(&namespace, &name)).map(|it| it.revision).collect();
            let after: Vec<_> = index.iter_from(Start::After(&namespace, &name)).map(|it| it.revision).collect();
            let wanted = (namespace, name);
            prop_assert_eq!(at, model.range(&wanted..).map(|it| *it.1).collect::<Vec<_>>());
            prop_assert_eq!(after, model.range(&wanted..).filter(|it| it.0 != &wanted).map(|it| *it.1).collect::<Vec<_>>());
        }

        #[test]
        fn building_from_sorted_objects_gives_the_same(len in 0usize..10_000) {
            let entries: Vec<_> = (0..len).map(|at| entry("a", &format!("{at:05}"), at as u64)).collect();
            let index = Index::from_sorted(entries.clone());
            prop_assert_eq!(index.len(), len);
            prop_assert!(index.iter_from(Start::At("", "")).zip(&entries).all(|(a, b)| Arc::ptr_eq(a, b)));
            prop_assert_eq!(index.iter_from(Start::At("", "")).count(), len);
            if let Some(last) = entries.last() {
                prop_assert!(index.get("a", &last.key.name).is_some());
            }
        }
    }

    #[test]
    fn emptying_it_leaves_nothing_behind() {
        let mut index = Index::default();
        for at in 0..5_000 {
            index.insert(entry("", &format!("{at:05}"), at));
        }
        for at in (0..5_000).rev() {
            assert!(index.remove("", &format!("{at:05}")).is_some());
        }
        assert_eq!(index.len(), 0);
        assert_eq!(contents(&index), []);
        assert!(matches!(&*index.root, Node::Leaf(entries) if entries.is_empty()));
    }
}
