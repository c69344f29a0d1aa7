//! Agents with users of their own (`agent.run_as`): what is read for an agent, and who owns a workspace. Everything here
//! needs root.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::Path,
};

use crate::harness::{Answer, Program, Session, json, lumilink, program::Folder};

const CANARY: &str = "canary-0b6e4f1d";

fn is_root() -> bool {
    // SAFETY: geteuid(2) has no preconditions.
    let is_root = unsafe { libc::geteuid() == 0 };
    if !is_root {
        eprintln!("NOT CHECKED: `run_as` needs root");
    }
    is_root
}

fn open(program: &Program, tenant: &str) -> Session {
    program.api.open_with(json!({"workspaceId": format!("of-{tenant}"), "installationId": tenant}))
}

fn uid(session: &Session) -> u32 {
    let text = session.says("run id -u");
    text.split_whitespace().find_map(|word| word.parse().ok()).unwrap_or_else(|| panic!("a user: {text}"))
}

/// A file of root that others cannot read.
fn make_secret(path: &Path) {
    fs::write(path, format!("{CANARY}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn tenants_of_a_pool_have_users_of_their_own_that_divide_them_without_a_jail() {
    if !is_root() {
        return;
    }
    let settings = |program: crate::harness::program::Builder| {
        program.set("agent.run_as", "pool:70000-70009").set("agent.jail", "off")
    };
    let folder = Folder::new();
    let program = settings(Program::builder().folder(&folder)).start();
    let (ann, again, bob) = (open(&program, "ann"), open(&program, "ann"), open(&program, "bob"));
    let (of_ann, of_bob) = (uid(&ann), uid(&bob));
    assert_eq!(uid(&again), of_ann);
    assert!((70000..70010).contains(&of_ann) && (70000..70010).contains(&of_bob) && of_ann != of_bob);
    ann.completes(&format!("write secret {CANARY}"));
    assert_eq!(fs::metadata(ann.path().join("secret")).unwrap().uid(), of_ann);
    let home = ann.says("env HOME");
    assert!(ann.says(&format!("run sh -c 'echo {CANARY} > $HOME/.history && echo kept'")).contains("kept"));
    let attack = format!("run cat {0}/secret; ls {0}; touch {0}/forged; cat {home}/.history", ann.path().display());
    let text = bob.says(&attack);
    assert!(!text.contains(CANARY) && text.matches("Permission denied").count() == 4, "{text}");
    program.stop();
    // The record is on disk.
    let program = settings(Program::builder().folder(&folder)).start();
    let (eve, bob, ann) = (open(&program, "eve"), open(&program, "bob"), open(&program, "ann"));
    assert_eq!((uid(&ann), uid(&bob)), (of_ann, of_bob));
    assert!(![of_ann, of_bob].contains(&uid(&eve)));
    assert!(ann.says("read secret").contains(CANARY));
}

#[test]
fn tenant_for_which_the_pool_has_no_user_is_answered_503() {
    if !is_root() {
        return;
    }
    let program = Program::builder().set("agent.run_as", "pool:70000-70000").start();
    let ann = open(&program, "ann");
    let body = json!({"workspaceId": "ws", "installationId": "bob"});
    let problem = program.api.post("/acp/session/new", body).problem(503, "capacity_exhausted");
    assert!(problem.to_string().contains("pool:70000-70000"), "{problem}");
    assert_eq!(uid(&ann), 70000);
}

#[test]
fn file_of_root_in_a_workspace_is_not_read_for_an_agent() {
    if !is_root() {
        return;
    }
    let program = Program::builder().set("agent.run_as", "nobody").start();
    let session = program.api.open("ws");
    session.completes("write made of-the-agent");
    make_secret(&session.path().join("secret"));
    symlink("secret", session.path().join("link")).unwrap();
    for prompt in ["read secret", "read link", "run cat secret", "run cat link", "write secret x", "write link x"] {
        let answer = session.prompt(prompt);
        assert!(
            !answer.text.contains(CANARY) && answer.text.contains("ermission denied"),
            "{prompt}: {}",
            answer.text
        );
    }
    assert_eq!(fs::read_to_string(session.path().join("secret")).unwrap().trim(), CANARY);
    let diff = session.get("/diff").expect(200);
    assert!(diff.to_string().contains("of-the-agent"), "the rest is compared: {diff}");
    assert!(!diff.to_string().contains(CANARY), "{diff}");
}

#[test]
fn file_of_root_in_a_folder_given_by_path_is_not_in_its_baseline() {
    if !is_root() {
        return;
    }
    let project = Folder::new();
    fs::set_permissions(project.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let secret = project.path().join("secret");
    make_secret(&secret);
    fs::write(project.path().join("old"), "x").unwrap();
    fs::set_permissions(project.path().join("old"), fs::Permissions::from_mode(0o644)).unwrap();
    let allow = json!([project.path()]);
    let program = Program::builder().set("agent.run_as", "nobody").set("workspaces.allow_paths", allow).start();
    let body = json!({"workspaceId": "ws", "installationId": "tenant-1", "path": project.path()});
    let session = program.api.open_with(body);
    let files = |diff: Answer| {
        let diff = diff.expect(200);
        let files = diff["files"].as_array().expect("files").iter();
        files.map(|file| format!("{} {}", file["path"].as_str().unwrap(), file["status"].as_str().unwrap())).collect()
    };
    let changed: Vec<String> = files(session.get("/diff"));
    assert!(changed.is_empty(), "{changed:?}");
    // A file of the baseline would be unchanged.
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o644)).unwrap();
    let changed: Vec<String> = files(session.get("/diff"));
    assert_eq!(changed, ["secret added"]);
    assert_eq!(fs::metadata(&secret).unwrap().uid(), 0, "the folder keeps its owner");
}

#[test]
fn workspace_of_another_user_is_answered_409_while_its_agent_swaps_links() {
    if !is_root() {
        return;
    }
    let outside = Folder::new();
    fs::write(outside.path().join("file"), "x").unwrap();
    let folder = Folder::new();
    let script = folder.path().join("swap.py");
    let swap = "import ctypes, os, sys\n\
         libc = ctypes.CDLL(None)\n\
         for n in range(8):\n\
         \x20   os.mkdir(str(n)); os.symlink(sys.argv[1], f'{n}.link')\n\
         \x20   if os.fork() == 0:\n\
         \x20       while True: libc.renameat2(-100, str(n).encode(), -100, f'{n}.link'.encode(), 2)\n\
         open('ready', 'w').close()\n";
    fs::write(&script, swap).unwrap();
    let agent = format!(
        "if [ -e swaps ]; then python3 {} {}; fi; exec {} demo-agent",
        script.display(),
        outside.path().display(),
        lumilink()
    );
    let toml = format!(
        "[agent]\ncommand = {}\nrun_as = \"nobody\"\n[agents.second]\ncommand = {}\nrun_as = \"daemon\"\n",
        json!(["sh", "-c", agent]),
        crate::harness::demo_agent(&[])
    );
    let program = Program::builder().folder(&folder).config(&toml).start();
    let first = program.api.open("ws");
    first.completes("write swaps now");
    first.post("close", json!({})).expect(200);
    let first = program.api.open("ws");
    assert!(first.path().join("ready").exists());
    let body = json!({"workspaceId": "ws", "installationId": "tenant-1", "agent": "second"});
    for _ in 0..8 {
        let problem = program.api.post("/acp/session/new", body.clone()).problem(409, "workspace_owner");
        assert!(problem.to_string().contains("runs as user"), "{problem}");
        for path in [outside.path(), &outside.path().join("file")] {
            assert_eq!(fs::metadata(path).unwrap().uid(), 0, "{}", path.display());
        }
    }
    let nobody = fs::metadata(first.path()).unwrap().uid();
    assert_eq!(uid(&first), nobody);
}

#[test]
fn git_of_a_diff_runs_in_a_jail_as_the_user_of_the_agent() {
    if !is_root() {
        return;
    }
    let folder = Folder::new();
    let programs = Folder::new();
    let git = programs.path().join("git");
    let token = folder.path().join("data/token");
    let report = "echo \"user=$(id -u) groups=$(id -G) $(grep NoNewPrivs /proc/self/status) $(grep CapEff /proc/self/status)\" >&2";
    let script = format!(
        "#!/bin/sh\n{report}\n/bin/cat {} >&2\nls {} >&2\nexit 1\n",
        token.display(),
        folder.path().display()
    );
    fs::write(&git, script).unwrap();
    fs::set_permissions(&git, fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(programs.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:/usr/local/bin:/usr/bin:/bin", programs.path().display());
    let program =
        Program::builder().folder(&folder).env("PATH", &path).set("agent.run_as", "pool:70000-70009").start();
    let session = program.api.open("ws");
    let problem = session.get("/diff").problem(422, "workspace_unreadable").to_string();
    let expected =
        ["user=70000 groups=70000", "NoNewPrivs: 1", "CapEff: 0000000000000000", "token: Permission denied"];
    for text in expected {
        assert!(problem.contains(text), "{text}: {problem}");
    }
    assert_eq!(problem.matches("Permission denied").count(), 2, "{problem}");
}
