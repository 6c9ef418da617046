//! Kubeconfigs: everything a client needs, in one file.

use super::{Authority, Identity};
use base64::{Engine as _, engine::general_purpose::STANDARD};

/// A kubeconfig for one user of one cluster. It holds the user's key: write it for its owner alone. `server` as
/// `https://127.0.0.1:6443`; `cluster` and `user` are only names inside the file.
pub fn kubeconfig(cluster: &str, user: &str, server: &str, authority: &Authority, identity: &Identity) -> String {
    // JSON is YAML, and its quotes need no care about what names hold.
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let context = quoted(&format!("{user}@{cluster}"));
    let (cluster, user, server) = (quoted(cluster), quoted(user), quoted(server));
    let [ca, certificate, key] =
        [authority.pem(), &identity.certificate, &identity.key].map(|it| STANDARD.encode(it.as_bytes()));
    format!(
        "apiVersion: v1\n\
         kind: Config\n\
         clusters:\n\
         - name: {cluster}\n  \
           cluster:\n    \
             server: {server}\n    \
             certificate-authority-data: {ca}\n\
         users:\n\
         - name: {user}\n  \
           user:\n    \
             client-certificate-data: {certificate}\n    \
             client-key-data: {key}\n\
         contexts:\n\
         - name: {context}\n  \
           context:\n    \
             cluster: {cluster}\n    \
             user: {user}\n\
         current-context: {context}\n"
    )
}
