//! Bootstrap tokens that have expired are deleted.

use crate::{
    SHARED,
    frame::{Controller, Fault, Frame, Key, Next, Writer},
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::api::DeleteParams;
use std::sync::Arc;

const NAME: &str = "token-cleaner";
const SPACE: &str = "kube-system";
/// The only Secrets that are looked at.
const TOKENS: &str = "type=bootstrap.kubernetes.io/token";

/// When a token expires; `None`: never. A time that cannot be understood is over: such a token is good for nothing.
pub(crate) fn expires(token: &Secret) -> Option<Timestamp> {
    let bytes = token.data.as_ref()?.get("expiration")?;
    let text = String::from_utf8_lossy(&bytes.0);
    if text.is_empty() {
        return None;
    }
    Some(text.trim().parse().unwrap_or(Timestamp::MIN))
}

/// Deletes tokens when their time is over. It acts as the controllers' own user, whose rights upstream's role in
/// `kube-system` repeats.
pub(crate) fn controller(frame: &Arc<Frame>) -> Controller {
    let writer = Writer::new(frame.client(SHARED));
    let clock = frame.clock();
    let secrets = frame.caches.of_selected::<Secret>(TOKENS);
    let (written, cache) = (writer.written().clone(), Arc::clone(&secrets));
    Controller::new(NAME, 1, move |key: Key| {
        let (writer, clock, secrets) = (writer.clone(), clock.clone(), Arc::clone(&secrets));
        async move {
            let token = secrets.get(&key.namespace, &key.name);
            let Some(token) = token.filter(|_| &*key.namespace == SPACE) else {
                return Ok(Next::Change);
            };
            let Some(at) = expires(&token) else {
                return Ok(Next::Change);
            };
            let now = clock.now();
            if at > now {
                return Ok(Next::After(super::nodes::lifecycle::until(at, now)));
            }
            let deleted: Result<(), Fault> = writer.delete(&key, &secrets, &token, DeleteParams::default()).await;
            deleted.map(|()| Next::Change)
        }
    })
    .after(&written)
    .on_own(&cache)
}
