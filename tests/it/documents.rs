//! Runs every command block of the README and the handbook as it is printed.
//!
//! `.github/CONTRIBUTING.md` has the conventions for authors. One test per page, so that pages run in parallel and a
//! failure names its page.

use std::{
    fmt::Write,
    fs,
    os::unix::{fs::symlink, process::CommandExt},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use crate::harness::{
    agents, free_port, git_server::GitServer, lumilink, postgres::PostgresDatabase, processes, program::Folder,
    repository, stub_model::StubModel, wait_for,
};

/// Blocks that are not run, over all pages. Each carries its reason; a new one is a deliberate change of this number.
const SKIPPED: usize = 5;
/// Time for all blocks of one page: the slowest one takes about 10 s on an idle machine.
const PAGE_TIME: Duration = Duration::from_secs(150);
/// Time for what a page started to end after its script.
const CLEAN_UP: Duration = Duration::from_secs(10);
/// Characters of a reason for a skip, at least.
const MIN_REASON: usize = 10;

/// What is in scope of every script: starting, awaiting and stopping what a page runs in the background.
const PRELUDE: &str = r#"
set -euo pipefail
declare -A docs_pids=()
docs_ready() {
    case $1 in
        serve) curl -sf -o /dev/null "$LUMILINK_URL/readyz" ;;
        runtime) (exec 9<>"/dev/tcp/${LUMILINK_RUNTIME__LISTEN%:*}/${LUMILINK_RUNTIME__LISTEN##*:}") 2>/dev/null ;;
    esac
}
docs_wait() {
    local try
    for try in $(seq 300); do
        if docs_ready "$1"; then return 0; fi
        kill -0 "${docs_pids[$1]}" 2>/dev/null || break
        sleep 0.1
    done
    echo "docs: $1 does not serve:" >&2; cat "docs-$1.log" >&2; return 1
}
docs_stop() {
    local pid=${docs_pids[$1]-} status=0
    [ -n "$pid" ] || return 0
    unset "docs_pids[$1]"
    kill -TERM -- "-$pid" 2>/dev/null || true
    wait "$pid" || status=$?
    [ "$status" = 0 ] || { echo "docs: $1 ended with $status:" >&2; cat "docs-$1.log" >&2; return 1; }
}
docs_end() {
    local status=$? name
    set +e
    for name in serve runtime; do docs_stop "$name" || [ "$status" != 0 ] || status=1; done
    exit "$status"
}
trap docs_end EXIT
"#;

/// One fenced block of a page.
#[derive(Debug)]
struct Block {
    /// The line of its opening fence, from 1.
    line: usize,
    language: String,
    /// The text of `<!-- test: … -->` directly above it; empty without one.
    instruction: String,
    text: String,
}

impl Block {
    fn is_shown(&self) -> bool {
        matches!(self.language.as_str(), "text" | "json")
    }

    fn is_skipped(&self) -> bool {
        self.instruction.starts_with("skip:")
    }

    /// Why the block breaks the conventions.
    fn fault(&self) -> Option<String> {
        let (word, rest) = self.instruction.split_once(' ').unwrap_or((&self.instruction, ""));
        let is_file = matches!(self.language.as_str(), "toml" | "js");
        if self.language != "sh" && !is_file && !self.is_shown() {
            return Some(format!("blocks of `{}` are not allowed: sh, toml, js, text or json", self.language));
        }
        if self.is_shown() {
            return (!self.instruction.is_empty()).then(|| "text is not run and takes no instruction".into());
        }
        if let Some(reason) = self.instruction.strip_prefix("skip:") {
            return (reason.trim().len() < MIN_REASON).then(|| "a skip needs a reason".into());
        }
        let is_name = |name: &str| {
            !name.is_empty()
                && name.chars().all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || ".-".contains(it))
        };
        if is_file {
            return (word != "file" || !is_name(rest)).then(|| "toml and js need `file NAME`".into());
        }
        let known = ["", "background", "background runtime", "stopped", "agents", "git", "postgres"];
        (!known.contains(&self.instruction.as_str())).then(|| format!("unknown instruction `{}`", self.instruction))
    }
}

fn instruction(line: &str) -> Option<&str> {
    line.strip_prefix("<!-- test: ")?.strip_suffix(" -->")
}

/// The blocks of a page, or the first break of the conventions.
fn parse(page: &str) -> Result<Vec<Block>, String> {
    let (mut blocks, mut open, mut previous) = (Vec::new(), None::<Block>, "");
    for (line, number) in page.lines().zip(1..) {
        match (&mut open, line.strip_prefix("```")) {
            (Some(_), Some("")) => blocks.extend(open.take()),
            (Some(block), _) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
            (None, Some(language)) => {
                let instruction = instruction(previous).unwrap_or_default().to_owned();
                let language = language.trim().to_owned();
                open = Some(Block { line: number, language, instruction, text: String::new() });
            }
            (None, None) if instruction(previous).is_some() => {
                return Err(format!("line {}: an instruction that is not directly above a block", number - 1));
            }
            (None, None) => {}
        }
        previous = line;
    }
    if let Some(block) = open {
        return Err(format!("line {}: a block without an end", block.line));
    }
    match blocks.iter().find_map(|block| Some(format!("line {}: {}", block.line, block.fault()?))) {
        Some(fault) => Err(fault),
        None => Ok(blocks),
    }
}

/// One bash script that runs the blocks of a page in order.
fn script(page: &str, blocks: &[Block]) -> String {
    let mut out = PRELUDE.to_owned();
    for block in blocks.iter().filter(|block| !block.is_shown() && !block.is_skipped()) {
        let Block { line, text, .. } = block;
        let _ = writeln!(out, "echo '==> {page}:{line}' | tee /dev/stderr");
        match block.instruction.split_once(' ').unwrap_or((&block.instruction, "")) {
            ("file", name) => {
                let check = match block.language.as_str() {
                    "toml" => format!("lumilink config --config {name} > /dev/null"),
                    _ => format!("node --check {name}"),
                };
                let _ = writeln!(out, "cat > {name} <<'DOCS-END'\n{text}DOCS-END\n{check}");
            }
            ("background", name) => {
                let name = if name.is_empty() { "serve" } else { name };
                let _ = writeln!(
                    out,
                    "docs_stop {name}\nset -m\n( trap : TERM\n{text}) > docs-{name}.log 2>&1 < /dev/null &\n\
                     docs_pids[{name}]=$!\nset +m\ndocs_wait {name}"
                );
            }
            (word, _) => {
                let stop = if word == "stopped" { "docs_stop serve\n" } else { "" };
                let _ = writeln!(out, "{stop}{text}");
            }
        }
    }
    out
}

/// Kills what a page has left running when its test ends early.
struct KillLeftovers<'a>(&'a Path);

impl Drop for KillLeftovers<'_> {
    fn drop(&mut self) {
        for left in processes::with_marker(self.0) {
            processes::signal(left.pid, libc::SIGKILL);
        }
    }
}

/// Runs all blocks of a page in an empty folder with a cleared environment.
fn run_page(page: &str) {
    let source = fs::read_to_string(repository(page)).unwrap_or_else(|cause| panic!("{page}: {cause}"));
    let blocks = parse(&source).unwrap_or_else(|fault| panic!("{page}: {fault}"));
    let (folder, tools) = (Folder::new(), Folder::new());
    symlink(lumilink(), tools.path().join("lumilink")).expect("a link to the program");
    let node = Path::new(&agents::node()).parent().expect("node is in a folder").display().to_string();
    let mut path = format!("{}:{node}:/usr/local/bin:/usr/bin:/bin", tools.path().display());
    let (server, runtime, hook) = (free_port(), free_port(), free_port());
    let mut command = Command::new("bash");
    command
        .env_clear()
        .env("HOME", folder.path())
        .env("LANG", "C.UTF-8")
        .env("LUMILINK_SERVER__LISTEN", format!("127.0.0.1:{server}"))
        .env("LUMILINK_URL", format!("http://127.0.0.1:{server}"))
        .env("LUMILINK_RUNTIME__LISTEN", format!("127.0.0.1:{runtime}"))
        .env("HOOK", format!("127.0.0.1:{hook}"));
    let wants = |facility: &str| blocks.iter().any(|block| block.instruction == facility);
    let model = wants("agents").then(StubModel::start);
    if let Some(model) = &model {
        let modules = repository("tests/interop/node_modules");
        let bin = [modules.join(".bin"), modules.join("@aaif/goose-binary-linux-x64/bin")];
        path = format!("{}:{}:{path}", bin[0].display(), bin[1].display());
        for (name, value) in [
            ("ANTHROPIC_BASE_URL", model.url()),
            ("ANTHROPIC_API_KEY", "stub"),
            ("OPENAI_HOST", model.url()),
            ("OPENAI_API_KEY", "stub"),
            ("GOOSE_PROVIDER", "openai"),
            ("GOOSE_MODEL", "stub-model"),
            ("GOOSE_MODE", "approve"),
            ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1"),
            ("DISABLE_AUTOUPDATER", "1"),
        ] {
            command.env(name, value);
        }
    }
    let git = wants("git").then(GitServer::start);
    if let Some(git) = &git {
        command.env("LUMILINK_WORKSPACES__GIT_HOSTS", format!("[\"{}\"]", git.host));
    }
    let database = wants("postgres").then(PostgresDatabase::create);
    if let Some(database) = &database {
        command.env("DATABASE_URL", database.url());
    }
    let file = tools.path().join("page.sh");
    fs::write(&file, script(page, &blocks)).expect("the script");
    // A file and no pipe: a process that is left behind would keep a pipe open.
    let log = tools.path().join("page.log");
    let output = fs::File::create(&log).expect("a log");
    let mut child = command
        .env("PATH", path)
        .arg(&file)
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(output.try_clone().expect("a second handle"))
        .stderr(output)
        .process_group(0)
        .spawn()
        .expect("bash runs");
    let _leftovers = KillLeftovers(folder.path());
    let status = wait_for(PAGE_TIME, page, || child.try_wait().expect("bash is our child"));
    let logged = fs::read_to_string(&log).unwrap_or_default();
    assert!(status.success(), "{page}: {status}\n{logged}\n{}", logs_in(folder.path()));
    wait_for(CLEAN_UP, "everything that the page started has ended", || {
        processes::with_marker(folder.path()).is_empty().then_some(())
    });
}

/// The ends of what ran in the background.
fn logs_in(folder: &Path) -> String {
    let mut out = String::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("docs-") {
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            let tail: Vec<_> = text.lines().rev().take(20).collect();
            let _ = writeln!(out, "--- {name}");
            tail.iter().rev().for_each(|line| out.push_str(&format!("{line}\n")));
        }
    }
    out
}

/// Defines one test for each page, and the list of all of them.
macro_rules! pages {
    ($($test:ident: $page:literal;)*) => {
        const PAGES: &[&str] = &[$($page),*];

        $(
            #[test]
            fn $test() {
                run_page($page);
            }
        )*
    };
}

pages! {
    readme_runs_as_printed: "README.md";
    operators_page_runs_as_printed: "deploy/README.md";
    handbook_access_runs_as_printed: "deploy/handbook/access.md";
    handbook_agents_runs_as_printed: "deploy/handbook/agents.md";
    handbook_api_runs_as_printed: "deploy/handbook/api.md";
    handbook_automation_runs_as_printed: "deploy/handbook/automation.md";
    handbook_benchmarks_runs_as_printed: "deploy/handbook/benchmarks.md";
    handbook_fallback_runs_as_printed: "deploy/handbook/fallback.md";
    handbook_notifications_runs_as_printed: "deploy/handbook/notifications.md";
    handbook_operations_runs_as_printed: "deploy/handbook/operations.md";
    handbook_security_runs_as_printed: "deploy/handbook/security.md";
    handbook_tenants_runs_as_printed: "deploy/handbook/tenants.md";
    handbook_triggers_runs_as_printed: "deploy/handbook/triggers.md";
}

/// Every page for people, generated ones included.
fn all_pages() -> Vec<String> {
    let mut pages = vec!["README.md".to_owned(), "deploy/README.md".to_owned()];
    for entry in fs::read_dir(repository("deploy/handbook")).expect("the handbook") {
        let name = entry.expect("an entry").file_name().to_string_lossy().into_owned();
        pages.push(format!("deploy/handbook/{name}"));
    }
    pages.sort();
    pages
}

#[test]
fn every_page_with_command_blocks_has_a_test_and_skips_are_counted() {
    let mut skipped = Vec::new();
    for page in all_pages() {
        let source = fs::read_to_string(repository(&page)).expect("the page");
        let blocks = parse(&source).unwrap_or_else(|fault| panic!("{page}: {fault}"));
        let runs = blocks.iter().any(|block| !block.is_shown());
        assert!(!runs || PAGES.contains(&page.as_str()), "{page} has command blocks and no test");
        let of_page = blocks.iter().filter(|block| block.is_skipped());
        skipped.extend(of_page.map(|block| format!("{page}:{}: {}", block.line, block.instruction)));
    }
    assert_eq!(skipped.len(), SKIPPED, "{skipped:#?}");
}

#[test]
fn pages_stay_within_their_sizes() {
    let readme = fs::read_to_string(repository("README.md")).expect("the README");
    assert!(readme.len() <= 8 * 1024, "README.md has {} bytes, at most 8 KB", readme.len());
    for command in ["cargo run -- demo", "tests/run"] {
        assert!(readme.lines().take(24).any(|line| line == command), "`{command}` is on the first screen");
    }
    for page in PAGES.iter().filter(|page| page.starts_with("deploy/handbook/")) {
        let lines = fs::read_to_string(repository(page)).expect("the page").lines().count();
        assert!(lines <= 200, "{page} has {lines} lines, at most 200");
    }
}

#[test]
fn links_between_pages_lead_to_files() {
    let link = regex::Regex::new(r"\]\(([^)#\s]+)(?:#[^)]*)?\)").expect("a pattern");
    for page in all_pages() {
        let source = fs::read_to_string(repository(&page)).expect("the page");
        let folder = repository(&page).parent().expect("a folder").to_path_buf();
        for found in link.captures_iter(&source) {
            let target = &found[1];
            if !target.contains("://") && !target.starts_with('/') {
                assert!(folder.join(target).exists(), "{page} links to {target}");
            }
        }
    }
}

#[test]
fn breaks_of_the_conventions_are_found() {
    for (page, fault) in [
        ("```console\n$ x\n```\n", "blocks of `console` are not allowed"),
        ("```sh\nx\n", "a block without an end"),
        ("<!-- test: background -->\n\n```sh\nx\n```\n", "not directly above a block"),
        ("<!-- test: skip: no -->\n```sh\nx\n```\n", "a skip needs a reason"),
        ("<!-- test: sometimes -->\n```sh\nx\n```\n", "unknown instruction"),
        ("```toml\na = 1\n```\n", "need `file NAME`"),
        ("<!-- test: git -->\n```text\nx\n```\n", "takes no instruction"),
    ] {
        let found = parse(page).expect_err(page);
        assert!(found.contains(fault), "{found}");
    }
}
