//! Keys of sessions: one session for each key of a tenant, for 24 hours.

use uuid::Uuid;

use super::fixture::*;
use crate::{
    domain::{
        ids::{InstallationId, SessionId},
        redaction::RedactedJson,
        retention::IDEMPOTENCY_PERIOD,
    },
    store::{NewSession, SessionKey, StoreError},
};

fn session_key(key: &str, body: &str) -> SessionKey {
    let answer = RedactedJson::of(&serde_json::json!({"answer": body}));
    SessionKey { key: key.into(), body_hash: body.into(), answer }
}

both_databases! {
    async fn key_opens_one_session_of_its_tenant_for_24_hours(database: TestDatabase) {
        let store = database.open();
        let (acme, other): (InstallationId, InstallationId) = ("acme".parse().unwrap(), "other".parse().unwrap());
        let first = new_session(5);
        let tenant = first.key.installation_id.clone();
        assert_eq!(tenant, acme);
        store.create_session_with(first.clone(), None, Some(session_key("k", "one"))).await.unwrap();
        let found = store.opened_with_key(acme.clone(), "k".into(), at(6)).await.unwrap().unwrap();
        assert_eq!(found.session_id, first.session_id.to_string());
        assert_eq!((found.body_hash.as_str(), found.answer.as_str()), ("one", "{\"answer\":\"one\"}"));
        assert_eq!(store.opened_with_key(other.clone(), "k".into(), at(6)).await, Ok(None));
        assert_eq!(store.opened_with_key(acme.clone(), "K".into(), at(6)).await, Ok(None));

        // A second session with the key is not created at all.
        let second = new_session(7);
        let refused = store.create_session_with(second.clone(), None, Some(session_key("k", "two"))).await;
        assert!(matches!(refused, Err(StoreError::Conflict(_))), "{refused:?}");
        assert!(store.session(second.session_id).await.unwrap().is_none());

        // Only the holder of a key releases it.
        let holder = first.session_id;
        for (releases, is_free) in [(second.session_id, false), (holder, true)] {
            store.try_release_key(&acme, "k".into(), releases).unwrap();
            // Written behind the release.
            store.create_session(new_session(8)).await.unwrap();
            let found = store.opened_with_key(acme.clone(), "k".into(), at(6)).await.unwrap();
            assert_eq!(found.is_none(), is_free);
        }
        let again = NewSession { session_id: SessionId(Uuid::now_v7()), ..first.clone() };
        store.create_session_with(again, None, Some(session_key("k", "one"))).await.unwrap();

        let key = key("other", "web");
        let workspace = Some(new_workspace(&key, 8));
        let foreign = NewSession { key, workspace, ..new_session(8) };
        store.create_session_with(foreign, None, Some(session_key("k", "three"))).await.unwrap();
        assert!(store.opened_with_key(other, "k".into(), at(9)).await.unwrap().is_some());

        let later = at(5).plus(IDEMPOTENCY_PERIOD);
        assert_eq!(store.opened_with_key(acme.clone(), "k".into(), later).await, Ok(None), "it has expired");
        let third = NewSession { now: later, ..new_session(0) };
        store.create_session_with(third.clone(), None, Some(session_key("k", "four"))).await.unwrap();
        let found = store.opened_with_key(acme, "k".into(), later).await.unwrap().unwrap();
        assert_eq!(found.session_id, third.session_id.to_string());
    }
}
