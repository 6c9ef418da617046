//! The embedded pause program, run as what it is: a process that waits, and goes when it is told.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, process::ExitStatusExt as _},
    process::Command,
};

#[test]
fn it_waits_until_it_is_told_to_go() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pause");
    fs::write(&path, fairlead_images::PAUSE).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let mut child = Command::new(&path).spawn().unwrap();
    // It sleeps nowhere but where it waits for signals.
    let stat = format!("/proc/{}/stat", child.id());
    while !fs::read_to_string(&stat).unwrap().contains("(pause) S ") {
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        std::thread::yield_now();
    }
    let sent = Command::new("kill").arg(child.id().to_string()).status().unwrap();
    assert!(sent.success());
    let ended = child.wait().unwrap();
    assert_eq!((ended.code(), ended.signal()), (Some(0), None));
}

#[test]
fn it_is_small_and_needs_no_library() {
    assert!(
        fairlead_images::PAUSE.len() < 16 * 1024,
        "{}",
        fairlead_images::PAUSE.len()
    );
    let interpreter = b"ld-linux";
    assert!(
        !fairlead_images::PAUSE
            .windows(interpreter.len())
            .any(|it| it == interpreter)
    );
}
