// @generated automatically by Diesel CLI.

diesel::table! {
    capacity_alerts (event_id) {
        event_id -> Text,
        alert_id -> Text,
        level -> Text,
        kind -> Text,
        taken -> BigInt,
        seat_limit -> BigInt,
        installation_id -> Nullable<Text>,
        created_us -> BigInt,
    }
}

diesel::table! {
    prompts (prompt_id) {
        prompt_id -> Text,
        session_id -> Text,
        installation_id -> Text,
        workspace_id -> Text,
        idempotency_key -> Nullable<Text>,
        body_hash -> Nullable<Text>,
        state -> Text,
        preview -> Text,
        result -> Nullable<Text>,
        error_code -> Nullable<Text>,
        error_detail -> Nullable<Text>,
        accepted_us -> BigInt,
        ended_us -> Nullable<BigInt>,
    }
}

diesel::table! {
    sessions (session_id) {
        session_id -> Text,
        installation_id -> Text,
        workspace_id -> Text,
        user_id -> Nullable<Text>,
        agent -> Text,
        mode -> Text,
        enable_git_ops -> Bool,
        state -> Text,
        failure_code -> Nullable<Text>,
        failure_detail -> Nullable<Text>,
        agent_session_id -> Nullable<Text>,
        mcp_servers -> Text,
        protocol -> Text,
        protocol_version -> Nullable<Integer>,
        agent_facts -> Nullable<Text>,
        restarts -> Integer,
        last_event_id -> BigInt,
        created_us -> BigInt,
        last_used_us -> BigInt,
        connection_id -> Nullable<Text>,
        connection_cookies -> Nullable<Text>,
        settled_seq -> BigInt,
    }
}

diesel::table! {
    transcript_entries (session_id, seq) {
        session_id -> Text,
        seq -> BigInt,
        installation_id -> Text,
        workspace_id -> Text,
        prompt_id -> Nullable<Text>,
        event_type -> Text,
        text -> Text,
        payload -> Nullable<Text>,
        created_us -> BigInt,
    }
}

diesel::table! {
    workspaces (installation_id, workspace_id) {
        installation_id -> Text,
        workspace_id -> Text,
        folder_id -> Text,
        repository -> Nullable<Text>,
        branch -> Nullable<Text>,
        path -> Nullable<Text>,
        workspace_path -> Nullable<Text>,
        permission_policy -> Nullable<Text>,
        created_us -> BigInt,
        last_used_us -> BigInt,
    }
}

diesel::joinable!(prompts -> sessions (session_id));
diesel::joinable!(transcript_entries -> sessions (session_id));

diesel::allow_tables_to_appear_in_same_query!(capacity_alerts, prompts, sessions, transcript_entries, workspaces,);
