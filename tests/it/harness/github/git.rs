//! The bare repositories of the stand-in, served by `git http-backend`, with rejections of pushes as GitHub words them.

use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::http::{Request, Response};

/// Refusal of pushes to branches that match a pattern.
#[derive(Debug, Clone)]
pub(crate) struct Rejection {
    /// A shell pattern of the branch's name.
    pub pattern: &'static str,
    pub when: When,
    /// The reason of the branch's `[remote rejected]` line.
    pub reason: &'static str,
    /// Lines that git shows behind `remote:`.
    pub remote: String,
    /// True if it applies to one push.
    pub is_once: bool,
}

/// Pushes that a [`Rejection`] refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    Always,
    /// The branch does not exist.
    Creation,
    /// The branch exists.
    Update,
    /// The push changes a file below this folder.
    Touches(&'static str),
    /// A new commit of the push has no signature of a key in the file `signers` of the repository.
    Unsigned,
}

impl Rejection {
    fn new(reason: &'static str, remote: impl Into<String>) -> Self {
        Self { pattern: "*", when: When::Always, reason, remote: remote.into(), is_once: false }
    }

    pub(crate) fn on(self, pattern: &'static str) -> Self {
        Self { pattern, ..self }
    }

    pub(crate) fn when(self, when: When) -> Self {
        Self { when, ..self }
    }

    pub(crate) fn once(self) -> Self {
        Self { is_once: true, ..self }
    }

    /// GH001: a file is larger than 100 MB.
    pub(crate) fn large_file(path: &str) -> Self {
        Self::new(
            "pre-receive hook declined",
            format!(
                "error: Trace: 0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0\n\
                 error: See https://gh.io/lfs for more information.\n\
                 error: File {path} is 123.45 MB; this exceeds GitHub's file size limit of 100.00 MB\n\
                 error: GH001: Large files detected. You may want to try Git Large File Storage - https://git-lfs.github.com."
            ),
        )
    }

    /// GH006: the branch is protected.
    pub(crate) fn protected_branch(branch: &str) -> Self {
        Self::new(
            "protected branch hook declined",
            format!(
                "error: GH006: Protected branch update failed for refs/heads/{branch}.\nerror: Changes must be made through a pull request."
            ),
        )
    }

    /// GH007: the author's address is private.
    pub(crate) fn private_email() -> Self {
        Self::new(
            "push declined due to email privacy restrictions",
            "error: GH007: Your push would publish a private email address.\nYou can make your email public or disable \
             this protection by visiting:\nhttps://github.com/settings/emails",
        )
    }

    /// GH013: a rule forbids the creation of the branch.
    pub(crate) fn creation_restricted(branch: &str) -> Self {
        let new = Self::new(RULES, gh013(branch, "- Cannot create ref due to creations being restricted."));
        Self { when: When::Creation, ..new }
    }

    /// GH013: commits must be signed.
    pub(crate) fn unsigned(branch: &str) -> Self {
        let rule = "- Commits must have verified signatures.\n  Found 1 violation:\n\n  \
                    0123456789abcdef0123456789abcdef01234567";
        Self::new(RULES, gh013(branch, rule))
    }

    /// GH013: push protection found a secret.
    pub(crate) fn secret(branch: &str, path: &str, line: u64) -> Self {
        let rule = format!(
            "- GITHUB PUSH PROTECTION\n  —————————————————————————————————————————\n    Resolve the following violations before pushing again\n\n    \
             - Push cannot contain secrets\n\n    \n     (?) Learn how to resolve a blocked push\n     https://docs.github.com/code-security/secret-scanning/working-with-secret-scanning-and-push-protection\n    \n    \n      \
             —— Amazon AWS Access Key ID ——————————————————————————\n       locations:\n         - commit: 0123456789abcdef0123456789abcdef01234567\n           path: {path}:{line}\n    \n       \
             (?) To push, remove secret from commit(s) or follow this URL to allow the secret.\n       https://github.com/octo/hello/security/secret-scanning/unblock-secret/2abcDEF\n"
        );
        Self::new(RULES, gh013(branch, &rule))
    }

    /// The App lacks the permission `workflows`.
    pub(crate) fn workflow() -> Self {
        let reason = "refusing to allow a GitHub App to create or update workflow `.github/workflows/ci.yml` without `workflows` permission";
        Self { when: When::Touches(".github/workflows/"), ..Self::new(reason, "") }
    }

    /// A rejection of no known kind.
    pub(crate) fn unknown() -> Self {
        Self::new("internal server error", "fatal: unexpected failure")
    }
}

const RULES: &str = "push declined due to repository rule violations";

fn gh013(branch: &str, rule: &str) -> String {
    format!(
        "error: GH013: Repository rule violations found for refs/heads/{branch}.\n\
         Review all repository rules at https://github.com/octo/hello/rules?ref=refs%2Fheads%2F{branch}\n\n{rule}\n"
    )
}

/// Reports the first rejection that matches, for each branch of a push; others are left to git. As GitHub does, it sets the
/// reason that git shows behind `[remote rejected]`, which a hook `pre-receive` cannot.
const PROC_RECEIVE: &str = r#"#!/bin/bash
LC_ALL=C
here="$(dirname "$0")/../rejections"
send() { printf '%04x%s' $((${#1} + 4)) "$1"; }
receive() {
    local size
    size=$(dd bs=1 count=4 2>/dev/null)
    [ -n "$size" ] || exit 1
    [ "$size" != 0000 ] || return 1
    line=$(dd bs=1 count=$((16#$size - 4)) 2>/dev/null | tr -d '\0')
}
while receive; do :; done
send "version=1"; printf 0000
commands=()
while receive; do commands+=("$line"); done
for command in "${commands[@]}"; do
    read -r old new ref <<<"$command"
    verdict=
    for file in "$here"/*; do
        [ -f "$file" ] || continue
        { read -r when; read -r pattern; read -r once; read -r reason; } < "$file"
        [[ $ref == refs/heads/$pattern ]] || continue
        case "$when" in
        creation) [[ $old =~ ^0+$ ]] || continue ;;
        update) [[ $old =~ ^0+$ ]] && continue ;;
        unsigned)
            bad=
            for commit in $(git rev-list "$new" --not --all); do
                git -c gpg.format=ssh -c "gpg.ssh.allowedSignersFile=$here/../signers" verify-commit "$commit" \
                    >/dev/null 2>&1 || bad=1
            done
            [ -n "$bad" ] || continue
            ;;
        touches*) git log --format= --name-only "$new" --not --all | grep -q "^${when#touches }" || continue ;;
        esac
        tail -n +5 "$file" >&2
        [ "$once" = once ] && rm -f "$file"
        verdict=$reason
        break
    done
    if [ -n "$verdict" ]; then send "ng $ref $verdict"; else send "ok $ref"; send "option fall-through"; fi
done
printf 0000
"#;

/// The folder of all repositories.
#[derive(Debug)]
pub(super) struct Repositories {
    root: PathBuf,
}

impl Repositories {
    pub(super) fn new(root: PathBuf) -> Self {
        fs::create_dir_all(&root).expect("a folder");
        Self { root }
    }

    pub(super) fn path(&self, full_name: &str) -> PathBuf {
        self.root.join(format!("{full_name}.git"))
    }

    /// Creates an empty repository.
    pub(super) fn create(&self, full_name: &str, default_branch: &str) {
        let path = self.path(full_name);
        fs::create_dir_all(&path).expect("a folder");
        git(&path, &["init", "-q", "--bare", "."], b"");
        git(&path, &["symbolic-ref", "HEAD", &format!("refs/heads/{default_branch}")], b"");
        self.configure(full_name);
    }

    /// Copies a repository.
    pub(super) fn fork(&self, from: &str, to: &str) {
        let target = self.path(to);
        fs::create_dir_all(target.parent().expect("an owner")).expect("a folder");
        let (from, target) = (self.path(from), target.display().to_string());
        git(&self.root, &["clone", "-q", "--bare", &from.display().to_string(), &target], b"");
        self.configure(to);
    }

    fn configure(&self, full_name: &str) {
        let path = self.path(full_name);
        for (key, value) in [
            ("http.receivepack", "true"),
            ("uploadpack.allowFilter", "true"),
            ("uploadpack.allowAnySHA1InWant", "true"),
            ("transfer.hideRefs", "refs/hidden"),
            ("gc.auto", "0"),
            ("receive.autogc", "false"),
        ] {
            git(&path, &["config", key, value], b"");
        }
    }

    /// Commits files on a branch, on top of it if it exists. Content `None` deletes. Returns the commit.
    pub(super) fn commit(
        &self,
        full_name: &str,
        branch: &str,
        message: &str,
        files: &[(&str, Option<&[u8]>)],
    ) -> String {
        let path = self.path(full_name);
        let parent = self.branch(full_name, branch);
        let index = path.join(format!("index-{}", uuid::Uuid::new_v4()));
        let with_index = |args: &[&str], input: &[u8]| git_with(&path, args, input, &[("GIT_INDEX_FILE", &index)]);
        if let Some(parent) = &parent {
            with_index(&["read-tree", parent], b"");
        }
        for (name, content) in files {
            let entry = match content {
                Some(content) => {
                    let blob = git(&path, &["hash-object", "-w", "--stdin"], content);
                    format!("100644 {blob}\t{name}\n")
                }
                None => format!("0 {}\t{name}\n", "0".repeat(40)),
            };
            with_index(&["update-index", "--index-info"], entry.as_bytes());
        }
        let tree = with_index(&["write-tree"], b"");
        let _ = fs::remove_file(&index);
        let mut args = vec!["commit-tree", &tree, "-m", message];
        if let Some(parent) = &parent {
            args.extend(["-p", parent]);
        }
        let commit = git(&path, &args, b"");
        git(&path, &["update-ref", &format!("refs/heads/{branch}"), &commit], b"");
        commit
    }

    /// The commit of a branch.
    pub(super) fn branch(&self, full_name: &str, branch: &str) -> Option<String> {
        self.read_ref(full_name, &format!("refs/heads/{branch}"))
    }

    /// The value of a ref, read from its file: lists of many pull requests would otherwise start as many processes.
    fn read_ref(&self, full_name: &str, name: &str) -> Option<String> {
        if name.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
            return None;
        }
        let path = self.path(full_name);
        let loose = fs::read_to_string(path.join(name)).ok().map(|it| it.trim().to_owned());
        loose.or_else(|| {
            let packed = fs::read_to_string(path.join("packed-refs")).ok()?;
            let mut lines = packed.lines().filter_map(|line| line.split_once(' '));
            lines.find(|(_, it)| *it == name).map(|(sha, _)| sha.to_owned())
        })
    }

    /// Moves `refs/pull/<number>/head` to a branch, of this repository or of a fork.
    pub(super) fn update_pull_ref(&self, full_name: &str, number: u64, head_repository: &str, head: &str) {
        let Some(sha) = self.branch(head_repository, head) else { return };
        let name = format!("refs/pull/{number}/head");
        if self.read_ref(full_name, &name).as_ref() == Some(&sha) {
            return;
        }
        if head_repository == full_name {
            self.run(full_name, &["update-ref", &name, &sha]);
        } else {
            let from = self.path(head_repository).display().to_string();
            self.run(full_name, &["fetch", "-q", &from, &format!("+refs/heads/{head}:{name}")]);
        }
    }

    /// The commit of a ref, or of another name for one.
    pub(super) fn resolve(&self, full_name: &str, name: &str) -> Option<String> {
        let path = self.path(full_name);
        let name = format!("{name}^{{commit}}");
        let output = command(&path, &["rev-parse", "--verify", "-q", "--end-of-options", &name]).output();
        let output = output.expect("git runs");
        let sha = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        (output.status.success() && !sha.is_empty()).then_some(sha)
    }

    /// Names and commits of all branches.
    pub(super) fn branches(&self, full_name: &str) -> Vec<(String, String)> {
        let format = "--format=%(refname:lstrip=2) %(objectname)";
        let listed = git(&self.path(full_name), &["for-each-ref", format, "refs/heads"], b"");
        listed.lines().filter_map(|line| line.split_once(' ')).map(|(name, sha)| (name.into(), sha.into())).collect()
    }

    pub(super) fn run(&self, full_name: &str, args: &[&str]) -> String {
        git(&self.path(full_name), args, b"")
    }

    /// Accepts signatures of a key of this address, given as OpenSSH writes public keys.
    pub(super) fn trust(&self, full_name: &str, email: &str, public_key: &str) {
        fs::write(self.path(full_name).join("signers"), format!("{email} {public_key}")).expect("a file");
    }

    /// Refuses pushes from now on.
    pub(super) fn reject(&self, full_name: &str, rejection: &Rejection) {
        let path = self.path(full_name);
        let folder = path.join("rejections");
        fs::create_dir_all(&folder).expect("a folder");
        let hook = path.join("hooks/proc-receive");
        if !hook.exists() {
            fs::create_dir_all(path.join("hooks")).expect("a folder");
            fs::write(&hook, PROC_RECEIVE).expect("a file");
            fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).expect("an executable");
            git(&path, &["config", "receive.procReceiveRefs", "refs/heads"], b"");
        }
        let when = match rejection.when {
            When::Always => "always".to_owned(),
            When::Creation => "creation".to_owned(),
            When::Update => "update".to_owned(),
            When::Unsigned => "unsigned".to_owned(),
            When::Touches(folder) => format!("touches {folder}"),
        };
        let once = if rejection.is_once { "once" } else { "always" };
        let text = format!("{when}\n{}\n{once}\n{}\n{}\n", rejection.pattern, rejection.reason, rejection.remote);
        let number = fs::read_dir(&folder).expect("a folder").count();
        let name = format!("{number:03}-{}", uuid::Uuid::new_v4());
        fs::write(folder.join(name), text).expect("a file");
    }

    /// Permits all pushes again.
    pub(super) fn permit(&self, full_name: &str) {
        let _ = fs::remove_dir_all(self.path(full_name).join("rejections"));
    }

    /// Serves one request of git for a repository; `rest` is the path below it, such as `info/refs`.
    pub(super) fn serve(&self, full_name: &str, rest: &str, request: &Request) -> Response {
        let length = request.body.len().to_string();
        let mut backend = command(&self.root, &["http-backend"])
            .env("GIT_PROJECT_ROOT", &self.root)
            .env("GIT_HTTP_EXPORT_ALL", "1")
            .env("PATH_INFO", format!("/{full_name}.git/{rest}"))
            .env("QUERY_STRING", &request.query)
            .env("REQUEST_METHOD", &request.method)
            .env("REMOTE_USER", "x-access-token")
            .env("REMOTE_ADDR", "127.0.0.1")
            .env("CONTENT_TYPE", request.header("content-type"))
            .env("CONTENT_LENGTH", length)
            .env("GIT_PROTOCOL", request.header("git-protocol"))
            .env("HTTP_CONTENT_ENCODING", request.header("content-encoding"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("git runs");
        let mut input = backend.stdin.take().expect("piped");
        let body = request.body.clone();
        // The backend may answer before it has read everything.
        let writing = std::thread::spawn(move || drop(input.write_all(&body)));
        let output = backend.wait_with_output().expect("git ends").stdout;
        let _ = writing.join();
        let Some(split) = output.windows(4).position(|four| four == b"\r\n\r\n") else {
            return Response::text(500, "git http-backend failed");
        };
        let mut response = Response { status: 200, body: output[split + 4..].to_vec(), ..Response::default() };
        for line in String::from_utf8_lossy(&output[..split]).lines() {
            match line.split_once(": ") {
                Some(("Status", status)) => response.status = status[..3].parse().expect("a status"),
                Some((name, _)) if name.eq_ignore_ascii_case("content-length") => {}
                Some((name, value)) => response.headers.push((name.to_owned(), value.to_owned())),
                None => {}
            }
        }
        response
    }
}

fn command(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("git");
    command.current_dir(folder).args(args).env_remove("GIT_DIR").env_remove("GIT_INDEX_FILE");
    for role in ["AUTHOR", "COMMITTER"] {
        command.env(format!("GIT_{role}_NAME"), "Octo Cat").env(format!("GIT_{role}_EMAIL"), "octo@example.com");
    }
    command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null");
    command
}

fn git(folder: &Path, args: &[&str], input: &[u8]) -> String {
    git_with(folder, args, input, &[])
}

fn git_with(folder: &Path, args: &[&str], input: &[u8], environment: &[(&str, &PathBuf)]) -> String {
    let mut command = command(folder, args);
    command.envs(environment.iter().copied());
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("git runs");
    child.stdin.take().expect("piped").write_all(input).expect("git reads");
    let output = child.wait_with_output().expect("git ends");
    assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}
