//! The problem documents that operations answer, declared by error code.
//!
//! A handler lists [`Problems`] among its responses, with what it can answer beyond what [`answered_by_all`] derives from
//! the form of an operation. The document has one response per status, which names the codes.

use std::{collections::BTreeMap, marker::PhantomData};

use utoipa::{
    IntoResponses, PartialSchema,
    openapi::{ContentBuilder, HeaderBuilder, Ref, RefOr, Response, ResponseBuilder, path::Operation},
};

use crate::{
    contract::problem::{PROBLEM_JSON, retry_after_s, status_of},
    domain::turn::outcome::ErrorCode,
};

/// A set of error codes that some operations have in common.
pub(crate) trait Codes {
    const CODES: &'static [ErrorCode];
}

/// Responses with the error codes of `T`, one set or a tuple of sets.
pub(crate) struct Problems<T>(PhantomData<T>);

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $($code:ident)*;)*) => {$(
        $(#[$doc])*
        pub(crate) struct $name;

        impl Codes for $name {
            const CODES: &'static [ErrorCode] = &[$(ErrorCode::$code,)*];
        }
    )*};
}

codes! {
    /// The session is in a state that excludes the request.
    OfSession = SessionPreparing SessionClosed SessionFailed SessionNotLoaded;
    /// A request to an agent fails, or the agent cannot be reached.
    OfAgent = NotSupportedByAgent AgentRejected AgentAuthRequired Authentication ModelProvider AgentCrashed ConnectionLost
        CancelUnconfirmed ProtocolViolation FrameTooLarge AgentError RuntimeUnavailable InactivityTimeout Draining;
    /// A workspace cannot be prepared, or an agent cannot be started in it.
    OfStart = CeilingExceeded PathNotAllowed UnknownAgent UnknownSecret WorkspaceUnavailable WorkspaceOwner
        WorkspaceUnreadable FolderMissing AgentStartFailed ProtocolVersion HandshakeFailed HandshakeTimeout CapacityExhausted
        FallbackUnavailable Interrupted LimitReached Erasing;
    /// A turn is refused, fails, or ends elsewhere.
    OfTurn = TurnRunning ModeUnavailable Interrupted Fenced FallbackUnavailable LimitReached WorkspaceFull;
    /// Too many calls to the agent are pending.
    OfCall = TurnRunning;
    /// The `Idempotency-Key` belongs to another request.
    OfKey = IdempotencyMismatch;
    /// The permission request is not pending.
    OfPermission = PermissionNotPending;
    /// No tenant is named, and several have a workspace of this name.
    OfWorkspace = AmbiguousWorkspace;
    /// The route of a workspace cannot be read or changed.
    OfRoute = AmbiguousWorkspace RouteChanged RuntimeUnavailable Draining;
    /// The route of a fleet cannot be changed.
    OfMigration = MigrationState RouteChanged RuntimeUnavailable Draining;
    /// The folder of a workspace is one that its tenant may not open.
    OfFolder = CeilingExceeded PathNotAllowed;
    /// A listed folder is not in one of `workspaces.allow_paths`.
    OfPath = PathNotAllowed;
    /// The runtime cannot answer.
    OfRuntime = RuntimeUnavailable WorkspaceUnavailable WorkspaceUnreadable FolderMissing ConnectionLost HandshakeTimeout;
    /// A run of automation cannot be tried again now.
    OfRun = TurnRunning Draining;
    /// There are too many tokens.
    OfTokens = TooManyTokens;
    /// The tenant is being erased.
    OfTenant = Erasing;
    /// An installation is bound to another tenant.
    OfBinding = InstallationBound;
    /// A delivery of GitHub is not authentic, malformed, or cannot be stored.
    OfDelivery = InvalidRequest SignatureInvalid NotFound PayloadTooLarge UnsupportedMediaType QueueFull Draining
        DatabaseUnavailable Internal;
    /// An erasure cannot begin, or has begun and is continued later.
    OfErasure = RuntimeUnavailable WorkspaceUnavailable PathNotAllowed Draining;
    /// No WebSocket can be opened.
    OfSocket = CapacityExhausted Draining;
    /// The session does not exist, although no path names it.
    OfBody = NotFound;
    /// The process does not work.
    OfLiveness = Stalled Internal;
    /// The service accepts no work.
    OfReadiness = Draining DatabaseUnavailable Internal;
}

/// The key of a code until [`declare`] groups the codes by status.
const KEY: &str = "code:";

impl<T: Codes> IntoResponses for Problems<T> {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let place = |code: &ErrorCode| (format!("{KEY}{}", code.as_str()), Response::new("").into());
        T::CODES.iter().map(place).collect()
    }
}

macro_rules! tuples {
    ($(($($name:ident)+))+) => {$(
        impl<$($name: Codes),+> IntoResponses for Problems<($($name,)+)> {
            fn responses() -> BTreeMap<String, RefOr<Response>> {
                let mut all = BTreeMap::new();
                $(all.extend(Problems::<$name>::responses());)+
                all
            }
        }
    )+};
}

tuples! { (A B) (A B C) (A B C D) (A B C D E) (A B C D E F) }

/// The codes that follow from the form of an operation: of the admission of requests (`http/guard.rs`), of
/// path, query and body, and of the database.
fn answered_by_all(path: &str, operation: &Operation, is_open: bool) -> Vec<ErrorCode> {
    let mut codes = vec![ErrorCode::ForbiddenOrigin];
    if is_open {
        return codes;
    }
    codes.extend([ErrorCode::Unauthorized, ErrorCode::Forbidden, ErrorCode::InvalidRequest, ErrorCode::Internal]);
    if path.starts_with("/metrics") {
        return codes;
    }
    codes.push(ErrorCode::DatabaseUnavailable);
    // A name of a tenant in the query or the body may be that of another one.
    if operation.parameters.is_some() || operation.request_body.is_some() {
        codes.push(ErrorCode::NotFound);
    }
    if operation.request_body.is_some() {
        codes.extend([ErrorCode::PayloadTooLarge, ErrorCode::UnsupportedMediaType]);
    }
    codes
}

/// Replaces the codes of an operation by one response per status. An open operation needs no token.
pub(super) fn declare(path: &str, operation: &mut Operation, is_open: bool) {
    let responses = &mut operation.responses.responses;
    let mut codes: Vec<_> =
        responses.keys().filter_map(|key| key.strip_prefix(KEY)).filter_map(ErrorCode::from_name).collect();
    responses.retain(|key, _| !key.starts_with(KEY));
    codes.extend(answered_by_all(path, operation, is_open));
    let mut by_status: BTreeMap<u16, Vec<ErrorCode>> = BTreeMap::new();
    for code in ErrorCode::ALL.iter().filter(|code| codes.contains(code)) {
        by_status.entry(status_of(*code)).or_default().push(*code);
    }
    for (status, codes) in by_status {
        operation.responses.responses.insert(status.to_string(), problem(&codes).into());
    }
}

/// The response with one of `codes`, which have the same status.
fn problem(codes: &[ErrorCode]) -> Response {
    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    let names: Vec<_> = codes.iter().map(|code| format!("`{}`", code.as_str())).collect();
    let response = ResponseBuilder::new().description(names.join(", ")).content(PROBLEM_JSON, content);
    if codes.iter().any(|code| retry_after_s(*code).is_some()) {
        let header =
            HeaderBuilder::new().schema(Some(u32::schema())).description(Some("Seconds to wait before a retry"));
        return response.header("Retry-After", header.build()).build();
    }
    response.build()
}
