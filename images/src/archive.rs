//! Image and its archive: the OCI image layout (image-spec 1.1) in one tar file, as `ctr images import` reads it.

use crate::Layer;
use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::io::{self, Write};

/// A container image of one platform: that of this program.
pub struct Image {
    name: String,
    layers: Vec<Layer>,
    config: serde_json::Map<String, Value>,
}

/// Bytes named by their digest.
struct Blob {
    bytes: Vec<u8>,
    digest: String,
    media_type: &'static str,
}

impl Blob {
    fn new(media_type: &'static str, bytes: Vec<u8>) -> Self {
        Self {
            digest: hex(&bytes),
            bytes,
            media_type,
        }
    }

    fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": format!("sha256:{}", self.digest), "size": self.bytes.len()})
    }
}

impl Image {
    /// An image under a full name (`host/path:tag`); the first layer lies lowest.
    pub fn new(name: &str, layers: Vec<Layer>) -> Self {
        Self {
            name: name.to_owned(),
            layers,
            config: serde_json::Map::new(),
        }
    }

    /// What is run; arguments of a container do not replace it.
    #[must_use]
    pub fn entrypoint<'a>(mut self, words: impl IntoIterator<Item = &'a str>) -> Self {
        self.config.insert("Entrypoint".into(), words.into_iter().collect());
        self
    }

    /// What is run, or the entrypoint's arguments, where the container names none.
    #[must_use]
    pub fn command<'a>(mut self, words: impl IntoIterator<Item = &'a str>) -> Self {
        self.config.insert("Cmd".into(), words.into_iter().collect());
        self
    }

    /// Who runs it, as `user:group`; root by default.
    #[must_use]
    pub fn user(mut self, user: &str) -> Self {
        self.config.insert("User".into(), user.into());
        self
    }

    /// Environment, each as `NAME=value`.
    #[must_use]
    pub fn environment<'a>(mut self, variables: impl IntoIterator<Item = &'a str>) -> Self {
        self.config.insert("Env".into(), variables.into_iter().collect());
        self
    }

    /// Writes the archive; equal images are equal bytes. Returns the manifest's digest (`sha256:...`).
    ///
    /// # Errors
    /// What `out` refuses.
    pub fn write(self, out: impl Write) -> io::Result<String> {
        let (mut blobs, mut diffs) = (Vec::new(), Vec::new());
        for layer in self.layers {
            let tar = layer.finish()?;
            diffs.push(format!("sha256:{}", hex(&tar)));
            let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
            gzip.write_all(&tar)?;
            blobs.push(Blob::new("application/vnd.oci.image.layer.v1.tar+gzip", gzip.finish()?));
        }
        let config = json!({
            "architecture": architecture(), "os": "linux", "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": diffs},
            "history": diffs.iter().map(|_| json!({"created_by": "fairlead"})).collect::<Vec<_>>(),
        });
        let config = Blob::new(
            "application/vnd.oci.image.config.v1+json",
            config.to_string().into_bytes(),
        );
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config.descriptor(), "layers": blobs.iter().map(Blob::descriptor).collect::<Vec<_>>(),
        });
        let manifest = Blob::new(
            "application/vnd.oci.image.manifest.v1+json",
            manifest.to_string().into_bytes(),
        );
        let mut entry = manifest.descriptor();
        let tag = self.name.rsplit(':').next().unwrap_or_default();
        entry["annotations"] = json!({"io.containerd.image.name": self.name, "org.opencontainers.image.ref.name": tag});
        entry["platform"] = json!({"architecture": architecture(), "os": "linux"});
        let index = json!({"schemaVersion": 2, "manifests": [entry]});

        let mut tar = tar::Builder::new(out);
        let mut add = |path: &str, bytes: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            header.set_mtime(0);
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, path, bytes)
        };
        add("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        add("index.json", index.to_string().as_bytes())?;
        let digest = format!("sha256:{}", manifest.digest);
        for blob in blobs.iter().chain([&config, &manifest]) {
            add(&format!("blobs/sha256/{}", blob.digest), &blob.bytes)?;
        }
        tar.into_inner()?.flush()?;
        Ok(digest)
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    Sha256::digest(bytes)
        .iter()
        .fold(String::with_capacity(64), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// Architecture in the names that images use (those of Go).
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::BTreeMap, io::Read as _};

    fn sample() -> Image {
        let mut layer = Layer::default();
        layer.directory("etc", 0o755).unwrap();
        layer.file("etc/motd", 0o644, b"hello").unwrap();
        layer.link("bin", "usr/bin").unwrap();
        Image::new("example.test/a/b:1", vec![layer])
            .entrypoint(["/bin/sh", "-c"])
            .command(["true"])
            .user("1000:1000")
            .environment(["A=b"])
    }

    #[test]
    fn every_blob_has_the_digest_and_size_that_refer_to_it() {
        let mut bytes = Vec::new();
        let digest = sample().write(&mut bytes).unwrap();
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(&bytes[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().to_str().unwrap().to_owned();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            files.insert(path, content);
        }
        let blob = |it: &Value| {
            let digest = it["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
            let bytes = &files[&format!("blobs/sha256/{digest}")];
            assert_eq!(hex(bytes), digest);
            assert_eq!(it["size"], bytes.len());
            bytes
        };
        let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        assert_eq!(index["manifests"][0]["digest"], *digest);
        assert_eq!(
            index["manifests"][0]["annotations"]["io.containerd.image.name"],
            "example.test/a/b:1"
        );
        let manifest: Value = serde_json::from_slice(blob(&index["manifests"][0])).unwrap();
        let config: Value = serde_json::from_slice(blob(&manifest["config"])).unwrap();
        assert_eq!(config["config"]["Entrypoint"], json!(["/bin/sh", "-c"]));
        assert_eq!(config["config"]["User"], "1000:1000");
        let mut tar = Vec::new();
        flate2::read::GzDecoder::new(&blob(&manifest["layers"][0])[..])
            .read_to_end(&mut tar)
            .unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", hex(&tar)));
        let names: Vec<_> = tar::Archive::new(&tar[..])
            .entries()
            .unwrap()
            .map(|it| it.unwrap().path().unwrap().to_str().unwrap().to_owned())
            .collect();
        assert_eq!(names, ["etc/", "etc/motd", "bin"]);
    }

    #[test]
    fn equal_files_make_equal_archives() {
        let write = || {
            let mut bytes = Vec::new();
            sample().write(&mut bytes).unwrap();
            bytes
        };
        assert_eq!(write(), write());
    }

    #[test]
    fn a_tree_is_taken_as_it_is_and_in_order() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("b")).unwrap();
        std::fs::write(dir.path().join("b/file"), "x").unwrap();
        std::os::unix::fs::symlink("b/file", dir.path().join("a")).unwrap();
        let mut layer = Layer::default();
        layer.tree(dir.path()).unwrap();
        let tar = layer.finish().unwrap();
        let names: Vec<_> = tar::Archive::new(&tar[..])
            .entries()
            .unwrap()
            .map(|it| it.unwrap().path().unwrap().to_str().unwrap().to_owned())
            .collect();
        assert_eq!(names, ["a", "b/", "b/file"]);
    }
}
