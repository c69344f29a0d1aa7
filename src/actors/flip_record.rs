//! What is kept and told about a flip.

use std::sync::Arc;

use serde_json::{Value, json};
use uuid::Uuid;

use super::handles::index::LiveSession;
use crate::{
    contract::{
        automation::{RollbackThreshold, RollbackTrigger},
        notifications::toast::{NoteDetails, NoteKind, NoteStatus, TranscriptNote},
    },
    domain::{
        clock::Timestamp,
        notify::{notice, toast::NewToast},
        redaction::Redacted,
        routing::{
            Flip, FlipTrigger, Routing,
            success_window::{FULL_BP, WindowRules},
        },
        turn::transcript::TranscriptEntry,
        words::{FollowUp, ReasonCode},
    },
    store::FlipRecord,
};

/// The rows of a flip, and the note for the transcripts of the sessions that are live. `systemic` is what operators are
/// told in place of the workspace's users.
pub fn of(
    flip: &Flip,
    systemic: Option<NewToast>,
    sessions: &[Arc<LiveSession>],
    rules: &WindowRules,
    now: Timestamp,
) -> FlipRecord {
    let running = sessions.iter().filter(|live| live.shared.view().running.is_some()).count();
    let snapshot = json!({
        "window": flip.figures,
        "attempt": flip.attempt,
        "liveSessions": sessions.len(),
        "runningTurns": running,
    });
    FlipRecord {
        migration_id: Uuid::now_v7(),
        event_id: Uuid::now_v7(),
        run_id: None,
        flip: flip.clone(),
        reason_code: match flip.trigger {
            FlipTrigger::AutoThreshold | FlipTrigger::Recovery => ReasonCode::Threshold,
            _ => ReasonCode::Manual,
        },
        // Somebody has to look at a route that does not come back by itself.
        follow_up: Some(if flip.attempt >= REVIEW_AFTER { FollowUp::ScheduleReview } else { FollowUp::NotifyUsers }),
        metrics: Redacted::new(&snapshot.to_string()),
        notes: sessions.iter().map(|live| live.shared.spec.session_id).collect(),
        note: note(flip, rules, now),
        systemic,
    }
}

/// Failed tries to recover after which somebody should look at it: half an hour of cool-downs.
const REVIEW_AFTER: u32 = 5;

fn note(flip: &Flip, rules: &WindowRules, now: Timestamp) -> TranscriptEntry {
    let rollback_trigger = match flip.trigger {
        FlipTrigger::AutoThreshold => Some(RollbackTrigger::AutoThreshold),
        FlipTrigger::ManualOperator => Some(RollbackTrigger::ManualOperator),
        FlipTrigger::ManualUser => Some(RollbackTrigger::ManualUser),
        FlipTrigger::Recovery | FlipTrigger::Pin | FlipTrigger::Migration => None,
    };
    let threshold = flip.figures.map(|_| RollbackThreshold {
        success_rate: f64::from(rules.threshold_bp) / f64::from(FULL_BP),
        window_minutes: u32::try_from(rules.length.as_secs().div_ceil(60)).unwrap_or(u32::MAX),
    });
    let summary = notice::of_flip(flip).body.into_string();
    let note = TranscriptNote {
        timestamp: now.to_string(),
        event_type: NoteKind::Rollback,
        summary: summary.clone(),
        status: flip.is_restore().then_some(NoteStatus::Resolved),
        details: NoteDetails { rollback_trigger, threshold, ..NoteDetails::default() },
    };
    TranscriptEntry::with_payload("rollback", &summary, &serde_json::to_string(&note).unwrap_or_default())
}

/// The event that readers of a session get.
pub fn event(flip: &Flip, routing: &Routing) -> Value {
    json!({
        "route": flip.to,
        "epoch": flip.epoch,
        "status": if flip.is_restore() { "resolved" } else { "active" },
        "trigger": flip.trigger,
        "reason": Redacted::new(&flip.wish.reason).as_str(),
        "summary": notice::of_flip(flip).body.as_str(),
        "stage": routing.stage(),
        "nextProbeAt": routing.next_probe_at(),
    })
}
