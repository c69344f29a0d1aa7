use secrecy::ExposeSecret;
use serde_json::json;

use super::*;
use crate::github::stand_in::{NOW, StandIn, private_key};

const ALL: Scope = Scope { issues: true, pull_requests: true, workflows: false };

fn repository(name: &str) -> RepositoryName {
    RepositoryName::parse(name).unwrap()
}

#[tokio::test]
async fn token_is_minted_for_one_repository_with_the_least_permissions() {
    let github = StandIn::start(&[("octo/hello", 77)]).await;
    let app = github.app();
    let hello = repository("octo/hello");
    let token = app.token(&hello, ALL, |id| id == 77, NOW).await.unwrap();
    assert_eq!((token.installation.id, token.installation.slug.as_deref()), (77, Some("lumi-test")));
    let pushes_alone = Scope { issues: false, pull_requests: false, workflows: true };
    app.token(&hello, pushes_alone, |_| true, NOW).await.unwrap();
    let minted = github.minted();
    let all = json!({"contents": "write", "issues": "write", "metadata": "read", "pull_requests": "write"});
    assert_eq!(minted[0], (77, json!({"permissions": all, "repositories": ["hello"]})));
    assert_eq!(minted[1].1["permissions"], json!({"contents": "write", "metadata": "read", "workflows": "write"}));
    assert!(!format!("{app:?} {token:?}").contains("ghs_"));
}

#[tokio::test]
async fn token_is_cached_until_five_minutes_before_its_expiry() {
    let github = StandIn::start(&[("octo/hello", 77)]).await;
    let app = github.app();
    let hello = repository("octo/hello");
    let first = app.token(&hello, ALL, |_| true, NOW).await.unwrap();
    for (minutes, count) in [(54, 1), (56, 2)] {
        let now = NOW.plus(Duration::from_secs(minutes * 60));
        app.token(&repository("Octo/Hello"), ALL, |_| true, now).await.unwrap();
        assert_eq!(github.minted().len(), count, "after {minutes} minutes");
    }
    assert_eq!(first.expires_at, NOW.plus(TOKEN_LIFE));
}

#[tokio::test]
async fn token_of_an_unbound_installation_is_neither_minted_nor_taken_from_the_cache() {
    let github = StandIn::start(&[("octo/hello", 77)]).await;
    let app = github.app();
    let hello = repository("octo/hello");
    let refused = app.token(&hello, ALL, |_| false, NOW).await.unwrap_err();
    assert_eq!((refused.skip, refused.remedy), (Some(SkipDetail::NoInstallation), Remedy::Never));
    assert_eq!(github.minted(), []);
    app.token(&hello, ALL, |_| true, NOW).await.unwrap();
    let from_cache = app.token(&hello, ALL, |_| false, NOW).await.unwrap_err();
    // A tenant learns nothing about repositories of another.
    assert_eq!(from_cache, refused);
    let absent = app.token(&repository("octo/absent"), ALL, |_| true, NOW).await.unwrap_err();
    assert_eq!(absent.message.replace("absent", "hello"), refused.message);
}

#[tokio::test]
async fn refused_token_is_dropped_and_its_successor_stays() {
    let github = StandIn::start(&[("octo/hello", 77)]).await;
    let app = github.app();
    let hello = repository("octo/hello");
    let old = app.token(&hello, ALL, |_| true, NOW).await.unwrap().token;
    app.invalidate(&old);
    let new = app.token(&hello, ALL, |_| true, NOW).await.unwrap().token;
    assert_ne!(old.expose_secret(), new.expose_secret());
    // Another run reports the old one late.
    app.invalidate(&old);
    let again = app.token(&hello, ALL, |_| true, NOW).await.unwrap().token;
    assert_eq!(again.expose_secret(), new.expose_secret());
    assert_eq!(github.minted().len(), 2);
}

#[tokio::test]
async fn runs_of_one_repository_at_once_share_a_token() {
    let github = StandIn::start(&[("octo/hello", 77)]).await;
    let app = github.app();
    let hello = repository("octo/hello");
    let both = tokio::join!(app.token(&hello, ALL, |_| true, NOW), app.token(&hello, ALL, |_| true, NOW));
    assert!(both.0.is_ok() && both.1.is_ok());
    assert_eq!(github.minted().len(), 1);
}

#[test]
fn key_or_address_that_cannot_be_used_is_refused_by_name() {
    let of = |api_url, private_key: &SecretString| {
        let options = AppOptions { api_url, app_id: "1", private_key };
        App::new(Github::new(crate::github::GithubLimits::default()), options).err().map(|cause| cause.to_string())
    };
    let key = private_key();
    assert_eq!(of("https://api.github.com", &key), None);
    assert!(of("http://api.github.com", &key).unwrap().contains("https://"));
    let whole = key.expose_secret();
    let cut = format!("{}\n-----END RSA PRIVATE KEY-----\n", &whole[..whole.len() / 2]);
    for bad in ["x", "-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----", &cut] {
        let refused = of("https://api.github.com", &SecretString::from(bad)).unwrap();
        assert!(refused.starts_with("the private key"), "{refused}");
    }
}
