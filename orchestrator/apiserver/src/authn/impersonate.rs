//! Impersonation: the `Impersonate-*` headers, and whether the caller may.

use super::{User, names, service_account};
use crate::{
    authz::{Attributes, Authorizer, forbidden},
    status::Status,
};
use http::HeaderMap;

const PREFIX: &str = "impersonate-";
const EXTRA: &str = "impersonate-extra-";

/// The user as whom the request goes on: the caller, unless a header asks for another. Needs the verb `impersonate` on
/// `users`, `serviceaccounts`, `groups`, and of authentication.k8s.io `userextras/KEY` and `uids`.
///
/// # Errors
/// 400 for groups, uid or extra without a user; 403 naming the first thing that is not allowed.
pub fn apply(caller: User, headers: &HeaderMap, authorizer: &dyn Authorizer) -> Result<User, Status> {
    match Wanted::read(headers)? {
        Some(wanted) => other(&caller, wanted, authorizer),
        None => Ok(caller),
    }
}

fn other(caller: &User, wanted: Wanted, authorizer: &dyn Authorizer) -> Result<User, Status> {
    let check = |request: Attributes<'_>| {
        let decision = authorizer.authorize(&request);
        if decision.allowed() {
            Ok(())
        } else {
            Err(forbidden(&request, &decision.reason))
        }
    };
    let core = |resource, name| Attributes {
        name,
        ..Attributes::resource(caller, "impersonate", "", resource)
    };
    let account = service_account::split(&wanted.user);
    match account {
        Some((namespace, name)) => check(Attributes {
            namespace,
            ..core("serviceaccounts", name)
        })?,
        None => check(core("users", &wanted.user))?,
    }
    for group in &wanted.groups {
        check(core("groups", group))?;
    }
    let authentication = |resource, name| Attributes {
        name,
        version: "v1",
        ..Attributes::resource(caller, "impersonate", "authentication.k8s.io", resource)
    };
    for (key, value) in &wanted.extra {
        check(Attributes {
            subresource: key,
            ..authentication("userextras", value)
        })?;
    }
    if !wanted.uid.is_empty() {
        check(authentication("uids", &wanted.uid))?;
    }
    let namespace = account.map(|(namespace, _)| namespace.to_owned());
    Ok(wanted.into_user(namespace))
}

/// Removes the headers, so that nobody behind us acts on them again.
pub fn strip(headers: &mut HeaderMap) {
    let names: Vec<_> = headers
        .keys()
        .filter(|it| it.as_str().starts_with(PREFIX))
        .cloned()
        .collect();
    for name in names {
        headers.remove(name);
    }
}

struct Wanted {
    user: String,
    groups: Vec<String>,
    uid: String,
    extra: Vec<(String, String)>,
}

impl Wanted {
    fn read(headers: &HeaderMap) -> Result<Option<Self>, Status> {
        let one = |name: &str| headers.get(name).map(value).unwrap_or_default();
        let groups = headers.get_all("impersonate-group").iter().map(value).collect();
        let extra = headers.iter().filter_map(|(name, it)| {
            let key = name.as_str().strip_prefix(EXTRA)?;
            Some((unescape(key), value(it)))
        });
        let wanted = Self {
            user: one("impersonate-user"),
            groups,
            uid: one("impersonate-uid"),
            extra: extra.collect(),
        };
        if !wanted.user.is_empty() {
            return Ok(Some(wanted));
        }
        if wanted.groups.is_empty() && wanted.uid.is_empty() && wanted.extra.is_empty() {
            return Ok(None);
        }
        let mut what: Vec<&str> = Vec::new();
        what.extend((!wanted.groups.is_empty()).then_some("groups"));
        what.extend((!wanted.extra.is_empty()).then_some("extra"));
        what.extend((!wanted.uid.is_empty()).then_some("uid"));
        Err(Status::bad_request(format!(
            "requested {} without impersonating a user",
            what.join(", ")
        )))
    }

    fn into_user(self, account_namespace: Option<String>) -> User {
        let mut groups = self.groups;
        if let Some(namespace) = account_namespace.filter(|_| groups.is_empty()) {
            groups.extend(service_account::groups(&namespace));
        }
        let has = |groups: &[String], name: &str| groups.iter().any(|it| it == name);
        // Asking for system:unauthenticated drops the other; anonymous is always unauthenticated.
        let implied = if self.user == names::ANONYMOUS {
            names::UNAUTHENTICATED
        } else {
            names::AUTHENTICATED
        };
        let given = has(&groups, implied) || has(&groups, names::UNAUTHENTICATED);
        if !given {
            groups.push(implied.to_owned());
        }
        let mut user = User {
            name: self.user,
            uid: self.uid,
            groups,
            ..User::default()
        };
        for (key, value) in self.extra {
            user.extra.entry(key).or_default().push(value);
        }
        user
    }
}

fn value(header: &http::HeaderValue) -> String {
    String::from_utf8_lossy(header.as_bytes()).into_owned()
}

/// Decodes `%2f`; what is no escape stays as it is.
fn unescape(key: &str) -> String {
    let hex = |it: u8| char::from(it).to_digit(16).and_then(|it| u8::try_from(it).ok());
    let mut bytes = Vec::with_capacity(key.len());
    let mut rest = key.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let escaped = match (first, after) {
            (b'%', [high, low, ..]) => hex(*high).zip(hex(*low)).map(|(high, low)| high * 16 + low),
            _ => None,
        };
        match escaped {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).unwrap_or_else(|_| key.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::{Decision, RulesOf};
    use std::sync::Mutex;

    /// Allows everything but what is named `no`; writes down what it was asked.
    #[derive(Default)]
    struct Asked(Mutex<Vec<String>>);

    impl Authorizer for Asked {
        fn authorize(&self, request: &Attributes<'_>) -> Decision {
            let Attributes {
                verb,
                group,
                resource,
                subresource,
                namespace,
                name,
                ..
            } = request;
            let line = format!("{verb} {group} {resource}/{subresource} {namespace}/{name}");
            self.0.lock().unwrap().push(line);
            if *name == "no" {
                Decision::none("")
            } else {
                Decision::allow("")
            }
        }

        fn rules_of(&self, _user: &User, _namespace: &str) -> RulesOf {
            RulesOf::default()
        }
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn the_user_is_what_the_headers_say() {
        let caller = User::authenticated("root", ["x"]);
        for (pairs, name, groups) in [
            (&[("impersonate-user", "bob")][..], "bob", &["system:authenticated"][..]),
            (
                &[
                    ("impersonate-user", "bob"),
                    ("impersonate-group", "a"),
                    ("impersonate-group", "b"),
                ],
                "bob",
                &["a", "b", "system:authenticated"],
            ),
            (
                &[("impersonate-user", "system:anonymous")],
                "system:anonymous",
                &["system:unauthenticated"],
            ),
            (
                &[
                    ("impersonate-user", "bob"),
                    ("impersonate-group", "system:unauthenticated"),
                ],
                "bob",
                &["system:unauthenticated"],
            ),
            (
                &[("impersonate-user", "system:serviceaccount:ns:sa")],
                "system:serviceaccount:ns:sa",
                &[
                    "system:serviceaccounts",
                    "system:serviceaccounts:ns",
                    "system:authenticated",
                ],
            ),
        ] {
            let user = apply(caller.clone(), &headers(pairs), &Asked::default()).unwrap();
            assert_eq!(
                (user.name.as_str(), user.groups),
                (name, groups.iter().map(|it| (*it).to_owned()).collect())
            );
        }
        assert_eq!(
            apply(caller.clone(), &headers(&[("accept", "x")]), &Asked::default()).unwrap(),
            caller
        );
    }

    #[test]
    fn each_thing_needs_its_own_right() {
        let caller = User::authenticated("root", ["x"]);
        let asked = Asked::default();
        let all = headers(&[
            ("impersonate-user", "system:serviceaccount:ns:sa"),
            ("impersonate-group", "g"),
            ("impersonate-uid", "u"),
            ("impersonate-extra-acme.com%2fproject", "p"),
        ]);
        let user = apply(caller.clone(), &all, &asked).unwrap();
        assert_eq!(user.extra["acme.com/project"], ["p"]);
        assert_eq!(
            *asked.0.lock().unwrap(),
            [
                "impersonate  serviceaccounts/ ns/sa",
                "impersonate  groups/ /g",
                "impersonate authentication.k8s.io userextras/acme.com/project /p",
                "impersonate authentication.k8s.io uids/ /u",
            ]
        );
        for pairs in [
            &[("impersonate-user", "no")][..],
            &[("impersonate-user", "u"), ("impersonate-group", "no")],
            &[("impersonate-user", "u"), ("impersonate-uid", "no")],
            &[("impersonate-user", "u"), ("impersonate-extra-a", "no")],
        ] {
            assert_eq!(
                apply(caller.clone(), &headers(pairs), &Asked::default())
                    .unwrap_err()
                    .code,
                403,
                "{pairs:?}"
            );
        }
        let refused = apply(caller.clone(), &headers(&[("impersonate-user", "no")]), &asked).unwrap_err();
        assert_eq!(
            refused.message,
            "users \"no\" is forbidden: User \"root\" cannot impersonate resource \"users\" in API group \"\" at the \
             cluster scope"
        );
        for pairs in [
            [("impersonate-group", "g")],
            [("impersonate-uid", "g")],
            [("impersonate-extra-a", "g")],
        ] {
            assert_eq!(
                apply(caller.clone(), &headers(&pairs), &asked).unwrap_err().code,
                400,
                "{pairs:?}"
            );
        }
    }

    #[test]
    fn headers_are_stripped_and_odd_escapes_stay() {
        let mut all = headers(&[("impersonate-user", "a"), ("impersonate-extra-x", "a"), ("accept", "b")]);
        strip(&mut all);
        assert_eq!(all.len(), 1);
        for (key, value) in [("a%2Fb", "a/b"), ("a%", "a%"), ("a%zz", "a%zz"), ("%ff", "%ff")] {
            assert_eq!(unescape(key), value);
        }
    }
}
