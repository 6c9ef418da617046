use super::*;
use crate::model::{Change, ObjectName};

const NODE: &str = "node-a";

fn service(name: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  clusterIP: {ip}\n  ports: [{{port: 80}}]\n"
    )
}

fn folder() -> Folder {
    Folder::new(NODE)
}

/// Events as short lines: `+ Service default/web 10.96.0.1`, `- Service default/web`, `! report`.
fn lines(events: Vec<Event>) -> Vec<String> {
    events
        .into_iter()
        .map(|event| match event {
            Event::Service(Change::Apply(service)) => format!("+ {} {}", service.name.name, service.cluster_ips[0]),
            Event::Service(Change::Delete(name)) => format!("- {}", name.name),
            Event::Slice(Change::Apply(slice)) => format!("+ slice {}", slice.name.name),
            Event::Slice(Change::Delete(name)) => format!("- slice {}", name.name),
            Event::Node(Change::Apply(node)) => format!("+ node {}", node.name),
            Event::Node(Change::Delete(name)) => format!("- node {name}"),
            Event::Skipped(skipped) => format!("! {skipped}"),
            Event::Reviewed { subject } => format!("~ {subject}"),
            Event::Init | Event::InitDone => "?".to_owned(),
        })
        .collect()
}

impl Folder {
    fn put(&mut self, name: &str, content: &str) -> Vec<String> {
        lines(self.update([(name.into(), FileState::Content(content.into()))]))
    }

    fn remove(&mut self, name: &str) -> Vec<String> {
        lines(self.update([(name.into(), FileState::Gone)]))
    }
}

#[test]
fn only_differences_are_announced() {
    let mut folder = folder();
    let both = [service("a", "10.96.0.1"), service("b", "10.96.0.2")].join("---\n");
    assert_eq!(folder.put("x.yaml", &both), ["+ a 10.96.0.1", "+ b 10.96.0.2"]);
    assert_eq!(folder.put("x.yaml", &both), [""; 0]);
    assert_eq!(folder.put("x.yaml", &format!("# moved\n---\n{both}")), [""; 0]);
    let edited = [service("b", "10.96.0.3"), service("c", "10.96.0.4")].join("---\n");
    assert_eq!(folder.put("x.yaml", &edited), ["+ c 10.96.0.4", "+ b 10.96.0.3", "- a"]);
    assert_eq!(folder.remove("x.yaml"), ["- b", "- c"]);
    assert_eq!(folder.remove("x.yaml"), [""; 0]);
    assert!(folder.objects.is_empty() && folder.files.is_empty() && folder.reports.is_empty());
}

#[test]
fn a_renamed_file_changes_nothing() {
    let mut folder = folder();
    let content = service("a", "10.96.0.1");
    folder.put("x.yaml", &content);
    let moved = [
        ("x.yaml".into(), FileState::Gone),
        ("y.yaml".into(), FileState::Content(content.into())),
    ];
    assert_eq!(lines(folder.update(moved)), [""; 0]);
    assert_eq!(folder.remove("y.yaml"), ["- a"]);
}

#[test]
fn names_that_are_read() {
    for name in ["a.yaml", "a.yml", "a.json", "a.b.yaml"] {
        assert!(Folder::reads(name), "{name}");
    }
    for name in [
        ".a.yaml",
        ".yaml",
        "a.yaml~",
        "a.yaml.swp",
        "yaml",
        "a.txt",
        "..data",
        "",
    ] {
        assert!(!Folder::reads(name), "{name}");
    }
}

#[test]
fn all_kinds_lists_and_json() {
    let mut folder = folder();
    let yaml = "
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1}}
- {apiVersion: v1, kind: ConfigMap, metadata: {name: ignored}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSliceList
items:
- {metadata: {name: a-1, labels: {kubernetes.io/service-name: a}}, addressType: IPv4, ports: [], endpoints: []}
--- # other nodes are ignored
{apiVersion: v1, kind: Node, metadata: {name: node-a}}
---
{apiVersion: v1, kind: Node, metadata: {name: node-b}}
...
";
    assert_eq!(
        folder.put("x.yaml", yaml),
        ["+ a 10.96.0.1", "+ slice a-1", "+ node node-a"]
    );
    let json = r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"j1"},"spec":{"clusterIP":"10.96.1.1"}}
        {"apiVersion":"v1","kind":"ServiceList","items":[{"metadata":{"name":"j2"},"spec":{"clusterIP":"10.96.1.2"}}]}"#;
    assert_eq!(folder.put("x.json", json), ["+ j1 10.96.1.1", "+ j2 10.96.1.2"]);
}

#[test]
fn a_broken_document_hides_no_other() {
    let mut folder = folder();
    let text = format!(
        "{}---\nkey: \"never closed\n---\n{}---\nblock: |\n  text\n---\n[1, 2\n---\n{}",
        service("a", "10.96.0.1"),
        service("b", "10.96.0.2"),
        service("c", "10.96.0.3")
    );
    let got = folder.put("x.yaml", &text);
    let good: Vec<_> = got.iter().filter(|line| line.starts_with('+')).collect();
    assert_eq!(good, ["+ a 10.96.0.1", "+ b 10.96.0.2", "+ c 10.96.0.3"]);
    let bad: Vec<_> = got.iter().filter(|line| line.starts_with('!')).collect();
    assert_eq!(bad.len(), 3, "{got:#?}");
    for (report, document) in bad.iter().zip([2, 4, 5]) {
        assert!(
            report.starts_with(&format!("! x.yaml, document {document}: ")),
            "{report}"
        );
    }
    assert!(
        bad[0].contains("at line 8") || bad[0].contains("at line 9"),
        "{}",
        bad[0]
    );
}

#[test]
fn a_malformed_document_is_reported_where_it_is_and_keeps_its_former_self() {
    let mut folder = folder();
    let good = [service("a", "10.96.0.1"), service("b", "10.96.0.2")].join("---\n");
    folder.put("x.yaml", &good);
    let bad = good
        .replace("10.96.0.1", "10.96.0.9")
        .replace("clusterIP: 10.96.0.2", "clusterIP: [10.96.0.2]");
    let got = folder.put("x.yaml", &bad);
    assert_eq!(got.len(), 2, "{got:#?}");
    assert!(
        got[0].starts_with("! x.yaml, document 2: spec.clusterIP: line 12: "),
        "{}",
        got[0]
    );
    assert!(got[0].ends_with("(Service default/b)"), "{}", got[0]);
    assert_eq!(got[1], "+ a 10.96.0.9");
    // Still malformed: not reported again, still kept. Then repaired, then really gone.
    assert_eq!(
        folder.put("x.yaml", &bad.replace("10.96.0.9", "10.96.0.8")),
        ["+ a 10.96.0.8"]
    );
    assert_eq!(folder.put("x.yaml", &good), ["~ x.yaml, document 2", "+ a 10.96.0.1"]);
    assert_eq!(folder.put("x.yaml", &service("a", "10.96.0.1")), ["- b"]);
}

#[test]
fn a_malformed_document_does_not_hide_a_sound_one_of_the_same_object() {
    let mut folder = folder();
    let file = |ip| format!("{}---\n{}", service("a", "[]"), service("a", ip));
    let got = folder.put("x.yaml", &file("10.96.0.1"));
    assert!(got.len() == 2 && got[1] == "+ a 10.96.0.1", "{got:#?}");
    assert_eq!(folder.put("x.yaml", &file("10.96.0.1")), [""; 0]);
    assert_eq!(folder.put("x.yaml", &file("10.96.0.2")), ["+ a 10.96.0.2"]);
}

#[test]
fn while_a_document_is_unreadable_nothing_of_its_file_is_deleted() {
    let mut folder = folder();
    folder.put(
        "x.yaml",
        &[service("a", "10.96.0.1"), service("b", "10.96.0.2")].join("---\n"),
    );
    let got = folder.put("x.yaml", &format!("{}---\nkind: {{{{\n", service("a", "10.96.0.9")));
    assert_eq!(got.len(), 2, "{got:#?}");
    assert_eq!(got[1], "+ a 10.96.0.9");
    let unreadable = FileState::Unreadable("permission denied".to_owned());
    assert_eq!(
        lines(folder.update([("x.yaml".into(), unreadable)])),
        ["! x.yaml: permission denied"]
    );
    let got = folder.put("x.yaml", "\u{1}");
    assert_eq!(got[..2], ["~ x.yaml", "~ x.yaml, document 2"]);
    assert!(
        got.len() == 3 && got[2].starts_with("! x.yaml, document 1: "),
        "{got:#?}"
    );
    assert_eq!(
        folder.put("x.yaml", &service("a", "10.96.0.9")),
        ["~ x.yaml, document 1", "- b"]
    );
    assert!(folder.reports.is_empty());
}

#[test]
fn a_file_that_could_never_be_read_is_known_until_it_goes() {
    let mut folder = folder();
    let unreadable = FileState::Unreadable("permission denied".to_owned());
    for report in ["! x.yaml: permission denied", ""] {
        let got = lines(folder.update([("x.yaml".into(), unreadable.clone())]));
        assert_eq!(got.join(""), report, "told once");
    }
    assert!(folder.files().any(|file| &**file == "x.yaml"));
    assert_eq!(folder.remove("x.yaml"), ["~ x.yaml"]);
    assert_eq!(folder.files().next(), None);
}

#[test]
fn the_first_file_wins_and_the_other_takes_over() {
    let mut folder = folder();
    assert_eq!(folder.put("b.yaml", &service("a", "10.96.0.2")), ["+ a 10.96.0.2"]);
    let contest = |winner: &str, others: &str| {
        format!(
            "! Service default/a: defined in {winner} and in {others}; {winner} counts, the first by name; keep one"
        )
    };
    let over = "~ Service default/a";
    assert_eq!(
        folder.put("a.yaml", &service("a", "10.96.0.1")),
        [&contest("a.yaml", "b.yaml"), "+ a 10.96.0.1"]
    );
    assert_eq!(
        folder.put("c.yaml", &service("a", "10.96.0.3")),
        [over, &contest("a.yaml", "b.yaml and 1 more file")]
    );
    assert_eq!(folder.put("b.yaml", &service("a", "10.96.0.4")), [""; 0]);
    assert_eq!(
        folder.remove("a.yaml"),
        [over, &contest("b.yaml", "c.yaml"), "+ a 10.96.0.4"]
    );
    assert_eq!(folder.remove("b.yaml"), [over, "+ a 10.96.0.3"]);
    assert_eq!(folder.remove("c.yaml"), ["- a"]);
    assert!(folder.objects.is_empty() && folder.reports.is_empty());
}

#[test]
fn twice_in_one_file_is_reported() {
    let mut folder = folder();
    let got = folder.put(
        "x.yaml",
        &[service("a", "10.96.0.1"), service("a", "10.96.0.2")].join("---\n"),
    );
    let report = "! x.yaml, document 2: Service default/a is defined earlier in this file, which counts; remove one";
    assert_eq!(got, [report, "+ a 10.96.0.1"]);
    assert_eq!(
        folder.put("x.yaml", &service("a", "10.96.0.1")),
        ["~ x.yaml, document 2"]
    );
    // One of two that are equal is enough.
    let twice = [service("a", "10.96.0.1"), service("a", "10.96.0.1")].join("---\n");
    assert_eq!(folder.put("x.yaml", &twice), [report]);
    assert_eq!(folder.remove("x.yaml"), ["~ x.yaml, document 2", "- a"]);
}

#[test]
fn a_label_takes_a_service_away_and_gives_it_back() {
    let mut folder = folder();
    let ours = service("a", "10.96.0.1");
    let theirs = ours.replace(
        "{name: a}",
        "{name: a, labels: {service.kubernetes.io/service-proxy-name: x}}",
    );
    assert_eq!(folder.put("x.yaml", &theirs), [""; 0]);
    assert_eq!(folder.put("x.yaml", &ours), ["+ a 10.96.0.1"]);
    assert_eq!(folder.put("x.yaml", &theirs), ["- a"]);
}

#[test]
fn field_faults_name_object_field_and_file() {
    let mut folder = folder();
    let got = folder.put("x.yaml", &service("a", "10.96.0.1").replace("{port: 80}", "{port: 0}"));
    let report = "! Service default/a: spec.ports[0].port: 0 is not a port number (1 to 65535) (x.yaml, document 1)";
    assert_eq!(got, [report, "+ a 10.96.0.1"]);
    let faulty = service("a", "10.96.0.1").replace("{port: 80}", "{port: 0}");
    // It moves, it is repaired though the object stays what it was, it breaks again, it goes.
    let moved = format!("{}---\n{faulty}", service("b", "10.96.0.2"));
    assert_eq!(
        folder.put("x.yaml", &moved),
        [
            "~ Service default/a",
            &report.replace("document 1", "document 2"),
            "+ b 10.96.0.2"
        ]
    );
    assert_eq!(
        folder.put(
            "x.yaml",
            &moved
                .replace(", ports: [{port: 0}]", "")
                .replace("  ports: [{port: 0}]\n", "")
        ),
        ["~ Service default/a"]
    );
    assert_eq!(folder.put("x.yaml", &faulty), [report, "- b"]);
    assert_eq!(folder.remove("x.yaml"), ["~ Service default/a", "- a"]);
    assert!(folder.reports.is_empty());
}

#[test]
fn documents_without_kind_or_of_no_shape_are_reported() {
    let mut folder = folder();
    let got = folder.put(
        "x.yaml",
        "just text\n---\n- 1\n---\nkind: Service\n---\napiVersion: v1\n---\n# nothing\n---\nnull\n",
    );
    let places: Vec<_> = got
        .iter()
        .map(|line| line.split(':').take(2).collect::<String>())
        .collect();
    let want = [
        "! x.yaml, document 1 apiVersion",
        "! x.yaml, document 2 apiVersion",
        "! x.yaml, document 3 apiVersion",
        "! x.yaml, document 4 kind",
    ];
    assert_eq!(places, want);
}

#[test]
fn reports_about_one_file_are_bounded() {
    let got = folder().put("x.yaml", &"---\n]\n".repeat(1000));
    assert_eq!(
        (got.len(), got[100].as_str()),
        (101, "! x.yaml: 900 more faults not listed")
    );
}

#[test]
fn documents_are_split_where_yaml_says() {
    let split = |text: &'static str| -> Vec<(usize, usize, &str)> {
        let pieces = split(Syntax::Yaml, text.as_bytes());
        pieces
            .iter()
            .map(|piece| (piece.number, piece.line, std::str::from_utf8(piece.text).unwrap()))
            .collect()
    };
    assert_eq!(split(""), []);
    assert_eq!(split("---\n---\n# c\n"), []);
    assert_eq!(split("a: 1"), [(1, 1, "a: 1")]);
    assert_eq!(split("\u{feff}a: 1"), [(1, 1, "a: 1")]);
    assert_eq!(
        split("---\na: 1\n---\r\nb: 2\n..."),
        [(1, 1, "\na: 1\n"), (2, 3, "\r\nb: 2\n")]
    );
    assert_eq!(split("%YAML 1.2\n---\na: 1\n"), [(1, 2, "\na: 1\n")]);
    assert_eq!(
        split("a: |\n  ---\n ---\n---x\n----\n--- b\n"),
        [(1, 1, "a: |\n  ---\n ---\n---x\n----\n"), (2, 6, " b\n")]
    );
    assert_eq!(split("a: \"\n--- \n\""), [(1, 1, "a: \"\n"), (2, 2, " \n\"")]);
}

#[test]
fn an_object_named_by_a_malformed_document_is_the_right_one() {
    let mut folder = folder();
    let got = folder.put("x.yaml", &service("a", "10.96.0.1").replace("10.96.0.1", "{}"));
    assert_eq!(got.len(), 1, "{got:#?}");
    assert!(folder.objects.is_empty());
    assert_eq!(
        Key::Service(ObjectName::new("default", "a")).to_string(),
        "Service default/a"
    );
}

#[test]
fn a_large_file_is_shared_out_and_comes_back_in_order() {
    let bad = [17, 1500, 2999];
    let documents: Vec<_> = (0..3000)
        .map(|n| match bad.contains(&n) {
            true => "]\n".to_owned(),
            false => service(&format!("s{n:04}"), &format!("10.96.{}.{}", n / 250, n % 250 + 1)),
        })
        .collect();
    let text = documents.join("---\n");
    assert!(text.len() > 256 * 1024, "large enough to be shared out: {}", text.len());
    let got = folder().put("x.yaml", &text);
    assert_eq!(got.len(), 3000);
    for (report, n) in got.iter().zip(bad) {
        assert!(
            report.starts_with(&format!("! x.yaml, document {}: ", n + 1)),
            "{report}"
        );
    }
    let want = (0..3000).filter(|n| !bad.contains(n));
    let want: Vec<_> = want
        .map(|n| format!("+ s{n:04} 10.96.{}.{}", n / 250, n % 250 + 1))
        .collect();
    assert_eq!(got[3..], want);
}

fn list(items: &[&str]) -> String {
    format!(
        r#"{{"apiVersion": "v1", "kind": "List", "items": [{}]}}"#,
        items.join(", ")
    )
}

fn item(name: &str, ip: &str) -> String {
    format!(r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"name":"{name}"}},"spec":{{"clusterIP":"{ip}"}}}}"#)
}

#[test]
fn an_item_of_a_json_list_stands_for_itself() {
    let mut folder = folder();
    let (a, b) = (item("a", "10.96.0.1"), item("b", "10.96.0.2"));
    assert_eq!(
        folder.put("x.json", &list(&[&a, &b])),
        ["+ a 10.96.0.1", "+ b 10.96.0.2"]
    );
    // A malformed one keeps its former self; an unreadable one what the list no longer mentions.
    let bad = b.replace("\"10.96.0.2\"", "7");
    let report = "! x.json, document 1: items[1].spec.clusterIP: invalid type: integer `7`, expected a string (Service default/b)";
    assert_eq!(folder.put("x.json", &list(&[&a, &bad])), [report]);
    let got = folder.put("x.json", &list(&["[1e999]", &a]));
    let report = "! x.json, document 1: items[0]: number out of range at line 1 column 53";
    assert_eq!(got, ["~ x.json, document 1", report]);
    assert_eq!(
        folder.put("x.json", &list(&[&item("a", "10.96.0.9")])),
        ["~ x.json, document 1", "+ a 10.96.0.9", "- b"]
    );
    // Cut off, it says nothing at all.
    let cut = list(&[&a, &b]);
    let got = folder.put("x.json", &cut[..cut.len() - 2]);
    assert!(
        got.len() == 1 && got[0].starts_with("! x.json, document 1: EOF while parsing a list at line 1 column "),
        "{got:#?}"
    );
    assert_eq!(folder.remove("x.json"), ["~ x.json, document 1", "- a"]);
    assert!(folder.objects.is_empty() && folder.files.is_empty() && folder.reports.is_empty());
}

#[test]
fn of_a_json_list_only_what_changed_is_read_and_held() {
    let mut folder = folder();
    let items: Vec<_> = (0..100).map(|n| item(&format!("s{n}"), "10.96.0.1")).collect();
    let items: Vec<_> = items.iter().map(String::as_str).collect();
    folder.put("x.json", &list(&items));
    let held = |folder: &Folder| -> BTreeMap<Key, *const Object> {
        let claims = folder.files["x.json"].claims.iter();
        claims
            .map(|(key, claim)| (key.clone(), Arc::as_ptr(claim.as_ref().unwrap())))
            .collect()
    };
    let before = held(&folder);
    let changed = item("s7", "10.96.0.7");
    let mut items = items;
    items[7] = &changed;
    // An annotation makes another text of the same object.
    let annotated = items[8].replace("\"name\"", "\"annotations\":{\"x\":\"y\"},\"name\"");
    items[8] = &annotated;
    items.swap(0, 99);
    assert_eq!(folder.put("x.json", &list(&items)), ["+ s7 10.96.0.7"]);
    let after = held(&folder);
    let moved: Vec<_> = before.keys().filter(|key| before[key] != after[key]).collect();
    assert_eq!(moved, [&Key::Service(ObjectName::new("default", "s7"))]);
    for (_, found) in &folder.files["x.json"].documents {
        let Found::Object(object) = found else {
            panic!("{found:?}")
        };
        assert_eq!(after[&object.key()], Arc::as_ptr(object), "held once");
    }
    // The same items of a list of another sort are others.
    let typed = |kind: &str| {
        let item = r#"{"metadata":{"name":"t"},"spec":{"clusterIP":"10.96.1.1"}}"#;
        list(&[item]).replace("\"List\"", &format!("\"{kind}\""))
    };
    assert_eq!(folder.put("y.json", &typed("ServiceList")), ["+ t 10.96.1.1"]);
    assert_eq!(folder.put("y.json", &typed("SecretList")), ["- t"]);
    assert_eq!(folder.put("y.json", &typed("ServiceList")), ["+ t 10.96.1.1"]);
}
