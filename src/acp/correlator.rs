//! Matches answers to the requests that wait for them, by JSON-RPC id.

use std::collections::HashMap;

/// Issues request ids and records the purpose of each open request.
///
/// Ids count up from 1 and are never reused within a connection, so a late or repeated answer matches nothing and the
/// caller drops it.
#[derive(Debug)]
pub(crate) struct Correlator<T> {
    next_id: u64,
    limit: usize,
    open: HashMap<u64, T>,
}

/// The connection has reached its limit of open requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{limit} requests are waiting for an answer on this connection, which is the limit")]
pub(crate) struct TooManyOpen {
    /// The largest number of open requests.
    pub limit: usize,
}

impl<T> Correlator<T> {
    /// Creates a correlator for at most `limit` open requests.
    pub(crate) fn new(limit: usize) -> Self {
        Self { next_id: 1, limit, open: HashMap::new() }
    }

    /// Continues with ids from `next_id`, after a previous client has used the smaller ones. A smaller `next_id` than
    /// the current one has no effect.
    pub(crate) fn start_at(&mut self, next_id: u64) {
        self.next_id = self.next_id.max(next_id);
    }

    /// Records the purpose of a new request and returns the id to send.
    ///
    /// # Errors
    /// The limit of open requests is reached. A retry succeeds after an answer has been [taken](Self::take).
    pub(crate) fn open(&mut self, purpose: T) -> Result<u64, TooManyOpen> {
        if self.open.len() >= self.limit {
            return Err(TooManyOpen { limit: self.limit });
        }
        Ok(self.open_reserved(purpose))
    }

    /// Like [`Self::open`], for a request that unanswered ones must not prevent. Not subject to the limit: the caller
    /// has at most one such request open for each purpose.
    pub(crate) fn open_reserved(&mut self, purpose: T) -> u64 {
        let id = self.next_id;
        self.next_id = self.next_id.saturating_add(1);
        self.open.insert(id, purpose);
        id
    }

    /// Drops every open request, because its connection has closed. Their ids are not used again.
    pub(crate) fn clear(&mut self) {
        self.open.clear();
    }

    /// Records the purpose of a request that a previous client sent under this id. Not subject to the limit.
    pub(crate) fn reopen(&mut self, id: u64, purpose: T) {
        self.start_at(id.saturating_add(1));
        self.open.insert(id, purpose);
    }

    /// Removes and returns the purpose of the request with this id; `None` if no such request is open.
    pub(crate) fn take(&mut self, id: u64) -> Option<T> {
        self.open.remove(&id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_is_taken_once() {
        let mut correlator = Correlator::new(2);
        let id = correlator.open("prompt").unwrap();
        assert_eq!(correlator.take(id), Some("prompt"));
        assert_eq!(correlator.take(id), None);
    }

    #[test]
    fn limit_refuses_requests_until_an_answer_arrives() {
        let mut correlator = Correlator::new(1);
        let id = correlator.open(()).unwrap();
        assert_eq!(correlator.open(()), Err(TooManyOpen { limit: 1 }));
        correlator.take(id);
        assert_ne!(correlator.open(()).unwrap(), id);
    }

    #[test]
    fn reserved_request_is_possible_at_the_limit_and_a_new_connection_frees_all_slots() {
        let mut correlator = Correlator::new(1);
        let call = correlator.open("call").unwrap();
        let prompt = correlator.open_reserved("prompt");
        assert!(prompt > call && correlator.open("call").is_err());
        correlator.clear();
        assert_eq!((correlator.take(call), correlator.take(prompt)), (None, None));
        assert!(correlator.open("call").unwrap() > prompt, "ids are not reused");
    }
}
