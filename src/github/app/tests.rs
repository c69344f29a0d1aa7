use std::sync::{Arc, LazyLock};

use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der},
    rsa::{KeyPair, KeySize},
    signature::KeyPair as _,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use jsonwebtoken::{DecodingKey, Validation, decode};

use super::*;
use crate::github::{
    GithubLimits,
    stub::{Answering, Received, Stub},
};

const NOW: Timestamp = Timestamp(1_800_000_000_000_000);

/// A key as PEM, and the public part as DER. Made once, since that is slow.
static KEY: LazyLock<(SecretString, Vec<u8>)> = LazyLock::new(|| {
    let pair = KeyPair::generate(KeySize::Rsa2048).unwrap();
    let der: Pkcs8V1Der<'_> = pair.as_der().unwrap();
    let lines: Vec<_> = STANDARD.encode(der.as_ref()).as_bytes().chunks(64).map(<[u8]>::to_vec).collect();
    let body = String::from_utf8(lines.join(&b'\n')).unwrap();
    // In two parts, so that no scanner takes the test for a key.
    let name = ["PRIVATE", "KEY"].join(" ");
    let pem = format!("-----BEGIN {name}-----\n{body}\n-----END {name}-----\n");
    (pem.into(), pair.public_key().as_ref().to_vec())
});

fn app(stub: &Stub) -> App {
    let options = AppOptions { api_url: &stub.url, app_id: "Iv1.0123", private_key: &KEY.0 };
    App::new(Github::new(GithubLimits::default()), options).unwrap()
}

fn hello() -> RepositoryName {
    RepositoryName::parse("octo/hello").unwrap()
}

const SCOPE: Scope = Scope { issues: true, pull_requests: true, workflows: false };

/// An installation that grants these permissions, and mints tokens `t1`, `t2`, …
async fn github(granted: Value) -> Stub {
    let mut minted = 0;
    Stub::start(move |request: &Received| {
        if request.target == "/repos/octo/hello/installation" {
            return Answering::json(200, &json!({"id": 7, "app_slug": "lumi", "permissions": granted}));
        }
        if request.target != "/app/installations/7/access_tokens" {
            return Answering::json(404, &json!({"message": "Not Found"}));
        }
        minted += 1;
        let expires_at = NOW.plus(Duration::from_secs(3600)).to_string();
        let permissions = request.json()["permissions"].clone();
        let token = json!({"token": format!("t{minted}"), "expires_at": expires_at, "permissions": permissions});
        Answering::json(201, &token)
    })
    .await
}

fn granted_all() -> Value {
    json!({"contents": "write", "issues": "write", "pull_requests": "write", "metadata": "read", "workflows": "write"})
}

async fn token(app: &App, now: Timestamp) -> Result<String, StepFailure> {
    let token = app.token(&hello(), SCOPE, |id| id == 7, now).await?;
    Ok(token.token.expose_secret().to_owned())
}

#[tokio::test]
async fn app_identifies_itself_for_less_than_ten_minutes_and_asks_for_least_permissions() {
    let stub = github(granted_all()).await;
    let minted = app(&stub).token(&hello(), SCOPE, |id| id == 7, NOW).await.unwrap();
    assert_eq!((minted.installation.id, minted.installation.slug.as_deref()), (7, Some("lumi")));
    assert_eq!(minted.expires_at, NOW.plus(Duration::from_secs(3600)));
    let [lookup, mint] = &stub.received()[..] else { panic!("{:?}", stub.received()) };
    let mut validation = Validation::new(Algorithm::RS256);
    validation.validate_exp = false;
    let identity = lookup.header("authorization").strip_prefix("Bearer ").unwrap();
    let claims = decode::<Value>(identity, &DecodingKey::from_rsa_der(&KEY.1), &validation).unwrap().claims;
    assert_eq!(claims, json!({"iss": "Iv1.0123", "iat": 1_800_000_000 - 60, "exp": 1_800_000_000 + 480}));
    assert_eq!((mint.method.as_str(), mint.target.as_str()), ("POST", "/app/installations/7/access_tokens"));
    let permissions = json!({"contents": "write", "issues": "write", "pull_requests": "write", "metadata": "read"});
    assert_eq!(mint.json(), json!({"repositories": ["hello"], "permissions": permissions}));
}

#[tokio::test]
async fn state_of_checks_is_readable_only_where_the_installation_grants_it() {
    let mut granted = granted_all();
    granted["actions"] = json!("write");
    let stub = github(granted).await;
    app(&stub).token(&hello(), SCOPE, |id| id == 7, NOW).await.unwrap();
    assert_eq!(stub.received()[1].json()["permissions"]["actions"], "read");
}

#[tokio::test]
async fn token_is_cached_until_five_minutes_before_expiry_and_minted_again_after_a_401() {
    let stub = github(granted_all()).await;
    let app = app(&stub);
    assert_eq!(token(&app, NOW).await.unwrap(), "t1");
    assert_eq!(token(&app, NOW.plus(Duration::from_secs(54 * 60))).await.unwrap(), "t1");
    assert_eq!(token(&app, NOW.plus(Duration::from_secs(55 * 60))).await.unwrap(), "t2");
    app.invalidate(&SecretString::from("t1"));
    assert_eq!(token(&app, NOW).await.unwrap(), "t2", "the refused token was replaced meanwhile");
    app.invalidate(&SecretString::from("t2"));
    assert_eq!(token(&app, NOW).await.unwrap(), "t3");
    let issues = Scope { pull_requests: false, ..SCOPE };
    let other = app.token(&hello(), issues, |_| true, NOW).await.unwrap();
    assert_eq!(other.token.expose_secret(), "t4", "other permissions have a token of their own");
}

#[tokio::test]
async fn many_callers_at_once_mint_one_token() {
    let stub = github(granted_all()).await;
    let app = Arc::new(app(&stub));
    let calls = (0..20).map(|_| {
        let app = app.clone();
        tokio::spawn(async move { token(&app, NOW).await.unwrap() })
    });
    for call in calls.collect::<Vec<_>>() {
        assert_eq!(call.await.unwrap(), "t1");
    }
    assert_eq!(stub.received().len(), 2);
}

#[tokio::test]
async fn installation_of_another_tenant_mints_nothing_and_looks_like_a_missing_one() {
    let stub = github(granted_all()).await;
    let app = app(&stub);
    let refused = |repository: &'static str, bound: u64| {
        let name = RepositoryName::parse(repository).unwrap();
        let app = &app;
        async move { app.token(&name, SCOPE, |id| id == bound, NOW).await.unwrap_err() }
    };
    let foreign = refused("octo/hello", 8).await;
    assert_eq!((foreign.skip, foreign.remedy), (Some(SkipDetail::NoInstallation), Remedy::Never));
    assert_eq!(stub.count("POST", "/"), 0);
    let missing = refused("octo/other", 8).await;
    assert_eq!(missing.message.replace("octo/other", "octo/hello"), foreign.message);
    token(&app, NOW).await.unwrap();
    assert_eq!(refused("octo/hello", 8).await, foreign, "a cached token is not for another tenant");
    assert_eq!(stub.count("POST", "/"), 1);
}

#[tokio::test]
async fn permission_that_is_not_granted_is_omitted_and_asked_for_again_once_granted() {
    let stub =
        github(json!({"contents": "write", "issues": "read", "pull_requests": "write", "metadata": "read"})).await;
    let app = app(&stub);
    let all = Scope { workflows: true, ..SCOPE };
    let minted = app.token(&hello(), all, |_| true, NOW).await.unwrap();
    let permissions: Vec<_> = minted.installation.permissions.keys().cloned().collect();
    assert_eq!(permissions, ["contents", "metadata", "pull_requests"]);
    let again = app.token(&hello(), all, |_| true, NOW).await.unwrap();
    assert_eq!(again.token.expose_secret(), "t2", "a token with less than was wanted is not cached");
    let stub = github(json!({"contents": "read", "metadata": "read"})).await;
    let failure = self::app(&stub).token(&hello(), all, |_| true, NOW).await.unwrap_err();
    assert_eq!((failure.skip, stub.count("POST", "/")), (Some(SkipDetail::TokenRefused), 0));
    assert!(failure.message.contains("contents=write"), "{}", failure.message);
}

#[tokio::test]
async fn renamed_repository_is_named_by_its_id() {
    let stub = Stub::start(|request: &Received| match request.target.as_str() {
        "/repos/octo/hello/installation" => {
            Answering::Whole(301, vec!["Location: /repositories/99/installation".into()], "{}".into())
        }
        "/repositories/99/installation" => Answering::json(200, &json!({"id": 7})),
        _ => Answering::json(201, &json!({"token": "t"})),
    })
    .await;
    let minted = app(&stub).token(&hello(), SCOPE, |_| true, NOW).await.unwrap();
    assert_eq!(stub.received()[2].json()["repository_ids"], json!([99]));
    assert_eq!(minted.expires_at, NOW.plus(TOKEN_LIFE));
    assert!(minted.installation.permissions.contains_key("contents"));
}

#[tokio::test]
async fn refusals_of_the_app_itself_are_not_those_of_a_token() {
    let failure = |status: u16, body: Value| async move {
        let stub = Stub::start(move |_| Answering::json(status, &body)).await;
        (app(&stub).token(&hello(), SCOPE, |_| true, NOW).await.unwrap_err(), stub.received().len())
    };
    let (wrong, _) = failure(401, json!({"message": "A JSON web token could not be decoded"})).await;
    assert_eq!((wrong.skip, wrong.remedy), (Some(SkipDetail::TokenRefused), Remedy::Never));
    assert!(wrong.message.contains("Check app_id"), "{}", wrong.message);
    let (down, requests) = failure(503, json!({})).await;
    assert_eq!((down.code.as_str(), down.remedy, requests), ("github-unavailable", Remedy::Later, 3));
    let (suspended, requests) = failure(200, json!({"id": 7, "suspended_at": "2026-01-01T00:00:00Z"})).await;
    assert_eq!((suspended.skip, requests), (Some(SkipDetail::NoInstallation), 1));
}

#[tokio::test]
async fn app_shows_no_key_and_refuses_one_that_is_malformed() {
    let stub = github(granted_all()).await;
    let shown = format!("{:?}", app(&stub));
    assert!(shown.contains("Iv1.0123") && !shown.contains("BEGIN"), "{shown}");
    let github = || Github::new(GithubLimits::default());
    for key in ["", "secret", "-----BEGIN X-----\nAAAA\n-----END X-----"] {
        let private_key = SecretString::from(key);
        let options = AppOptions { api_url: &stub.url, app_id: "1", private_key: &private_key };
        assert!(App::new(github(), options).unwrap_err().to_string().starts_with("the private key"), "{key}");
    }
    let options = AppOptions { api_url: "http://api.example.org", app_id: "1", private_key: &KEY.0 };
    assert_eq!(
        App::new(github(), options).unwrap_err().to_string(),
        "the address of the API must begin with https://"
    );
}
