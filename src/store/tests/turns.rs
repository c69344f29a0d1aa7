//! Turns and transcripts.

use serde_json::json;
use uuid::Uuid;

use super::fixture::*;
use crate::domain::retention::IDEMPOTENCY_PERIOD;
use crate::{
    contract::audit::AutomationRunItem,
    domain::{
        automation::skip::{Automation, SkipReason},
        notify::{
            notice,
            notification::{Addressee, NewNotification, Scope, SessionNotice, Stream},
        },
        redaction::{Redacted, RedactedJson},
        routing::{Route, success_window::Sample},
        session::lifecycle::SessionState,
        turn::{
            TurnInitiator, TurnPhase, TurnState,
            outcome::{ErrorCode, Failure},
            transcript::{MAX_ENTRY_BYTES, TranscriptEntry},
        },
    },
    store::{
        AGENT_TURN, Acceptance, AuditFilter, EndStep, Idempotency, NewTurn, OutcomeCount, Page, RunEnd,
        SessionChange, StoreError, TurnEnd,
    },
};

fn keyed(turn: NewTurn, key: &str, hash: &str) -> NewTurn {
    NewTurn { idempotency: Some(Idempotency { key: key.into(), body_hash: hash.into() }), ..turn }
}

both_databases! {
    async fn turn_is_accepted_and_its_end_is_stored_with_its_entries(database: TestDatabase) {
        let store = database.open();
        let session = session(&store).await;
        let turn = new_turn(session, 10);
        let prompt = turn.prompt_id;
        assert_eq!(store.accept_turn(turn).await.unwrap(), Acceptance::Accepted);
        let row = store.prompt(prompt).await.unwrap().unwrap();
        assert_eq!((row.state, row.accepted, row.ended), (TurnState::Accepted, at(10), None));
        assert_eq!((row.preview.as_str(), row.key), ("fix it", key("acme", "web")));

        end(&store, turn_end(session, prompt, 20)).await.unwrap();
        let row = store.prompt(prompt).await.unwrap().unwrap();
        assert_eq!((row.state, row.ended), (TurnState::Completed, Some(at(20))));
        assert_eq!(row.result.as_deref(), Some(r#"{"stopReason":"completed"}"#));
        let entries = store.transcript(session, 0, 10).await.unwrap();
        let seen: Vec<_> = entries
            .iter()
            .map(|row| (row.seq, row.prompt_id, row.entry.event_type.as_str(), row.entry.text.as_str()))
            .collect();
        assert_eq!(seen, [(1, Some(prompt), "user_message", "fix it"), (2, Some(prompt), "agent_message", "done")]);
        assert_eq!(entries[0].entry.payload.as_ref().map(RedactedJson::as_str), Some(r#"[{"type":"text"}]"#));
    }

    async fn turn_ends_once(database: TestDatabase) {
        let store = database.open();
        let session = session(&store).await;
        let turn = new_turn(session, 1);
        let prompt = turn.prompt_id;
        store.accept_turn(turn).await.unwrap();
        let failed = TurnEnd {
            state: TurnState::Failed,
            result: None,
            error: Some(Failure::new(ErrorCode::AgentCrashed, "with ghp_abcdefghijklmnopqrstuvwxyz0123456789")),
            ..turn_end(session, prompt, 2)
        };
        end(&store, failed.clone()).await.unwrap();
        assert_eq!(end(&store, turn_end(session, prompt, 3)).await, Err(StoreError::Fenced));
        assert_eq!(end(&store, failed).await, Ok(()), "the same end may be written again");
        let row = store.prompt(prompt).await.unwrap().unwrap();
        assert_eq!((row.state, row.ended, row.result), (TurnState::Failed, Some(at(2)), None));
        assert_eq!(row.error, Some(Failure::new(ErrorCode::AgentCrashed, "with [redacted]")));
        assert_eq!(texts(&store, session).await, ["fix it", "done"]);

        let never_accepted = new_turn(session, 4).prompt_id;
        assert_eq!(end(&store, turn_end(session, never_accepted, 4)).await, Err(StoreError::Fenced));
        assert!(store.prompt(never_accepted).await.unwrap().is_none());
    }

    async fn end_of_a_turn_that_recovery_interrupted_is_fenced_and_counts_nothing(database: TestDatabase) {
        let (store, other) = (database.open(), database.open());
        let session = session(&store).await;
        let turn = new_turn(session, 1);
        let prompt = turn.prompt_id;
        store.accept_turn(turn).await.unwrap();
        assert_eq!(other.recover(at(5), &[], Vec::new()).await.unwrap().interrupted_turns, 1);
        let counts = OutcomeCount { epoch: 0, route: Route::Acp, bucket: at(0), sample: Sample::Success };
        let late = TurnEnd { counts: Some(counts), ..turn_end(session, prompt, 9) };
        let neighbour = new_turn(session, 10);
        let (ended, accepted) = tokio::join!(end(&store, late), store.accept_turn(neighbour));
        assert_eq!(ended, Err(StoreError::Fenced));
        assert_eq!(accepted, Ok(Acceptance::Accepted), "the writes beside it are not affected");
        let row = store.prompt(prompt).await.unwrap().unwrap();
        assert_eq!((row.state, row.ended), (TurnState::Interrupted, Some(at(5))));
        assert!(store.window(key("acme", "web"), 0, Route::Acp, at(0)).await.unwrap().is_empty());
        assert_eq!(texts(&store, session).await, ["fix it", "fix it"]);
    }

    async fn turn_whose_agent_ended_is_resumed_and_not_interrupted(database: TestDatabase) {
        let store = database.open();
        let (session, other) = (session(&store).await, session(&store).await);
        let turn = NewTurn { decision: Automation::Run, ..new_turn(session, 1) };
        let (prompt, with_agent) = (turn.prompt_id, new_turn(other, 1));
        store.accept_turn(turn).await.unwrap();
        store.accept_turn(with_agent).await.unwrap();
        let agent = TurnEnd { step: EndStep::Agent, known_by: Some("c".into()), ..turn_end(session, prompt, 2) };
        store.end_agent(agent.clone()).await.unwrap();
        assert_eq!(store.end_agent(agent).await, Ok(()), "the same end may be written again");
        assert_eq!(end(&store, turn_end(session, prompt, 3)).await, Err(StoreError::Fenced), "the agent has ended");

        assert_eq!(store.unfinished(TurnPhase::Agent).await.unwrap()[0].session.session_id, other);
        assert_eq!(store.recover(at(5), &[], Vec::new()).await.unwrap().interrupted_turns, 1);
        let left = store.unfinished(TurnPhase::Automation).await.unwrap();
        let row = &left[0].prompt;
        assert_eq!((left.len(), row.prompt_id, row.state, row.ended), (1, prompt, TurnState::Running, None));
        assert_eq!((row.decision, row.known_by.as_deref()), (Automation::Run, Some("c")));
        assert_eq!(row.result.as_deref(), Some(r#"{"stopReason":"completed"}"#));
        assert_eq!(left[0].session.state, SessionState::Hibernated, "no agent ran");

        let whole = Some(RedactedJson::of(&json!({"stopReason": "completed", "githubAutomation": {}})));
        let closed = TurnEnd { step: EndStep::Turn, result: whole, entries: vec![], ..turn_end(session, prompt, 7) };
        end(&store, closed).await.unwrap();
        let row = store.prompt(prompt).await.unwrap().unwrap();
        assert_eq!((row.state, row.ended), (TurnState::Completed, Some(at(7))));
        assert!(row.result.unwrap().contains("githubAutomation"));
        assert_eq!(texts(&store, session).await, ["fix it", "done"]);
        assert!(store.unfinished(TurnPhase::Automation).await.unwrap().is_empty());
    }

    async fn turn_of_the_agent_alone_interrupts_no_session_and_is_part_of_what_it_replays(database: TestDatabase) {
        let store = database.open();
        let (cut_off, kept) = (session(&store).await, session(&store).await);
        let mut woken = Vec::new();
        for (session, state) in [(cut_off, SessionState::Background), (kept, SessionState::Idle)] {
            let asked = new_turn(session, 1);
            let prompt = asked.prompt_id;
            store.accept_turn(asked).await.unwrap();
            end(&store, TurnEnd { known_by: Some("c".into()), ..turn_end(session, prompt, 2) }).await.unwrap();
            let change = SessionChange { state: Some(state), ..SessionChange::new(session) };
            assert!(store.update_session(change).await.unwrap());
            for ended in [true, false] {
                let first_entry = TranscriptEntry::text(AGENT_TURN, "began");
                let turn = NewTurn { initiator: TurnInitiator::Agent, first_entry, ..new_turn(session, 3) };
                let id = turn.prompt_id;
                let slot = store.begin_woken(turn).unwrap();
                if ended {
                    let entries = vec![TranscriptEntry::text("agent_message", " and later")];
                    let (sent, written) = tokio::sync::oneshot::channel();
                    let end = TurnEnd { entries, counts: None, ..turn_end(session, id, 4) };
                    slot.end_turn(end, Box::new(|stored| drop(sent.send(stored))));
                    assert_eq!(written.await.unwrap(), Ok(()));
                } else {
                    woken.push(id);
                }
            }
        }
        assert!(store.unfinished(TurnPhase::Agent).await.unwrap().is_empty(), "no turn of a user is open");
        let past = store.replayable(cut_off, "c".into()).await.unwrap();
        let past: Vec<_> = past.iter().map(|turn| (turn.asked.as_str(), turn.answered.as_str())).collect();
        assert_eq!(past, [("fix it", "done and later")], "a replay shows no prompt of the turn");
        assert_eq!(store.newest_turns(cut_off, 10).await.unwrap().len(), 3);

        assert_eq!(store.end_woken_turns(at(9)).await.unwrap(), 2);
        let begun_since = NewTurn { initiator: TurnInitiator::Agent, ..new_turn(kept, 9) };
        let begun_since = (begun_since.prompt_id, store.begin_woken(begun_since).unwrap()).0;
        assert_eq!(store.recover(at(9), &[kept], Vec::new()).await.unwrap().interrupted_turns, 0);
        assert_eq!(store.prompt(begun_since).await.unwrap().unwrap().ended, None, "it continues with its agent");
        for id in woken {
            let row = store.prompt(id).await.unwrap().unwrap();
            assert_eq!((row.state, row.initiator), (TurnState::Interrupted, TurnInitiator::Agent), "also if kept");
        }
        assert_eq!(store.session(cut_off).await.unwrap().unwrap().state, SessionState::Hibernated);
        let notes = texts(&store, cut_off).await;
        assert!(notes.last().unwrap().contains("the service stopped"), "{notes:?}");
        assert!(!texts(&store, kept).await.iter().any(|text| text.contains("cut off")));
    }

    async fn turn_whose_cancel_was_promised_is_cancelled_by_recovery(database: TestDatabase) {
        let store = database.open();
        let session = session(&store).await;
        let turn = new_turn(session, 1);
        let prompt = turn.prompt_id;
        store.accept_turn(turn).await.unwrap();
        store.ask_cancel(prompt).await.unwrap();
        assert!(store.unfinished(TurnPhase::Agent).await.unwrap()[0].prompt.cancel_asked);
        let results = vec![(prompt, RedactedJson::of(&json!({})))];
        assert_eq!(store.recover(at(5), &[], results).await.unwrap().interrupted_turns, 0);
        let row = store.prompt(prompt).await.unwrap().unwrap();
        assert_eq!((row.state, row.ended, row.error), (TurnState::Cancelled, Some(at(5)), None));
        assert_eq!(row.result.as_deref(), Some("{}"));
    }

    async fn stored_turn_names_the_route_that_carried_it(database: TestDatabase) {
        let store = database.open();
        let session = session(&store).await;
        let turn = NewTurn { protocol: Route::Acp, ..new_turn(session, 1) };
        let prompt = turn.prompt_id;
        store.accept_turn(turn).await.unwrap();
        end(&store, TurnEnd { protocol: Route::Http, ..turn_end(session, prompt, 2) }).await.unwrap();
        let row = store.prompt(prompt).await.unwrap().unwrap();
        assert_eq!((row.protocol, row.route), (Route::Http, Route::Acp));
    }

    async fn fr_013_turn_end_skip_notification_and_note_are_atomic(database: TestDatabase) {
        let store = database.open();
        let session = session(&store).await;
        let run = AutomationRunItem {
            automation_id: None,
            run_id: Uuid::now_v7(),
            installation_id: "acme".parse().unwrap(),
            workspace_id: "web".parse().unwrap(),
            session_id: session,
            prompt_id: None,
            status: "skipped".into(),
            mode: "github".into(),
            issue_number: None,
            issue_url: None,
            pull_request_number: None,
            pull_request_url: None,
            branch: None,
            commit_sha: None,
            skip_reason: Some("missingCredential".into()),
            skip_detail: None,
            duration_ms: 0,
            attempts: 0,
            error_code: None,
            logs: serde_json::json!([]),
            created_at: at(2),
        };
        let ends = async |us: i64| {
            let turn = new_turn(session, us);
            let prompt = turn.prompt_id;
            store.accept_turn(turn).await.unwrap();
            let to = Addressee::Session(key("acme", "web"), session);
            let notice = notice::of_skip(SkipReason::MissingCredential, None, None);
            let notification = NewNotification::new(Uuid::now_v7(), to, notice, Uuid::now_v7());
            let session_notice = SessionNotice { notification, note: TranscriptEntry::text("automation", "left out") };
            let run = AutomationRunItem { prompt_id: Some(prompt), ..run.clone() };
            let run = Some(RunEnd { run, notice: Some(session_notice), saga: None });
            let ended = end(&store, TurnEnd { run, ..turn_end(session, prompt, us + 1) }).await;
            (ended, store.prompt(prompt).await.unwrap().unwrap().state)
        };
        let found = async || {
            let runs = store.automation_runs(AuditFilter::default(), Page { limit: 9, after: None }).await.unwrap();
            let notifications = store.notifications_after(Scope::all(Stream::Tenant("acme".parse().unwrap())), 0, 9).await.unwrap();
            (runs.len(), notifications.rows.len(), texts(&store, session).await)
        };
        assert_eq!(ends(1).await, (Ok(()), TurnState::Completed));
        assert_eq!(found().await, (1, 1, vec!["fix it".into(), "done".into(), "left out".into()]));
        // The id of the run exists, so the whole transaction must fail.
        let (ended, state) = ends(10).await;
        assert!(matches!(ended, Err(StoreError::Conflict(_))), "{ended:?}");
        assert_eq!(state, TurnState::Accepted);
        let (runs, notifications, texts) = found().await;
        assert_eq!((runs, notifications, texts.len()), (1, 1, 4), "{texts:?}");
    }

    async fn idempotency_key_is_one_execution_for_a_day(database: TestDatabase) {
        let store = database.open();
        let (session, other) = (session(&store).await, session(&store).await);
        let first = keyed(new_turn(session, 0), "k", "h1");
        let prompt = first.prompt_id;
        assert_eq!(store.accept_turn(first).await.unwrap(), Acceptance::Accepted);

        let repeat = keyed(new_turn(session, 5), "k", "h1");
        let Acceptance::Existing(row) = store.accept_turn(repeat).await.unwrap() else { panic!() };
        assert_eq!((row.prompt_id, row.state), (prompt, TurnState::Accepted));
        let changed = keyed(new_turn(session, 6), "k", "h2");
        let Acceptance::Mismatch(row) = store.accept_turn(changed).await.unwrap() else { panic!() };
        assert_eq!(row.prompt_id, prompt);
        assert_eq!(texts(&store, session).await.len(), 1, "a repeated key writes nothing");
        let elsewhere = keyed(new_turn(other, 7), "k", "h2");
        assert_eq!(store.accept_turn(elsewhere).await.unwrap(), Acceptance::Accepted);

        let period = i64::try_from(IDEMPOTENCY_PERIOD.as_micros()).unwrap();
        let just_within = keyed(new_turn(session, period - 1), "k", "h1");
        assert!(matches!(store.accept_turn(just_within).await.unwrap(), Acceptance::Existing(_)));
        let a_day_later = keyed(new_turn(session, period), "k", "h2");
        let second = a_day_later.prompt_id;
        assert_eq!(store.accept_turn(a_day_later).await.unwrap(), Acceptance::Accepted);
        assert_eq!(store.prompt(prompt).await.unwrap().unwrap().idempotency, None);
        let held = store.prompt(second).await.unwrap().unwrap().idempotency;
        assert_eq!(held, Some(Idempotency { key: "k".into(), body_hash: "h2".into() }));
    }

    async fn concurrent_turns_with_one_idempotency_key_execute_once(database: TestDatabase) {
        let store = database.open();
        let session = session(&store).await;
        let tries: Vec<_> = (0..20)
            .map(|n| {
                let (store, turn) = (store.clone(), keyed(new_turn(session, n), "k", "h"));
                tokio::spawn(async move { store.accept_turn(turn).await.unwrap() })
            })
            .collect();
        let mut accepted = 0;
        for one in tries {
            accepted += usize::from(one.await.unwrap() == Acceptance::Accepted);
        }
        assert_eq!((accepted, texts(&store, session).await.len()), (1, 1));
    }

    async fn turn_of_an_unknown_session_is_a_conflict(database: TestDatabase) {
        let store = database.open();
        let known = new_turn(session(&store).await, 1);
        let unknown = new_turn(new_session(0).session_id, 1);
        assert!(matches!(store.accept_turn(unknown).await, Err(StoreError::Conflict(_))));
        store.accept_turn(known.clone()).await.unwrap();
        assert!(matches!(store.accept_turn(known).await, Err(StoreError::Conflict(_))), "the id exists");
    }

    async fn texts_are_read_back_unchanged_apart_from_nul(database: TestDatabase) {
        let store = database.open();
        let session = session(&store).await;
        let long = "🦀é".repeat(MAX_ENTRY_BYTES / 6);
        let said = ["", "👩‍👩‍👧‍👦 🇺🇳 \u{10ffff} \u{feff}", "quote ' \" \\ % $1 ? --", &long, "a\0b\0"];
        store.append(append(session, &said)).await.unwrap();
        let mut expected: Vec<_> = said.iter().map(|text| (*text).to_owned()).collect();
        expected[4] = "a\u{fffd}b\u{fffd}".into();
        assert_eq!(texts(&store, session).await, expected);

        let turn = NewTurn {
            preview: Redacted::new("p\0"),
            first_entry: TranscriptEntry::with_payload("user_message\0", "u\0", RedactedJson::of(&json!(["\0"]))),
            ..keyed(new_turn(session, 1), "k\0", "h\0")
        };
        let prompt = turn.prompt_id;
        store.accept_turn(turn).await.unwrap();
        let ended = TurnEnd {
            state: TurnState::Failed,
            result: Some(RedactedJson::of(&json!(["\0"]))),
            error: Some(Failure::new(ErrorCode::AgentError, "e\0")),
            ..turn_end(session, prompt, 2)
        };
        end(&store, ended).await.unwrap();
        let row = store.prompt(prompt).await.unwrap().unwrap();
        assert_eq!((row.preview.as_str(), row.result.as_deref()), ("p\u{fffd}", Some("[\"\\u0000\"]")));
    }

    async fn bulk_append_keeps_the_order_of_entries(database: TestDatabase) {
        let store = database.open();
        let session = session(&store).await;
        let many: Vec<_> = (0..1201).map(|n| n.to_string()).collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        for part in many.chunks(601) {
            store.append(append(session, part)).await.unwrap();
        }
        let mut seen = texts(&store, session).await;
        let rest = store.transcript(session, 1000, 1000).await.unwrap();
        assert_eq!(rest[0].seq, 1001);
        seen.extend(rest.into_iter().map(|row| row.entry.text.into_string()));
        assert_eq!(seen, many);
    }

    async fn restart_continues_the_sequence_numbers_of_a_transcript(database: TestDatabase) {
        let store = database.open();
        let session = session(&store).await;
        store.append(append(session, &["a", "b"])).await.unwrap();
        assert!(store.close().await);
        let store = database.open();
        store.append(append(session, &["c"])).await.unwrap();
        assert_eq!(texts(&store, session).await, ["a", "b", "c"]);
    }

    async fn last_messages_are_bounded_and_oldest_first(database: TestDatabase) {
        let store = database.open();
        let session = session(&store).await;
        let turn = new_turn(session, 1);
        let prompt = turn.prompt_id;
        store.accept_turn(turn).await.unwrap();
        end(&store, turn_end(session, prompt, 2)).await.unwrap();
        let before = store.transcript_len(session).await.unwrap();
        for n in 0..40 {
            let mut one = append(session, &[&format!("user {n}"), "thinking", &format!("agent {n}")]);
            one.prompt_id = Some(prompt);
            one.entries[0].event_type = "user_message".into();
            one.entries[1].event_type = "agent_thought".into();
            store.try_append(one, drop).unwrap();
        }
        until("all entries", async || store.transcript_len(session).await.unwrap() == before + 120).await;
        let said = store.last_messages(session, 50).await.unwrap();
        let texts: Vec<_> = said.iter().map(|said| said.text.as_str()).collect();
        assert_eq!((texts.len(), texts[0], texts[49]), (50, "user 15", "agent 39"));
        assert!(said[0].by_user && !said[49].by_user);
        let long = "x".repeat(MAX_ENTRY_BYTES / 2);
        let mut last = append(session, &[&long, &long, "end"]);
        last.prompt_id = Some(prompt);
        store.append(last).await.unwrap();
        let said = store.last_messages(session, 50).await.unwrap();
        assert_eq!(said.len(), 3, "messages beyond the largest context are not read");
        let begun = new_turn(session, 3);
        store.accept_turn(begun).await.unwrap();
        let said = store.last_messages(session, 50).await.unwrap();
        assert_eq!(said.last().unwrap().text, "end", "a turn that has not ended is excluded");
        assert!(store.last_messages(new_session(0).session_id, 5).await.unwrap().is_empty());
    }
}
