//! Join tokens: `fairlead.CA-DIGEST.ID.SECRET`. The digest lets a machine know the right server by its token alone; id and
//! secret are a bootstrap token of the API.

use crate::orchestrator::{apiserver::Server, flags::TokenArgs, kubeconfig};
use anyhow::{Context as _, Result, bail};
use fairlead_apiserver::authn::bootstrap;
use http::Method;
use rand::RngExt as _;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use std::{fs, path::Path};

const PREFIX: &str = "fairlead";
const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";

/// A token taken apart.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Token {
    /// SHA-256 of the CA's certificate in DER, hexadecimal.
    pub(crate) authority: String,
    /// What the API takes as a bearer token.
    pub(crate) bearer: String,
}

impl Token {
    /// Reads one.
    ///
    /// # Errors
    /// It is none; nothing of it is in the error.
    pub(crate) fn read(text: &str) -> Result<Self> {
        let parts = text.trim().strip_prefix(PREFIX).and_then(|it| it.strip_prefix('.'));
        let found = parts.and_then(|it| it.split_once('.')).filter(|(authority, bearer)| {
            authority.len() == 64
                && authority.bytes().all(|it| it.is_ascii_hexdigit())
                && bootstrap::split(bearer).is_some()
        });
        let (authority, bearer) = found
            .context("--token: this is no join token; take the line that `fairlead token` prints on the server")?;
        Ok(Self {
            authority: authority.to_lowercase(),
            bearer: bearer.to_owned(),
        })
    }

    fn text(&self) -> String {
        format!("{PREFIX}.{}.{}", self.authority, self.bearer)
    }
}

/// SHA-256 of a certificate in DER, hexadecimal.
pub(crate) fn digest(der: &[u8]) -> String {
    Sha256::digest(der).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn file(data_dir: &Path) -> std::path::PathBuf {
    data_dir.join("join-token")
}

/// The server's join token: the one of the data directory, or a new one. Whoever deletes its Secret has revoked it: it is not
/// made again before the file `join-token` is gone too.
///
/// # Errors
/// It cannot be written.
pub(crate) async fn make(server: &Server) -> Result<String> {
    let data_dir = server.kubeconfig.parent().context("the data directory has no name")?;
    let path = file(data_dir);
    let known = fs::read_to_string(&path).ok().and_then(|text| Token::read(&text).ok());
    let authority = digest(server.running.pki.authority.der());
    if let Some(known) = known.filter(|it| it.authority == authority) {
        return Ok(known.text());
    }
    let token = {
        let mut random = rand::rng();
        let mut letters = |count: usize| -> String {
            (0..count)
                .map(|_| char::from(LETTERS[random.random_range(0..LETTERS.len())]))
                .collect()
        };
        Token {
            authority,
            bearer: format!("{}.{}", letters(6), letters(16)),
        }
    };
    let Some((id, secret)) = bootstrap::split(&token.bearer) else {
        bail!("{} holds no token; delete the file and start again", path.display());
    };
    let object = json!({
        "apiVersion": "v1", "kind": "Secret", "type": bootstrap::SECRET_TYPE,
        "metadata": {"name": format!("{}{id}", bootstrap::NAME_PREFIX), "namespace": "kube-system"},
        "stringData": {
            "token-id": id, "token-secret": secret, "usage-bootstrap-authentication": "true",
            "description": "nodes join with it; delete it when all have",
        },
    });
    let path_of_secrets = "/api/v1/namespaces/kube-system/secrets";
    let itself = server.running.server.itself();
    let (code, answer) = itself
        .request(Method::POST, path_of_secrets, "application/json", Some(&object))
        .await;
    if !matches!(code, 201 | 409) {
        bail!(
            "the join token's Secret cannot be made: {code} {}",
            answer["message"].as_str().unwrap_or_default()
        );
    }
    kubeconfig::write(&path, &token.text())?;
    Ok(token.text())
}

/// `fairlead token`: prints the server's join token.
///
/// # Errors
/// There is none yet.
pub(crate) fn main(args: &TokenArgs) -> Result<()> {
    let path = file(&args.data_dir);
    let text = fs::read_to_string(&path).with_context(|| {
        format!(
            "{} cannot be read: start `fairlead server` with this --data-dir once",
            path.display()
        )
    })?;
    println!("{}", text.trim());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_was_written() {
        let token = Token {
            authority: digest(b"ca"),
            bearer: "abcdef.0123456789abcdef".to_owned(),
        };
        assert!(Token::read(&format!(" {}\n", token.text())).unwrap() == token);
    }

    #[test]
    fn what_is_no_token_is_not_repeated() {
        for wrong in [
            "",
            "fairlead",
            "abcdef.0123456789abcdef",
            "fairlead.12.abcdef.0123456789abcdef",
        ] {
            let error = Token::read(wrong).err().unwrap().to_string();
            assert!(
                error.contains("--token") && !error.contains("0123456789abcdef"),
                "{error}"
            );
        }
    }
}
