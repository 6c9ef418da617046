//! [`KeyRing`]: the key that signs service account tokens, and all that verify them.

use crate::pki::files::{self, PkiError};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{DecodingKey, EncodingKey};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SubjectPublicKeyInfo};
use sha2::{Digest, Sha256};
use std::{
    collections::HashMap,
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use super::tokens::Claims;

/// File of the key that signs.
const SIGNING: &str = "signing.key";
/// How many verified tokens are remembered; a few per pod's mount would be plenty.
const REMEMBERED: usize = 8192;

/// ES256 keys. Debug output holds key ids only.
pub struct KeyRing {
    /// `iss` of the tokens.
    pub issuer: String,
    signing: EncodingKey,
    signing_id: String,
    verifying: HashMap<String, VerifyingKey>,
    directory: PathBuf,
    /// Claims of tokens whose signature was good, by the token's hash: a signature costs a thousand hash lookups.
    known: Mutex<HashMap<[u8; 32], Arc<Claims>>>,
}

/// One public key.
pub(crate) struct VerifyingKey {
    pub(crate) key: DecodingKey,
    /// Coordinates, base64url.
    pub(crate) x: String,
    pub(crate) y: String,
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRing")
            .field("issuer", &self.issuer)
            .field("signing_id", &self.signing_id)
            .field("verifying_ids", &self.ids())
            .finish_non_exhaustive()
    }
}

impl KeyRing {
    /// The keys of a directory, which is made, with a first key, if there is none. Every `*.pub` in it (SPKI in PEM, P-256)
    /// verifies as well.
    ///
    /// # Errors
    /// What could not be read, made or understood.
    pub fn open(directory: &Path, issuer: &str) -> Result<Self, PkiError> {
        files::make_directory(directory)?;
        let path = directory.join(SIGNING);
        let pem = match files::read(&path)? {
            Some(pem) => pem,
            None => {
                let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|it| PkiError::damaged(&path, it))?;
                let pem = pair.serialize_pem();
                files::write_private(&path, pem.as_bytes())?;
                pem
            }
        };
        let pair = KeyPair::from_pem(&pem).map_err(|it| PkiError::damaged(&path, it))?;
        let signing = EncodingKey::from_ec_pem(pem.as_bytes()).map_err(|it| PkiError::damaged(&path, it))?;
        let (signing_id, own) = verifying(&pair, &path)?;
        let mut keys = HashMap::from([(signing_id.clone(), own)]);
        for path in files::list(directory, "pub")? {
            let Some(pem) = files::read(&path)? else { continue };
            let public = SubjectPublicKeyInfo::from_pem(&pem).map_err(|it| PkiError::damaged(&path, it))?;
            let (id, key) = verifying(&public, &path)?;
            keys.insert(id, key);
        }
        Ok(Self {
            issuer: issuer.to_owned(),
            signing,
            signing_id,
            verifying: keys,
            directory: directory.to_owned(),
            known: Mutex::default(),
        })
    }

    /// A ring that signs with a new key and still verifies what the old ones signed. On disk the old public key is
    /// written before the new key, so no crash forgets it.
    ///
    /// # Errors
    /// What could not be written.
    pub fn rotate(&self) -> Result<Self, PkiError> {
        let path = self.directory.join(SIGNING);
        if let Some(pem) = files::read(&path)? {
            let pair = KeyPair::from_pem(&pem).map_err(|it| PkiError::damaged(&path, it))?;
            let old = self.directory.join(format!("{}.pub", self.signing_id));
            files::write_private(&old, pair.public_key_pem().as_bytes())?;
        }
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|it| PkiError::damaged(&path, it))?;
        files::write_private(&path, pair.serialize_pem().as_bytes())?;
        Self::open(&self.directory, &self.issuer)
    }

    /// Ids of all keys that verify, sorted.
    pub fn ids(&self) -> Vec<&str> {
        let mut ids: Vec<&str> = self.verifying.keys().map(String::as_str).collect();
        ids.sort_unstable();
        ids
    }

    pub(crate) fn signing(&self) -> (&str, &EncodingKey) {
        (&self.signing_id, &self.signing)
    }

    pub(crate) fn verifying(&self, id: &str) -> Option<&VerifyingKey> {
        self.verifying.get(id)
    }

    pub(crate) fn known(&self, token: &str) -> Option<Arc<Claims>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&hash(token)).cloned()
    }

    pub(crate) fn remember(&self, token: &str, claims: Arc<Claims>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        // Cheaper than keeping an order, and whoever is still active is back after one signature.
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(hash(token), claims);
    }
}

fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// Id and key. The id is the hash of the public key (SPKI in DER), so it is the same on every server.
fn verifying(key: &impl PublicKeyData, path: &Path) -> Result<(String, VerifyingKey), PkiError> {
    let id = URL_SAFE_NO_PAD.encode(Sha256::digest(key.subject_public_key_info()));
    // SEC 1, 2.3.3: an uncompressed point is 4, x, y.
    let &[4, ref point @ ..] = key.der_bytes() else {
        return Err(PkiError::damaged(path, "not an uncompressed P-256 point"));
    };
    if point.len() != 64 {
        return Err(PkiError::damaged(path, "not a P-256 key"));
    }
    let (x, y) = point.split_at(32);
    let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
    let key = DecodingKey::from_ec_components(&x, &y).map_err(|it| PkiError::damaged(path, it))?;
    Ok((id, VerifyingKey { key, x, y }))
}
