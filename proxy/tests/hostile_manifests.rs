//! Hostile files: whatever a document holds, nothing panics, and its neighbours still arrive.
//!
//! Mutations are seeded, so a failure repeats; `fuzz/` looks further with a nightly compiler.

use proxy::{
    model::{Change, Event},
    source::manifests::{FileState, Folder},
};
use serde_json::{Value, json};
use std::{collections::BTreeSet, fs, path::Path};

/// Sound documents to start from: the examples that we ship.
fn corpus() -> Vec<(String, String)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples");
    let mut files: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|ext| ext == "yaml"));
    files.sort();
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    files
        .iter()
        .map(|path| (name(path), fs::read_to_string(path).unwrap()))
        .collect()
}

fn neighbour(name: &str) -> String {
    format!(
        "{{\"apiVersion\":\"v1\",\"kind\":\"Service\",\"metadata\":{{\"name\":\"{name}\"}},\"spec\":{{\"clusterIP\":\"10.96.9.9\"}}}}"
    )
}

fn read(name: &str, content: Vec<u8>) -> Vec<Event> {
    Folder::new("node-a").update([(name.into(), FileState::Content(content))])
}

fn services(events: &[Event]) -> BTreeSet<&str> {
    let name = |event| match event {
        &Event::Service(Change::Apply(ref service)) => Some(&*service.name.name),
        _ => None,
    };
    events.iter().filter_map(name).collect()
}

/// Reads `hostile` between two sound documents of a YAML file, and after one in a JSON file.
fn survive(hostile: &[u8], what: &str) {
    let between = [
        neighbour("before").as_bytes(),
        b"\n---\n",
        hostile,
        b"\n---\n",
        neighbour("after").as_bytes(),
    ]
    .concat();
    let events = read("x.yaml", between);
    let found = services(&events);
    assert!(
        found.contains("before") && found.contains("after"),
        "{what}: {events:#?}"
    );
    let events = read("x.json", [neighbour("before").as_bytes(), b"\n", hostile].concat());
    // Only what is not UTF-8 costs a JSON file as a whole.
    assert!(
        std::str::from_utf8(hostile).is_err() || services(&events).contains("before"),
        "{what}: {events:#?}"
    );
}

/// A small generator of repeatable numbers (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % below as u64) as usize
    }
}

#[test]
fn the_examples_are_sound() {
    let mut folder = Folder::new("node-a");
    let files = corpus()
        .into_iter()
        .map(|(name, text)| (name.as_str().into(), FileState::Content(text.into_bytes())));
    let events = folder.update(files.collect::<Vec<_>>());
    let faults: Vec<_> = events
        .iter()
        .filter(|event| matches!(event, Event::Skipped(_)))
        .collect();
    assert!(faults.is_empty(), "{faults:#?}");
    for name in ["cart", "dns", "edge", "empty", "web"] {
        assert!(services(&events).contains(name), "{name}");
    }
    let nodes = events
        .iter()
        .filter(|event| matches!(event, Event::Node(Change::Apply(_))))
        .count();
    assert_eq!(nodes, 1);
}

#[test]
fn flipped_cut_and_spliced_bytes() {
    const TOKENS: [&[u8]; 20] = [
        b"---",
        b"\n...\n",
        b"{",
        b"}",
        b"[",
        b"]",
        b"&a ",
        b"*a",
        b"<<: *a",
        b"!!binary ",
        b"|",
        b">",
        b"\t",
        b"\r",
        b"\0",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"? ",
        b": ",
        b"-9223372036854775809",
    ];
    let corpus = corpus();
    let mut dice = Dice(1);
    for round in 0..3_000 {
        let (name, text) = &corpus[dice.roll(corpus.len())];
        let documents: Vec<_> = text.split("\n---\n").collect();
        let mut bytes = documents[dice.roll(documents.len())].as_bytes().to_vec();
        for _ in 0..=dice.roll(4) {
            let at = dice.roll(bytes.len().max(1)).min(bytes.len());
            match dice.roll(4) {
                0 if at < bytes.len() => bytes[at] ^= 1 << dice.roll(8),
                1 => drop(bytes.drain(at..bytes.len().min(at + 1 + dice.roll(20)))),
                2 => drop(bytes.splice(at..at, TOKENS[dice.roll(TOKENS.len())].iter().copied())),
                _ => bytes.truncate(at),
            }
        }
        survive(
            &bytes,
            &format!("round {round} of {name}: {:?}", String::from_utf8_lossy(&bytes)),
        );
    }
}

#[test]
fn every_field_of_every_wrong_type() {
    let wrong = [
        json!(null),
        json!(true),
        json!(-1),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(1.5e300),
        json!(65536),
        json!(""),
        json!("None"),
        json!("::"),
        json!("127.0.0.1"),
        json!("\u{0}\n"),
        json!("x".repeat(5_000)),
        json!([]),
        json!({}),
        json!([null, null]),
        json!({"": null}),
        json!([[[[]]]]),
    ];
    for (name, text) in corpus() {
        for document in text.split("\n---\n") {
            let document: Value = serde_saphyr::from_str(document).unwrap();
            for path in paths(&document) {
                for value in &wrong {
                    let mut mutant = document.clone();
                    *mutant.pointer_mut(&path).unwrap() = value.clone();
                    survive(mutant.to_string().as_bytes(), &format!("{name}{path} = {value}"));
                }
            }
        }
    }
}

/// JSON pointers to everything inside, the document itself first.
fn paths(value: &Value) -> Vec<String> {
    let inside: Vec<(String, &Value)> = match value {
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| (key.replace('~', "~0").replace('/', "~1"), value))
            .collect(),
        Value::Array(list) => list
            .iter()
            .enumerate()
            .map(|(n, value)| (n.to_string(), value))
            .collect(),
        _ => Vec::new(),
    };
    let below = inside
        .iter()
        .flat_map(|(key, value)| paths(value).into_iter().map(move |path| format!("/{key}{path}")));
    std::iter::once(String::new()).chain(below).collect()
}

#[test]
fn bombs() {
    let mut aliases = "a: &a [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for (last, next) in ('a'..='y').zip('b'..='z') {
        aliases += &format!("{next}: &{next} [{}]\n", vec![format!("*{last}"); 9].join(", "));
    }
    let merges = "a: &a {x: 1}\n".to_owned() + &"b: {<<: [*a, *a, *a, *a]}\n".repeat(5_000);
    let deep = |open: &str, close: &str| open.repeat(100_000) + &close.repeat(100_000);
    let nested_lists = (0..50).fold(neighbour("inner"), |inner, _| {
        format!("{{\"apiVersion\":\"v1\",\"kind\":\"List\",\"items\":[{inner}]}}")
    });
    // What serde_json takes for a text to be read in its turn, deep in itself: each turn has a depth of its own.
    let raw = (0..12).fold("1".to_owned(), |inner, _| {
        let inner = json!({"$serde_json::private::RawValue": inner});
        format!("{}{inner}{}", "[".repeat(120), "]".repeat(120))
    });
    let digits = format!(
        "{{\"apiVersion\":\"v1\",\"kind\":\"Service\",\"spec\":{{\"ports\":[{{\"port\":{}}}]}}}}",
        "9".repeat(100_000)
    );
    let bombs = [
        aliases,
        merges,
        deep("[", "]"),
        deep("{a: ", "}"),
        deep("- ", ""),
        deep("[", ""),
        nested_lists,
        raw,
        digits,
        "a: &a [*a]".to_owned(),
        "&a *a".to_owned(),
        "? ".repeat(10_000),
        "!".repeat(10_000),
        "\"".repeat(9_999),
        format!("a: '{}", "'".repeat(100_000)),
        "- \n".repeat(100_000),
        "#".repeat(100_000),
        "%YAML 9.9".to_owned(),
        format!("{}: x", "k".repeat(100_000)),
        "\n".repeat(100_000),
        "\t".repeat(1_000),
        "|\n".to_owned() + &" ".repeat(100_000),
    ];
    for bomb in &bombs {
        survive(bomb.as_bytes(), &bomb.chars().take(40).collect::<String>());
    }
}

#[test]
fn what_a_hostile_file_brought_leaves_with_it() {
    let corpus = corpus();
    let mut dice = Dice(2);
    for _ in 0..300 {
        let mut folder = Folder::new("node-a");
        let (mut alive, mut wrong) = (BTreeSet::new(), BTreeSet::new());
        for step in 0..6 {
            let mut bytes = corpus[dice.roll(corpus.len())].1.clone().into_bytes();
            let at = dice.roll(bytes.len());
            bytes[at] ^= 1 << dice.roll(8);
            let state = if step == 5 {
                FileState::Gone
            } else {
                FileState::Content(bytes)
            };
            for event in folder.update([("x.yaml".into(), state)]) {
                match event {
                    Event::Service(Change::Apply(service)) => drop(alive.insert(format!("service {}", service.name))),
                    Event::Slice(Change::Apply(slice)) => drop(alive.insert(format!("slice {}", slice.name))),
                    Event::Node(Change::Apply(node)) => drop(alive.insert(format!("node {}", node.name))),
                    // A deletion is always of something that was announced.
                    Event::Service(Change::Delete(name)) => assert!(alive.remove(&format!("service {name}"))),
                    Event::Slice(Change::Delete(name)) => assert!(alive.remove(&format!("slice {name}"))),
                    Event::Node(Change::Delete(name)) => assert!(alive.remove(&format!("node {name}"))),
                    Event::Skipped(skipped) => drop(wrong.insert(skipped.object)),
                    Event::Reviewed { subject } => assert!(wrong.remove(&subject)),
                    Event::Init | Event::InitDone => panic!("only a source says that"),
                }
            }
        }
        assert_eq!(alive, BTreeSet::new());
        assert_eq!(wrong, BTreeSet::new());
    }
}
