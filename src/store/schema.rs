// @generated automatically by Diesel CLI.

diesel::table! {
    acp_connections (connection_row_id) {
        connection_row_id -> Text,
        installation_id -> Text,
        workspace_id -> Text,
        session_id -> Nullable<Text>,
        connection_id -> Nullable<Text>,
        protocol -> Text,
        outcome -> Text,
        protocol_version -> Nullable<Integer>,
        agent_name -> Nullable<Text>,
        agent_version -> Nullable<Text>,
        capabilities -> Nullable<Text>,
        error_code -> Nullable<Text>,
        error_detail -> Nullable<Text>,
        handshake_ms -> BigInt,
        is_probe -> Bool,
        created_us -> BigInt,
    }
}

diesel::table! {
    admin_changes (change_id) {
        change_id -> Text,
        installation_id -> Nullable<Text>,
        workspace_id -> Nullable<Text>,
        kind -> Text,
        object -> Text,
        actor -> Text,
        actor_note -> Nullable<Text>,
        reason -> Nullable<Text>,
        state_before -> Text,
        state_after -> Text,
        created_us -> BigInt,
    }
}

diesel::table! {
    automation_runs (run_id) {
        run_id -> Text,
        installation_id -> Text,
        workspace_id -> Text,
        session_id -> Text,
        prompt_id -> Nullable<Text>,
        status -> Text,
        mode -> Text,
        issue_number -> Nullable<BigInt>,
        issue_url -> Nullable<Text>,
        pull_request_number -> Nullable<BigInt>,
        pull_request_url -> Nullable<Text>,
        branch -> Nullable<Text>,
        commit_sha -> Nullable<Text>,
        skip_reason -> Nullable<Text>,
        skip_detail -> Nullable<Text>,
        duration_ms -> BigInt,
        attempts -> Integer,
        error_code -> Nullable<Text>,
        logs -> Text,
        created_us -> BigInt,
        automation_id -> Nullable<Text>,
    }
}

diesel::table! {
    automation_sagas (run_id) {
        run_id -> Text,
        prompt_id -> Text,
        session_id -> Text,
        installation_id -> Text,
        workspace_id -> Text,
        version -> BigInt,
        status -> Text,
        state -> Nullable<Text>,
        retry_us -> Nullable<BigInt>,
        created_us -> BigInt,
        updated_us -> BigInt,
        kept_us -> Nullable<BigInt>,
    }
}

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
    client_tokens (token_id) {
        token_id -> Text,
        token_hash -> Text,
        installation_id -> Nullable<Text>,
        workspace_id -> Nullable<Text>,
        user_id -> Nullable<Text>,
        subject -> Text,
        role -> Text,
        limits -> Text,
        created_by -> Text,
        created_us -> BigInt,
        expires_us -> Nullable<BigInt>,
        revoked_us -> Nullable<BigInt>,
        revoked_by -> Nullable<Text>,
        last_used_us -> Nullable<BigInt>,
    }
}

diesel::table! {
    connection_events (event_id) {
        event_id -> Text,
        connection_row_id -> Text,
        installation_id -> Text,
        workspace_id -> Text,
        session_id -> Nullable<Text>,
        status -> Text,
        cause -> Text,
        health -> Nullable<Text>,
        created_us -> BigInt,
    }
}

diesel::table! {
    erasures (erasure_id) {
        erasure_id -> Text,
        scope -> Text,
        installation_id -> Text,
        workspace_id -> Nullable<Text>,
        session_id -> Nullable<Text>,
        actor -> Text,
        counts -> Text,
        created_us -> BigInt,
        ended_us -> Nullable<BigInt>,
    }
}

diesel::table! {
    github_bindings (github_installation) {
        github_installation -> Text,
        installation_id -> Text,
    }
}

diesel::table! {
    github_deliveries (delivery_id) {
        delivery_id -> Text,
        installation_id -> Text,
        workspace_id -> Text,
        session_id -> Nullable<Text>,
        prompt_id -> Nullable<Text>,
        event -> Text,
        state -> Text,
        reason -> Nullable<Text>,
        request -> Text,
        version -> BigInt,
        attempts -> BigInt,
        due_us -> Nullable<BigInt>,
        created_us -> BigInt,
        updated_us -> BigInt,
    }
}

diesel::table! {
    github_delivery_hashes (content_hash) {
        content_hash -> Text,
        created_us -> BigInt,
    }
}

diesel::table! {
    identity (one) {
        one -> Bool,
        epoch -> Text,
    }
}

diesel::table! {
    migration_runs (run_id) {
        run_id -> Text,
        installation_id -> Text,
        status -> Text,
        is_open -> Bool,
        run -> Text,
        version -> BigInt,
        created_us -> BigInt,
        updated_us -> BigInt,
    }
}

diesel::table! {
    notification_reads (notification_id, user_id) {
        notification_id -> Text,
        user_id -> Text,
        read_us -> BigInt,
    }
}

diesel::table! {
    notification_streams (stream) {
        stream -> Text,
        head -> BigInt,
        tail -> BigInt,
    }
}

diesel::table! {
    notification_tickets (ticket_hash) {
        ticket_hash -> Text,
        scope -> Text,
        expires_us -> BigInt,
    }
}

diesel::table! {
    notifications (notification_id) {
        notification_id -> Text,
        stream -> Text,
        seq -> BigInt,
        installation_id -> Nullable<Text>,
        workspace_id -> Nullable<Text>,
        session_id -> Nullable<Text>,
        user_id -> Nullable<Text>,
        title -> Text,
        body -> Text,
        severity -> Text,
        trigger -> Text,
        auto_dismiss_ms -> BigInt,
        cause_id -> Text,
        created_us -> BigInt,
        figures -> Nullable<Text>,
    }
}

diesel::table! {
    outcome_buckets (installation_id, workspace_id, epoch, route, bucket_us) {
        installation_id -> Text,
        workspace_id -> Text,
        epoch -> BigInt,
        route -> Text,
        bucket_us -> BigInt,
        successes -> BigInt,
        failures -> BigInt,
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
        route -> Text,
        protocol -> Text,
        epoch -> BigInt,
        is_canary -> Bool,
        automation -> Text,
        known_by -> Nullable<Text>,
        phase -> Text,
        decision -> Text,
        cancel_asked -> Bool,
        initiator -> Text,
        settled_seq -> BigInt,
        automation_options -> Nullable<Text>,
    }
}

diesel::table! {
    protocol_migrations (migration_id) {
        migration_id -> Text,
        run_id -> Nullable<Text>,
        installation_id -> Text,
        workspace_id -> Text,
        from_protocol -> Text,
        to_protocol -> Text,
        epoch -> Nullable<BigInt>,
        initiated_by -> Text,
        actor -> Text,
        actor_note -> Nullable<Text>,
        trigger -> Text,
        reason -> Text,
        status -> Text,
        metrics_snapshot -> Text,
        started_us -> BigInt,
        completed_us -> Nullable<BigInt>,
    }
}

diesel::table! {
    replicas (id) {
        id -> Text,
        epoch -> BigInt,
        address -> Text,
        process -> Text,
        expires_us -> BigInt,
    }
}

diesel::table! {
    removals (removal_id) {
        removal_id -> Text,
        installation_id -> Text,
        workspace_id -> Nullable<Text>,
        removed -> Text,
        cause -> Text,
        actor -> Text,
        reason -> Text,
        amount -> BigInt,
        created_us -> BigInt,
    }
}

diesel::table! {
    rollback_events (event_id) {
        event_id -> Text,
        installation_id -> Text,
        workspace_id -> Text,
        epoch -> BigInt,
        kind -> Text,
        trigger -> Text,
        reason_code -> Text,
        actor -> Text,
        actor_note -> Nullable<Text>,
        reason -> Text,
        follow_up -> Nullable<Text>,
        metrics_snapshot -> Text,
        created_us -> BigInt,
        alarm_id -> Nullable<Text>,
        counted_us -> Nullable<BigInt>,
    }
}

diesel::table! {
    rollback_storm (one) {
        one -> Bool,
        storm_id -> Text,
        since_us -> BigInt,
        most_flipped -> BigInt,
    }
}

diesel::table! {
    session_keys (installation_id, idempotency_key) {
        installation_id -> Text,
        idempotency_key -> Text,
        body_hash -> Text,
        session_id -> Text,
        answer -> Text,
        created_us -> BigInt,
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
        choices -> Nullable<Text>,
        restarts -> Integer,
        last_event_id -> BigInt,
        created_us -> BigInt,
        last_used_us -> BigInt,
        connection_id -> Nullable<Text>,
        connection_cookies -> Nullable<Text>,
        settled_seq -> BigInt,
        limited_token -> Nullable<Text>,
        is_isolated -> Bool,
        branch -> Nullable<Text>,
        folder_path -> Nullable<Text>,
        folder_removed_us -> Nullable<BigInt>,
    }
}

diesel::table! {
    tenant_protocols (installation_id) {
        installation_id -> Text,
        default_protocol -> Text,
        enable_acp -> Bool,
        allow_migration -> Bool,
        auto_migration -> Bool,
        blocked_repositories -> Text,
        updated_us -> BigInt,
    }
}

diesel::table! {
    tenant_settings (installation_id) {
        installation_id -> Text,
        settings -> Text,
        updated_us -> BigInt,
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
        revision -> BigInt,
        changed -> BigInt,
        message_id -> Nullable<Text>,
    }
}

diesel::table! {
    webhook_deliveries (delivery_id) {
        delivery_id -> Text,
        notification_id -> Text,
        endpoint -> Text,
        state -> Text,
        attempts -> Integer,
        next_attempt_us -> BigInt,
        last_status -> Nullable<Integer>,
        last_error -> Nullable<Text>,
        created_us -> BigInt,
        updated_us -> BigInt,
    }
}

diesel::table! {
    workspace_routes (installation_id, workspace_id) {
        installation_id -> Text,
        workspace_id -> Text,
        epoch -> BigInt,
        route -> Text,
        default_protocol -> Text,
        is_pinned -> Bool,
        stage -> Text,
        routing -> Text,
        migration_enabled -> Bool,
        auto_rollout -> Bool,
        created_us -> BigInt,
        updated_us -> BigInt,
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
        is_ephemeral -> Bool,
        removed_us -> Nullable<BigInt>,
    }
}

diesel::joinable!(prompts -> sessions (session_id));
diesel::joinable!(session_keys -> sessions (session_id));
diesel::joinable!(transcript_entries -> sessions (session_id));

diesel::allow_tables_to_appear_in_same_query!(
    acp_connections,
    admin_changes,
    automation_runs,
    automation_sagas,
    capacity_alerts,
    client_tokens,
    connection_events,
    erasures,
    github_bindings,
    github_deliveries,
    github_delivery_hashes,
    identity,
    migration_runs,
    notification_reads,
    notification_streams,
    notification_tickets,
    notifications,
    outcome_buckets,
    prompts,
    protocol_migrations,
    removals,
    rollback_events,
    rollback_storm,
    session_keys,
    sessions,
    tenant_protocols,
    tenant_settings,
    transcript_entries,
    webhook_deliveries,
    workspace_routes,
    workspaces,
);
