//! Protobuf bodies: upstream's own fixtures, zeros that were meant, and bytes that were not.

use fairlead_schema::{
    Types,
    proto::{self, DecodeCause},
};
use flate2::read::GzDecoder;
use proptest::prelude::*;
use prost::encoding::{WireType, encode_key, encode_varint};
use serde_json::{Value, json};
use std::io::Read as _;

#[derive(serde::Deserialize)]
struct Fixture {
    name: String,
    protobuf: String,
    json: Value,
}

impl Fixture {
    fn bytes(&self) -> Vec<u8> {
        unhex(&self.protobuf)
    }
}

fn unhex(text: &str) -> Vec<u8> {
    let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    text.as_bytes().chunks(2).map(byte).collect()
}

fn fixtures() -> Vec<Fixture> {
    let mut text = String::new();
    let packed: &[u8] = include_bytes!("data/fixtures.jsonl.gz");
    GzDecoder::new(packed).read_to_string(&mut text).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn fixtures_of_every_kind_decode_to_their_json() {
    let types = Types::builtin();
    let fixtures = fixtures();
    assert!(fixtures.len() >= 100, "{}", fixtures.len());
    let mut wrong = Vec::new();
    for fixture in &fixtures {
        match proto::decode(&types, &fixture.bytes()) {
            Ok(value) if value == fixture.json => {}
            Ok(value) => wrong.push(format!("{}: {}", fixture.name, difference("", &fixture.json, &value))),
            Err(error) => wrong.push(format!("{}: {error}", fixture.name)),
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        fixtures.len(),
        wrong.join("\n")
    );
    let has = |name: &str| fixtures.iter().any(|fixture| fixture.name == name);
    for name in [
        "core.v1.Pod",
        "apps.v1.Deployment",
        "batch.v1.CronJob",
        "policy.v1.Eviction",
    ] {
        assert!(has(name), "{name}");
    }
}

/// The first place where two values differ.
fn difference(path: &str, wanted: &Value, found: &Value) -> String {
    match (wanted, found) {
        (Value::Object(wanted), Value::Object(found)) => {
            let keys = wanted.keys().chain(found.keys());
            let at = |key: &String| {
                let (wanted, found) = (wanted.get(key), found.get(key));
                (wanted != found).then(|| {
                    let null = Value::Null;
                    difference(
                        &format!("{path}.{key}"),
                        wanted.unwrap_or(&null),
                        found.unwrap_or(&null),
                    )
                })
            };
            keys.filter_map(at).next().unwrap_or_default()
        }
        (Value::Array(wanted), Value::Array(found)) if wanted.len() == found.len() => {
            let at = |(wanted, found)| (wanted != found).then(|| difference(&format!("{path}[]"), wanted, found));
            wanted.iter().zip(found).find_map(at).unwrap_or_default()
        }
        _ => format!("{path}: wanted {wanted}, found {found}"),
    }
}

/// A message being written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(mut self, number: u32, value: u64) -> Self {
        encode_key(number, WireType::Varint, &mut self.0);
        encode_varint(value, &mut self.0);
        self
    }

    fn bytes(mut self, number: u32, value: impl AsRef<[u8]>) -> Self {
        encode_key(number, WireType::LengthDelimited, &mut self.0);
        encode_varint(value.as_ref().len() as u64, &mut self.0);
        self.0.extend_from_slice(value.as_ref());
        self
    }

    fn message(self, number: u32, value: Self) -> Self {
        self.bytes(number, value.0)
    }

    /// As a request body.
    fn body(self, api_version: &str, kind: &str) -> Vec<u8> {
        let meta = Self::default().bytes(1, api_version).bytes(2, kind);
        let unknown = Self::default()
            .message(1, meta)
            .message(2, self)
            .bytes(3, "")
            .bytes(4, "");
        [proto::MAGIC, &unknown.0].concat()
    }
}

fn message() -> Message {
    Message::default()
}

#[test]
fn zeros_of_pointers_were_meant() {
    let types = Types::builtin();
    // DeploymentSpec: replicas = 1 (pointer), minReadySeconds = 5, paused = 7 (neither).
    let spec = message().varint(1, 0).varint(5, 0).varint(7, 0);
    let body = message()
        .message(1, message().bytes(1, "web"))
        .message(2, spec)
        .message(3, message());
    let value = proto::decode(&types, &body.body("apps/v1", "Deployment")).unwrap();
    assert_eq!(
        value,
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {"replicas": 0}})
    );

    // PodSpec: automountServiceAccountToken = 21 and securityContext = 14 {runAsUser = 2} are pointers, hostNetwork = 11
    // is none; a volume's emptyDir {} is a pointer inside an inlined message.
    let volume = message().bytes(1, "v").message(2, message().message(2, message()));
    let spec = message()
        .message(1, volume)
        .varint(21, 0)
        .varint(11, 0)
        .message(14, message().varint(2, 0));
    let value = proto::decode(&types, &message().message(2, spec).body("v1", "Pod")).unwrap();
    assert_eq!(
        value["spec"],
        json!({"automountServiceAccountToken": false, "securityContext": {"runAsUser": 0},
               "volumes": [{"name": "v", "emptyDir": {}}]})
    );
}

#[test]
fn zeros_that_upstream_writes_into_json_are_kept() {
    // ReplicaSetStatus: replicas = 1 has no omitempty, fullyLabeledReplicas = 2 has.
    let status = message().varint(1, 0).varint(2, 0);
    let body = message().message(3, status).body("apps/v1", "ReplicaSet");
    let value = proto::decode(&Types::builtin(), &body).unwrap();
    assert_eq!(value["status"], json!({"replicas": 0}));
}

#[test]
fn collections_keep_their_zeros() {
    // ConfigMap: data = 2, binaryData = 3; a map entry may lack key or value.
    let body = message()
        .message(2, message().bytes(1, "empty").bytes(2, ""))
        .message(2, message().bytes(1, "absent"))
        .message(3, message().bytes(1, "bytes").bytes(2, [0, 255]));
    let value = proto::decode(&Types::builtin(), &body.body("v1", "ConfigMap")).unwrap();
    assert_eq!(value["data"], json!({"empty": "", "absent": ""}));
    assert_eq!(value["binaryData"], json!({"bytes": "AP8="}));
}

#[test]
fn kinds_of_no_resource_decode_too() {
    let types = Types::builtin();
    let decode = |message: Message, api_version, kind| proto::decode(&types, &message.body(api_version, kind)).unwrap();
    // DeleteOptions: gracePeriodSeconds = 1, preconditions = 2 {uid = 1}, propagationPolicy = 4; sent in the version of
    // what is deleted.
    let options = message()
        .varint(1, 0)
        .message(2, message().bytes(1, "u"))
        .bytes(4, "Background");
    assert_eq!(
        decode(options, "apps/v1", "DeleteOptions"),
        json!({"apiVersion": "apps/v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0,
               "preconditions": {"uid": "u"}, "propagationPolicy": "Background"})
    );
    // SelfSubjectAccessReview: spec = 2 {resourceAttributes = 1 {namespace 1, verb 2, group 3, resource 5}}.
    let attributes = message()
        .bytes(1, "default")
        .bytes(2, "get")
        .bytes(3, "")
        .bytes(5, "pods");
    let review = message().message(2, message().message(1, attributes));
    let review = decode(review, "authorization.k8s.io/v1", "SelfSubjectAccessReview");
    assert_eq!(
        review["spec"],
        json!({"resourceAttributes": {"namespace": "default", "verb": "get", "resource": "pods"}})
    );
    for (api_version, kind) in [
        ("authentication.k8s.io/v1", "TokenRequest"),
        ("authentication.k8s.io/v1", "TokenReview"),
        ("authentication.k8s.io/v1", "SelfSubjectReview"),
        ("authorization.k8s.io/v1", "SelfSubjectRulesReview"),
        ("authorization.k8s.io/v1", "SubjectAccessReview"),
        ("authorization.k8s.io/v1", "LocalSubjectAccessReview"),
        ("autoscaling/v1", "Scale"),
        ("policy/v1", "Eviction"),
        ("v1", "Binding"),
        ("v1", "Status"),
    ] {
        assert_eq!(
            decode(message(), api_version, kind),
            json!({"apiVersion": api_version, "kind": kind})
        );
    }
}

#[test]
fn schemas_of_custom_resources_keep_their_unions() {
    // JSONSchemaProps: type = 5, default = 8 {raw = 1}, items = 24 {schema = 1}, properties = 29, additionalProperties =
    // 30 {allows = 1, schema = 2}, maximum = 9. CRD: spec = 2 {versions = 7 {schema = 4 {openAPIV3Schema = 1}}}.
    let text = || message().bytes(5, "string").message(8, message().bytes(1, "null"));
    let list = message().message(24, message().message(1, text()));
    let any = message().message(30, message().varint(1, 1));
    let none = message().message(30, message().varint(1, 0));
    let map = message().message(30, message().varint(1, 1).message(2, text()));
    let entry = |key: &str, value| message().bytes(1, key).message(2, value);
    let schema = [("list", list), ("any", any), ("none", none), ("map", map)];
    let schema = schema
        .into_iter()
        .fold(message(), |all, (key, value)| all.message(29, entry(key, value)));
    let version = message().message(4, message().message(1, schema));
    let body = message().message(2, message().message(7, version));
    let body = body.body("apiextensions.k8s.io/v1", "CustomResourceDefinition");
    let value = proto::decode(&Types::builtin(), &body).unwrap();
    let text = json!({"type": "string", "default": null});
    assert_eq!(
        value["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"],
        json!({"list": {"items": text}, "any": {"additionalProperties": true},
               "none": {"additionalProperties": false}, "map": {"additionalProperties": text}})
    );
}

/// Bodies as kubectl 1.32 and 1.36 send them (the same, byte by byte), seen on the wire.
#[test]
fn bodies_of_kubectl_decode_to_what_it_meant() {
    let types = Types::builtin();
    let cases = [
        (
            "create deployment web --image=nginx --replicas=0 --port=80",
            "6b3873000a150a07617070732f7631120a4465706c6f796d656e7412b8010a1f0a0377656212001a0022002a003200380042005a\
             0a0a0361707012037765621286010800120c0a0a0a0361707012037765621a6c0a1c0a0012001a0022002a003200380042005a0a\
             0a036170701203776562124c122e0a056e67696e7812056e67696e782a00320a0a001000185022002a0042006a00720080010088\
             0100900100a201001a00320042004a0052005800600068008201008a01009a0100c2010022020a00280038001a0c080010001800\
             2000280038001a002200",
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "labels": {"app": "web"}},
                   "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "web"}},
                            "template": {"metadata": {"labels": {"app": "web"}},
                                         "spec": {"containers": [{"name": "nginx", "image": "nginx",
                                                                  "ports": [{"containerPort": 80}]}]}}}}),
        ),
        (
            "create configmap c --from-literal=a=b --from-literal=empty=",
            "6b3873000a0f0a0276311209436f6e6669674d617012260a110a016312001a0022002a0032003800420012060a01611201621209\
             0a05656d70747912001a002200",
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "b", "empty": ""}}),
        ),
        (
            "create token default --duration=10m",
            "6b3873000a280a1861757468656e7469636174696f6e2e6b38732e696f2f7631120c546f6b656e52657175657374121d0a100a00\
             12001a0022002a00320038004200120320d8041a040a0012001a002200",
            json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 600},
                   "status": {"token": ""}}),
        ),
        (
            "auth can-i list pods",
            "6b3873000a320a17617574686f72697a6174696f6e2e6b38732e696f2f7631121753656c665375626a6563744163636573735265\
             76696577123d0a100a0012001a0022002a00320038004200121f0a1d0a0764656661756c7412046c6973741a0022002a04706f64\
             7332003a001a08080012001a0020001a002200",
            json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
                   "spec": {"resourceAttributes": {"namespace": "default", "verb": "list", "resource": "pods"}},
                   "status": {"allowed": false}}),
        ),
        (
            "auth whoami",
            "6b3873000a2d0a1861757468656e7469636174696f6e2e6b38732e696f2f7631121153656c665375626a65637452657669657712\
             1a0a100a0012001a0022002a0032003800420012060a040a0012001a002200",
            json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}),
        ),
        (
            "create job j --image=busybox -- true",
            "6b3873000a0f0a0862617463682f763112034a6f62127e0a110a016a12001a0022002a00320038004200125f325d0a100a001200\
             1a0022002a00320038004200124912260a016a120762757379626f781a04747275652a0042006a007200800100880100900100a2\
             01001a054e65766572320042004a0052005800600068008201008a01009a0100c201001a082000280030003a001a002200",
            json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"},
                   "spec": {"template": {"spec": {"restartPolicy": "Never",
                                                  "containers": [{"name": "j", "image": "busybox", "command": ["true"]}]}}}}),
        ),
    ];
    for (command, body, wanted) in cases {
        assert_eq!(proto::decode(&types, &unhex(body)).unwrap(), wanted, "{command}");
    }
}

#[test]
fn errors_name_the_place_and_the_cause() {
    let types = Types::builtin();
    let error = |body: &[u8]| proto::decode(&types, body).unwrap_err();
    assert_eq!(error(b"{}").cause, DecodeCause::NoMagic);
    assert_eq!(
        error(&message().body("v1", "Nothing")).to_string(),
        "no kind \"Nothing\" is registered for version \"v1\""
    );
    let container = message().bytes(1, [0xff, 0xfe]);
    let pod = message().message(2, message().message(2, container)).body("v1", "Pod");
    assert_eq!(error(&pod).path, "spec.containers[0].name");
    let truncated = message().bytes(2, [0x0a, 0x7f]).body("v1", "Pod");
    assert_eq!(error(&truncated).path, "spec");
}

#[test]
fn depth_and_size_are_bounded() {
    let types = Types::builtin();
    // JSONSchemaProps.not = 28, as deep as one likes.
    let deep = (0..200).fold(message(), |inner, _| message().message(28, inner));
    let version = message().message(4, message().message(1, deep));
    let body = message().message(2, message().message(7, version));
    let body = body.body("apiextensions.k8s.io/v1", "CustomResourceDefinition");
    assert_eq!(proto::decode(&types, &body).unwrap_err().cause, DecodeCause::TooDeep);
    // PodSpec.containers = 2, two bytes each.
    let many = Message([0x12, 0x00].repeat(600_000));
    let body = message().message(2, many).body("v1", "Pod");
    assert_eq!(proto::decode(&types, &body).unwrap_err().cause, DecodeCause::TooLarge);
}

#[test]
fn an_envelope_without_a_kind_takes_what_is_expected() {
    let types = Types::builtin();
    let options = types.kind("", "v1", "DeleteOptions");
    let body = message().varint(1, 5).body("", "");
    assert_eq!(
        proto::decode_or(&types, options, &body).unwrap(),
        json!({"gracePeriodSeconds": 5})
    );
    assert!(proto::decode(&types, &body).is_err());
}

proptest! {
    #[test]
    fn random_bytes_never_panic(raw in prop::collection::vec(any::<u8>(), 0..400), pick in any::<prop::sample::Index>()) {
        let types = Types::builtin();
        let kinds = [("v1", "Pod"), ("apps/v1", "Deployment"), ("apiextensions.k8s.io/v1", "CustomResourceDefinition"),
                     ("v1", "Event"), ("v1", "Secret"), ("authentication.k8s.io/v1", "TokenReview")];
        let (api_version, kind) = *pick.get(&kinds);
        let _ = proto::decode(&types, &Message(raw.clone()).body(api_version, kind));
        let _ = proto::decode(&types, &[proto::MAGIC, &raw].concat());
    }

    #[test]
    fn damaged_fixtures_never_panic(at in any::<prop::sample::Index>(), bit in 0..8, which in any::<prop::sample::Index>()) {
        thread_local!(static FIXTURES: Vec<Vec<u8>> = fixtures().iter().map(Fixture::bytes).collect());
        let mut bytes = FIXTURES.with(|fixtures| which.get(fixtures).clone());
        let at = at.index(bytes.len());
        bytes[at] ^= 1u8 << bit;
        let _ = proto::decode(&Types::builtin(), &bytes);
    }
}
