"""Runs a session with the generated client."""

import sys
import time
from uuid import UUID

from lumilink_client import AuthenticatedClient
from lumilink_client.api.sessions import close_session, get_session, get_transcript, new_session
from lumilink_client.api.turns import get_prompt, run_prompt
from lumilink_client.models import (
    ACPSessionResult,
    Closed,
    ErrorCode,
    NewSessionBody,
    Problem,
    PromptAccepted,
    PromptBody,
    PromptInfo,
    ResultStopReason,
    SessionBody,
    SessionInfo,
    SessionReady,
    SessionState,
    TextContent,
    TextContentType,
    TranscriptPage,
    TurnState,
)

client = AuthenticatedClient(base_url=sys.argv[1], token=sys.argv[2], timeout=None)

opened = new_session.sync(client=client, body=NewSessionBody(installation_id="acme", workspace_id="python"))
assert isinstance(opened, SessionReady), opened
session_id = opened.session_id

result = run_prompt.sync(client=client, body=PromptBody(session_id=session_id, prompt="echo from a text"))
assert isinstance(result, ACPSessionResult), result
assert result.stop_reason == ResultStopReason.COMPLETED, result

block = TextContent(type_=TextContentType.TEXT, text="echo from a block")
accepted = run_prompt.sync(
    client=client, body=PromptBody(session_id=session_id, prompt=[block]), prefer="respond-async"
)
assert isinstance(accepted, PromptAccepted), accepted

deadline = time.monotonic() + 30
while True:
    turn = get_prompt.sync(id=accepted.prompt_id, client=client)
    assert isinstance(turn, PromptInfo), turn
    if turn.state == TurnState.COMPLETED:
        break
    assert turn.state in (TurnState.ACCEPTED, TurnState.RUNNING), turn
    assert time.monotonic() < deadline, "the turn did not end in time"
    time.sleep(0.05)

session = get_session.sync(id=session_id, client=client)
assert isinstance(session, SessionInfo), session
assert session.state == SessionState.IDLE, session

page = get_transcript.sync(id=session_id, client=client)
assert isinstance(page, TranscriptPage), page
assert sum(entry.event_type == "user_message" for entry in page.entries) == 2, page

missing = get_session.sync(id=UUID("00000000-0000-4000-8000-000000000000"), client=client)
assert isinstance(missing, Problem), missing
assert missing.code == ErrorCode.NOT_FOUND, missing

closed = close_session.sync(client=client, body=SessionBody(session_id=session_id))
assert isinstance(closed, Closed), closed
assert closed.state == SessionState.CLOSED, closed
print("session closed")
