//! `hostPath`: a file or directory of the node, checked or made as its type says.

use k8s_openapi::api::core::v1::HostPathVolumeSource;
use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt},
    path::{Component, Path, PathBuf},
};

/// The path, once it is what it must be.
///
/// # Errors
/// What is wrong with it, in the words of upstream.
pub(crate) fn prepare(source: &HostPathVolumeSource) -> Result<PathBuf, String> {
    let path = Path::new(&source.path);
    if !path.is_absolute() || path.components().any(|it| it == Component::ParentDir) {
        return Err(format!("hostPath {} must be absolute and without ..", path.display()));
    }
    let wrong = |what: &str| Err(format!("hostPath type check failed: {} is not {what}", path.display()));
    // Links are followed: the administrator's links are the node's.
    let kind = match fs::metadata(path) {
        Ok(it) => Some(it.file_type()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(format!("hostPath {}: {error}", path.display())),
    };
    let failed = |error: io::Error| format!("hostPath {}: {error}", path.display());
    let is = |test: fn(&fs::FileType) -> bool| kind.as_ref().is_some_and(test);
    match source.type_.as_deref().unwrap_or_default() {
        "" => {}
        "DirectoryOrCreate" if kind.is_none() => {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(path)
                .map_err(failed)?;
        }
        "DirectoryOrCreate" | "Directory" if !is(fs::FileType::is_dir) => return wrong("a directory"),
        // The directory is not made: a mistyped path should not become a tree.
        "FileOrCreate" if kind.is_none() => {
            fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o644)
                .open(path)
                .map_err(failed)?;
        }
        "FileOrCreate" | "File" if !is(fs::FileType::is_file) => return wrong("a file"),
        "Socket" if !is(FileTypeExt::is_socket) => return wrong("a socket file"),
        "CharDevice" if !is(FileTypeExt::is_char_device) => return wrong("a character device"),
        "BlockDevice" if !is(FileTypeExt::is_block_device) => return wrong("a block device"),
        "DirectoryOrCreate" | "Directory" | "FileOrCreate" | "File" | "Socket" | "CharDevice" | "BlockDevice" => {}
        other => return Err(format!("{other} is an invalid volume type")),
    }
    Ok(path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::{fs::symlink, net::UnixListener};

    #[test]
    fn paths_are_what_their_type_says() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        fs::create_dir(at("dir")).unwrap();
        fs::write(at("file"), "").unwrap();
        symlink(at("dir"), at("link")).unwrap();
        let _socket = UnixListener::bind(at("socket")).unwrap();
        let null = "/dev/null".to_owned();
        for (path, kind, good) in [
            (at("none"), "", true),
            (at("dir"), "", true),
            (at("dir"), "Directory", true),
            (at("link"), "Directory", true),
            (at("file"), "Directory", false),
            (at("none"), "Directory", false),
            (at("file"), "File", true),
            (at("dir"), "File", false),
            (at("none"), "File", false),
            (at("socket"), "Socket", true),
            (at("file"), "Socket", false),
            (null.clone(), "CharDevice", true),
            (null, "BlockDevice", false),
            (at("made/below"), "DirectoryOrCreate", true),
            (at("file"), "DirectoryOrCreate", false),
            (at("made/file"), "FileOrCreate", true),
            (at("absent/file"), "FileOrCreate", false),
            (at("dir"), "FileOrCreate", false),
            (at("dir"), "Pipe", false),
            ("relative".to_owned(), "", false),
            (at("dir/../file"), "", false),
        ] {
            let source = HostPathVolumeSource {
                path: path.clone(),
                type_: Some(kind.to_owned()),
            };
            let got = prepare(&source);
            assert_eq!(got.is_ok(), good, "{path} {kind}: {got:?}");
        }
        assert!(Path::new(&at("made/below")).is_dir() && Path::new(&at("made/file")).is_file());
        let source = HostPathVolumeSource {
            path: at("file"),
            type_: Some("Directory".into()),
        };
        let want = format!("hostPath type check failed: {} is not a directory", at("file"));
        assert_eq!(prepare(&source).unwrap_err(), want);
    }
}
