//! Which answer belongs to which request.

use std::collections::HashMap;

/// Hands out request ids and remembers what each open request was for.
///
/// Ids count up from 1 and are never used again within a connection, so a late or repeated answer finds
/// nothing and is dropped by the caller.
#[derive(Debug)]
pub(crate) struct Correlator<T> {
    next_id: u64,
    limit: usize,
    open: HashMap<u64, T>,
}

/// The connection already has as many open requests as it may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{limit} requests are waiting for an answer on this connection, which is the limit")]
pub(crate) struct TooManyOpen {
    /// The limit that was reached.
    pub limit: usize,
}

impl<T> Correlator<T> {
    /// Makes a correlator that holds at most `limit` open requests.
    pub(crate) fn new(limit: usize) -> Self {
        Self { next_id: 1, limit, open: HashMap::new() }
    }

    /// Lets ids continue from `next_id`, after somebody else has used the ones before.
    pub(crate) fn start_at(&mut self, next_id: u64) {
        self.next_id = self.next_id.max(next_id);
    }

    /// Remembers `what` and returns the id to send with the request.
    pub(crate) fn open(&mut self, what: T) -> Result<u64, TooManyOpen> {
        if self.open.len() >= self.limit {
            return Err(TooManyOpen { limit: self.limit });
        }
        let id = self.next_id;
        self.next_id = self.next_id.saturating_add(1);
        self.open.insert(id, what);
        Ok(id)
    }

    /// Remembers what a request was for that was sent before under this id, by somebody who is gone.
    pub(crate) fn reopen(&mut self, id: u64, what: T) {
        self.start_at(id.saturating_add(1));
        self.open.insert(id, what);
    }

    /// Takes out what the answer with this id belongs to; `None` for an answer that nobody waits for.
    pub(crate) fn take(&mut self, id: u64) -> Option<T> {
        self.open.remove(&id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_taken_once() {
        let mut correlator = Correlator::new(2);
        let id = correlator.open("prompt").unwrap();
        assert_eq!(correlator.take(id), Some("prompt"));
        assert_eq!(correlator.take(id), None);
    }

    #[test]
    fn the_limit_refuses_and_an_answer_makes_room() {
        let mut correlator = Correlator::new(1);
        let id = correlator.open(()).unwrap();
        assert_eq!(correlator.open(()), Err(TooManyOpen { limit: 1 }));
        correlator.take(id);
        assert_ne!(correlator.open(()).unwrap(), id);
    }
}
