//! What a subscriber gets, as one stream: first what it missed, page by page, then what comes.

use std::{collections::VecDeque, sync::Arc};

use bytestring::ByteString;
use futures_util::{Stream, stream};

use crate::{
    actors::{
        messages::{Subscribe, Subscribed},
        notifications::ToastHub,
        toast_pipe::{Cut, Ending, Item, Outlet, ToastFrame},
    },
    domain::{outcome::Failure, toast::Scope},
    store::{self, Store},
};

/// Toasts that are read at once: some tens of kilobytes.
const PAGE: usize = 100;

/// One thing for the subscriber.
#[derive(Debug)]
pub enum Fed {
    /// A toast.
    Toast {
        /// As it is sent.
        frame: Arc<ToastFrame>,
        /// Whether it had been missed.
        is_replay: bool,
    },
    /// Up to this number there is nothing more for it.
    ReadUntil(u64),
    /// Telemetry.
    Telemetry {
        /// As it is sent.
        text: ByteString,
        /// Frames that were left out before it.
        left_out: u64,
    },
    /// Nothing more comes.
    Ended(Ending),
    /// What it missed could not be read; nothing more comes.
    Failed(Failure),
}

enum Stage {
    /// Reads what was missed.
    Missed,
    /// Has it all, and is about to join those who get what comes.
    Joins,
    Live(Outlet),
    Over,
}

struct Feed {
    store: Store,
    hub: ToastHub,
    scope: Arc<Scope>,
    after: u64,
    wants_telemetry: bool,
    cut: Cut,
    ready: VecDeque<Fed>,
    stage: Stage,
}

/// The stream of one subscriber that has everything until `after`, where `head` was the newest toast a moment ago. It
/// reads on only when it is asked for more.
pub fn feed(
    store: Store,
    hub: ToastHub,
    scope: Arc<Scope>,
    (after, head): (u64, u64),
    wants_telemetry: bool,
    cut: Cut,
) -> impl Stream<Item = Fed> {
    let stage = if after < head { Stage::Missed } else { Stage::Joins };
    let feed = Feed { store, hub, scope, after, wants_telemetry, cut, ready: VecDeque::new(), stage };
    stream::unfold(feed, |mut feed| async move {
        let fed = feed.next().await?;
        Some((fed, feed))
    })
}

impl Feed {
    async fn next(&mut self) -> Option<Fed> {
        loop {
            if let Some(fed) = self.ready.pop_front() {
                return Some(fed);
            }
            let stepped = match &mut self.stage {
                Stage::Over => return None,
                Stage::Live(outlet) => match outlet.next().await {
                    Ok(Item::Toast(frame)) => return Some(Fed::Toast { frame, is_replay: false }),
                    Ok(Item::Telemetry(text)) => return Some(Fed::Telemetry { text, left_out: outlet.left_out() }),
                    Err(ending) => {
                        self.stage = Stage::Over;
                        return Some(Fed::Ended(ending));
                    }
                },
                Stage::Missed => self.read_on().await,
                Stage::Joins => self.join().await,
            };
            if let Err(cause) = stepped {
                self.stage = Stage::Over;
                return Some(Fed::Failed(cause));
            }
        }
    }

    /// One page of what was missed.
    async fn read_on(&mut self) -> Result<(), Failure> {
        let read = self.store.toasts_after((*self.scope).clone(), self.after, PAGE).await;
        let (rows, until) = read.map_err(|cause| store::failure(&cause))?;
        if rows.len() < PAGE {
            self.stage = Stage::Joins;
        }
        let toast = |row| Fed::Toast { frame: Arc::new(ToastFrame::new(row)), is_replay: true };
        self.ready.extend(rows.into_iter().map(toast));
        self.ready.push_back(Fed::ReadUntil(until));
        self.after = until;
        Ok(())
    }

    async fn join(&mut self) -> Result<(), Failure> {
        let subscribe = Subscribe {
            scope: (*self.scope).clone(),
            after: self.after,
            wants_telemetry: self.wants_telemetry,
            cut: self.cut.clone(),
        };
        match self.hub.subscribe(subscribe).await? {
            Subscribed::Behind => self.stage = Stage::Missed,
            Subscribed::Joined { missed, outlet } => {
                self.ready.extend(missed.into_iter().map(|frame| Fed::Toast { frame, is_replay: true }));
                self.stage = Stage::Live(outlet);
            }
        }
        Ok(())
    }
}
