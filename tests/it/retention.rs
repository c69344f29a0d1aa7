//! Removal of ephemeral workspaces.

use crate::harness::{Program, eventually, json, program::Folder};

#[test]
fn ephemeral_workspace_is_removed_with_its_last_session_and_not_with_a_turn() {
    let program = Program::start();
    let body = |ephemeral: bool| json!({"workspaceId": "ws", "installationId": "tenant-1", "ephemeral": ephemeral});
    let first = program.api.open_with(body(true));
    assert_eq!(first.opened["workspace"]["isEphemeral"], true);
    let result = first.completes("write made.txt here");
    assert_eq!(result["meta"]["workspace"]["isEphemeral"], true);
    program.api.post("/acp/session/new", body(false)).problem(400, "invalid_request");
    let second = program.api.open("ws");
    first.post("close", json!({})).expect(200);
    assert_eq!(second.says("read made.txt"), "here", "another session uses the folder");
    let kept = program.api.open("kept");
    kept.post("close", json!({})).expect(200);
    second.post("close", json!({})).expect(200);
    eventually("the folder is removed", || !first.path().exists());
    assert!(kept.path().exists(), "a kept folder stays");
    // The workspace can be used again, with a new folder.
    let third = program.api.open_with(body(true));
    assert!(third.path().exists() && !third.path().join("made.txt").exists());
    assert_eq!(third.says("echo fine"), "fine");
}

#[test]
fn folder_that_was_given_by_path_is_never_removed() {
    let given = Folder::new();
    let program = Program::builder().set("workspaces.allow_paths", json!([given.path()])).start();
    let body = json!({"workspaceId": "ws", "installationId": "tenant-1", "path": given.path(), "ephemeral": true});
    program.api.post("/acp/session/new", body).problem(400, "invalid_request");
    let body = json!({"workspaceId": "ws", "installationId": "tenant-1", "path": given.path()});
    let session = program.api.open_with(body);
    session.post("close", json!({})).expect(200);
    assert!(given.path().exists());
}
