//! Isolation of agents: the folder of their workspace, and a cleared environment.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use crate::harness::{Program, eventually, git_server::GitServer, json, program::Folder};

#[test]
fn an_agent_works_in_the_folder_of_its_workspace_under_the_root() {
    let program = Program::start();
    let session = program.api.open("ws");
    session.completes("write notes.txt hello from the agent");
    assert_eq!(fs::read_to_string(session.path().join("notes.txt")).unwrap().trim(), "hello from the agent");
    assert!(session.says("read notes.txt").contains("hello from the agent"));
    assert_eq!(session.says("cwd").trim(), session.path().display().to_string());
    let root = program.folder.path().join("data").canonicalize().unwrap();
    assert!(session.path().starts_with(root), "{}", session.path().display());
}

#[test]
fn same_workspace_name_in_two_tenants_gets_two_folders() {
    let program = Program::start();
    let body = |tenant: &str| json!({"workspaceId": "ws", "installationId": tenant});
    let (one, two) = (program.api.open_with(body("one")), program.api.open_with(body("two")));
    assert_ne!(one.path(), two.path());
    assert!(
        !one.path().display().to_string().contains("ws/") && !one.path().ends_with("ws"),
        "the server chooses the folder name"
    );
}

#[test]
fn dots_absolute_paths_and_symlinks_do_not_escape_the_workspace() {
    let program = Program::start();
    let session = program.api.open("ws");
    let secret = program.folder.path().join("secret.txt");
    fs::write(&secret, "outside-content").unwrap();
    symlink(&secret, session.path().join("link.txt")).unwrap();
    symlink(program.folder.path(), session.path().join("folder")).unwrap();
    let outside = secret.display().to_string();
    for name in
        ["../../secret.txt", "../../../../../../etc/passwd", "/etc/passwd", &outside, "link.txt", "folder/secret.txt"]
    {
        let answer = session.prompt(&format!("read {name}"));
        assert!(
            !answer.text.contains("outside-content") && !answer.text.contains("root:"),
            "{name}: {}",
            answer.text
        );
    }
    for name in ["../../written.txt", "folder/written.txt", "link.txt", "/tmp/lumilink-it-written.txt"] {
        session.prompt(&format!("write {name} pwned"));
    }
    assert_eq!(fs::read_to_string(&secret).unwrap(), "outside-content");
    assert!(!program.folder.path().join("written.txt").exists());
    assert!(!std::path::Path::new("/tmp/lumilink-it-written.txt").exists());
    assert!(!session.path().parent().unwrap().join("written.txt").exists());
}

#[test]
fn ids_that_could_be_a_path_or_an_option_are_refused() {
    let program = Program::start();
    for id in ["..", "../x", "a/b", "-x", ".git", "", "a b"] {
        for body in [
            json!({"workspaceId": id, "installationId": "tenant-1"}),
            json!({"workspaceId": "ws", "installationId": id}),
        ] {
            program.api.post("/acp/session/new", body).problem(400, "invalid_request");
        }
    }
}

#[test]
fn fr_008_an_agent_starts_with_a_cleared_environment() {
    let program = Program::builder()
        .env("AWS_SECRET_ACCESS_KEY", "not-for-agents")
        .env("SOME_TOKEN", "not-for-agents")
        .env("LANG", "C.UTF-8")
        .config("[agent]\nenv = { GIVEN = \"for-agents\" }\n")
        .start();
    let session = program.api.open("ws");
    for name in ["AWS_SECRET_ACCESS_KEY", "SOME_TOKEN"] {
        assert!(!session.says(&format!("env {name}")).contains("not-for-agents"), "{name}");
    }
    assert!(session.says("env GIVEN").contains("for-agents"));
    assert!(session.says("env LANG").contains("C.UTF-8"));
    assert!(session.says("env PATH").contains('/'));
    assert!(!program.log().contains("for-agents"), "values of agent.env are secrets");
}

#[test]
fn existing_folder_is_used_only_under_an_allowed_path() {
    let (allowed, elsewhere) = (Folder::new(), Folder::new());
    let inside = allowed.path().join("project");
    fs::create_dir(&inside).unwrap();
    fs::write(inside.join("here.txt"), "found").unwrap();
    symlink(elsewhere.path(), allowed.path().join("way-out")).unwrap();
    let allow = json!([allowed.path()]);
    let program = Program::builder().set("workspaces.allow_paths", allow).start();
    let body = |path: &std::path::Path| json!({"workspaceId": "ws", "installationId": "tenant-1", "path": path, "mode": "conversation"});
    let session = program.api.open_with(body(&inside));
    assert!(session.says("read here.txt").contains("found"));
    for path in [elsewhere.path(), &allowed.path().join("way-out"), &allowed.path().join("project/../..")] {
        let mut other = body(path);
        other["workspaceId"] = json!("other");
        program.api.post("/acp/session/new", other).problem(403, "path_not_allowed");
    }
}

#[test]
fn folder_is_the_same_however_its_path_is_written() {
    let allowed = Folder::new();
    for name in ["project/sub", "another"] {
        fs::create_dir_all(allowed.path().join(name)).unwrap();
    }
    symlink(allowed.path().join("project"), allowed.path().join("link")).unwrap();
    let program = Program::builder().set("workspaces.allow_paths", json!([allowed.path()])).start();
    let folder = allowed.path().display().to_string();
    let body =
        |path: &str| json!({"workspaceId": "ws", "installationId": "tenant-1", "path": format!("{folder}{path}")});
    let first = program.api.open_with(body("/project"));
    for path in ["/project/", "/./project", "//project/.", "/project/sub/..", "/link", "/link/"] {
        assert_eq!(program.api.open_with(body(path)).path(), first.path(), "{path}");
    }
    for path in ["/another", "/project/sub", "/PROJECT"] {
        let answer = program.api.post("/acp/session/new", body(path));
        assert!(answer.status == 400 || answer.status == 409, "{path}: {}", answer.text);
    }
}

#[test]
fn deleted_folder_is_reported_as_missing_and_a_load_creates_it_again() {
    let program = Program::start();
    let session = program.api.open("ws");
    session.completes("write notes.txt hello");
    fs::remove_dir_all(session.path()).unwrap();
    session.post("prompt", json!({"prompt": "crash"})).problem(502, "agent_crashed");
    let problem = session.post("prompt", json!({"prompt": "echo hello"})).problem(409, "folder_missing");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("Restore the folder, or load the session"), "{detail}");
    session.get("/diff").problem(409, "folder_missing");
    // No fresh agent can cure it, so none is started.
    eventually("the session has failed", || session.state()["state"] == "failed");
    session.post("prompt", json!({"prompt": "echo hello"})).problem(409, "session_failed");
    program.api.post("/acp/session/load", json!({"sessionId": session.id})).expect(200);
    assert_eq!(session.says("echo again"), "again");
    assert!(session.path().is_dir());
}

#[test]
fn missing_folder_that_was_given_by_path_is_not_called_forbidden() {
    let allowed = Folder::new();
    let project = allowed.path().join("project");
    let program = Program::builder().set("workspaces.allow_paths", json!([allowed.path()])).start();
    let body = json!({"workspaceId": "ws", "installationId": "tenant-1", "path": project});
    program.api.post("/acp/session/new", body.clone()).problem(409, "folder_missing");
    fs::create_dir(&project).unwrap();
    let session = program.api.open_with(body);
    fs::remove_dir(&project).unwrap();
    session.get("/diff").problem(409, "folder_missing");
    // Outside of what is allowed the answer does not depend on what exists.
    let refused = |path: &str| {
        let body = json!({"workspaceId": "other", "installationId": "tenant-1", "path": path});
        let problem = program.api.post("/acp/session/new", body).problem(403, "path_not_allowed");
        problem["detail"].as_str().unwrap().replace(path, "")
    };
    assert_eq!(refused("/etc"), refused("/none"));
}

#[test]
fn diff_shows_changes_without_a_remote() {
    let program = Program::start();
    let session = program.api.open("ws");
    session.completes("write new.txt some content");
    let diff = session.get("/diff").expect(200);
    let files = diff["files"].as_array().unwrap();
    assert!(files.iter().any(|file| file["path"] == "new.txt" && file["status"] == "added"), "{diff}");
    assert!(diff["patch"].as_str().unwrap().contains("+some content"), "{diff}");
}

#[test]
fn commands_run_in_the_workspace_and_can_be_switched_off() {
    let program = Program::start();
    let session = program.api.open("ws");
    session.completes("run echo made > by-command.txt");
    let made = session.path().join("by-command.txt").exists() || session.says("run pwd").contains("workspaces");
    assert!(made, "the command ran in the workspace");
    let without = Program::builder().set("agent.terminal", false).start();
    let session = without.api.open("ws");
    let answer = session.prompt("run touch not-made.txt");
    assert!(!session.path().join("not-made.txt").exists(), "{}", answer.text);
}

#[test]
fn file_access_can_be_switched_off() {
    let program = Program::builder().set("agent.fs", false).start();
    let session = program.api.open("ws");
    session.prompt("write not-made.txt x");
    assert!(!session.path().join("not-made.txt").exists());
}

#[test]
fn agents_are_listed_with_their_program_and_last_handshake() {
    let mut program =
        Program::builder().config("[agents.missing]\ncommand = ['no-such-program', '--key=x']\n").start();
    program.expect_error("no-such-program");
    let agents = |program: &Program| program.api.get("/acp/agents").expect(200)["items"].clone();
    let before = agents(&program);
    assert_eq!((&before[0]["isDefault"], &before[0]["isInstalled"]), (&json!(true), &json!(true)), "{before}");
    assert_eq!((&before[1]["name"], &before[1]["isInstalled"]), (&json!("missing"), &json!(false)), "{before}");
    assert_eq!(before[1]["program"], "no-such-program");
    assert!(before.as_array().unwrap().iter().all(|agent| agent.get("lastHandshake").is_none()), "{before}");
    program.api.open("ws").completes("echo a");
    let body = json!({"workspaceId": "ws", "installationId": "tenant-1", "agent": "missing"});
    let refused = program.api.post("/acp/session/new", body);
    assert!(refused.status >= 400, "{}", refused.text);
    let after = agents(&program);
    let (good, bad) = (&after[0]["lastHandshake"], &after[1]["lastHandshake"]);
    assert_eq!(good["agentFacts"]["modes"]["currentModeId"], "code", "{after}");
    assert!(good.get("failure").is_none() && good["tookMs"].is_u64(), "{after}");
    assert_eq!(bad["failure"]["code"], refused.body["code"], "{after}");
    assert!(!after.to_string().contains("--key=x"), "arguments may be secrets: {after}");
}

#[test]
fn a_second_agent_is_chosen_by_its_name() {
    let second = crate::harness::demo_agent(&["--no-load"]);
    let program = Program::builder().config(&format!("[agents.second]\ncommand = {second}\n")).start();
    let body = json!({"workspaceId": "ws", "installationId": "tenant-1", "agent": "second"});
    assert_eq!(program.api.open_with(body).says("echo a"), "a");
    let agents = program.api.get("/acp/agents").expect(200);
    assert!(agents.to_string().contains("second"), "{agents}");
    let body = json!({"workspaceId": "never", "installationId": "tenant-1", "agent": "third"});
    program.api.post("/acp/session/new", body).problem(422, "unknown_agent");
    let workspaces = program.api.get("/acp/workspaces").expect(200);
    assert!(!workspaces.to_string().contains("never"), "a refused request leaves no workspace: {workspaces}");
}

#[test]
fn single_workspace_is_read_by_its_name_and_its_tenant() {
    let program = Program::start();
    program.api.open("ws");
    let read = |query: &str| program.api.get(&format!("/acp/workspaces/ws{query}"));
    let workspace = read("").expect(200);
    assert_eq!((&workspace["workspaceId"], &workspace["installationId"]), (&json!("ws"), &json!("tenant-1")));
    assert!(workspace["path"].is_string(), "{workspace}");
    program.api.open_with(json!({"workspaceId": "ws", "installationId": "tenant-2"}));
    read("").problem(409, "ambiguous_workspace");
    assert_eq!(read("?installationId=tenant-2").expect(200)["installationId"], "tenant-2");
    read("?installationId=tenant-3").problem(404, "not_found");
    program.api.get("/acp/workspaces/other").problem(404, "not_found");
}

/// Files and folders below `path`, and itself, that other users may read, change or enter.
fn open_to_others(path: &Path) -> Vec<PathBuf> {
    let metadata = fs::symlink_metadata(path).expect("it exists");
    let mut found = Vec::new();
    if !metadata.is_symlink() && metadata.permissions().mode() & 0o077 != 0 {
        found.push(path.to_owned());
    }
    if metadata.is_dir() {
        for entry in fs::read_dir(path).expect("a folder") {
            found.extend(open_to_others(&entry.expect("an entry").path()));
        }
    }
    found
}

#[test]
fn nothing_in_the_data_folder_is_open_to_other_users_a_clone_included() {
    let server = GitServer::start();
    let folder = Folder::new();
    let given = folder.path().join("given");
    fs::create_dir(&given).unwrap();
    let program = Program::builder()
        .set("workspaces.git_hosts", json!([server.host]))
        .set("workspaces.allow_paths", json!([given]))
        .folder(&folder)
        .start();
    let open = |name: &str, member: &str, value: &str| {
        program.api.open_with(json!({"workspaceId": name, "installationId": "tenant-1", member: value}))
    };
    let cloned = open("cloned", "repository", &server.repository());
    open("given", "path", given.to_str().unwrap());
    assert!(fs::read_dir(cloned.path()).unwrap().count() > 1, "the clone has files");
    program.api.open("empty").get("/diff").expect(200);
    let data = folder.path().join("data");
    // Beside what agents make: they get back the umask of the start, inside of folders that others cannot enter.
    let open = open_to_others(&data);
    assert!(open.is_empty(), "{open:?}");
}
