//! The review kinds: objects that ask a question and are never stored. Pure: the posted object in, the answered one out.

use super::{Attributes, Authorizer, FieldRequirement, Opinion};
use crate::{
    authn::{Authenticator, User},
    objects::{Objects, items, text, texts},
    status::{Cause, Status},
};
use serde_json::{Map, Value, json};

const GROUP: &str = "authorization.k8s.io";

/// `SelfSubjectAccessReview`: may the caller do this?
///
/// # Errors
/// 422 unless exactly one of resource and path is asked for.
pub fn self_subject_access(review: &Value, caller: &User, authorizer: &dyn Authorizer) -> Result<Value, Status> {
    check_question(review, "SelfSubjectAccessReview")?;
    Ok(answered(review, decide(review, caller, authorizer)))
}

/// `SubjectAccessReview`: may somebody do this?
///
/// # Errors
/// 422 unless somebody is named, and exactly one of resource and path.
pub fn subject_access(review: &Value, authorizer: &dyn Authorizer) -> Result<Value, Status> {
    check_question(review, "SubjectAccessReview")?;
    let user = subject(review, "SubjectAccessReview")?;
    Ok(answered(review, decide(review, &user, authorizer)))
}

/// `LocalSubjectAccessReview`: may somebody do this in the namespace of the request's path?
///
/// # Errors
/// As [`subject_access`]; 422 about paths; 400 about another namespace.
pub fn local_subject_access(review: &Value, namespace: &str, authorizer: &dyn Authorizer) -> Result<Value, Status> {
    let kind = "LocalSubjectAccessReview";
    check_question(review, kind)?;
    if present(review, "/spec/nonResourceAttributes") {
        return Err(invalid(
            kind,
            "spec.nonResourceAttributes",
            "disallowed on this kind of request",
        ));
    }
    let user = subject(review, kind)?;
    if text(review, "/spec/resourceAttributes/namespace") != namespace {
        return Err(Status::bad_request(format!(
            "spec.resourceAttributes.namespace must match namespace: {namespace}"
        )));
    }
    Ok(answered(review, decide(review, &user, authorizer)))
}

/// `SelfSubjectRulesReview`: what may the caller do in a namespace?
///
/// # Errors
/// 400 without a namespace.
pub fn self_subject_rules(review: &Value, caller: &User, authorizer: &dyn Authorizer) -> Result<Value, Status> {
    let namespace = text(review, "/spec/namespace");
    if namespace.is_empty() {
        return Err(Status::bad_request("no namespace on request"));
    }
    let rules = authorizer.rules_of(caller, namespace);
    let mut status = json!({
        "resourceRules": rules.resources.iter().map(super::rule::ResourceRule::write).collect::<Vec<_>>(),
        "nonResourceRules": rules.paths.iter().map(super::rule::NonResourceRule::write).collect::<Vec<_>>(),
        "incomplete": rules.incomplete,
    });
    if !rules.errors.is_empty() {
        status["evaluationError"] = json!(rules.errors.join(", "));
    }
    Ok(answered(review, status))
}

/// `SelfSubjectReview`: who is the caller?
pub fn self_subject(review: &Value, caller: &User) -> Value {
    answered(review, json!({"userInfo": user_info(caller)}))
}

/// `TokenReview`: whose token is this? `now` in seconds since 1970.
///
/// # Errors
/// 400 without a token.
pub fn token(review: &Value, authenticator: &Authenticator, objects: &dyn Objects, now: i64) -> Result<Value, Status> {
    let token = text(review, "/spec/token");
    if token.is_empty() {
        return Err(Status::bad_request(
            "token is required for TokenReview in authentication",
        ));
    }
    let audiences: Vec<String> = texts(review, "/spec/audiences").map(str::to_owned).collect();
    let status = match authenticator.review(token, &audiences, objects, now) {
        Ok(verified) => json!({
            "authenticated": true, "user": user_info(&verified.user), "audiences": verified.audiences,
        }),
        Err(reason) => json!({"user": {}, "error": reason.to_string()}),
    };
    Ok(answered(review, status))
}

/// `UserInfo` of authentication.k8s.io/v1; empty fields left out.
pub fn user_info(user: &User) -> Value {
    let mut info = Map::new();
    info.insert("username".to_owned(), json!(user.name));
    if !user.uid.is_empty() {
        info.insert("uid".to_owned(), json!(user.uid));
    }
    if !user.groups.is_empty() {
        info.insert("groups".to_owned(), json!(user.groups));
    }
    if !user.extra.is_empty() {
        info.insert("extra".to_owned(), json!(user.extra));
    }
    Value::Object(info)
}

fn answered(review: &Value, status: Value) -> Value {
    let mut answer = review.clone();
    if answer.is_object() {
        answer["status"] = status;
    }
    answer
}

fn present(review: &Value, pointer: &str) -> bool {
    review.pointer(pointer).is_some_and(|it| !it.is_null())
}

fn invalid(kind: &str, field: &str, message: &str) -> Status {
    let cause = Cause {
        reason: "FieldValueInvalid",
        message: message.to_owned(),
        field: field.to_owned(),
    };
    Status::invalid_kind(GROUP, kind, "", vec![cause])
}

fn check_question(review: &Value, kind: &str) -> Result<(), Status> {
    let (resource, path) = ("/spec/resourceAttributes", "/spec/nonResourceAttributes");
    if present(review, resource) == present(review, path) {
        let message = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
        return Err(invalid(kind, "spec.resourceAttributes", message));
    }
    Ok(())
}

fn subject(review: &Value, kind: &str) -> Result<User, Status> {
    let user = User {
        name: text(review, "/spec/user").to_owned(),
        uid: text(review, "/spec/uid").to_owned(),
        groups: texts(review, "/spec/groups").map(str::to_owned).collect(),
        extra: review
            .pointer("/spec/extra")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .map(extra)
            .collect(),
    };
    if user.name.is_empty() && user.groups.is_empty() {
        return Err(invalid(
            kind,
            "spec.user",
            "at least one of user or group must be specified",
        ));
    }
    Ok(user)
}

fn extra((key, values): (&String, &Value)) -> (String, Vec<String>) {
    (key.to_lowercase(), texts(values, "").map(str::to_owned).collect())
}

fn decide(review: &Value, user: &User, authorizer: &dyn Authorizer) -> Value {
    let at = |field: &str| text(review, &format!("/spec/resourceAttributes/{field}"));
    let fields = requirements(review);
    let request = if present(review, "/spec/resourceAttributes") {
        Attributes {
            version: at("version"),
            subresource: at("subresource"),
            namespace: at("namespace"),
            name: at("name"),
            fields: &fields,
            ..Attributes::resource(user, at("verb"), at("group"), at("resource"))
        }
    } else {
        let verb = text(review, "/spec/nonResourceAttributes/verb");
        Attributes::path(user, verb, text(review, "/spec/nonResourceAttributes/path"))
    };
    let decision = authorizer.authorize(&request);
    let mut status = json!({"allowed": decision.allowed()});
    if decision.opinion == Opinion::Deny {
        status["denied"] = json!(true);
    }
    if !decision.reason.is_empty() {
        status["reason"] = json!(decision.reason);
    }
    status
}

/// The parts of a field selector that hold a request to one value; whatever else there is only narrows it further.
fn requirements(review: &Value) -> Vec<FieldRequirement> {
    let parsed = items(review, "/spec/resourceAttributes/fieldSelector/requirements").iter();
    let mut all: Vec<FieldRequirement> = parsed
        .filter_map(|it| {
            let equals = match text(it, "/operator") {
                "In" => true,
                "NotIn" => false,
                _ => return None,
            };
            let [value] = items(it, "/values") else { return None };
            let value = value.as_str()?.to_owned();
            Some(FieldRequirement {
                field: text(it, "/key").to_owned(),
                equals,
                value,
            })
        })
        .collect();
    let raw = text(review, "/spec/resourceAttributes/fieldSelector/rawSelector");
    all.extend(raw.split(',').filter_map(|it| {
        let (field, value) = it
            .split_once("!=")
            .or_else(|| it.split_once("=="))
            .or_else(|| it.split_once('='))?;
        Some(FieldRequirement {
            field: field.to_owned(),
            equals: !it.contains("!="),
            value: value.to_owned(),
        })
    }));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::{Decision, RulesOf, rule::ResourceRule};

    /// Allows user `yes` everything.
    struct Yes;

    impl Authorizer for Yes {
        fn authorize(&self, request: &Attributes<'_>) -> Decision {
            if request.user.name == "yes" {
                Decision::allow("because")
            } else {
                Decision::none("")
            }
        }

        fn rules_of(&self, _user: &User, _namespace: &str) -> RulesOf {
            RulesOf {
                resources: vec![ResourceRule::everything()],
                ..RulesOf::default()
            }
        }
    }

    #[test]
    fn access_reviews_answer_or_refuse() {
        let resource = json!({"namespace": "ns", "verb": "get", "resource": "pods"});
        let path = json!({"verb": "get", "path": "/x"});
        let ask = |spec| json!({"kind": "SubjectAccessReview", "spec": spec});
        for (spec, outcome) in [
            (json!({"user": "yes", "resourceAttributes": resource}), Ok(true)),
            (json!({"user": "no", "resourceAttributes": resource}), Ok(false)),
            (json!({"user": "yes", "nonResourceAttributes": path}), Ok(true)),
            (json!({"groups": ["g"], "nonResourceAttributes": path}), Ok(false)),
            (json!({"resourceAttributes": resource}), Err(422)),
            (json!({"user": "yes"}), Err(422)),
            (
                json!({"user": "yes", "resourceAttributes": resource, "nonResourceAttributes": path}),
                Err(422),
            ),
            (json!(null), Err(422)),
        ] {
            let answer = subject_access(&ask(spec.clone()), &Yes);
            let allowed = answer
                .map(|it| it["status"]["allowed"] == json!(true))
                .map_err(|it| it.code);
            assert_eq!(allowed, outcome, "{spec}");
        }
        let local = ask(json!({"user": "yes", "resourceAttributes": resource}));
        assert!(local_subject_access(&local, "ns", &Yes).is_ok());
        assert_eq!(local_subject_access(&local, "other", &Yes).unwrap_err().code, 400);
        let path = ask(json!({"user": "yes", "nonResourceAttributes": path}));
        assert_eq!(local_subject_access(&path, "ns", &Yes).unwrap_err().code, 422);
    }

    #[test]
    fn callers_learn_about_themselves() {
        let mut caller = User::authenticated("yes", ["dev"]);
        caller.extra.insert("k".to_owned(), vec!["v".to_owned()]);
        let review = json!({"kind": "SelfSubjectReview"});
        assert_eq!(
            self_subject(&review, &caller)["status"]["userInfo"],
            json!({"username": "yes", "groups": ["dev", "system:authenticated"], "extra": {"k": ["v"]}})
        );
        let ask = json!({"spec": {"resourceAttributes": {"verb": "*", "resource": "*"}}});
        let answer = self_subject_access(&ask, &caller, &Yes).unwrap();
        assert_eq!(answer["status"], json!({"allowed": true, "reason": "because"}));
        let rules = self_subject_rules(&json!({"spec": {"namespace": "ns"}}), &caller, &Yes).unwrap();
        assert_eq!(rules["status"]["resourceRules"][0]["verbs"], json!(["*"]));
        assert_eq!(rules["status"]["incomplete"], json!(false));
        assert_eq!(self_subject_rules(&json!({}), &caller, &Yes).unwrap_err().code, 400);
    }

    #[test]
    fn field_selectors_are_read_in_both_forms() {
        let review = json!({"spec": {"resourceAttributes": {"fieldSelector": {
            "rawSelector": "a=1,b!=2,c==3", "requirements": [
                {"key": "d", "operator": "In", "values": ["4"]},
                {"key": "e", "operator": "In", "values": ["4", "5"]}],
        }}}});
        let read: Vec<(String, bool)> = requirements(&review)
            .into_iter()
            .map(|it| (it.field, it.equals))
            .collect();
        let expected = [("d", true), ("a", true), ("b", false), ("c", true)];
        assert_eq!(read, expected.map(|(field, equals)| (field.to_owned(), equals)));
    }
}
