//! A prompt that arrives while another turn of its session runs.

use std::time::Duration;

/// Time for which a prompt waits for the end of a turn that is being cancelled.
pub(crate) const CANCEL_WAIT: Duration = Duration::from_secs(2);
/// The most prompts of one session that wait; further ones are refused. A person sends one.
pub(crate) const MAX_WAITING: usize = 4;

/// The `Idempotency-Key` of a prompt, compared with that of the running turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Key {
    /// Another key, or one of the two has none.
    Other,
    /// The same key and the same body.
    Same,
    /// The same key with another body.
    OtherBody,
}

/// The handling of the prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// The prompt is a repeat and gets the result of the running turn.
    Join,
    /// The key was used with another body.
    Mismatch,
    /// The prompt waits for the end of the running turn, at most [`CANCEL_WAIT`], and then begins.
    Wait,
    /// Another turn runs.
    Refuse,
}

/// Decides about a prompt. `is_ending` is true if a caller cancelled the running turn, `waited` if the prompt has waited
/// once already; `waiting` prompts of the session wait.
pub(crate) fn arrival(key: Key, is_ending: bool, waited: bool, waiting: usize) -> Arrival {
    match key {
        Key::Same => Arrival::Join,
        Key::OtherBody => Arrival::Mismatch,
        Key::Other if is_ending && !waited && waiting < MAX_WAITING => Arrival::Wait,
        Key::Other => Arrival::Refuse,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompt_waits_only_for_a_turn_that_is_being_cancelled_and_only_once() {
        assert_eq!(arrival(Key::Other, true, false, 0), Arrival::Wait);
        assert_eq!(arrival(Key::Other, false, false, 0), Arrival::Refuse);
        assert_eq!(arrival(Key::Other, true, true, 0), Arrival::Refuse);
        assert_eq!(arrival(Key::Other, true, false, MAX_WAITING), Arrival::Refuse);
    }

    #[test]
    fn repeat_of_a_prompt_joins_its_turn_although_it_is_being_cancelled() {
        for is_ending in [true, false] {
            assert_eq!(arrival(Key::Same, is_ending, false, 0), Arrival::Join);
            assert_eq!(arrival(Key::OtherBody, is_ending, false, 0), Arrival::Mismatch);
        }
    }
}
