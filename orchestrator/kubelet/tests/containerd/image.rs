//! An image of programs of this host and the libraries that they need, as an OCI archive.

use serde_json::json;
use sha2::{Digest as _, Sha256};
use std::{
    collections::BTreeSet,
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};
use tar::{Builder, Header};

const PROGRAMS: [&str; 15] = [
    "sh",
    "cat",
    "head",
    "sleep",
    "tar",
    "stty",
    "seq",
    "sha256sum",
    "mkdir",
    "ls",
    "wc",
    "touch",
    "test",
    "env",
    "grep",
];

/// Writes it.
pub(super) fn write(archive: &Path, name: &str) {
    let layer = layer();
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": { "Env": ["PATH=/bin"], "Cmd": ["/bin/sleep", "infinity"] },
        "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
    });
    let config = config.to_string().into_bytes();
    let descriptor = |kind: &str, bytes: &[u8]| {
        let kind = format!("application/vnd.oci.image.{kind}");
        json!({ "mediaType": kind, "digest": digest(bytes), "size": bytes.len() })
    };
    let manifest = json!({
        "schemaVersion": 2,
        "config": descriptor("config.v1+json", &config),
        "layers": [descriptor("layer.v1.tar", &layer)],
    });
    let manifest = manifest.to_string().into_bytes();
    let mut listed = descriptor("manifest.v1+json", &manifest);
    listed["annotations"] = json!({ "io.containerd.image.name": name });
    let index = json!({ "schemaVersion": 2, "manifests": [listed] })
        .to_string()
        .into_bytes();
    let mut out = Builder::new(File::create(archive).unwrap());
    for blob in [&layer, &config, &manifest] {
        let name = digest(blob).replace(':', "/");
        put(&mut out, &format!("blobs/{name}"), blob, 0o644);
    }
    put(&mut out, "index.json", &index, 0o644);
    put(&mut out, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644);
    out.finish().unwrap();
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|it| format!("{it:02x}")).collect();
    format!("sha256:{hex}")
}

fn put(out: &mut Builder<impl std::io::Write>, path: &str, bytes: &[u8], mode: u32) {
    let mut header = Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(mode);
    out.append_data(&mut header, path, bytes).unwrap();
}

fn layer() -> Vec<u8> {
    let mut out = Builder::new(Vec::new());
    for directory in ["bin", "tmp", "etc"] {
        let mut header = Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_size(0);
        header.set_mode(0o1777);
        out.append_data(&mut header, directory, std::io::empty()).unwrap();
    }
    let mut libraries = BTreeSet::new();
    for program in PROGRAMS {
        let path = find(program);
        libraries.extend(needed(&path));
        put(
            &mut out,
            &format!("bin/{program}"),
            &std::fs::read(path).unwrap(),
            0o755,
        );
    }
    for library in libraries {
        let inside = library.strip_prefix("/").unwrap().display().to_string();
        put(&mut out, &inside, &std::fs::read(&library).unwrap(), 0o755);
    }
    out.into_inner().unwrap()
}

fn find(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    let found = std::env::split_paths(&path)
        .map(|it| it.join(program))
        .find(|it| it.is_file());
    found.unwrap_or_else(|| panic!("{program} is not installed"))
}

/// What `ldd` prints: the loader, and the libraries behind an arrow.
fn needed(program: &Path) -> Vec<PathBuf> {
    let output = Command::new("ldd").arg(program).output().unwrap().stdout;
    let output = String::from_utf8(output).unwrap();
    output
        .split_whitespace()
        .filter(|it| it.starts_with('/'))
        .map(PathBuf::from)
        .collect()
}
