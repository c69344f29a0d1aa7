//! The state of a notification reader: it resumes at its cursor and shows each notification once.

use std::collections::{HashSet, VecDeque};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Ids that are remembered. More than the 1,000 that a reader fetches from the list after a reset, where sequence numbers
/// cannot show what is known.
pub(crate) const MAX_SEEN: usize = 2048;

/// A reader's place in a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    /// Identifies the database that assigned the numbers.
    pub epoch: String,
    /// The sequence number of the newest handled notification.
    pub cursor: u64,
}

/// A reader of one stream.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reading {
    place: Option<Place>,
    seen: HashSet<Uuid>,
    order: VecDeque<Uuid>,
}

impl Reading {
    /// A reader that resumes at `place`, or starts at the place of the first welcome.
    pub(crate) fn from(place: Option<Place>) -> Self {
        Self { place, ..Self::default() }
    }

    /// The current place; `None` for a new reader before its first welcome.
    pub(crate) fn place(&self) -> Option<&Place> {
        self.place.as_ref()
    }

    /// Applies a welcome. A reader with a place keeps it: it either resumes there, or a reset follows.
    pub(crate) fn welcome(&mut self, place: Place) {
        self.place.get_or_insert(place);
    }

    /// Marks a received notification as handled; true if it is to be shown.
    pub(crate) fn takes(&mut self, id: Uuid, seq: u64) -> bool {
        let is_new = self.place.as_ref().is_none_or(|place| seq > place.cursor);
        self.reached(seq);
        self.is_first(id) && is_new
    }

    /// Marks a notification of the list as seen; true if it is to be shown. The place stays: the list is read newest
    /// first, so a seen entry does not imply that older ones were seen.
    pub(crate) fn takes_from_list(&mut self, id: Uuid) -> bool {
        self.is_first(id)
    }

    /// Moves the cursor forward: everything up to it was delivered or was outside the reader's scope.
    pub(crate) fn reached(&mut self, cursor: u64) {
        if let Some(place) = &mut self.place {
            place.cursor = place.cursor.max(cursor);
        }
    }

    /// Applies a reset; the cursor may move backwards.
    pub(crate) fn moves_to(&mut self, place: Place) {
        self.place = Some(place);
    }

    fn is_first(&mut self, id: Uuid) -> bool {
        if !self.seen.insert(id) {
            return false;
        }
        if self.order.len() == MAX_SEEN
            && let Some(oldest) = self.order.pop_front()
        {
            self.seen.remove(&oldest);
        }
        self.order.push_back(id);
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(of: u64) -> Uuid {
        Uuid::from_u128(u128::from(of))
    }

    fn at(cursor: u64) -> Place {
        Place { epoch: "e".into(), cursor }
    }

    #[test]
    fn welcome_gives_a_place_only_to_a_reader_without_one() {
        let mut fresh = Reading::from(None);
        assert_eq!(fresh.place(), None);
        fresh.welcome(at(7));
        assert_eq!(fresh.place(), Some(&at(7)));
        let mut returning = Reading::from(Some(at(3)));
        returning.welcome(Place { epoch: "other".into(), cursor: 9 });
        assert_eq!(returning.place(), Some(&at(3)), "only a reset moves it");
        returning.moves_to(Place { epoch: "other".into(), cursor: 1 });
        assert_eq!(returning.place().map(|place| place.cursor), Some(1), "backwards too");
    }

    #[test]
    fn handled_notifications_are_not_taken_again() {
        let mut reading = Reading::from(Some(at(3)));
        assert!(!reading.takes(id(3), 3), "before the place");
        assert!(reading.takes(id(5), 5) && !reading.takes(id(5), 5));
        assert_eq!(reading.place(), Some(&at(5)));
        reading.reached(9);
        reading.reached(4);
        assert_eq!(reading.place(), Some(&at(9)), "never backwards");
    }

    #[test]
    fn list_entries_are_compared_by_id_and_do_not_move_the_place() {
        let mut reading = Reading::from(Some(at(3)));
        assert!(reading.takes_from_list(id(8)) && reading.takes_from_list(id(2)) && !reading.takes_from_list(id(8)));
        assert_eq!(reading.place(), Some(&at(3)));
        reading.moves_to(at(7));
        assert!(!reading.takes(id(8), 8), "already taken from the list");
        assert_eq!(reading.place(), Some(&at(8)));
    }

    proptest! {
        /// The connection breaks repeatedly, and the server replays from at or before the reader's cursor.
        #[test]
        fn each_notification_is_taken_once_and_in_order(cuts in prop::collection::vec((0u64..10, 0u64..5), 0..20)) {
            let mut reading = Reading::from(Some(at(0)));
            let mut taken = Vec::new();
            let cuts = cuts.into_iter().chain([(100, 0)]);
            for (more, again) in cuts {
                // The server starts a little before the cursor, and the connection breaks.
                let from = reading.place().map_or(0, |place| place.cursor);
                for seq in (from.saturating_sub(again) + 1)..=(from + more).min(60) {
                    if reading.takes(id(seq), seq) {
                        taken.push(seq);
                    }
                }
            }
            prop_assert_eq!(taken, (1..=60).collect::<Vec<_>>());
        }

        #[test]
        fn reader_remembers_at_most_max_seen_ids(count in 0u64..5000) {
            let mut reading = Reading::default();
            (0..count).for_each(|n| { reading.takes_from_list(id(n)); });
            prop_assert!(reading.seen.len() <= MAX_SEEN && reading.order.len() == reading.seen.len());
        }
    }
}
