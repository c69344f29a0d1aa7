// Runs a session with the client that openapi-fetch derives from the generated types.
import createClient from "openapi-fetch";
import type { components, paths } from "./schema.d.ts";

declare const process: { argv: string[] };

type Result = components["schemas"]["ACPSessionResult"];

const [, , baseUrl = "", token = ""] = process.argv;
const client = createClient<paths>({ baseUrl, headers: { Authorization: `Bearer ${token}` } });

/** The data of an answer, or the problem as an exception. */
function data<T>(answer: { data?: T; error?: components["schemas"]["Problem"] }): T {
  if (answer.data === undefined) throw new Error(`${answer.error?.code}: ${answer.error?.detail}`);
  return answer.data;
}

function check(holds: boolean, what: string): void {
  if (!holds) throw new Error(what);
}

const opened = data(
  await client.POST("/acp/session/new", { body: { installationId: "acme", workspaceId: "typescript" } }),
);
const sessionId = opened.sessionId;

const result = data(await client.POST("/acp/session/prompt", { body: { sessionId, prompt: "echo from a text" } }));
const ended = result as Result;
check(ended.stopReason === "completed", `the turn ended as ${ended.stopReason}`);
check(ended.meta?.message.includes("from a text") ?? false, `the message is ${ended.meta?.message}`);

const blocks = await client.POST("/acp/session/prompt", {
  body: { sessionId, prompt: [{ type: "text", text: "echo from a block" }] },
  headers: { Prefer: "respond-async" },
});
const { promptId } = data(blocks) as components["schemas"]["PromptAccepted"];

const deadline = Date.now() + 30_000;
for (;;) {
  const turn = data(await client.GET("/acp/prompt/{id}", { params: { path: { id: promptId } } }));
  if (turn.state === "completed") break;
  check(turn.state === "accepted" || turn.state === "running", `the turn is ${turn.state}`);
  check(Date.now() < deadline, "the turn did not end in time");
  await new Promise((resolve) => setTimeout(resolve, 50));
}

const session = data(await client.GET("/acp/session/{id}", { params: { path: { id: sessionId } } }));
check(session.state === "idle", `the session is ${session.state}`);
const page = data(await client.GET("/acp/session/{id}/transcript", { params: { path: { id: sessionId } } }));
check(page.entries.filter((entry) => entry.eventType === "user_message").length === 2, "the transcript has two prompts");

const missing = await client.GET("/acp/session/{id}", {
  params: { path: { id: "00000000-0000-4000-8000-000000000000" } },
});
check(missing.error?.code === "not_found", `an unknown session is answered with ${missing.error?.code}`);

const closed = data(await client.POST("/acp/session/close", { body: { sessionId } }));
check(closed.state === "closed", `the session is ${closed.state}`);
console.log("session closed");
