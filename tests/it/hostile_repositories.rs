//! Repositories that attack the service, cloned from a hostile server or made so by an agent during its turn: nothing of
//! theirs runs outside of the jail, no content from outside gets into a diff, a commit or a bundle, and each run ends.
//!
//! Each attack plants commands that create a file in a folder of the test, which is outside of every jail, and names files
//! there whose content is a canary.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::{
    automation,
    harness::{
        Program, Session, Value,
        endless_git::EndlessGit,
        github::{GitHub, git::Rejection},
        json, processes,
        program::Folder,
        wait_for,
    },
};

const REPOSITORY: &str = "octo/hello";
/// Content of all files outside of the workspaces.
const SECRET: &str = "canary-content-8f1c2d7e";
/// For the end of a run; each takes a few seconds.
const DEADLINE: Duration = Duration::from_secs(90);
/// Every hook of git, those of servers and of other programs included.
const HOOKS: [&str; 28] = [
    "applypatch-msg",
    "pre-applypatch",
    "post-applypatch",
    "pre-commit",
    "pre-merge-commit",
    "prepare-commit-msg",
    "commit-msg",
    "post-commit",
    "pre-rebase",
    "post-checkout",
    "post-merge",
    "pre-push",
    "pre-receive",
    "update",
    "proc-receive",
    "post-receive",
    "post-update",
    "reference-transaction",
    "push-to-checkout",
    "pre-auto-gc",
    "post-rewrite",
    "sendemail-validate",
    "fsmonitor-watchman",
    "p4-changelist",
    "p4-prepare-changelist",
    "p4-post-changelist",
    "p4-pre-submit",
    "post-index-change",
];

/// The folder outside, with the canaries.
struct Outside {
    folder: Folder,
}

impl Outside {
    fn new() -> Self {
        let folder = Folder::new();
        let outside = Self { folder };
        for name in ["ran", "target", "repository"] {
            fs::create_dir_all(outside.path(name)).unwrap();
        }
        fs::write(outside.path("secret.txt"), SECRET).unwrap();
        fs::write(outside.path("target/b"), SECRET).unwrap();
        // A repository whose own configuration runs commands, for redirects.
        let repository = outside.path("repository");
        git(&repository, &["init", "-q", "-b", "main"], b"");
        fs::write(repository.join("secret.txt"), SECRET).unwrap();
        git(&repository, &["add", "secret.txt"], b"");
        git(&repository, &["-c", "user.name=x", "-c", "user.email=x@x", "commit", "-q", "-m", "x"], b"");
        fs::write(repository.join(".git/config"), outside.config("redirected")).unwrap();
        let modes = fs::Permissions::from_mode(0o777);
        fs::set_permissions(outside.path("ran"), modes).unwrap();
        outside
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A shell command that leaves a trace and passes its input on.
    fn command(&self, name: &str) -> String {
        format!("touch {}; cat", self.path("ran").join(name).display())
    }

    fn script(&self, name: &str) -> String {
        format!("#!/bin/sh\n{}\n", self.command(name))
    }

    /// Every setting by which git runs a command, reads another file, or talks to another host.
    fn config(&self, case: &str) -> String {
        let run = |key: &str| self.command(&format!("{case}-{key}"));
        let (secret, repository) = (self.path("secret.txt"), self.path("repository"));
        let (secret, repository) = (secret.display(), repository.display());
        let core: String =
            ["fsmonitor", "sshCommand", "gitProxy", "askPass", "editor", "pager", "alternateRefsCommand"]
                .iter()
                .map(|key| format!("{key} = \"{}\"\n", run(key)))
                .collect();
        format!(
            "[core]\nrepositoryformatversion = 0\n{core}hooksPath = hooks\nworktree = /\nexcludesFile = {secret}\n\
             attributesFile = {secret}\n[include]\npath = {repository}/.git/config-of-another\n\
             [filter \"x\"]\nclean = \"{clean}\"\nsmudge = \"{smudge}\"\nprocess = \"{process}\"\nrequired = true\n\
             [diff]\nexternal = \"{external}\"\n[diff \"x\"]\ntextconv = \"{textconv}\"\ncommand = \"{external}\"\n\
             [merge \"x\"]\ndriver = \"{merge}\"\n[credential]\nhelper = \"!{credential}\"\n\
             [url \"ext::sh -c '{ext}'\"]\ninsteadOf = http://\n[url \"ext::sh -c '{ext}'\"]\npushInsteadOf = http://\n\
             [remote \"origin\"]\nurl = \"ext::sh -c '{ext}'\"\nuploadpack = \"{pack}\"\nreceivepack = \"{pack}\"\n\
             vcs = ext\nfetch = +refs/*:refs/*\n[protocol \"ext\"]\nallow = always\n[protocol]\nallow = always\n\
             [gpg]\nprogram = {repository}/gpg\n[commit]\ngpgSign = true\n[push]\ngpgSign = true\n\
             [http]\nproxy = http://127.0.0.1:1\nextraHeader = \"X-Canary: x\"\ncookieFile = {secret}\n\
             [uploadpack]\npackObjectsHook = \"{pack}\"\n[submodule \"x\"]\nurl = \"ext::sh -c '{ext}'\"\n\
             update = \"!{submodule}\"\nactive = true\n[submodule]\nrecurse = true\n[gc]\nauto = 1\n\
             recentObjectsHook = \"{gc}\"\n[maintenance]\nauto = true\n[alias]\nadd = \"!{alias}\"\n",
            clean = run("clean"),
            smudge = run("smudge"),
            process = run("process"),
            external = run("external"),
            textconv = run("textconv"),
            merge = run("merge"),
            credential = run("credential"),
            ext = run("ext"),
            pack = run("pack"),
            submodule = run("submodule"),
            gc = run("gc"),
            alias = run("alias"),
        )
    }

    /// The commands that ran.
    fn ran(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("ran")).unwrap().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }
}

/// Runs git as a user would, without hardening, and returns its output.
fn git(folder: &Path, args: &[&str], input: &[u8]) -> String {
    let mut command = Command::new("git");
    command.args(args).current_dir(folder).env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("git runs");
    child.stdin.take().expect("a pipe").write_all(input).expect("git reads its input");
    let output = child.wait_with_output().expect("git ends");
    assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Mode, path, and content of a file or target of a link.
type Entry<'a> = (&'a str, &'a str, &'a str);

const FILE: &str = "100644";
const LINK: &str = "120000";

/// Writes a tree whose names git itself would refuse to add, and returns its object's name.
fn tree(bare: &Path, entries: &[Entry<'_>]) -> String {
    let mut folders: BTreeMap<&str, Vec<Entry<'_>>> = BTreeMap::new();
    let mut listing = Vec::new();
    for (mode, path, content) in entries {
        match path.split_once('/') {
            Some((folder, rest)) => folders.entry(folder).or_default().push((mode, rest, content)),
            None => {
                let blob = git(bare, &["hash-object", "-w", "--stdin"], content.as_bytes());
                listing.extend(format!("{mode} blob {blob}\t{path}\0").bytes());
            }
        }
    }
    for (name, inner) in folders {
        listing.extend(format!("040000 tree {}\t{name}\0", tree(bare, &inner)).bytes());
    }
    git(bare, &["mktree", "-z"], &listing)
}

/// Creates a repository with one commit of these files.
fn serve(github: &GitHub, full_name: &str, entries: &[Entry<'_>]) {
    github.create(full_name);
    let bare = github.bare(full_name);
    let tree = tree(&bare, entries);
    let identity = ["-c", "user.name=x", "-c", "user.email=x@x"];
    let commit = git(&bare, &[&identity[..], &["commit-tree", &tree, "-m", "Hostile"]].concat(), b"");
    git(&bare, &["update-ref", "refs/heads/main", &commit], b"");
}

fn body(github: &GitHub, full_name: &str, workspace: &str) -> Value {
    json!({
        "workspaceId": workspace, "installationId": "tenant-1", "repository": github.url(full_name),
        "githubToken": github.user_token("octocat"),
    })
}

/// Waits for the end of a turn and returns its result.
fn result(session: &Session, prompt: &str) -> Value {
    let path = format!("/acp/prompt/{prompt}");
    let read = wait_for(DEADLINE, "the end of a turn in a hostile repository", || {
        let read = session.api.get(&path).expect(200);
        (!read["endedAt"].is_null()).then_some(read)
    });
    read["result"].clone()
}

/// Checks that no content from outside is in the session's diff.
fn assert_diff_is_clean(case: &str, session: &Session) {
    let answer = session.get("/diff");
    assert!(!answer.text.contains(SECRET) && !answer.text.contains("root:x:"), "{case}: {}", answer.text);
    assert!(answer.status == 200 || answer.body["code"].is_string(), "{case}: {}", answer.text);
}

/// Checks that no object at the remote has content from outside.
fn assert_remote_is_clean(github: &GitHub, full_name: &str) {
    let all = github.git(full_name, &["cat-file", "--batch-all-objects", "--batch"]);
    assert!(!all.contains(SECRET) && !all.contains("root:x:"), "{full_name} has content from outside");
}

/// Files that a turn has changed on its branch.
fn pushed(github: &GitHub, full_name: &str, automation: &Value) -> Vec<String> {
    let branch = automation["branch"].as_str().unwrap_or_else(|| panic!("{automation:#}"));
    let listed = github.git(full_name, &["diff", "--name-only", "--no-renames", "-z", "main", branch]);
    let mut names: Vec<_> = listed.split('\0').filter(|it| !it.is_empty()).map(str::to_owned).collect();
    names.sort();
    names
}

#[test]
fn repository_that_git_must_not_check_out_is_refused_and_runs_nothing() {
    let (github, outside) = (GitHub::start(), Outside::new());
    let program = automation::with(&github).start();
    let (script, config) = (outside.script("hook"), outside.config("clone"));
    let cases: [(&str, &[Entry<'_>]); 7] = [
        ("hook", &[("100755", ".git/hooks/post-checkout", &script)]),
        ("upper", &[(FILE, ".GIT/config", &config)]),
        ("short", &[(FILE, "git~1/config", &config)]),
        ("dots", &[(FILE, "a/../b", "x")]),
        ("space", &[(FILE, ".git /config", &config)]),
        ("stream", &[(FILE, ".git::$INDEX_ALLOCATION/config", &config)]),
        ("modules", &[(LINK, ".gitmodules", "secret.txt"), (FILE, "secret.txt", "x")]),
    ];
    for (name, entries) in cases {
        let full_name = format!("octo/{name}");
        serve(&github, &full_name, &[entries, &[(FILE, "README.md", "hello\n")]].concat());
        let answer = program.api.post("/acp/session/new", body(&github, &full_name, name));
        answer.problem(422, "workspace_unavailable");
    }
    assert_eq!(outside.ran(), Vec::<String>::new());
}

/// Mode, path and content of a file.
type ServedFile = (&'static str, String, String);

/// Repositories that git checks out, by name, with what they attack.
fn served(outside: &Outside, data: &Path) -> Vec<(&'static str, Vec<ServedFile>)> {
    let text = |path: PathBuf| path.display().to_string();
    let attributes = "* filter=x diff=x merge=x ident export-subst working-tree-encoding=UTF-16 eol=crlf\n";
    let modules = format!(
        "[submodule \"x\"]\n\tpath = x\n\turl = ext::sh -c '{0}'\n\tupdate = !{0}\n[submodule \"-u\"]\n\tpath = y\n\
         \turl = -u{0}\n",
        outside.command("modules")
    );
    let file = |name: &str, content: &str| (FILE, name.to_owned(), content.to_owned());
    let link = |name: &str, target: String| (LINK, name.to_owned(), target);
    let hooks = HOOKS.iter().flat_map(|hook| {
        let script = outside.script(&format!("served-{hook}"));
        [("100755", format!("hooks/{hook}"), script.clone()), ("100755", format!(".husky/{hook}"), script)]
    });
    let inner = [("HEAD", "ref: refs/heads/main\n"), ("refs/x", ""), ("objects/x", "")];
    let mut bare: Vec<_> = inner.iter().map(|(name, content)| file(&format!("bare/{name}"), content)).collect();
    bare.extend([file("bare/config", &outside.config("bare")), file("HEAD", "ref: refs/heads/main\n")]);
    bare.extend([file("config", &outside.config("top")), file("objects/x", ""), file("refs/x", "")]);
    bare.extend(hooks);
    let links = vec![
        link("passwd", "/etc/passwd".into()),
        link("secret", text(outside.path("secret.txt"))),
        link("data", text(data.to_owned())),
        link("parent", "../../..".into()),
        link("folder", text(outside.path("target"))),
        link("loop", "loop".into()),
        link(".gitattributes", text(outside.path("secret.txt"))),
        link(".gitignore", text(outside.path("secret.txt"))),
        link(".claude-pr-summary.md", text(outside.path("secret.txt"))),
    ];
    let deep = vec!["d"; 1500].join("/");
    vec![
        (
            "attributes",
            vec![file(".gitattributes", attributes), file("a", "1\n"), file("sub/.gitattributes", attributes)],
        ),
        ("submodules", vec![file(".gitmodules", &modules), file("x/a", "1\n")]),
        ("bare", bare),
        ("links", links),
        (
            "names",
            vec![
                file("new\nline", "1\n"),
                file("-rf", "1\n"),
                file("--upload-pack=touch x", "1\n"),
                file(":(top)x", "1\n"),
                file("tab\t\"quote\"", "1\n"),
                file(".g\u{200c}it/config", &outside.config("hfs")),
                file("A", "1\n"),
                file("a", "2\n"),
                file("e\u{301}", "1\n"),
                file("\u{e9}", "2\n"),
            ],
        ),
        ("deep", vec![file(&format!("{deep}/x"), "1\n")]),
    ]
}

#[test]
fn hostile_repository_of_a_server_runs_nothing_and_its_turn_is_delivered() {
    let (github, outside) = (GitHub::start(), Outside::new());
    let program = automation::with(&github).start();
    let data = program.folder.path().join("data");
    fs::write(data.join("canary.txt"), SECRET).unwrap();
    let mut turns = Vec::new();
    for (name, entries) in served(&outside, &data) {
        let full_name = format!("octo/{name}");
        let entries: Vec<Entry<'_>> =
            entries.iter().map(|(mode, path, text)| (*mode, path.as_str(), text.as_str())).collect();
        serve(&github, &full_name, &[&entries[..], &[(FILE, "README.md", "hello\n")]].concat());
        let session = program.api.open_with(body(&github, &full_name, name));
        let prompt = session.starts(&format!("write made.txt {name} ; write folder/b stolen ; write data/x stolen"));
        turns.push((full_name, session, prompt));
    }
    for (full_name, session, prompt) in &turns {
        let result = result(session, prompt);
        let automation = &result["githubAutomation"];
        assert_eq!(automation["status"], "success", "{full_name}: {result:#}");
        let expected: &[&str] = match full_name.as_str() {
            // The links lead out of the jail, so that the agent could not write through them.
            "octo/links" => &["made.txt"],
            _ => &["data/x", "folder/b", "made.txt"],
        };
        assert_eq!(pushed(&github, full_name, automation), expected, "{full_name}");
        assert_diff_is_clean(full_name, session);
        assert_remote_is_clean(&github, full_name);
    }
    assert_eq!(outside.ran(), Vec::<String>::new());
    assert_eq!(fs::read_to_string(outside.path("target/b")).unwrap(), SECRET);
    for (_, session, _) in &turns {
        session.post("close", json!({})).expect(200);
        crate::harness::eventually("the hostile folder is removed", || !session.path().exists());
    }
}

/// The end of a run that is expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The change is delivered: these files and `mark`, beside those that the attack may leave.
    Delivered(&'static [&'static str]),
    /// Nothing is delivered, since a path is unsafe.
    UnsafePath,
}

/// Attacks of an agent on its own checkout: name, shell script, and the end of the run.
fn attacks(outside: &Outside, program: &Program, other: &Session) -> Vec<(&'static str, String, End)> {
    let put = |path: &str, text: &str| format!("cat > '{path}' <<'END-OF-FILE'\n{text}\nEND-OF-FILE\n");
    let [out, data] = [outside.folder.path(), &program.folder.path().join("data")].map(|it| it.display().to_string());
    let hooks: String = HOOKS.iter().map(|hook| put(&format!(".git/hooks/{hook}"), &outside.script(hook))).collect();
    let attributes = "* filter=x diff=x merge=x -text working-tree-encoding=UTF-16";
    let committed = |name: &str| {
        format!(
            "git init -q {name}\necho x > {name}/file\ngit -C {name} add file\n\
             git -C {name} -c user.name=x -c user.email=x@x commit -qm x\n"
        )
    };
    let config = put(".git/config", &outside.config("agent"));
    let modules = put(
        ".gitmodules",
        &format!(
            "[submodule \"x\"]\npath = x\nurl = ext::sh -c '{0}'\nupdate = !{0}",
            outside.command("agent-modules")
        ),
    );
    vec![
        ("config", format!("{config}{}", put(".gitattributes", attributes)), End::Delivered(&[".gitattributes"])),
        (
            "worktree-config",
            format!(
                "git config extensions.worktreeConfig true\n{}{}",
                put(".git/config.worktree", &outside.config("worktree")),
                put(".git/info/attributes", attributes)
            ),
            End::Delivered(&[]),
        ),
        ("hooks", format!("mkdir -p .git/hooks\n{hooks}chmod 755 .git/hooks/*\n"), End::Delivered(&[])),
        (
            "alternates",
            format!(
                "mkdir -p .git/objects/info .git/info\necho {out}/repository/.git/objects > .git/objects/info/alternates\n\
                 echo http://127.0.0.1:1/ > .git/objects/info/http-alternates\necho '*' > .git/info/exclude\n\
                 echo broken > .git/shallow\necho broken > .git/packed-refs\necho broken > .git/index\n\
                 echo broken > .git/HEAD\n"
            ),
            End::Delivered(&[]),
        ),
        ("redirect", format!("rm -rf .git\necho 'gitdir: {out}/repository/.git' > .git\n"), End::Delivered(&[])),
        ("git-link", format!("rm -rf .git\nln -s {out}/repository/.git .git\n"), End::Delivered(&[])),
        ("common", format!("echo {out}/repository/.git > .git/commondir\n{config}"), End::Delivered(&[])),
        (
            "links",
            format!(
                "ln -s /etc/passwd passwd\nln -s {out}/secret.txt secret\nln -s {data} data\nln -s '{}' other\n\
                 ln -s {out}/secret.txt .claude-pr-summary.md\n",
                other.path().display()
            ),
            End::UnsafePath,
        ),
        ("replaced", format!("rm -rf sub\nln -s {out}/target sub\n"), End::UnsafePath),
        ("replaced-file", format!("rm README.md\nln -s {out}/secret.txt README.md\n"), End::UnsafePath),
        (
            "attribute-links",
            format!("ln -s {out}/secret.txt .gitattributes\nln -s {out}/secret.txt .gitignore\n"),
            End::UnsafePath,
        ),
        (
            "nested",
            format!(
                "git init -q inner\necho x > inner/file\n{}git init -q --bare --template= bare\n{}mkdir redirected\n\
                 echo 'gitdir: {out}/repository/.git' > redirected/.git\necho x > redirected/file\n{modules}",
                put("inner/.git/config", &outside.config("inner")),
                put("bare/config", &outside.config("agent-bare")),
            ),
            // In its jail git cannot follow the redirect, and takes the folder for a plain one.
            End::Delivered(&[".gitmodules", "bare/HEAD", "bare/config", "redirected/file"]),
        ),
        ("malformed-modules", format!("{}printf '[[\\n' > .gitmodules\n", committed("inner")), End::Delivered(&[".gitmodules"])),
        (
            "closed",
            "echo x > file\nmkdir folder\necho x > folder/file\nchmod 000 file folder sub\n".into(),
            End::Delivered(&[]),
        ),
        (
            "dashes",
            "for name in -rf --upload-pack=x ':(top)x' ':!y' '*' '?[a]' '{a,b}' \"it's\" 'a;touch z' '$(touch z)'; do \
             echo \"$name\" > \"./$name\"; done\n"
                .into(),
            End::Delivered(&["$(touch z)", "*", "--upload-pack=x", "-rf", ":!y", ":(top)x", "?[a]", "a;touch z", "it's", "{a,b}"]),
        ),
        ("newline", "echo x > \"$(printf 'new\\nline')\"\n".into(), End::UnsafePath),
        ("upper-git", format!("mkdir .GIT\n{}", put(".GIT/config", &outside.config("upper"))), End::UnsafePath),
        ("short-git", format!("mkdir 'git~1'\n{}", put("git~1/config", &outside.config("short"))), End::UnsafePath),
        ("space-git", format!("mkdir '.git '\n{}", put(".git /config", &outside.config("space"))), End::UnsafePath),
        (
            "hfs-git",
            format!("mkdir '.g\u{200c}it'\n{}", put(".g\u{200c}it/config", &outside.config("hfs"))),
            End::UnsafePath,
        ),
        ("case", "echo x > A\necho y > a\n".into(), End::UnsafePath),
        ("case-of-tracked", "echo x > readme.MD\n".into(), End::UnsafePath),
        ("accents", "echo x > 'e\u{301}'\necho y > '\u{e9}'\n".into(), End::UnsafePath),
        (
            "pipes",
            "rm -f README.md\nmkfifo README.md .gitmodules .claude-pr-summary.md other\n".into(),
            // The pipe in place of a tracked file is named, and the file stays as it was.
            End::Delivered(&[]),
        ),
        // git would wait for a writer.
        ("ignore-pipe", "mkdir -p x/y\necho x > x/y/z\nmkfifo x/y/.gitignore\n".into(), End::UnsafePath),
        ("attributes-pipe", "mkfifo .gitattributes\n".into(), End::UnsafePath),
        (
            "deep",
            "here=$PWD\npart=$(printf 'd/%.0s' $(seq 1 500))\ni=0\nwhile [ $i -lt 5 ]; do mkdir -p $part; cd -P $part; \
             i=$((i+1)); done\necho x > x\ncd \"$here\"\n"
                .into(),
            End::Delivered(&[]),
        ),
    ]
}

/// Runs an attack in a session of its own, without waiting for the end.
fn begin(program: &Program, github: &GitHub, name: &str, script: &str) -> (Session, String) {
    let session = program.api.open_with(body(github, REPOSITORY, &format!("ws-{name}")));
    let whole = format!("set -e\nrm attack.sh\necho {name} > mark\n{script}");
    fs::write(session.path().join("attack.sh"), whole).unwrap();
    let prompt = session.starts("run sh attack.sh");
    (session, prompt)
}

fn assert_end(github: &GitHub, name: &str, end: End, result: &Value) {
    let message = result["meta"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("(exit 0)"), "{name}: the attack failed: {result:#}");
    let automation = &result["githubAutomation"];
    match end {
        End::Delivered(files) => {
            assert_eq!(automation["status"], "success", "{name}: {automation:#}");
            let names = pushed(github, REPOSITORY, automation);
            let mut expected = [files, &["mark"]].concat();
            expected.sort_unstable();
            assert_eq!(names, expected, "{name}");
        }
        End::UnsafePath => {
            let ended = (&automation["status"], &automation["error"]["code"]);
            assert_eq!(ended, (&json!("error"), &json!("unsafe-path")), "{name}: {automation:#}");
        }
    }
}

#[test]
fn checkout_that_an_agent_made_hostile_runs_nothing_and_reveals_nothing() {
    let (github, outside) = (GitHub::start(), Outside::new());
    github.commit(REPOSITORY, "main", &[("sub/b", "1\n")]);
    let program = automation::with(&github).start();
    fs::write(program.folder.path().join("data/canary.txt"), SECRET).unwrap();
    let other = program.api.open_with(body(&github, REPOSITORY, "other"));
    fs::write(other.path().join("secret.txt"), SECRET).unwrap();
    let attacks = attacks(&outside, &program, &other);
    let mut begun = Vec::new();
    for (name, script, end) in &attacks {
        begun.push((*name, *end, begin(&program, &github, name, script)));
    }
    for (name, end, (session, prompt)) in &begun {
        let result = result(session, prompt);
        assert_end(&github, name, *end, &result);
        assert_diff_is_clean(name, session);
    }
    assert_remote_is_clean(&github, REPOSITORY);
    assert_eq!(outside.ran(), Vec::<String>::new());
    // What is kept of a run is as clean: the next turns of some sessions are refused by the remote.
    github.reject(REPOSITORY, &Rejection::unknown());
    for (name, _, (session, _)) in begun.iter().filter(|(_, end, _)| *end == End::Delivered(&[])) {
        let prompt = session.starts("write again.txt x");
        let result = result(session, &prompt);
        let id = result["githubAutomation"]["rescue"]["id"].as_str().unwrap_or_else(|| panic!("{name}: {result:#}"));
        assert_rescue_is_clean((&program, &github), &outside, id);
    }
    assert_eq!(outside.ran(), Vec::<String>::new());
    // Without the hardening, the same checkouts run the commands.
    let (_, _, (session, _)) = begun.iter().find(|(name, ..)| *name == "worktree-config").unwrap();
    let _ = Command::new("git").arg("-C").arg(session.path()).args(["status", "--short"]).output();
    assert!(!outside.ran().is_empty(), "the commands of the attack work");
}

#[test]
fn paths_that_git_cannot_read_are_named_in_diff_log_and_pull_request() {
    let github = GitHub::start();
    github.commit(REPOSITORY, "main", &[("piped", "1\n")]);
    let program = automation::with(&github).start();
    let script = "git init -q empty\necho x > empty/file\nrm piped\nmkfifo piped\nmkdir closed\nchmod 000 closed\n\
                  echo x > \"$(printf '@octocat <b>fixes #1')\"\nchmod 000 @*\n";
    let (session, prompt) = begin(&program, &github, "named", script);
    let result = result(&session, &prompt);
    assert_end(&github, "named", End::Delivered(&[]), &result);
    let expected = ["@octocat <b>fixes #1", "closed", "empty", "piped"];
    let diff = session.get("/diff").expect(200);
    let named: Vec<_> = diff["omitted"].as_array().unwrap().iter().map(|it| it["path"].as_str().unwrap()).collect();
    assert_eq!(named, expected, "{diff:#}");
    let automation = &result["githubAutomation"];
    let logs = automation["diagnostics"]["logs"].to_string();
    let pull = github.pulls(REPOSITORY).pop().unwrap().body;
    for name in &expected[1..] {
        assert!(logs.contains(&format!("\\\"{name}\\\" is not in the commit: ")), "{name}: {logs}");
        assert!(pull.contains(name) && pull.contains("is not in the commit"), "{name}: {pull}");
    }
    assert!(!pull.contains("@octocat") && !pull.contains("<b>") && !pull.contains("fixes #1"), "{pull}");
    let alone = session.starts("run sh -c 'mkdir second && chmod 000 second'");
    let skipped = &self::result(&session, &alone)["githubAutomation"];
    assert_eq!(skipped["skipDetail"], "nothing-staged", "{skipped:#}");
}

/// The most memory of git and its helpers that are below a folder, in bytes each, while `work` runs.
fn memory_of_git<T: Send>(folder: &Path, work: impl FnOnce() -> T + Send) -> (T, u64) {
    std::thread::scope(|scope| {
        let running = scope.spawn(work);
        let mut most = 0;
        while !running.is_finished() {
            for found in processes::with_marker(folder).iter().filter(|found| found.command.contains("git")) {
                let status = fs::read_to_string(format!("/proc/{}/status", found.pid)).unwrap_or_default();
                let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
                let peak = peak.and_then(|peak| peak.trim().strip_suffix(" kB")?.parse::<u64>().ok());
                most = most.max(peak.unwrap_or_default() * 1024);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        (running.join().expect("the work ends"), most)
    })
}

#[test]
fn host_whose_progress_never_ends_a_line_takes_bounded_memory_and_is_named() {
    let host = EndlessGit::start();
    let program = Program::builder()
        .set("workspaces.git_hosts", format!("[\"{}\"]", host.host))
        .set("workspaces.clone_timeout_s", 300)
        .start();
    for token in [json!(null), json!("a-token")] {
        let body = json!({
            "workspaceId": "endless", "installationId": "tenant-1", "repository": host.repository(), "githubToken": token,
        });
        let begun = Instant::now();
        let (answer, most) = memory_of_git(program.folder.path(), || program.api.post("/acp/session/new", body));
        let problem = answer.problem(422, "workspace_unavailable").to_string();
        assert!(problem.contains("exceeded its memory of 1024 MiB"), "{problem}");
        assert!(problem.len() < 4096 && !problem.contains("xxxx"), "{problem}");
        assert!((64 << 20..1200 << 20).contains(&most), "{most} bytes, and the limit is 1 GiB");
        println!("git took {most} bytes and ended after {:?}", begun.elapsed());
    }
}

/// Checks that neither bundle nor patch of a run has content from outside.
fn assert_rescue_is_clean((program, github): (&Program, &GitHub), outside: &Outside, run: &str) {
    let patch = program.api.get(&format!("/acp/automation/{run}/rescue?format=patch"));
    assert_eq!(patch.status, 200, "{}", patch.text);
    assert!(patch.text.contains("again.txt") && !patch.text.contains(SECRET), "{}", patch.text);
    let data = program.folder.path().join("data");
    let kept = bundles(&data, run);
    let [bundle] = &kept[..] else { panic!("bundles of {run}: {kept:?}") };
    let bare = outside.path(&format!("bare-{run}"));
    fs::create_dir_all(&bare).unwrap();
    git(&bare, &["init", "-q", "--bare"], b"");
    git(&bare, &["fetch", "-q", &github.bare(REPOSITORY).display().to_string(), "refs/*:refs/*"], b"");
    git(&bare, &["fetch", "-q", &bundle.display().to_string(), "refs/heads/*:refs/kept/*"], b"");
    let all = git(&bare, &["cat-file", "--batch-all-objects", "--batch"], b"");
    assert!(all.contains("again.txt") && !all.contains(SECRET) && !all.contains("root:x:"), "{run}");
}

/// The bundles of a run below a folder.
fn bundles(folder: &Path, run: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(bundles(&path, run));
        } else if path.ends_with(format!("{run}/bundle")) {
            found.push(path);
        }
    }
    found
}

/// Sets the number of files of [`many_files_are_committed_or_refused_in_bounded_time`].
const FILES_VARIABLE: &str = "LUMILINK_HOSTILE_FILES";

/// Commits as many files as `LUMILINK_HOSTILE_FILES` sets: 5,000 unless it is set. 100,000 is the most that a change may
/// have, and takes minutes with a debug build.
#[test]
fn many_files_are_committed_or_refused_in_bounded_time() {
    let files: usize = std::env::var(FILES_VARIABLE).map_or(5_000, |it| it.parse().expect("a number of files"));
    let github = GitHub::start();
    let program = automation::with(&github).start();
    let script = format!(
        "seq 1 {files} | while read -r n; do d=many/$((n / 1000)); [ -d $d ] || mkdir -p $d; echo $n > $d/$n; done\n"
    );
    let (session, _) = begin_many(&program, &github, &script, files);
    let diff = session.get("/diff").expect(200);
    assert_eq!(diff["truncated"], true, "a diff lists the first files");
}

fn begin_many(program: &Program, github: &GitHub, script: &str, files: usize) -> (Session, Duration) {
    let begin_at = Instant::now();
    let (session, prompt) = begin(program, github, "many", script);
    let path = format!("/acp/prompt/{prompt}");
    let read = wait_for(Duration::from_secs(600), "the end of the turn with many files", || {
        let read = session.api.get(&path).expect(200);
        (!read["endedAt"].is_null()).then_some(read)
    });
    let automation = &read["result"]["githubAutomation"];
    let (took, of_run) = (begin_at.elapsed(), &automation["diagnostics"]["durationMs"]);
    println!("{files} files: {took:?} in all, {of_run} ms of them automation");
    if files < 100_000 {
        assert_eq!(automation["status"], "success", "{automation:#}");
        let branch = automation["branch"].as_str().unwrap();
        let listed = github.git(REPOSITORY, &["ls-tree", "-r", "--name-only", branch, "many"]);
        assert_eq!(listed.lines().count(), files);
    } else {
        // With `mark`, these are more than the most.
        assert_eq!(automation["skipDetail"], "too-large", "{automation:#}");
    }
    (session, took)
}
