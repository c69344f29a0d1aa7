//! GitHub tokens that callers gave with their sessions and prompts. They are kept in memory only, as long as this process
//! lives.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use secrecy::SecretString;
use uuid::Uuid;

/// Tokens that are kept, of at most 4 KiB each.
const MAX_TOKENS: usize = 4096;

/// The tokens of sessions, and of runs of automation that may be tried again, by their ids, which begin with their time.
/// When it is full, the oldest is dropped; what it belongs to needs a token of its own then. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct GivenTokens(Arc<Mutex<BTreeMap<Uuid, SecretString>>>);

impl GivenTokens {
    pub(crate) fn keep(&self, id: Uuid, token: SecretString) {
        let mut tokens = self.0.lock();
        tokens.insert(id, token);
        if tokens.len() > MAX_TOKENS {
            tokens.pop_first();
        }
    }

    pub(crate) fn of(&self, id: Uuid) -> Option<SecretString> {
        self.0.lock().get(&id).cloned()
    }

    /// Drops the token of a session or run that has ended.
    pub(crate) fn drop_of(&self, id: Uuid) {
        self.0.lock().remove(&id);
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn oldest_token_is_dropped_when_too_many_are_kept() {
        let tokens = GivenTokens::default();
        let id = |number: usize| Uuid::from_u128(number as u128);
        (0..=MAX_TOKENS).for_each(|number| tokens.keep(id(number), format!("token-{number}").into()));
        assert!(tokens.of(id(0)).is_none());
        assert_eq!(tokens.of(id(1)).unwrap().expose_secret(), "token-1");
        tokens.drop_of(id(1));
        assert!(tokens.of(id(1)).is_none());
    }
}
