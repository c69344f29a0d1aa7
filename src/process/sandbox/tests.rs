//! Jails of this kernel around small programs. The attacks are in `tests/it/jail.rs`.

use std::time::{Duration, Instant};

use super::*;
use crate::process::{
    group::{self, GroupCommand, Streams},
    limits::Limits,
};

struct Stage {
    base: tempfile::TempDir,
    sandbox: Sandbox,
}

impl Stage {
    fn new() -> Self {
        let base = tempfile::tempdir().unwrap();
        for name in ["root/ws", "home/.cargo/registry", "home/.ssh"] {
            fs::create_dir_all(base.path().join(name)).unwrap();
        }
        let sandbox = Sandbox::for_tests(&base.path().join("root"));
        Self { base, sandbox }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.base.path().canonicalize().unwrap().join(name)
    }

    fn plan(&self, settings: JailSettings, command: &[&str]) -> (Arc<AgentPlan>, Vec<String>) {
        let home = self.path("home").display().to_string();
        let environment = [("PATH".to_owned(), "/usr/bin:/bin".into()), ("HOME".to_owned(), home.into())].into();
        let command: Vec<_> = command.iter().map(|&word| word.to_owned()).collect();
        (Arc::new(AgentPlan::new(settings, &command, environment, false)), command)
    }

    fn jail(&self, settings: JailSettings, command: &[&str]) -> (Confinement, Arc<Enforcement>) {
        let (plan, command) = self.plan(settings, command);
        let confinement = self.sandbox.confine(&plan, &command, "tenant", None).unwrap();
        let jail = Arc::new(confinement.enforcement(&[self.path("root/ws")]).unwrap());
        (confinement, jail)
    }

    /// The paths below the base that a rule names, with their access.
    fn rules(&self, settings: JailSettings, command: &[&str]) -> Vec<(String, Access)> {
        let (confinement, _) = self.jail(settings, command);
        let base = self.path("");
        let below = |rule: &Rule| Some((rule.path.strip_prefix(&base).ok()?.display().to_string(), rule.access));
        confinement.rules.iter().filter_map(below).collect()
    }
}

#[test]
fn shared_home_is_readable_and_writable_where_preset_and_settings_say() {
    let stage = Stage::new();
    let write = vec![stage.path("home/project")];
    fs::create_dir_all(&write[0]).unwrap();
    let settings = JailSettings { write, ..JailSettings::default() };
    let rules = stage.rules(settings, &["goose", "acp"]);
    assert!(rules.contains(&("home".into(), Access::Read)), "{rules:?}");
    for name in ["home/.config/goose", "home/.local/share/goose", "home/.local/state/goose", "home/project"] {
        assert!(rules.contains(&(name.into(), Access::Write)), "{name}: {rules:?}");
    }
    assert!(!rules.iter().any(|(path, _)| path.contains(".ssh") || path.starts_with("root")), "{rules:?}");
}

#[test]
fn private_home_is_writable_as_a_whole_and_that_of_the_user_is_hidden() {
    let stage = Stage::new();
    let settings = JailSettings { private_homes: PrivateHomes::Always, ..JailSettings::default() };
    let rules = stage.rules(settings, &["goose", "acp"]);
    let [(home, Access::Write)] = &rules[..] else { panic!("one rule: {rules:?}") };
    assert!(home.starts_with("root/.homes/"));
    assert!(!stage.path("home/.config").exists(), "nothing is made in the HOME of the user");
}

#[test]
fn state_folder_that_is_a_link_extends_no_right() {
    let stage = Stage::new();
    std::os::unix::fs::symlink(stage.path("home/.ssh"), stage.path("home/.codex")).unwrap();
    let rules = stage.rules(JailSettings::default(), &["codex-acp"]);
    assert!(!rules.iter().any(|(path, access)| path.contains(".ssh") && *access == Access::Write), "{rules:?}");
}

#[tokio::test]
async fn cost_of_a_jailed_start_is_measured() {
    const STARTS: usize = 30;
    let stage = Stage::new();
    let (plan, words) = stage.plan(JailSettings::default(), &["/bin/true"]);
    let mut making = Vec::new();
    let mut starts = [Vec::new(), Vec::new()];
    for _ in 0..STARTS {
        for (is_jailed, times) in [false, true].into_iter().zip(&mut starts) {
            let begun = Instant::now();
            let confinement = stage.sandbox.confine(&plan, &words, "tenant", None).unwrap();
            let jail = confinement.enforcement(&[stage.path("root/ws")]).unwrap();
            if is_jailed {
                making.push(begun.elapsed());
            }
            let begun = if is_jailed { begun } else { Instant::now() };
            let command = GroupCommand {
                program: "/bin/true".into(),
                args: Vec::new(),
                env: vec![("PATH".into(), "/usr/bin:/bin".into())],
                cwd: stage.path("root/ws"),
                run_as: None,
                kill_grace: Duration::from_millis(100),
                streams: Streams::Output,
                jail: is_jailed.then(|| Arc::new(jail)),
                limits: Limits::default(),
            };
            let mut spawned = group::spawn(command, confinement).await.unwrap();
            assert_eq!(spawned.exit.wait().await.exit_code, Some(0));
            times.push(begun.elapsed());
        }
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort();
        times[times.len() / 2]
    };
    let [plain, jailed] = &mut starts;
    println!(
        "jail made in {:?}; start to end of a program: {:?} plain, {:?} jailed (medians of {STARTS}, {} rules)",
        median(&mut making),
        median(plain),
        median(jailed),
        stage.jail(JailSettings::default(), &["/bin/true"]).0.rules.len()
    );
}
