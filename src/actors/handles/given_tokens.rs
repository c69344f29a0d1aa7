//! GitHub tokens that callers gave with their sessions. They are kept in memory only, as long as this process lives.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use secrecy::SecretString;
use uuid::Uuid;

use crate::domain::ids::SessionId;

/// Sessions whose tokens are kept, of at most 4 KiB each.
const MAX_SESSIONS: usize = 4096;

/// The tokens of sessions, live or not, by the ids of the sessions, which begin with their time. When it is full, that of
/// the oldest session is dropped; its turns need a token of their own then. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct GivenTokens(Arc<Mutex<BTreeMap<Uuid, SecretString>>>);

impl GivenTokens {
    pub(crate) fn keep(&self, id: SessionId, token: SecretString) {
        let mut tokens = self.0.lock();
        tokens.insert(id.0, token);
        if tokens.len() > MAX_SESSIONS {
            tokens.pop_first();
        }
    }

    pub(crate) fn of(&self, id: SessionId) -> Option<SecretString> {
        self.0.lock().get(&id.0).cloned()
    }

    /// Drops the token of a session that has ended.
    pub(crate) fn drop_of(&self, id: SessionId) {
        self.0.lock().remove(&id.0);
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn token_of_the_oldest_session_is_dropped_when_too_many_are_kept() {
        let tokens = GivenTokens::default();
        let id = |number: usize| SessionId(Uuid::from_u128(number as u128));
        (0..=MAX_SESSIONS).for_each(|number| tokens.keep(id(number), format!("token-{number}").into()));
        assert!(tokens.of(id(0)).is_none());
        assert_eq!(tokens.of(id(1)).unwrap().expose_secret(), "token-1");
        tokens.drop_of(id(1));
        assert!(tokens.of(id(1)).is_none());
    }
}
