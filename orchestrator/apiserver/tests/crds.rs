//! Custom resources through the router: made, defaulted, judged, scaled, applied, and gone with their definition.

#[path = "support/mod.rs"]
mod support;

use http::Method;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api,
    runtime::wait::{await_condition, conditions},
};
use serde_json::{Value, json};
use support::TestServer;

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const NAME: &str = "crontabs.stable.example.com";
const TABS: &str = "/apis/stable.example.com/v1/namespaces/default/crontabs";
const JSON: &str = "application/json";

fn definition() -> Value {
    let mut crd: Value = serde_saphyr::from_str(include_str!("../src/crd/tests/data/crontab.yaml")).unwrap();
    crd["metadata"] = json!({ "name": NAME });
    crd
}

/// A server that serves `CronTabs`.
async fn server() -> TestServer {
    let server = TestServer::start().await;
    let (code, answer) = server
        .admin()
        .request(Method::POST, CRDS, JSON, Some(&definition()))
        .await;
    assert_eq!(code, 201, "{answer}");
    let held = json!(["customresourcecleanup.apiextensions.k8s.io"]);
    assert_eq!(answer["metadata"]["finalizers"], held, "before objects of it can exist");
    let api: Api<CustomResourceDefinition> = Api::all(server.inner_client());
    await_condition(api, NAME, conditions::is_crd_established())
        .await
        .unwrap();
    server
}

#[allow(clippy::needless_pass_by_value, reason = "cases are written where they are used")]
fn crontab(name: &str, spec: Value) -> Value {
    json!({ "apiVersion": "stable.example.com/v1", "kind": "CronTab", "metadata": { "name": name }, "spec": spec })
}

#[tokio::test]
async fn objects_are_completed_and_judged() {
    let server = server().await;
    let door = server.admin();
    let spec = json!({ "cronSpec": "* * * * */5", "env": [{ "name": "A" }] });
    let (code, made) = door
        .request(Method::POST, TABS, JSON, Some(&crontab("a", spec.clone())))
        .await;
    assert_eq!(code, 201, "{made}");
    assert_eq!(made["spec"]["image"], "busybox");
    assert_eq!(made["spec"]["env"][0]["weight"], 0.5);
    assert_eq!(made["metadata"]["generation"], 1);

    let (code, answer) = door
        .request(Method::POST, TABS, JSON, Some(&crontab("b", json!({ "cronSpec": 5 }))))
        .await;
    assert_eq!(code, 422, "{answer}");
    assert_eq!(
        answer["details"]["causes"][0],
        json!({
            "reason": "FieldValueTypeInvalid", "field": "spec.cronSpec",
            "message": "Invalid value: \"integer\": spec.cronSpec in body must be of type string: \"integer\"",
        })
    );
    assert_eq!(answer["details"]["kind"], "CronTab");

    let mut unknown = spec.clone();
    unknown["foo"] = json!(1);
    let strict = format!("{TABS}?fieldValidation=Strict");
    let (code, answer) = door
        .request(Method::POST, &strict, JSON, Some(&crontab("c", unknown.clone())))
        .await;
    assert_eq!(code, 400, "{answer}");
    assert!(
        answer["message"]
            .as_str()
            .unwrap()
            .contains("unknown field \"spec.foo\""),
        "{answer}"
    );
    let (code, made) = door
        .request(Method::POST, TABS, JSON, Some(&crontab("c", unknown)))
        .await;
    assert_eq!((code, made["spec"].get("foo")), (201, None));

    let path = format!("{TABS}/a");
    let merge = "application/merge-patch+json";
    let patch = json!({ "spec": { "replicas": 2, "minReplicas": 3 } });
    let (code, answer) = door.request(Method::PATCH, &path, merge, Some(&patch)).await;
    assert_eq!(code, 422, "{answer}");
    assert!(
        answer["message"]
            .as_str()
            .unwrap()
            .contains("replicas should be greater than or equal to minReplicas.")
    );
    let (code, answer) = door
        .request(
            Method::PATCH,
            &path,
            "application/strategic-merge-patch+json",
            Some(&patch),
        )
        .await;
    assert_eq!(code, 415, "{answer}");
}

#[tokio::test]
async fn subresources_and_versions() {
    let server = server().await;
    let door = server.admin();
    let mut tab = crontab("a", json!({ "cronSpec": "* * * * *" }));
    tab["status"] = json!({ "replicas": 7 });
    let (code, made) = door.request(Method::POST, TABS, JSON, Some(&tab)).await;
    assert_eq!((code, made.get("status")), (201, None), "{made}");
    let path = format!("{TABS}/a");
    let merge = "application/merge-patch+json";
    let status = json!({ "status": { "replicas": 2, "labelSelector": "a=b" }, "spec": { "replicas": 9 } });
    let (code, answer) = door
        .request(Method::PATCH, &format!("{path}/status"), merge, Some(&status))
        .await;
    assert_eq!(code, 200, "{answer}");
    assert_eq!(
        (&answer["status"]["replicas"], &answer["spec"]["replicas"]),
        (&json!(2), &json!(1))
    );
    let (code, scale) = door.request(Method::GET, &format!("{path}/scale"), JSON, None).await;
    assert_eq!(code, 200, "{scale}");
    assert_eq!(
        (&scale["kind"], &scale["spec"]["replicas"], &scale["status"]["selector"]),
        (&json!("Scale"), &json!(1), &json!("a=b"))
    );
    let wish = json!({ "spec": { "replicas": 4 } });
    let (code, answer) = door
        .request(Method::PATCH, &format!("{path}/scale"), merge, Some(&wish))
        .await;
    assert_eq!(code, 200, "{answer}");
    let old = path.replace("/v1/", "/v1beta1/");
    let (code, answer) = door.request(Method::GET, &old, JSON, None).await;
    assert_eq!(code, 200, "{answer}");
    assert_eq!(
        (&answer["apiVersion"], &answer["spec"]["replicas"]),
        (&json!("stable.example.com/v1beta1"), &json!(4))
    );
    // A label selects by the field that the definition lists.
    let (_, list) = door
        .request(
            Method::GET,
            &format!("{TABS}?fieldSelector=spec.image%3Dbusybox"),
            JSON,
            None,
        )
        .await;
    assert_eq!(list["items"].as_array().map(Vec::len), Some(1), "{list}");
    let (_, list) = door
        .request(
            Method::GET,
            &format!("{TABS}?fieldSelector=spec.image%3Dother"),
            JSON,
            None,
        )
        .await;
    assert_eq!(
        (list["items"].as_array().map(Vec::len), &list["kind"]),
        (Some(0), &json!("CronTabList"))
    );
}

#[tokio::test]
async fn items_of_a_map_have_owners() {
    let server = server().await;
    let door = server.admin();
    let apply = |manager: &str, env: Value| {
        let (door, path) = (door.clone(), format!("{TABS}/a?fieldManager={manager}"));
        let tab = crontab("a", json!({ "cronSpec": "* * * * *", "env": env }));
        async move {
            door.request(Method::PATCH, &path, "application/apply-patch+yaml", Some(&tab))
                .await
        }
    };
    let (code, answer) = apply("one", json!([{ "name": "A", "value": "1" }])).await;
    assert_eq!(code, 201, "{answer}");
    let (code, answer) = apply("two", json!([{ "name": "B", "value": "2" }])).await;
    assert_eq!(code, 200, "{answer}");
    assert_eq!(answer["spec"]["env"].as_array().map(Vec::len), Some(2), "{answer}");
    let (code, answer) = apply("two", json!([{ "name": "A", "value": "3" }])).await;
    assert_eq!(code, 409, "{answer}");
}

#[tokio::test]
async fn definitions_come_and_go() {
    let server = server().await;
    let door = server.admin();
    let (_, groups) = door
        .request(Method::GET, "/apis/stable.example.com/v1", JSON, None)
        .await;
    let names: Vec<_> = groups["resources"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["name"].clone())
        .collect();
    assert_eq!(names, ["crontabs", "crontabs/scale", "crontabs/status"]);
    let (code, openapi) = door
        .request(Method::GET, "/openapi/v3/apis/stable.example.com/v1", JSON, None)
        .await;
    assert_eq!(code, 200);
    assert!(openapi.to_string().contains("cronSpec"), "the schema is published");
    let (code, crd) = door.request(Method::GET, &format!("{CRDS}/{NAME}"), JSON, None).await;
    assert_eq!(code, 200);
    assert_eq!(crd["status"]["storedVersions"], json!(["v1"]));
    assert_eq!(
        crd["metadata"]["finalizers"],
        json!(["customresourcecleanup.apiextensions.k8s.io"])
    );

    let mut broken = definition();
    broken["metadata"]["name"] = json!("other.stable.example.com");
    broken["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["bad"] = json!({});
    let (code, answer) = door.request(Method::POST, CRDS, JSON, Some(&broken)).await;
    assert_eq!(code, 422, "{answer}");
    assert!(
        answer
            .to_string()
            .contains("must not be empty for specified object fields"),
        "{answer}"
    );

    for name in ["a", "b"] {
        let tab = crontab(name, json!({ "cronSpec": "* * * * *" }));
        assert_eq!(door.request(Method::POST, TABS, JSON, Some(&tab)).await.0, 201);
    }
    let (_, crd) = door.request(Method::GET, &format!("{CRDS}/{NAME}"), JSON, None).await;
    let (code, answer) = door
        .request(Method::DELETE, &format!("{CRDS}/{NAME}"), JSON, None)
        .await;
    assert_eq!(code, 200, "{answer}");
    let api: Api<CustomResourceDefinition> = Api::all(server.inner_client());
    let uid = crd["metadata"]["uid"].as_str().unwrap();
    await_condition(api.clone(), NAME, conditions::is_deleted(uid))
        .await
        .unwrap();
    // Made again, it has nothing of the old one.
    assert_eq!(door.request(Method::POST, CRDS, JSON, Some(&definition())).await.0, 201);
    await_condition(api, NAME, conditions::is_crd_established())
        .await
        .unwrap();
    let (code, list) = door.request(Method::GET, TABS, JSON, None).await;
    assert_eq!((code, list["items"].as_array().map(Vec::len)), (200, Some(0)), "{list}");
}
