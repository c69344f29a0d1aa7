//! Seats: how many sessions may hold an agent at the same time.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use crate::domain::outcome::{ErrorCode, Failure};

/// Hands out seats. Cheap to clone.
#[derive(Debug, Clone)]
pub struct CapacityGuard {
    taken: Arc<AtomicUsize>,
    limit: usize,
}

/// A session's seat; given back on drop, also during a panic.
#[derive(Debug)]
pub struct Permit {
    taken: Arc<AtomicUsize>,
}

impl CapacityGuard {
    /// Makes a guard of `limit` seats.
    pub fn new(limit: usize) -> Self {
        Self { taken: Arc::new(AtomicUsize::new(0)), limit }
    }

    /// A seat for a new session, or `capacity_exhausted`.
    pub fn admit(&self) -> Result<Permit, Failure> {
        let room = |taken| (taken < self.limit).then_some(taken + 1);
        match self.taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, room) {
            Ok(_) => Ok(Permit { taken: self.taken.clone() }),
            Err(taken) => {
                let detail = format!("{taken} of {} sessions are live", self.limit);
                Err(Failure::new(ErrorCode::CapacityExhausted, detail))
            }
        }
    }

    /// A seat for a session that comes back; never refused, so it may go over the limit.
    pub fn admit_returning(&self) -> Permit {
        self.taken.fetch_add(1, Ordering::AcqRel);
        Permit { taken: self.taken.clone() }
    }

    /// Seats taken now.
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Acquire)
    }

    /// Seats there are.
    pub fn limit(&self) -> usize {
        self.limit
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.taken.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seat_is_given_back_on_drop_and_a_returning_session_is_never_shed() {
        let guard = CapacityGuard::new(1);
        let seat = guard.admit().unwrap();
        assert_eq!(guard.admit().unwrap_err().code, ErrorCode::CapacityExhausted);
        let returning = guard.admit_returning();
        assert_eq!(guard.taken(), 2);
        drop(returning);
        drop(seat);
        assert!(guard.admit().is_ok());
    }
}
