//! `GET /ws/notifications`: one subscriber. The frames are in [`crate::contract::notifications::frames`].
//!
//! Missed notifications are read from the database page by page, as fast as the client reads; then the hub takes over
//! where the last page ended, in one step. Replayed and live notifications use the same stream, so they keep the order of
//! commits.

use std::{sync::Arc, time::Duration};

use actix::{Actor, ActorContext, ActorFutureExt, AsyncContext, StreamHandler, WrapFuture};
use actix_web::{HttpRequest, HttpResponse, web};
use actix_web_actors::ws::{self, CloseCode, ProtocolError, WebsocketContext};
use bytestring::ByteString;
use tokio::{sync::OwnedSemaphorePermit, time::Instant};
use uuid::Uuid;

use super::{
    connection::{ClientConnection, ConnectionGuard},
    feed::{self, Fed},
};
use crate::{
    actors::{
        handles::{session_progress, subscriber::Ending},
        notifications::NotificationHub,
        services::Services,
    },
    contract::notifications::frames::{ClientFrame, FRAMES_VERSION, MAX_CLIENT_FRAME_BYTES, ServerFrame, close_code},
    domain::{
        access::Caller,
        clock::Timestamp,
        heartbeat::{self, Due, SubscriberHeartbeat, SubscriberPulse},
        notify::{
            notification::Scope,
            subscription::{self, Eviction, QUEUE_FRAMES, ResetReason},
        },
        turn::outcome::ErrorCode,
    },
    http::{HttpState, problem::ApiError},
    store::{StoreError, StreamEnds},
};

/// Time limit for a client to send `hello`.
const HELLO: Duration = Duration::from_secs(10);
/// Time limit for a client to answer the closing frame.
const CLOSE_WAIT: Duration = Duration::from_secs(2);
/// The kernel times out a client that does not read this much later than we do, because only we can state the reason.
const KERNEL_MARGIN: Duration = Duration::from_secs(3);
/// Live sessions whose progress a new subscriber gets: the share of its queue for progress frames.
const SHOWN: usize = subscription::QUEUE_FRAMES / 2;

fn no_upgrade(cause: actix_web::Error) -> ApiError {
    ApiError::new(ErrorCode::InvalidRequest, format!("not a WebSocket upgrade: {cause}"))
}

/// Checks that a request is a WebSocket upgrade.
pub(crate) fn check(request: &HttpRequest) -> Result<(), ApiError> {
    ws::handshake(request).map(drop).map_err(|cause| no_upgrade(cause.into()))
}

/// Opens the WebSocket of a subscriber for `scope`, until `expires` or the end of the token.
pub(crate) fn open(
    (request, body): (&HttpRequest, web::Payload),
    state: &HttpState,
    (caller, scope): (Caller, Scope),
    seat: OwnedSemaphorePermit,
    expires: Option<Timestamp>,
) -> Result<HttpResponse, ApiError> {
    let services = state.workspaces.services().clone();
    let (client_connection, connection_guard) = ClientConnection::take(request, heartbeat::STALL + KERNEL_MARGIN);
    let socket = NotificationSocket {
        hub: state.notifications.clone(),
        scope: Arc::new(scope),
        caller,
        expires,
        opened: Instant::now(),
        pulse: SubscriberPulse::new(SubscriberHeartbeat::default()),
        stage: Stage::Opened(client_connection),
        position: 0,
        acks: Acks::default(),
        wants_telemetry: false,
        is_live: false,
        _presence: SubscriberSeat::new(services.clone(), seat),
        connection_guard,
        services,
    };
    let response = ws::WsResponseBuilder::new(socket, request, body).frame_size(MAX_CLIENT_FRAME_BYTES).start();
    response.map_err(no_upgrade)
}

/// The actor of one subscriber.
struct NotificationSocket {
    services: Arc<Services>,
    hub: NotificationHub,
    scope: Arc<Scope>,
    caller: Caller,
    /// When the authorisation of a browser page expires.
    expires: Option<Timestamp>,
    opened: Instant,
    pulse: SubscriberPulse,
    stage: Stage,
    /// Everything up to this `seq` has been sent.
    position: u64,
    acks: Acks,
    wants_telemetry: bool,
    /// True if the hub has taken over and reports evictions.
    is_live: bool,
    _presence: SubscriberSeat,
    // Last, so that the descriptor stays valid while the other fields are dropped.
    connection_guard: ConnectionGuard,
}

impl Drop for NotificationSocket {
    fn drop(&mut self) {
        // A client that does not read keeps this actor from running, so it cannot evict the client itself.
        let why = self.connection_guard.eviction(&self.pulse, self.opened.elapsed());
        if let (Stage::Subscribed, Some(why)) = (&self.stage, why) {
            self.services.metrics.notifications().evicted(why);
        }
    }
}

enum Stage {
    /// Before `hello`.
    Opened(ClientConnection),
    Subscribed,
    /// The closing frame was sent.
    Closing,
}

type Ctx = WebsocketContext<NotificationSocket>;

impl Actor for NotificationSocket {
    type Context = Ctx;

    fn started(&mut self, ctx: &mut Ctx) {
        ctx.run_later(HELLO, |socket, ctx| {
            if let Stage::Opened(_) = socket.stage {
                socket.evict(Eviction::BadFrame, close_code::POLICY, "send hello first", ctx);
            }
        });
        self.beat(ctx);
        let closed = self.hub.closed();
        ctx.spawn(closed.into_actor(self).map(|(), socket, ctx| {
            // A live subscriber gets its queued notifications first; the hub then ends its stream.
            if !socket.is_live {
                let (code, reason) = feed::close_reason(Ending::Stopping);
                socket.close(code, reason, ctx);
            }
        }));
    }
}

/// Frames from the client.
impl StreamHandler<Result<ws::Message, ProtocolError>> for NotificationSocket {
    fn handle(&mut self, message: Result<ws::Message, ProtocolError>, ctx: &mut Ctx) {
        // Any frame proves that the client is alive, a malformed one too.
        self.pulse.receive(self.opened.elapsed());
        match message {
            Ok(ws::Message::Text(text)) => self.on_text(&text, ctx),
            Ok(ws::Message::Ping(payload)) => ctx.pong(&payload),
            Ok(ws::Message::Pong(_) | ws::Message::Nop) => {}
            Ok(ws::Message::Close(reason)) => {
                if !matches!(self.stage, Stage::Closing) {
                    ctx.close(reason);
                }
                ctx.stop();
            }
            Ok(ws::Message::Binary(_) | ws::Message::Continuation(_)) | Err(ProtocolError::Overflow) => {
                let why = format!("a frame is one text message of at most {MAX_CLIENT_FRAME_BYTES} bytes");
                self.evict(Eviction::BadFrame, close_code::POLICY, &why, ctx);
            }
            Err(_) => ctx.stop(),
        }
    }
}

/// Frames for the client.
impl StreamHandler<Fed> for NotificationSocket {
    fn handle(&mut self, fed: Fed, ctx: &mut Ctx) {
        if let Stage::Closing = self.stage {
            return;
        }
        let metrics = self.services.metrics.notifications();
        match fed {
            Fed::Notification { frame, is_replay } => {
                // Advanced even for an unreadable notification, so that the cursor of the reset lies after it.
                self.position = frame.seq;
                let Some(text) = &frame.text else { return self.reset(ResetReason::Unreadable, ctx) };
                if is_replay {
                    metrics.replayed();
                } else {
                    metrics.sent(self.services.clock.now().since(frame.created));
                }
                self.send_text(text.clone(), ctx);
            }
            Fed::ReadUntil(position) => self.position = self.position.max(position),
            Fed::Dropped(frames) => self.report_dropped(frames, ctx),
            Fed::Joined => self.join(ctx),
            Fed::Telemetry { text, dropped } => {
                metrics.telemetry_sent();
                self.report_dropped(dropped, ctx);
                self.send_text(text, ctx);
            }
            Fed::Ended(ending) => {
                if let Ending::Evicted(why) = ending {
                    metrics.evicted(why);
                }
                let (code, reason) = feed::close_reason(ending);
                self.close(code, reason, ctx);
            }
            Fed::Failed(cause) => {
                tracing::warn!(%cause, "notifications of a subscriber could not be read");
                self.close(
                    close_code::TRY_AGAIN,
                    "notifications cannot be read now: reconnect with this cursor",
                    ctx,
                );
            }
        }
    }

    /// The closing frame was sent; the socket closes by itself.
    fn finished(&mut self, _: &mut Ctx) {}
}

impl NotificationSocket {
    fn on_text(&mut self, text: &str, ctx: &mut Ctx) {
        let frame = match serde_json::from_str(text) {
            Ok(frame) => frame,
            Err(cause) => {
                let why = format!("not a frame: {cause}");
                return self.evict(Eviction::BadFrame, close_code::POLICY, &why, ctx);
            }
        };
        match (frame, &self.stage) {
            (_, Stage::Closing) => {}
            (ClientFrame::Hello { version, epoch, cursor, telemetry }, Stage::Opened(_)) => {
                if version.is_some_and(|version| version != FRAMES_VERSION) {
                    let why = format!("only version {FRAMES_VERSION} of the frames is supported");
                    return self.evict(Eviction::BadFrame, close_code::POLICY, &why, ctx);
                }
                self.on_hello(cursor.map(|cursor| (cursor, epoch)), telemetry, ctx);
            }
            (ClientFrame::Ack { id }, Stage::Subscribed) => self.on_ack(id, ctx),
            (ClientFrame::Ping, Stage::Subscribed) => self.send(&ServerFrame::Pong { cursor: self.position }, ctx),
            (ClientFrame::Hello { .. }, Stage::Subscribed) => {
                self.evict(Eviction::BadFrame, close_code::POLICY, "hello may be sent once", ctx);
            }
            (_, Stage::Opened(_)) => self.evict(Eviction::BadFrame, close_code::POLICY, "send hello first", ctx),
        }
    }

    fn on_hello(&mut self, cursor: Option<(u64, Option<String>)>, telemetry: bool, ctx: &mut Ctx) {
        let Stage::Opened(client_connection) = std::mem::replace(&mut self.stage, Stage::Subscribed) else { return };
        let (services, scope, hub) = (self.services.clone(), self.scope.clone(), self.hub.clone());
        let reading = async move {
            let ends = services.store.stream_ends(scope.stream.clone()).await?;
            let unread = services.store.unread((*scope).clone()).await?;
            Ok((ends, unread))
        };
        // Through the hub, which limits concurrent reads: after a restart all clients send `hello` at once.
        let read = hub.read(reading);
        // Nothing else is read from the client until `welcome`.
        ctx.wait(read.into_actor(self).map(move |read, socket, ctx| match read {
            Ok((ends, unread)) => socket.welcome(cursor, ends, unread, telemetry, client_connection, ctx),
            Err(cause) => {
                tracing::warn!(%cause, "a subscription could not be started");
                socket.close(close_code::TRY_AGAIN, "the database is unavailable: reconnect", ctx);
            }
        }));
    }

    fn welcome(
        &mut self,
        cursor: Option<(u64, Option<String>)>,
        ends: StreamEnds,
        unread: u64,
        telemetry: bool,
        client_connection: ClientConnection,
        ctx: &mut Ctx,
    ) {
        let epoch = self.services.store.epoch();
        let cursor = cursor.as_ref().map(|(cursor, epoch)| (*cursor, epoch.as_deref()));
        let start = subscription::start(cursor, epoch, ends.head, ends.tail);
        // Set before anything is sent, because a reset repeats the position.
        (self.position, self.wants_telemetry) = (start.after, telemetry);
        let welcome = ServerFrame::Welcome {
            version: FRAMES_VERSION,
            epoch: epoch.to_owned(),
            cursor: start.after,
            head: ends.head,
            unread,
        };
        self.send(&welcome, ctx);
        if let Some(reason) = start.reset {
            self.reset(reason, ctx);
        }
        let feed = feed::feed(
            self.services.store.clone(),
            self.hub.clone(),
            self.scope.clone(),
            (start.after, ends.head),
            telemetry,
            client_connection.cut(),
        );
        ctx.add_stream(feed);
    }

    /// The subscriber is live. With `telemetry` it first gets the current progress of every session.
    fn join(&mut self, ctx: &mut Ctx) {
        self.is_live = true;
        if self.wants_telemetry {
            let now = self.services.clock.now();
            let (frames, dropped) = session_progress::frames(&self.services.index, &self.scope, SHOWN, now);
            for text in frames {
                self.services.metrics.notifications().telemetry_sent();
                self.send_text(text.into(), ctx);
            }
            self.report_dropped(dropped as u64, ctx);
        }
    }

    fn on_ack(&mut self, id: Uuid, ctx: &mut Ctx) {
        if !self.acks.add(id) {
            return self.evict(Eviction::BadFrame, close_code::POLICY, "too many acknowledgements at once", ctx);
        }
        self.mark(ctx);
    }

    fn mark(&mut self, ctx: &mut Ctx) {
        // One write at a time: acknowledgements that arrive meanwhile share the next one.
        let Some(ids) = self.acks.begin() else { return };
        let writing = write(self.services.clone(), self.hub.clone(), self.scope.clone(), ids);
        ctx.spawn(writing.into_actor(self).map(|written, socket, ctx| {
            socket.acks.end();
            match written {
                Ok(answers) => answers.iter().for_each(|answer| socket.send(answer, ctx)),
                Err(cause) => tracing::warn!(%cause, "acknowledgements could not be persisted and were not answered"),
            }
            // After a failure too: the client repeats what was not answered, and later acknowledgements must not wait
            // for that.
            socket.mark(ctx);
        }));
    }

    /// The stream continues after `position`; the client has to read earlier notifications from the inbox.
    fn reset(&mut self, reason: ResetReason, ctx: &mut Ctx) {
        self.services.metrics.notifications().reset(reason);
        let reset =
            ServerFrame::Reset { reason, epoch: self.services.store.epoch().to_owned(), cursor: self.position };
        self.send(&reset, ctx);
    }

    fn report_dropped(&mut self, frames: u64, ctx: &mut Ctx) {
        if frames > 0 {
            self.services.metrics.notifications().telemetry_dropped(frames);
            self.send(&ServerFrame::Gap { telemetry: frames }, ctx);
        }
    }

    fn send(&mut self, frame: &ServerFrame, ctx: &mut Ctx) {
        if !matches!(self.stage, Stage::Closing) {
            self.send_text(serde_json::to_string(frame).unwrap_or_default().into(), ctx);
        }
    }

    fn send_text(&mut self, text: ByteString, ctx: &mut Ctx) {
        self.pulse.send(self.opened.elapsed());
        ctx.text(text);
    }

    fn evict(&mut self, why: Eviction, code: u16, reason: &str, ctx: &mut Ctx) {
        if !matches!(self.stage, Stage::Closing) {
            self.services.metrics.notifications().evicted(why);
            self.close(code, reason, ctx);
        }
    }

    fn close(&mut self, code: u16, reason: &str, ctx: &mut Ctx) {
        let bye = ServerFrame::Bye { code, reason: reason.to_owned(), cursor: self.position };
        self.send(&bye, ctx);
        self.stage = Stage::Closing;
        // The reason of a closing frame has at most 123 bytes.
        let description = Some(crate::domain::text::cut_bytes(reason, 120).to_owned());
        ctx.close(Some(ws::CloseReason { code: CloseCode::from(code), description }));
        // A client that does not answer the closing frame must not hold its seat.
        ctx.run_later(CLOSE_WAIT, |_, ctx| ctx.stop());
    }

    fn beat(&mut self, ctx: &mut Ctx) {
        if let Stage::Closing = self.stage {
            return;
        }
        if self.expires.is_some_and(|until| self.services.clock.steady() >= until) {
            let reason = "the authorisation of this WebSocket expired: get a new ticket";
            return self.evict(Eviction::Expired, close_code::EXPIRED, reason, ctx);
        }
        if !self.services.tokens.is_current(&self.caller, self.services.clock.now()) {
            let reason = "the token of this WebSocket expired or was revoked";
            return self.evict(Eviction::Expired, close_code::EXPIRED, reason, ctx);
        }
        let next = loop {
            match self.pulse.due(self.opened.elapsed()) {
                Due::Nothing(wait) => break wait,
                Due::Ping => ctx.ping(b""),
                Due::End => {
                    self.services.metrics.notifications().evicted(Eviction::Silent);
                    self.stage = Stage::Closing;
                    return ctx.stop();
                }
            }
        };
        // Not later than `CHECK_EVERY`, because the authorisation may expire before the next ping.
        ctx.run_later(next.min(CHECK_EVERY), Self::beat);
    }
}

/// Interval at which pings and the expiry are checked.
const CHECK_EVERY: Duration = Duration::from_secs(5);

/// Acknowledgements that may wait while others are written: as many as a queue of notifications.
const MAX_ACKS: usize = QUEUE_FRAMES;

#[derive(Debug, Default)]
pub(crate) struct Acks {
    waiting: Vec<Uuid>,
    is_writing: bool,
}

impl Acks {
    /// Queues an acknowledgement; `false` if [`MAX_ACKS`] are waiting.
    pub(crate) fn add(&mut self, id: Uuid) -> bool {
        let has_room = self.waiting.len() < MAX_ACKS;
        if has_room {
            self.waiting.push(id);
        }
        has_room
    }

    /// The acknowledgements to write now; `None` while others are being written.
    pub(crate) fn begin(&mut self) -> Option<Vec<Uuid>> {
        if self.is_writing || self.waiting.is_empty() {
            return None;
        }
        self.is_writing = true;
        Some(std::mem::take(&mut self.waiting))
    }

    /// A write ended or failed.
    pub(crate) fn end(&mut self) {
        self.is_writing = false;
    }
}

/// Marks notifications as read and returns the answers. Safe to retry.
///
/// # Cancel safety
/// A dropped future may have written.
pub(crate) async fn write(
    services: Arc<Services>,
    hub: NotificationHub,
    scope: Arc<Scope>,
    ids: Vec<Uuid>,
) -> Result<Vec<ServerFrame>, StoreError> {
    let found = services.store.mark_read((*scope).clone(), ids.clone(), services.clock.now()).await?;
    let unread = hub.read(async move { services.store.unread((*scope).clone()).await }).await?;
    let answer = |(id, found)| ServerFrame::Ack { id, found, unread };
    Ok(ids.into_iter().zip(found).map(answer).collect())
}

/// Counts a subscriber and holds its seat while its socket lives.
pub(crate) struct SubscriberSeat {
    services: Arc<Services>,
    _seat: OwnedSemaphorePermit,
}

impl SubscriberSeat {
    pub(crate) fn new(services: Arc<Services>, seat: OwnedSemaphorePermit) -> Self {
        services.metrics.notifications().subscribed();
        Self { services, _seat: seat }
    }
}

impl Drop for SubscriberSeat {
    fn drop(&mut self) {
        self.services.metrics.notifications().unsubscribed();
    }
}
