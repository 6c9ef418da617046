//! Rules alone: what expressions give, and what they may cost.

use super::super::{Schema, cel::Program, check};
use fairlead_schema::CustomSchema as _;
use serde_json::{Value, json};
use std::time::Instant;

#[allow(clippy::needless_pass_by_value, reason = "cases are written where they are used")]
/// What is wrong with `{ "v": value }` by one rule on `v`; empty: it holds.
fn judge(schema: Value, rule: Value, value: Value) -> Vec<String> {
    let mut schema = schema;
    schema["x-kubernetes-validations"] = json!([rule]);
    let root = json!({ "type": "object", "properties": { "v": schema } });
    let schema = Schema::new(&root, &Value::Null);
    let faults = schema.validate(None, &json!({ "v": value }));
    faults.into_iter().map(|it| it.message).collect()
}

fn holds(schema: Value, rule: &str, value: Value) -> bool {
    let found = judge(schema, json!({ "rule": rule, "message": "no" }), value);
    if found.iter().any(|it| !it.ends_with("no")) {
        panic!("{rule}: {found:?}");
    }
    found.is_empty()
}

fn anything() -> Value {
    json!({ "type": "object", "additionalProperties": { "x-kubernetes-preserve-unknown-fields": true } })
}

#[test]
fn expressions_mean_what_they_mean_upstream() {
    let value = json!({ "a": 1, "b": "text", "c": [1, 2, 3], "d": { "x": true }, "e": 1.5, "n": null, "when": "1h" });
    let all = [
        "self.a == 1 && self.b == 'text'",
        "self['a'] + 2 == 3",
        "self.c.all(x, x > 0)",
        "self.c.exists(x, x == 2)",
        "self.c.exists_one(x, x == 2)",
        "self.c.map(x, x * 2) == [2, 4, 6]",
        "self.c.map(x, x > 1, x * 2) == [4, 6]",
        "self.c.filter(x, x > 1) == [2, 3]",
        "self.c.all(i, x, i + 1 == x)",
        "self.c.exists(i, x, i == 2 && x == 3)",
        "self.c.transformList(i, x, i * x) == [0, 2, 6]",
        "self.d.transformMap(k, v, k + '!') == {'x': 'x!'}",
        "cel.bind(n, self.a + 1, n * n) == 4",
        "size(self.c) == 3 && self.c.size() == 3 && self.b.size() == 4",
        "2 in self.c && 'a' in self && !('z' in self)",
        "has(self.a) && !has(self.z) && self.d.x",
        "self.?z.orValue(5) == 5 && self.?a.orValue(5) == 1",
        "self.?d.x.hasValue() && !self.?y.z.hasValue()",
        "self.?a.optMap(x, x + 1).orValue(0) == 2",
        "self[?'a'].value() == 1",
        "[1, ?self.?z, 2] == [1, 2]",
        "optional.of(3).or(optional.none()).value() == 3",
        "type(self.a) == int && type(self.b) == string && type(self.c) == list && type(self.e) == double",
        "self.a < 2 && self.e > 1 && self.a < self.e && 1.0 == 1 && dyn(2u) == 2",
        "self.b.startsWith('te') && self.b.endsWith('xt') && self.b.contains('ex') && self.b.matches('^t.*t$')",
        "self.b.upperAscii() == 'TEXT' && 'a,b'.split(',') == ['a', 'b'] && ['a', 'b'].join('-') == 'a-b'",
        "self.b.find('e.') == 'ex' && 'a1b2'.findAll('[0-9]') == ['1', '2']",
        "'abc'.substring(1) == 'bc' && 'abc'.indexOf('c') == 2 && 'aXa'.replace('X', 'b') == 'aba' && ' a '.trim() == 'a'",
        "int('5') + 1 == 6 && string(5) == '5' && double('1.5') == 1.5 && bool('true') && uint(3) == 3u",
        "duration(self.when) == duration('60m') && duration('1h') > duration('59m')",
        "timestamp('2024-01-01T00:00:00Z') < timestamp('2024-01-02T00:00:00Z')",
        "timestamp('2024-01-01T00:00:00Z') + duration('24h') == timestamp('2024-01-02T00:00:00Z')",
        "timestamp('2024-02-03T00:00:00Z').getFullYear() == 2024",
        "quantity('1Gi').isGreaterThan(quantity('1Mi')) && isQuantity('100m') && !isQuantity('x')",
        "isIP('10.0.0.1') && ip('10.0.0.1').family() == 4 && cidr('10.0.0.0/8').containsIP('10.1.1.1')",
        "isURL('https://a.example:80/b') && url('https://a.example:80/b').getHost() == 'a.example:80'",
        "[3, 1, 2].isSorted() == false && [1, 2].sum() == 3 && [1, 5].max() == 5 && [1, 2].indexOf(2) == 1",
        "sets.contains([1, 2, 3], [1]) && sets.intersects([1], [1, 2])",
        "math.greatest(1, 3) == 3 && '%s-%d'.format(['a', 1]) == 'a-1'",
        "self.c.sortBy(x, -x) == [3, 2, 1]",
        // Errors are absorbed by what decides alone.
        "true || self.z == 1",
        "self.z == 1 || true",
        "!(false && self.z == 1) && !(self.z == 1 && false)",
        "[0, 1].exists(x, 1 / x == 1)",
        "self.a == 1 ? true : self.z",
        "self.n == null && {'a': 1}.a == 1 && {1: 'x'}[1] == 'x'",
        "b'abc'.size() == 3 && 7 % 4 == 3 && -7 / 2 == -3 && !false",
    ];
    for rule in all {
        assert!(holds(anything(), rule, value.clone()), "{rule}");
    }
    for rule in [
        "self.a == 2",
        "self.c.all(x, x > 1)",
        "'a' in self.c",
        "self.a == '1'",
        "self.b > 'u'",
    ] {
        assert!(!holds(anything(), rule, value.clone()), "{rule}");
    }
}

#[test]
fn errors_are_told() {
    let message = |rule: &str| judge(anything(), json!({ "rule": rule }), json!({ "a": 1, "b": "x" })).join("; ");
    assert_eq!(
        message("self.z == 1"),
        r#"Invalid value: "object": no such key: z evaluating rule: self.z == 1"#
    );
    assert_eq!(
        message("1 / (self.a - 1) == 1"),
        r#"Invalid value: "object": division by zero evaluating rule: 1 / (self.a - 1) == 1"#
    );
    assert_eq!(
        message("self.a + self.b == 1"),
        r#"Invalid value: "object": 'no such overload': call arguments did not match a supported operator, function or macro signature for rule: self.a + self.b == 1"#
    );
    assert_eq!(
        message("[1][5] == 1"),
        r#"Invalid value: "object": index out of bounds: 5 evaluating rule: [1][5] == 1"#
    );
    assert_eq!(message("self.a == 2"), "Invalid value: failed rule: self.a == 2");
    assert_eq!(
        message("9223372036854775807 + 1 == 0"),
        r#"Invalid value: "object": integer overflow evaluating rule: 9223372036854775807 + 1 == 0"#
    );
}

#[test]
fn fields_are_typed_and_named_by_the_schema() {
    let schema = json!({ "type": "object", "properties": {
        "number": { "type": "number" },
        "when": { "type": "string", "format": "date-time" },
        "long": { "type": "string", "format": "duration" },
        "bytes": { "type": "string", "format": "byte" },
        "namespace": { "type": "string" },
        "a-b": { "type": "string" },
        "under_score": { "type": "string" },
        "set": { "type": "array", "x-kubernetes-list-type": "set", "items": { "type": "integer" } },
        "other": { "type": "array", "x-kubernetes-list-type": "set", "items": { "type": "integer" } },
        "map": { "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
            "items": { "type": "object", "properties": { "k": { "type": "string" }, "v": { "type": "integer" } } } },
    } });
    let value = json!({
        "number": 1, "when": "2024-01-01T00:00:00Z", "long": "90m", "bytes": "aGVsbG8=", "namespace": "n", "a-b": "c",
        "under_score": "u", "set": [1, 2], "other": [2, 1], "map": [{ "k": "a", "v": 1 }, { "k": "b", "v": 2 }],
    });
    for rule in [
        "self.number / 2.0 == 0.5",
        "self.when < timestamp('2025-01-01T00:00:00Z') && self.when.getMonth() == 0",
        "self.long > duration('1h')",
        "self.bytes == b'hello' && self.bytes.size() == 5",
        "self.__namespace__ == 'n' && self.a__dash__b == 'c' && self.under_score == 'u'",
        "self.set == self.other && self.set + [2, 3] == [1, 2, 3]",
        "(self.map + [{'k': 'b', 'v': 3}]).map(x, x.v) == [1, 3]",
        "self.map.exists(x, x.k == 'b' && x.v == 2)",
    ] {
        assert!(holds(schema.clone(), rule, value.clone()), "{rule}");
    }
}

#[test]
fn authors_are_told_of_rules_that_cannot_run() {
    let found = |rule: Value| -> Vec<String> {
        let schema = json!({ "type": "object", "properties": { "spec": {
            "type": "object",
            "properties": {
                "a": { "type": "integer" },
                "list": { "type": "array", "items": { "type": "object", "properties": { "x": { "type": "string" } } } },
            },
            "x-kubernetes-validations": [rule],
        } } });
        check::schema(&schema, "s", false)
            .into_iter()
            .map(|it| format!("{}: {}", it.field, it.message))
            .collect()
    };
    for sound in [
        "self.a > 1",
        "has(self.a) && self.list.all(x, x.x == 'a')",
        "self.list.exists(i, x, i > 0 && x.x != '')",
        "oldSelf.a <= self.a",
        "self.list.map(x, x.x).all(y, y.matches('a'))",
        "self.list.size() > 0 ? self.list[0].x == 'a' : true",
        "cel.bind(n, self.a, n > 0)",
        "self.?a.orValue(1) > 0",
        "ip.isCanonical('::1')",
        "!format.dns1123Label().validate('a').hasValue()",
    ] {
        assert_eq!(found(json!({ "rule": sound })), Vec::<String>::new(), "{sound}");
    }
    for (broken, want) in [
        ("self.b > 1", "undefined field 'b'"),
        ("self.list.all(x, x.y == 'a')", "undefined field 'y'"),
        ("self.list[0].y == ''", "undefined field 'y'"),
        ("other.a > 1", "undeclared reference to 'other'"),
        ("self.a.nosuch()", "undeclared reference to 'nosuch'"),
        ("self.a >", "Syntax error"),
        ("'text'", "must evaluate to a bool"),
        ("(((", "Syntax error"),
        ("a{b: 1}", "cannot be constructed"),
    ] {
        let found = found(json!({ "rule": broken }));
        assert!(found.len() == 1 && found[0].contains(want), "{broken}: {found:?}");
        assert!(
            found[0].starts_with("s.properties[spec].x-kubernetes-validations[0].rule: Invalid value: {"),
            "{found:?}"
        );
    }
    assert_eq!(
        found(json!({ "rule": "true", "fieldPath": ".nope" })),
        ["s.properties[spec].x-kubernetes-validations[0].fieldPath: Invalid value: \".nope\": must be a valid path"]
    );
    assert_eq!(
        found(json!({ "rule": "true\n&& true" })),
        [
            "s.properties[spec].x-kubernetes-validations[0].message: Required value: message must be specified if rule contains line breaks"
        ]
    );
    // Items of such a list have no old selves.
    let schema = json!({ "type": "object", "properties": { "list": { "type": "array", "items": {
        "type": "string", "x-kubernetes-validations": [{ "rule": "self == oldSelf" }],
    } } } });
    assert!(
        check::schema(&schema, "s", false)[0]
            .message
            .contains("oldSelf cannot be used on the uncorrelatable portion")
    );
}

#[test]
fn optional_old_selves() {
    let schema = Schema::new(
        &json!({ "type": "object", "properties": { "v": { "type": "integer", "x-kubernetes-validations": [
            { "rule": "oldSelf.hasValue() || self == 1", "optionalOldSelf": true, "message": "begins with one" },
            { "rule": "!oldSelf.hasValue() || self >= oldSelf.value()", "optionalOldSelf": true, "message": "grows" },
        ] } } }),
        &Value::Null,
    );
    let judge = |old: Option<Value>, new: Value| -> Vec<String> {
        let found = schema.validate(old.as_ref(), &new);
        found.into_iter().map(|it| it.message).collect()
    };
    assert!(judge(None, json!({ "v": 1 })).is_empty());
    assert_eq!(judge(None, json!({ "v": 2 })), ["Invalid value: 2: begins with one"]);
    assert!(judge(Some(json!({ "v": 2 })), json!({ "v": 3 })).is_empty());
    assert_eq!(
        judge(Some(json!({ "v": 3 })), json!({ "v": 2 })),
        ["Invalid value: 2: grows"]
    );
}

#[test]
fn no_rule_runs_away() {
    // Each of these would take hours or terabytes.
    let items: Vec<u32> = (0..2000).collect();
    let long = "x".repeat(500_000);
    let value = json!({ "list": items, "text": long });
    let rules = [
        "self.list.all(a, self.list.all(b, self.list.all(c, self.list.all(d, a + b + c + d >= 0))))".to_owned(),
        format!("[self.text]{}.size() > 0", ".map(x, x + x)".repeat(60)),
        format!("[[1]]{}.size() > 0", ".map(x, x + x)".repeat(60)),
        "self.text.replace('x', self.text).size() > 0".to_owned(),
        "self.list.map(x, self.text).join(self.text).size() > 0".to_owned(),
        "'%.999999999f'.format([1.0]).size() > 0".to_owned(),
        "lists.range(1000000000000).size() > 0".to_owned(),
        "self.list.all(x, self.text.matches('(a{500}){500}' + string(x)))".to_owned(),
        "self.list.all(x, self.text.find('x*x*x*x*y') == '')".to_owned(),
        "sets.equivalent(self.list.map(x, self.list), self.list.map(x, self.list))".to_owned(),
        "self.list.map(x, self.list.map(y, self.list)) == self.list.map(x, self.list.map(y, self.list))".to_owned(),
    ];
    for rule in rules {
        let started = Instant::now();
        let found = judge(anything(), json!({ "rule": rule }), value.clone());
        // Seconds, where it would be hours: printed for the reader, never asserted.
        println!("{:?} {rule:.60}", started.elapsed());
        assert!(!found.is_empty(), "{rule}");
    }
}

#[test]
fn hostile_sources_are_refused() {
    let nested = |open: &str, close: &str, count: usize| format!("{}1{}", open.repeat(count), close.repeat(count));
    for source in [
        nested("(", ")", 5000),
        nested("[", "]", 5000),
        nested("-(", ")", 4000),
        format!("self{}", ".a".repeat(7000)),
        format!("1{}", "+1".repeat(7000)),
        "a ? ".repeat(3000),
        "x".repeat(20_000),
    ] {
        assert!(Program::compile(&source).is_err(), "{source:.20}");
    }
    for source in [
        "",
        "\0",
        "'",
        "\"\\",
        "\u{feff}",
        "a.b.(c)",
        "{1:2",
        "has(1)",
        "[].all(1, 2)",
        "x.map(y)",
    ] {
        // Whatever it is, it is no panic.
        let _ = Program::compile(source);
    }
}
