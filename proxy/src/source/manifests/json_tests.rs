use super::super::reader::{Contents, Readers, Syntax};
use super::*;
use proptest::{collection::vec, prelude::*, sample::Index};
use serde_json::{Value, json};

fn read(pieces: &[Piece<'_>]) -> Vec<Contents> {
    Readers::new(&"node-a".into()).read("x.json", Syntax::Json, pieces)
}

/// What `pieces` say, and what is wrong with them.
fn said(pieces: &[Piece<'_>]) -> (Vec<String>, Vec<String>) {
    let (found, skipped): (Vec<_>, Vec<_>) = read(pieces).into_iter().unzip();
    let found = found.into_iter().flatten().map(|found| format!("{found:?}"));
    let skipped = skipped.into_iter().flatten().map(|skipped| skipped.to_string());
    (found.collect(), skipped.collect())
}

/// The documents of a file, unsplit, and the error that ends it.
fn documents(file: &str) -> (Vec<Piece<'_>>, Option<String>) {
    let mut pieces = Vec::new();
    let mut values = Deserializer::from_str(file).into_iter::<Value>();
    let mut start = 0;
    while let Some(value) = values.next() {
        if let Err(err) = value {
            return (pieces, Some(err.to_string()));
        }
        let end = values.byte_offset();
        pieces.push(Piece {
            number: pieces.len() + 1,
            line: 1,
            indent: 0,
            text: &file.as_bytes()[start..end],
            part: Part::Document,
        });
        start = end;
    }
    (pieces, None)
}

fn texts(file: &str) -> Vec<(usize, usize, usize, &str)> {
    let n = |part| match part {
        Part::Document => usize::MAX,
        Part::Item(item) => item.n,
    };
    let piece = |piece: Piece<'static>| {
        let text = std::str::from_utf8(piece.text).unwrap();
        (piece.number, piece.line, n(piece.part), text)
    };
    let file: &'static str = file.to_owned().leak();
    split(file).into_iter().map(piece).collect()
}

#[test]
fn lists_are_split_and_nothing_else() {
    const WHOLE: usize = usize::MAX;
    assert_eq!(texts(""), []);
    assert_eq!(texts(" \n"), []);
    let list = "\n{\"kind\": \"List\",\n \"apiVersion\":\"v1\", \"items\": [ {\"a\": [1,\n2]} ,\n  7]}\n true";
    assert_eq!(
        texts(list),
        [(1, 3, 0, "{\"a\": [1,\n2]}"), (1, 5, 1, "7"), (2, 6, WHOLE, "true")]
    );
    for whole in [
        r#"{"apiVersion":"v1","kind":"List"}"#,
        r#"{"apiVersion":"v1","kind":"List","items":null}"#,
        r#"{"apiVersion":"v1","kind":"List","items":[],"items":[1]}"#,
        r#"{"apiVersion":1,"kind":"List","items":[1]}"#,
        r#"{"apiVersion":"v1","kind":"Service","items":[1]}"#,
        r#"{"kind":"List","items":[1]}"#,
        r#"["v1","List",[1]]"#,
        r#"{"apiVersion":"v1","kind":"List","items":[1"#,
        r#"{"apiVersion":"v1","kind":"List","items":[1]]"#,
        "1",
        "]",
    ] {
        assert_eq!(texts(whole), [(1, 1, WHOLE, whole)]);
    }
    // What follows an error belongs to it.
    assert_eq!(texts("1 ] 2"), [(1, 1, WHOLE, "1"), (2, 1, WHOLE, "] 2")]);
}

#[test]
fn an_item_that_no_parser_takes_costs_only_itself() {
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"},
                         "spec": {"clusterIP": "10.96.0.1"}});
    let file = format!(
        "{{\"apiVersion\": \"v1\", \"kind\": \"List\", \"items\": [\n  {{\"x\":\n\"\\ud800\"}}, 1e999,\n {service}, {}{}]}}",
        "[".repeat(200),
        "]".repeat(200),
    );
    let (found, skipped) = said(&split(&file));
    assert_eq!(found.len(), 4);
    assert!(found[2].starts_with("Object("), "{found:?}");
    let before = service.to_string().len();
    let want = [
        "items[0]: unexpected end of hex escape at line 3 column 8".to_owned(),
        "items[1]: number out of range at line 3 column 16".to_owned(),
        format!(
            "items[3]: recursion limit exceeded at line 4 column {}",
            1 + before + 2 + 128
        ),
    ];
    let want: Vec<_> = want.iter().map(|text| format!("x.json, document 1: {text}")).collect();
    assert_eq!(skipped, want);
}

/// A value of any sort that an item may be.
fn item() -> impl Strategy<Value = Value> {
    let name = prop_oneof![Just("a"), Just("b"), Just("é\n"), Just("")];
    let object = (name, 0..9, any::<bool>()).prop_map(|(name, sort, typed)| {
        let mut object = match sort {
            0 => json!({"kind": "Service", "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}}),
            1 => json!({"kind": "Service", "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 0}]}}),
            2 => json!({"kind": "Service", "spec": {"clusterIP": 7}}),
            3 => json!({"kind": "Service", "spec": "\u{1}\\\"{[]}"}),
            4 => json!({"kind": "EndpointSlice", "addressType": "IPv4", "endpoints": [{"addresses": ["10.1.0.1"]}]}),
            5 => json!({"kind": "ConfigMap", "data": {"x": [-1.5e3, null, true, {}]}}),
            6 => json!({"kind": "Node"}),
            7 => json!({"kind": 1}),
            _ => json!({}),
        };
        object["metadata"] = json!({"name": name, "labels": {"kubernetes.io/service-name": "a"}});
        if typed {
            object["apiVersion"] = json!("v1");
        } else if let Some(object) = object.as_object_mut() {
            object.remove("kind");
        }
        object
    });
    let leaf = prop_oneof![8 => object, 1 => Just(json!(null)), 1 => Just(json!("]}")), 1 => Just(json!([1, {}]))];
    leaf.prop_recursive(3, 12, 4, |inner| list(vec(inner, 0..4)))
}

fn list(items: impl Strategy<Value = Vec<Value>>) -> impl Strategy<Value = Value> {
    let kind = prop_oneof![
        4 => Just(json!("List")),
        2 => Just(json!("ServiceList")),
        1 => Just(json!("EndpointSliceList")),
        1 => Just(json!("ListOf")),
        1 => Just(json!("Lis\u{74}List")),
        1 => Just(json!(null)),
    ];
    let version = prop_oneof![4 => Just(json!("v1")), 1 => Just(json!("discovery.k8s.io/v1")), 1 => Just(json!(1))];
    (version, kind, items)
        .prop_map(|(version, kind, items)| json!({"apiVersion": version, "kind": kind, "metadata": {}, "items": items}))
}

fn file() -> impl Strategy<Value = String> {
    let document = prop_oneof![4 => list(vec(item(), 0..6)).boxed(), 1 => item().boxed()];
    vec((document, any::<bool>()), 0..4).prop_map(|documents| {
        let text = |(document, pretty): (Value, bool)| match pretty {
            true => format!("{document:#}\n\n"),
            false => document.to_string(),
        };
        documents.into_iter().map(text).collect::<Vec<_>>().join(" ")
    })
}

proptest! {
    #[test]
    fn items_say_what_the_whole_said(file in file()) {
        let (whole, error) = documents(&file);
        prop_assert_eq!(error, None);
        prop_assert_eq!(said(&split(&file)), said(&whole));
    }

    #[test]
    fn what_is_cut_or_garbled_keeps_its_error_and_what_came_before(
        file in file(),
        edits in vec((any::<Index>(), any::<Index>(), 0..12usize), 1..3),
    ) {
        const TOKENS: [&str; 12] =
            ["", "", "{", "}", "[", "]", "\"", ",", ":", "\\u12", "-", "\"items\": 1, \"items\": [2], "];
        let mut file: Vec<char> = file.chars().collect();
        for (at, to, token) in edits {
            let at = at.index(file.len() + 1);
            let end = if token == 0 { file.len() } else { (at + to.index(3)).min(file.len()) };
            file.splice(at..end, TOKENS[token].chars());
        }
        let file = String::from_iter(file);
        let (whole, error) = documents(&file);
        let ((found, skipped), (before, faults)) = (said(&split(&file)), said(&whole));
        match error {
            None => prop_assert_eq!((found, skipped), (before, faults)),
            Some(error) => {
                prop_assert_eq!(found.get(..before.len()), Some(&before[..]));
                prop_assert_eq!(skipped.get(..faults.len()), Some(&faults[..]));
                let lost = &found[before.len()..];
                prop_assert!(lost.iter().any(|found| found == "Unknown"), "{lost:?}");
                let place = format!("x.json, document {}: ", whole.len() + 1);
                let told = |line: &String| line.starts_with(&place) && line.ends_with(&error);
                prop_assert!(skipped.iter().any(told), "{error} is not in {skipped:?}");
            }
        }
    }
}
