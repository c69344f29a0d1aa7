//! When a session goes over to the fallback by itself, because a handshake failed.

use super::turn::outcome::ErrorCode;

/// What a session knows when a handshake of its agent fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handshake {
    /// Whether its agent has a headless command, which needs no handshake.
    pub has_oneshot: bool,
    /// Whether the runtime has just been reached over HTTP, so that it is the way of ACP that is broken.
    pub runtime_answers: bool,
    /// Whether the session's turns went over the fallback until now.
    pub was_on_fallback: bool,
}

/// Whether the fallback does not depend on what has just failed. What is wrong with the request, the sign-in, the
/// capacity or this service is no better there.
pub fn bypasses(code: ErrorCode, handshake: Handshake) -> bool {
    let Handshake { has_oneshot, runtime_answers, was_on_fallback } = handshake;
    match code {
        ErrorCode::ProtocolVersion
        | ErrorCode::HandshakeFailed
        | ErrorCode::HandshakeTimeout
        | ErrorCode::ProtocolViolation
        | ErrorCode::FrameTooLarge
        | ErrorCode::AgentError
        | ErrorCode::AgentCrashed
        | ErrorCode::AgentStartFailed => has_oneshot || was_on_fallback,
        ErrorCode::RuntimeUnavailable | ErrorCode::ConnectionLost => runtime_answers || was_on_fallback,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fr_002_a_failed_handshake_is_bypassed_only_where_the_fallback_does_not_depend_on_it() {
        let nothing = Handshake { has_oneshot: false, runtime_answers: false, was_on_fallback: false };
        let oneshot = Handshake { has_oneshot: true, ..nothing };
        let answers = Handshake { runtime_answers: true, ..nothing };
        let was = Handshake { was_on_fallback: true, ..nothing };
        for code in ErrorCode::ALL {
            assert!(!bypasses(*code, nothing), "{code:?}");
        }
        assert!(bypasses(ErrorCode::ProtocolVersion, oneshot) && !bypasses(ErrorCode::ProtocolVersion, answers));
        assert!(
            bypasses(ErrorCode::RuntimeUnavailable, answers) && !bypasses(ErrorCode::RuntimeUnavailable, oneshot)
        );
        assert!(bypasses(ErrorCode::HandshakeTimeout, was));
        for code in [ErrorCode::AgentAuthRequired, ErrorCode::UnknownAgent, ErrorCode::CapacityExhausted] {
            assert!(!bypasses(code, was), "{code:?}");
        }
    }
}
