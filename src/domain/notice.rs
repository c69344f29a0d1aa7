//! What people are told about a workspace's route: each text in one place, at most 140 characters.

use super::routing::{Flip, FlipTrigger, Route};

/// What a toast may be long (mission), in characters.
pub const MAX_BODY_CHARS: usize = 140;

/// The body of the toast, and the summary of the note, about a flip.
pub fn of_flip(flip: &Flip) -> String {
    let text = match (flip.to, flip.trigger) {
        (Route::Http, FlipTrigger::AutoThreshold) => match &flip.figures {
            Some(figures) => format!(
                "ACP succeeded in only {:.1} % of {} turns; prompts go over the HTTP fallback until it is well again.",
                figures.success_rate() * 100.0,
                figures.samples
            ),
            None => "ACP failed again right after it was restored; prompts go over the HTTP fallback for now.".into(),
        },
        (Route::Http, FlipTrigger::ManualUser) => "A user switched this workspace to the HTTP fallback.".into(),
        (Route::Http, FlipTrigger::Migration) => "This workspace now works over HTTP.".into(),
        (Route::Http, _) => "An operator switched this workspace to the HTTP fallback.".into(),
        (Route::Acp, FlipTrigger::Recovery) => "ACP is well again; prompts go over it as before.".into(),
        (Route::Acp, FlipTrigger::Migration) => "This workspace now works over ACP.".into(),
        (Route::Acp, FlipTrigger::ManualUser) => "A user switched this workspace back to ACP.".into(),
        (Route::Acp, _) => "An operator switched this workspace back to ACP.".into(),
    };
    super::text::cut(&text, MAX_BODY_CHARS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        routing::Wish,
        success_window::{WindowFigures, WindowState},
    };

    #[test]
    fn every_text_fits_and_a_rollback_names_the_fallback() {
        for to in Route::ALL {
            for trigger in FlipTrigger::ALL {
                for figures in [None, Some((u64::MAX, u64::MAX / 3))] {
                    let figures = figures.map(|(samples, failures)| WindowFigures {
                        state: WindowState::Breached,
                        samples,
                        failures,
                        length_seconds: 3600,
                    });
                    let from = if to == Route::Acp { Route::Http } else { Route::Acp };
                    let wish = Wish::of_system("x");
                    let flip = Flip { from, to, epoch: 1, trigger, wish, figures, attempt: 0 };
                    let text = of_flip(&flip);
                    assert!((1..=MAX_BODY_CHARS).contains(&text.chars().count()), "{text}");
                    assert_eq!(text.contains("HTTP fallback"), flip.is_rollback(), "{text}");
                }
            }
        }
    }
}
