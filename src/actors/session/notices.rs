//! What a session's user is told unasked: a toast and its note, for the transaction of what caused them.

use serde_json::to_string;
use uuid::Uuid;

use crate::{
    actors::handles::session::SessionSpec,
    contract::notifications::toast::{NoteDetails, NoteKind, NoteStatus, TranscriptNote},
    domain::{
        clock::Timestamp,
        notify::{
            notice,
            toast::{Addressee, NewToast, Notice, Telling},
        },
        turn::{outcome::ErrorCode, transcript::TranscriptEntry},
    },
};

/// A session failed for good.
pub fn of_failed_session(spec: &SessionSpec, code: ErrorCode, now: Timestamp) -> Telling {
    let notice = notice::of_failed_session(spec.session_id, code);
    let note = note(&notice, NoteKind::Info, Some(NoteStatus::Error), NoteDetails::default(), now);
    telling(to_session(spec), notice, Uuid::now_v7(), note)
}

/// A session's handshake failed, so that it goes over the fallback by itself; `handshake` is the record of it.
pub fn of_failed_handshake(spec: &SessionSpec, code: ErrorCode, handshake: Uuid, now: Timestamp) -> Telling {
    let notice = notice::of_failed_handshake(spec.session_id, code);
    let note = note(&notice, NoteKind::Rollback, None, NoteDetails::default(), now);
    telling(to_session(spec), notice, handshake, note)
}

/// The way to the agent of a running turn broke and is being made again. Of breaks that come together one is told.
pub fn of_reconnecting(spec: &SessionSpec, now: Timestamp) -> Telling {
    let notice = notice::of_reconnecting();
    let note = note(&notice, NoteKind::Info, None, NoteDetails::default(), now);
    telling(Addressee::Workspace(spec.workspace.clone()), notice, Uuid::now_v7(), note)
}

fn to_session(spec: &SessionSpec) -> Addressee {
    Addressee::Session(spec.workspace.clone(), spec.session_id)
}

/// Both in one; `cause` is told once.
pub fn telling(to: Addressee, notice: Notice, cause: impl std::fmt::Display, note: TranscriptEntry) -> Telling {
    Telling { toast: NewToast::new(Uuid::now_v7(), to, notice, cause), note }
}

/// The note that stands beside a toast in the transcript.
pub fn note(
    notice: &Notice,
    kind: NoteKind,
    status: Option<NoteStatus>,
    details: NoteDetails,
    now: Timestamp,
) -> TranscriptEntry {
    let summary = notice.body.as_str();
    let event_type = match kind {
        NoteKind::Automation => "automation",
        NoteKind::Toast => "toast",
        NoteKind::Rollback => "rollback",
        NoteKind::Info => "info",
    };
    let note =
        TranscriptNote { timestamp: now.to_string(), event_type: kind, summary: summary.to_owned(), status, details };
    TranscriptEntry::with_payload(event_type, summary, &to_string(&note).unwrap_or_default())
}
