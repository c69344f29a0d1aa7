use std::{process::Command, time::Duration};

use secrecy::ExposeSecret;
use serde_json::{Value, json};

use super::*;
use crate::{
    domain::automation::{
        plan::Plan,
        policy::AutomationSettings,
        saga::tests::plan,
        skip::WantedMode,
        step::{ChangedPath, Changes},
    },
    github::{
        AppOptions, Github, GithubLimits,
        stub::{Answering, Received, Stub},
    },
};

const NOW: Timestamp = Timestamp(1_790_000_000_000_000);

/// A GitHub with the App installed on these repositories, which mints tokens `t1`, `t2`, ….
async fn github(installed: &'static [(&'static str, u64)]) -> Stub {
    let mut minted = 0;
    Stub::start(move |request: &Received| {
        if request.target.ends_with("/access_tokens") {
            minted += 1;
            let expires_at = NOW.plus(Duration::from_secs(3600)).to_string();
            let permissions = request.json()["permissions"].clone();
            let token = json!({"token": format!("t{minted}"), "expires_at": expires_at, "permissions": permissions});
            return Answering::json(201, &token);
        }
        let granted = json!({"contents": "write", "issues": "write", "metadata": "read", "pull_requests": "write",
            "workflows": "write", "administration": "write"});
        let is_asked = |it: &&(&str, u64)| request.target == format!("/repos/{}/installation", it.0);
        match installed.iter().find(is_asked) {
            Some((_, id)) => Answering::json(200, &json!({"id": id, "permissions": granted})),
            None => Answering::json(404, &json!({"message": "Not Found"})),
        }
    })
    .await
}

/// Bodies of the requests for tokens.
fn minted(github: &Stub) -> Vec<Value> {
    github.received().iter().filter(|it| it.method == "POST").map(Received::json).collect()
}

fn credentials(github: &Stub, bound: &[(&str, u64)]) -> Credentials {
    let made = Command::new("openssl").args(["genrsa", "2048"]).output().unwrap();
    let private_key = SecretString::from(String::from_utf8(made.stdout).unwrap());
    let options = AppOptions { api_url: &github.url, app_id: "4711", private_key: &private_key };
    let app = App::new(Github::new(GithubLimits::default()), options).unwrap();
    Credentials::new(Some(Arc::new(app)), tenants(bound))
}

fn tenant(name: &str) -> InstallationId {
    name.parse().unwrap()
}

/// Tenants with bound installations.
fn tenants(bound: &[(&str, u64)]) -> Tenants {
    Tenants::of_tests(bound.iter().map(|(name, installation)| {
        let automation = AutomationSettings { installations: vec![*installation], ..AutomationSettings::default() };
        (tenant(name), TenantSettings { automation, ..TenantSettings::default() })
    }))
}

fn saga(repository: &str, mode: WantedMode) -> Saga {
    Saga::new(Plan { repository: repository.into(), mode, ..plan() }, NOW)
}

#[tokio::test]
async fn tenant_has_a_credential_once_an_installation_is_bound_to_it() {
    let without = Credentials::new(None, tenants(&[("acme", 77)]));
    assert_eq!(without.of_tenant(&tenant("acme")), Credential::Missing(None));
    let with = credentials(&github(&[]).await, &[("acme", 77)]);
    assert_eq!(with.of_tenant(&tenant("acme")), Credential::Present);
    assert_eq!(with.of_tenant(&tenant("other")), Credential::Missing(Some(SkipDetail::NoInstallation)));
}

#[tokio::test]
async fn installation_of_another_tenant_is_not_usable() {
    let github = github(&[("octo/hello", 77), ("evil/plan", 78)]).await;
    let credentials = credentials(&github, &[("acme", 77), ("evil", 78)]);
    let mint = async |name: &str, repository: &str| {
        let saga = saga(repository, WantedMode::Github);
        credentials.mint(&tenant(name), &saga, &github.url, NOW).await
    };
    let token = mint("acme", "octo/hello").await.unwrap();
    assert_eq!(token.installation.id, 77);
    // The token is cached by now.
    for (name, repository) in [("evil", "octo/hello"), ("acme", "evil/plan"), ("other", "octo/hello")] {
        let refused = mint(name, repository).await.unwrap_err();
        assert_eq!((refused.skip, refused.remedy), (Some(SkipDetail::NoInstallation), Remedy::Never), "{name}");
    }
    assert_eq!(minted(&github).len(), 1);
}

#[tokio::test]
async fn repository_of_another_host_gets_no_token_of_its_namesake() {
    let github = github(&[("octo/hello", 77)]).await;
    let credentials = credentials(&github, &[("acme", 77)]);
    for repository in ["https://gitlab.example/octo/hello", "octo", "git@evil.example:octo/hello.git"] {
        let saga = saga(repository, WantedMode::Github);
        let refused = credentials.mint(&tenant("acme"), &saga, &github.url, NOW).await.unwrap_err();
        assert_eq!(refused.skip, Some(SkipDetail::MissingRepository), "{repository}");
    }
    assert_eq!(github.received().len(), 0);
}

#[tokio::test]
async fn token_has_only_the_permissions_that_the_run_needs() {
    let github = github(&[("octo/hello", 77)]).await;
    let credentials = credentials(&github, &[("acme", 77)]);
    for (mode, path, expected) in [
        (WantedMode::Github, "a.txt", "contents issues metadata pull_requests"),
        (WantedMode::CommitOnly, "a.txt", "contents metadata"),
        (WantedMode::CommitOnly, ".github/workflows/ci.yml", "contents metadata workflows"),
    ] {
        let mut saga = saga("octo/hello", mode);
        saga.facts.changes = Some(Changes {
            parent: "1".repeat(40),
            tree: "2".repeat(40),
            files: vec![ChangedPath { path: path.into(), bytes: 1, is_deleted: false }],
            total: 1,
            ignored: 0,
            summary: None,
            base_branch: None,
            findings: Vec::new(),
            api_obstacle: None,
            unsafe_paths: Vec::new(),
            omitted: Vec::new(),
            omitted_total: 0,
        });
        credentials.mint(&tenant("acme"), &saga, &github.url, NOW).await.unwrap();
        let body = minted(&github).pop().unwrap();
        let names: Vec<_> = body["permissions"].as_object().unwrap().keys().cloned().collect();
        assert_eq!(names.join(" "), expected);
        assert_eq!(body["repositories"], json!(["hello"]));
    }
}

#[tokio::test]
async fn invalidated_token_is_minted_again() {
    let github = github(&[("octo/hello", 77)]).await;
    let credentials = credentials(&github, &[("acme", 77)]);
    let saga = saga("octo/hello", WantedMode::Github);
    let mint = async || credentials.mint(&tenant("acme"), &saga, &github.url, NOW).await.unwrap().token;
    let first = mint().await;
    assert_eq!(mint().await.expose_secret(), first.expose_secret());
    credentials.invalidate(&first);
    assert_ne!(mint().await.expose_secret(), first.expose_secret());
}
