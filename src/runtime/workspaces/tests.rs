//! Tests of workspaces with the real git program, which clones over HTTP from a server on loopback.

use std::{
    collections::BTreeMap,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use uuid::Uuid;

use super::{WorkspaceSettings, Workspaces, diff::DiffLimits, folders::AllowedFolders, git::Git};
use crate::{
    contract::runtime::{ChangeStatus, Checkout, PrepareWorkspace, WorkspaceRef},
    domain::{
        ids::FolderId,
        turn::outcome::{ErrorCode, Failure},
    },
    telemetry::Metrics,
};

const PATH: &str = "/usr/local/bin:/usr/bin:/bin";

fn git(folder: &Path, args: &[&str]) {
    let identity = ["-c", "user.name=T", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"];
    let done = Command::new("git").current_dir(folder).args(identity).args(args).output().unwrap();
    assert!(done.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// Serves `repositories` through `git http-backend` and returns the server's host and port.
async fn git_server(repositories: &Path) -> String {
    let root = repositories.to_owned();
    let serve = move |request: HttpRequest, body: web::Bytes| {
        let root = root.clone();
        async move {
            let mut backend = Command::new("git")
                .arg("http-backend")
                .env("GIT_PROJECT_ROOT", root)
                .env("GIT_HTTP_EXPORT_ALL", "1")
                .env("PATH_INFO", request.path())
                .env("QUERY_STRING", request.query_string())
                .env("REQUEST_METHOD", request.method().as_str())
                .env("CONTENT_TYPE", request.headers().get("content-type").map_or("", |kind| kind.to_str().unwrap()))
                .env("GIT_PROTOCOL", request.headers().get("git-protocol").map_or("", |kind| kind.to_str().unwrap()))
                .env(
                    "HTTP_CONTENT_ENCODING",
                    request.headers().get("content-encoding").map_or("", |e| e.to_str().unwrap()),
                )
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            backend.stdin.take().unwrap().write_all(&body).unwrap();
            let output = backend.wait_with_output().unwrap().stdout;
            let split = output.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
            let mut response = HttpResponse::Ok();
            for line in String::from_utf8_lossy(&output[..split]).lines() {
                let (name, value) = line.split_once(": ").unwrap();
                if name == "Status" {
                    response.status(value[..3].parse::<u16>().unwrap().try_into().unwrap());
                } else {
                    response.insert_header((name, value));
                }
            }
            response.body(output[split + 4..].to_vec())
        }
    };
    let server = HttpServer::new(move || App::new().default_service(web::to(serve.clone()))).workers(1);
    let server = server.disable_signals().bind(("127.0.0.1", 0)).unwrap();
    let host = server.addrs()[0].to_string();
    actix_web::rt::spawn(server.run());
    host
}

struct Place {
    base: tempfile::TempDir,
    workspaces: Arc<Workspaces>,
}

impl Place {
    fn new(hosts: Vec<String>) -> Self {
        let base = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(base.path().join("allowed/project")).unwrap();
        let allowed = AllowedFolders::new(&base.path().join("root"), &[base.path().join("allowed")], &[]).unwrap();
        let diff = DiffLimits { patch_bytes: 10_000, file_bytes: 100_000 };
        let settings = WorkspaceSettings {
            git_hosts: hosts,
            clone_timeout: Duration::from_secs(20),
            diff,
            has_other_users: false,
            metrics: Metrics::new("test", None).unwrap(),
        };
        // Notes each call, and runs git.
        let wrapper =
            format!("#!/bin/sh\necho \"$*\" >> {}/calls\nPATH={PATH} exec git \"$@\"\n", base.path().display());
        std::fs::create_dir(base.path().join("bin")).unwrap();
        std::fs::write(base.path().join("bin/git"), wrapper).unwrap();
        std::fs::set_permissions(base.path().join("bin/git"), std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!("{}/bin:{PATH}", base.path().display());
        let git = Git::new(BTreeMap::from([("PATH".to_owned(), path.into())]));
        Self { workspaces: Arc::new(Workspaces::new(allowed, git, settings).unwrap()), base }
    }

    async fn prepare(&self, id: Uuid, repository: Option<&str>) -> Result<String, Failure> {
        let checkout = repository.map(|repository| Checkout { repository: repository.into(), branch: None });
        let workspace = WorkspaceRef { folder_id: FolderId(id), path: None, within: None };
        let request =
            PrepareWorkspace { workspace, agent: None, installation_id: None, checkout, github_token: None };
        Ok(self.workspaces.prepare(request, None, None).await?.path)
    }

    async fn changes(&self, id: Uuid, path: Option<String>) -> Result<Vec<(String, ChangeStatus)>, Failure> {
        let diff = self.workspaces.diff(WorkspaceRef { folder_id: FolderId(id), path, within: None }).await?;
        Ok(diff.files.into_iter().map(|file| (file.path, file.status)).collect())
    }
}

#[actix_web::test]
async fn empty_workspace_is_created_once_and_lists_its_files_as_added() {
    let place = Place::new(Vec::new());
    let id = Uuid::now_v7();
    let path = place.prepare(id, None).await.unwrap();
    std::fs::write(Path::new(&path).join("new"), "x\n").unwrap();
    assert_eq!(place.prepare(id, None).await.unwrap(), path);
    assert_eq!(place.changes(id, None).await.unwrap(), [("new".to_owned(), ChangeStatus::Added)]);
    assert_eq!(place.changes(Uuid::now_v7(), None).await.unwrap_err().code, ErrorCode::FolderMissing);
}

#[actix_web::test]
async fn existing_folder_is_compared_with_its_state_at_the_first_use() {
    let place = Place::new(Vec::new());
    let project = place.base.path().join("allowed/project");
    std::fs::write(project.join("old"), "x\n").unwrap();
    let path = project.to_str().unwrap().to_owned();
    for _ in 0..2 {
        let workspace = WorkspaceRef { folder_id: FolderId(Uuid::nil()), path: Some(path.clone()), within: None };
        let request =
            PrepareWorkspace { workspace, agent: None, installation_id: None, checkout: None, github_token: None };
        place.workspaces.prepare(request, None, None).await.unwrap();
        std::fs::write(project.join("new"), "x\n").unwrap();
    }
    let changes = place.changes(Uuid::nil(), Some(path)).await.unwrap();
    assert_eq!(changes, [("new".to_owned(), ChangeStatus::Added)]);
    for outside in ["/etc", place.base.path().to_str().unwrap()] {
        let refused = place.changes(Uuid::nil(), Some(outside.to_owned())).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::PathNotAllowed);
    }
    assert!(!project.join(".git").exists(), "nothing is left in the caller's folder");
}

#[actix_web::test]
async fn repository_is_cloned_shallow_and_its_diff_lists_later_changes_only() {
    let source = tempfile::tempdir().unwrap();
    let repository = source.path().join("octo/hello.git");
    std::fs::create_dir_all(&repository).unwrap();
    git(&repository, &["init", "-q"]);
    for text in ["one\n", "two\n"] {
        std::fs::write(repository.join("file"), text).unwrap();
        git(&repository, &["add", "."]);
        git(&repository, &["commit", "-qm", "x"]);
    }
    let host = git_server(source.path()).await;
    let place = Place::new(vec![host.clone()]);
    let id = Uuid::now_v7();
    // `git http-backend` requires the path of the `.git` folder for a repository with a work tree.
    let address = format!("http://{host}/octo/hello.git/.git");
    let (first, second) = tokio::join!(place.prepare(id, Some(&address)), place.prepare(id, Some(&address)));
    let path = first.unwrap();
    assert_eq!(second.unwrap(), path);
    let workspace = Path::new(&path);
    assert_eq!(std::fs::read_to_string(workspace.join("file")).unwrap(), "two\n");
    assert!(workspace.join(".git/shallow").exists());
    assert!(place.changes(id, None).await.unwrap().is_empty());
    std::fs::write(workspace.join("file"), "three\n").unwrap();
    // A commit of the agent does not hide the change.
    git(workspace, &["commit", "-qam", "by the agent"]);
    assert_eq!(place.changes(id, None).await.unwrap(), [("file".to_owned(), ChangeStatus::Modified)]);
}

#[actix_web::test]
async fn failed_clone_leaves_no_workspace() {
    let source = tempfile::tempdir().unwrap();
    let host = git_server(source.path()).await;
    let place = Place::new(vec![host.clone()]);
    let id = Uuid::now_v7();
    let failure = place.prepare(id, Some("octo/none")).await.unwrap_err();
    assert_eq!(failure.code, ErrorCode::WorkspaceUnavailable, "{failure}");
    assert!(!place.base.path().join("root").join(id.to_string()).exists());
    let failure = place.prepare(id, Some("--upload-pack=x")).await.unwrap_err();
    assert_eq!(failure.code, ErrorCode::InvalidRequest);
    assert!(place.prepare(id, None).await.is_ok());
}

/// Makes a file that takes no disk.
fn sparse(path: &Path, bytes: u64) {
    std::fs::File::create(path).unwrap().set_len(bytes).unwrap();
}

#[actix_web::test]
async fn sparse_file_of_two_gigabytes_is_listed_and_not_read() {
    let place = Place::new(Vec::new());
    let folder = place.base.path().join("allowed/project");
    let path = Some(folder.display().to_string());
    let workspace = WorkspaceRef { folder_id: FolderId(Uuid::new_v4()), path, within: None };
    for name in ["kept", "changed", "gone", "shrunk"] {
        sparse(&folder.join(name), 2 << 30);
    }
    sparse(&folder.join("grown"), 10);
    let begun = Instant::now();
    let request = PrepareWorkspace {
        workspace: workspace.clone(),
        agent: None,
        installation_id: None,
        checkout: None,
        github_token: None,
    };
    place.workspaces.prepare(request, None, None).await.unwrap();
    assert!(place.workspaces.diff(workspace.clone()).await.unwrap().files.is_empty());
    sparse(&folder.join("changed"), 3 << 30);
    sparse(&folder.join("grown"), 2 << 30);
    sparse(&folder.join("shrunk"), 10);
    sparse(&folder.join("new"), 2 << 30);
    std::fs::write(folder.join(".gitignore"), "ignored").unwrap();
    sparse(&folder.join("ignored"), 2 << 30);
    std::fs::remove_file(folder.join("gone")).unwrap();
    let diff = place.workspaces.diff(workspace).await.unwrap();
    let listed: Vec<_> = diff.files.iter().map(|file| (file.path.as_str(), file.status)).collect();
    let expected = [
        (".gitignore", ChangeStatus::Added),
        ("changed", ChangeStatus::Modified),
        ("gone", ChangeStatus::Deleted),
        ("grown", ChangeStatus::Modified),
        ("new", ChangeStatus::Added),
        ("shrunk", ChangeStatus::Modified),
    ];
    assert_eq!(listed, expected);
    assert!(!diff.truncated && !diff.patch.contains("b/new"), "{}", diff.patch);
    // Each of the files took 19 s before.
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
}

#[actix_web::test]
async fn callers_of_a_diff_that_runs_join_it() {
    let place = Place::new(Vec::new());
    let id = Uuid::new_v4();
    place.prepare(id, None).await.unwrap();
    let calls = || std::fs::read_to_string(place.base.path().join("calls")).unwrap_or_default().lines().count();
    let before = calls();
    place.changes(id, None).await.unwrap();
    let one = calls() - before;
    let (first, second, third) =
        futures_util::join!(place.changes(id, None), place.changes(id, None), place.changes(id, None));
    assert_eq!(calls() - before - one, one, "git ran once for all");
    assert_eq!((first.unwrap(), second.unwrap(), third.unwrap()), Default::default());
    place.changes(id, None).await.unwrap();
    assert_eq!(calls() - before, 3 * one, "a finished comparison is not joined");
}
