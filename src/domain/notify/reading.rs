//! What a reader of notifications remembers, so that it continues where it stood and shows nothing twice.

use std::collections::{HashSet, VecDeque};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Ids that are remembered: more than a reader catches up with from the list after a reset (1,000), where numbers do
/// not tell what is known.
pub(crate) const MAX_SEEN: usize = 2048;

/// A place in a sequence of notifications.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    /// Names the database.
    pub epoch: String,
    /// The newest notification that was handled.
    pub cursor: u64,
}

/// One reader of one sequence.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reading {
    place: Option<Place>,
    seen: HashSet<Uuid>,
    order: VecDeque<Uuid>,
}

impl Reading {
    /// Continues from a place, or begins wherever the server says.
    pub(crate) fn from(place: Option<Place>) -> Self {
        Self { place, ..Self::default() }
    }

    /// Its state; nothing before the first welcome.
    pub(crate) fn place(&self) -> Option<&Place> {
        self.place.as_ref()
    }

    /// A welcome. A reader that has a place keeps it: either it continues from there, or a reset says that it does not.
    pub(crate) fn welcome(&mut self, place: Place) {
        self.place.get_or_insert(place);
    }

    /// Whether a notification that came is to be shown. It counts as handled from then on.
    pub(crate) fn takes(&mut self, id: Uuid, seq: u64) -> bool {
        let is_new = self.place.as_ref().is_none_or(|place| seq > place.cursor);
        self.reached(seq);
        self.is_first(id) && is_new
    }

    /// Whether a notification that the list had is to be shown. The place stays: the list is read from the newest on,
    /// so what was seen of it says nothing about the rest.
    pub(crate) fn takes_from_list(&mut self, id: Uuid) -> bool {
        self.is_first(id)
    }

    /// Everything up to here has come, whether it was for this reader or not.
    pub(crate) fn reached(&mut self, cursor: u64) {
        if let Some(place) = &mut self.place {
            place.cursor = place.cursor.max(cursor);
        }
    }

    /// Begins anew, wherever it stood.
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
    fn a_welcome_gives_a_place_only_to_a_reader_without_one() {
        let mut fresh = Reading::from(None);
        assert_eq!(fresh.place(), None);
        fresh.welcome(at(7));
        assert_eq!(fresh.place(), Some(&at(7)));
        let mut returning = Reading::from(Some(at(3)));
        returning.welcome(Place { epoch: "other".into(), cursor: 9 });
        assert_eq!(returning.place(), Some(&at(3)), "a reset is to say that it does not go on");
        returning.moves_to(Place { epoch: "other".into(), cursor: 1 });
        assert_eq!(returning.place().map(|place| place.cursor), Some(1), "backwards too");
    }

    #[test]
    fn handled_message_is_not_delivered_again() {
        let mut reading = Reading::from(Some(at(3)));
        assert!(!reading.takes(id(3), 3), "it is before the place");
        assert!(reading.takes(id(5), 5) && !reading.takes(id(5), 5));
        assert_eq!(reading.place(), Some(&at(5)));
        reading.reached(9);
        reading.reached(4);
        assert_eq!(reading.place(), Some(&at(9)), "never backwards");
    }

    #[test]
    fn the_list_is_compared_by_id_and_does_not_move_the_place() {
        let mut reading = Reading::from(Some(at(3)));
        assert!(reading.takes_from_list(id(8)) && reading.takes_from_list(id(2)) && !reading.takes_from_list(id(8)));
        assert_eq!(reading.place(), Some(&at(3)));
        reading.moves_to(at(7));
        assert!(!reading.takes(id(8), 8), "it came from the list already");
        assert_eq!(reading.place(), Some(&at(8)));
    }

    proptest! {
        /// However often a line breaks and the server sends again from a cursor that it was told: every notification
        /// once, in order.
        #[test]
        fn each_toast_is_taken_once_and_in_order(cuts in prop::collection::vec((0u64..10, 0u64..5), 0..20)) {
            let mut reading = Reading::from(Some(at(0)));
            let mut taken = Vec::new();
            let cuts = cuts.into_iter().chain([(100, 0)]);
            for (more, again) in cuts {
                // The server starts a little before what it was told, and breaks off.
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
        fn memory_is_bounded(count in 0u64..5000) {
            let mut reading = Reading::default();
            (0..count).for_each(|n| { reading.takes_from_list(id(n)); });
            prop_assert!(reading.seen.len() <= MAX_SEEN && reading.order.len() == reading.seen.len());
        }
    }
}
