//! What callers ask of a session beside turns.

use actix::{Handler, ResponseActFuture};
use serde_json::value::RawValue;

use super::{Session, turn::Turn};
use crate::{
    actors::handles::messages::{AnswerPermission, CancelTurn, EndCause, SetConfigOption, SetMode},
    domain::turn::outcome::{ErrorCode, Failure},
};

impl Handler<CancelTurn> for Session {
    type Result = bool;

    fn handle(&mut self, message: CancelTurn, ctx: &mut Self::Context) -> bool {
        let meant = |turn: &Turn| message.prompt_id.is_none_or(|wanted| wanted == turn.prompt_id());
        if !self.turn.as_ref().is_some_and(meant) {
            return false;
        }
        self.cancel_turn(ctx);
        true
    }
}

impl Handler<AnswerPermission> for Session {
    type Result = Result<(), Failure>;

    fn handle(&mut self, message: AnswerPermission, ctx: &mut Self::Context) -> Self::Result {
        let answer = self.desk.answer(&message.request_id, message.option_id)?;
        self.answer_permission(&message.request_id, answer, "user", ctx);
        Ok(())
    }
}

impl Handler<SetMode> for Session {
    type Result = ResponseActFuture<Self, Result<Box<RawValue>, Failure>>;

    fn handle(&mut self, message: SetMode, _: &mut Self::Context) -> Self::Result {
        let mode_id = message.mode_id;
        self.call(|link, call| link.set_mode(call, &mode_id))
    }
}

impl Handler<SetConfigOption> for Session {
    type Result = ResponseActFuture<Self, Result<Box<RawValue>, Failure>>;

    fn handle(&mut self, message: SetConfigOption, _: &mut Self::Context) -> Self::Result {
        let SetConfigOption { config_id, value } = message;
        self.call(|link, call| link.set_config_option(call, &config_id, &value))
    }
}

/// Why a session that is not idle and not running can do nothing else.
pub(super) fn not_ready(ending: Option<&EndCause>) -> Failure {
    match ending {
        Some(_) => Failure::new(ErrorCode::SessionClosed, "the session is being closed"),
        None => Failure::new(ErrorCode::ConnectionLost, "the session's agent is being started; try again"),
    }
}
