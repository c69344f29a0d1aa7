//! A git server on loopback, backed by `git http-backend`.

use std::{
    io::Write,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};

use super::program::Folder;

/// A server with the repositories `octo/hello` and `octocat/Hello-World`. It serves until the test process ends.
pub(crate) struct GitServer {
    /// `127.0.0.1:PORT`, for `workspaces.git_hosts`.
    pub host: String,
    _folder: Folder,
}

fn git(folder: &Path, args: &[&str]) {
    let identity = ["-c", "user.name=Octo Cat", "-c", "user.email=octo@example.com", "-c", "init.defaultBranch=main"];
    let done = Command::new("git").current_dir(folder).args(identity).args(args).output().expect("git runs");
    assert!(done.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&done.stderr));
}

impl GitServer {
    /// Starts a server with one commit on `main`.
    pub(crate) fn start() -> Self {
        let folder = Folder::new();
        let work = folder.path().join("work");
        std::fs::create_dir_all(&work).expect("a folder");
        std::fs::write(work.join("README"), "hello\n").expect("a file");
        for args in [&["init", "-q"][..], &["add", "."], &["commit", "-q", "-m", "first"]] {
            git(&work, args);
        }
        std::fs::create_dir_all(folder.path().join("served/octo")).expect("a folder");
        git(folder.path(), &["clone", "-q", "--bare", "work", "served/octo/hello.git"]);
        // The name that the handbook uses.
        std::fs::create_dir_all(folder.path().join("served/octocat")).expect("a folder");
        git(folder.path(), &["clone", "-q", "--bare", "work", "served/octocat/Hello-World.git"]);
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let host = listener.local_addr().expect("an address").to_string();
        let root = folder.path().join("served");
        std::thread::spawn(move || {
            actix_web::rt::System::new().block_on(async move {
                let server = HttpServer::new(move || {
                    App::new().app_data(web::Data::new(root.clone())).default_service(web::to(serve))
                });
                server.workers(1).disable_signals().listen(listener).expect("the server listens").run().await
            })
        });
        Self { host, _folder: folder }
    }

    /// The clone URL of `octo/hello`.
    pub(crate) fn repository(&self) -> String {
        format!("http://{}/octo/hello.git", self.host)
    }
}

async fn serve(root: web::Data<PathBuf>, request: HttpRequest, body: web::Bytes) -> HttpResponse {
    let header =
        |name: &str| request.headers().get(name).map_or("", |value| value.to_str().expect("text")).to_owned();
    let mut backend = Command::new("git")
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", root.as_path())
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("PATH_INFO", request.path())
        .env("QUERY_STRING", request.query_string())
        .env("REQUEST_METHOD", request.method().as_str())
        .env("CONTENT_TYPE", header("content-type"))
        .env("GIT_PROTOCOL", header("git-protocol"))
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("git runs");
    backend.stdin.take().expect("piped").write_all(&body).expect("git reads the body");
    let output = backend.wait_with_output().expect("git ends").stdout;
    let split = output.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
    let mut response = HttpResponse::Ok();
    for line in String::from_utf8_lossy(&output[..split]).lines() {
        let (name, value) = line.split_once(": ").expect("a header line");
        if name == "Status" {
            response.status(value[..3].parse::<u16>().expect("a number").try_into().expect("a status"));
        } else {
            response.insert_header((name, value));
        }
    }
    response.body(output[split + 4..].to_vec())
}
