//! The tables of the migrated database, for Diesel's DSL. Made and checked by `tests/schema_file.rs`.

#![allow(missing_docs, reason = "the migrations say what everything is")]

/// The enumerations.
pub mod sql_types {
    #[derive(Clone, Copy, Debug, diesel::query_builder::QueryId, diesel::sql_types::SqlType)]
    #[diesel(postgres_type(name = "access_level"))]
    pub struct AccessLevel;

    #[derive(Clone, Copy, Debug, diesel::query_builder::QueryId, diesel::sql_types::SqlType)]
    #[diesel(postgres_type(name = "agentstatus"))]
    pub struct Agentstatus;

    #[derive(Clone, Copy, Debug, diesel::query_builder::QueryId, diesel::sql_types::SqlType)]
    #[diesel(postgres_type(name = "chat_mode"))]
    pub struct ChatMode;

    #[derive(Clone, Copy, Debug, diesel::query_builder::QueryId, diesel::sql_types::SqlType)]
    #[diesel(postgres_type(name = "context_type"))]
    pub struct ContextType;

    #[derive(Clone, Copy, Debug, diesel::query_builder::QueryId, diesel::sql_types::SqlType)]
    #[diesel(postgres_type(name = "conversationphase"))]
    pub struct Conversationphase;

    #[derive(Clone, Copy, Debug, diesel::query_builder::QueryId, diesel::sql_types::SqlType)]
    #[diesel(postgres_type(name = "device_type"))]
    pub struct DeviceType;

    #[derive(Clone, Copy, Debug, diesel::query_builder::QueryId, diesel::sql_types::SqlType)]
    #[diesel(postgres_type(name = "eventtype"))]
    pub struct Eventtype;

    #[derive(Clone, Copy, Debug, diesel::query_builder::QueryId, diesel::sql_types::SqlType)]
    #[diesel(postgres_type(name = "feedback_type"))]
    pub struct FeedbackType;

    #[derive(Clone, Copy, Debug, diesel::query_builder::QueryId, diesel::sql_types::SqlType)]
    #[diesel(postgres_type(name = "gpuallocationstatus"))]
    pub struct Gpuallocationstatus;

    #[derive(Clone, Copy, Debug, diesel::query_builder::QueryId, diesel::sql_types::SqlType)]
    #[diesel(postgres_type(name = "memorytier"))]
    pub struct Memorytier;

    #[derive(Clone, Copy, Debug, diesel::query_builder::QueryId, diesel::sql_types::SqlType)]
    #[diesel(postgres_type(name = "message_role"))]
    pub struct MessageRole;

    #[derive(Clone, Copy, Debug, diesel::query_builder::QueryId, diesel::sql_types::SqlType)]
    #[diesel(postgres_type(name = "modelprovider"))]
    pub struct Modelprovider;

    #[derive(Clone, Copy, Debug, diesel::query_builder::QueryId, diesel::sql_types::SqlType)]
    #[diesel(postgres_type(name = "performative"))]
    pub struct Performative;

    #[derive(Clone, Copy, Debug, diesel::query_builder::QueryId, diesel::sql_types::SqlType)]
    #[diesel(postgres_type(name = "privacy_request_status"))]
    pub struct PrivacyRequestStatus;

    #[derive(Clone, Copy, Debug, diesel::query_builder::QueryId, diesel::sql_types::SqlType)]
    #[diesel(postgres_type(name = "privacy_request_type"))]
    pub struct PrivacyRequestType;

    #[derive(Clone, Copy, Debug, diesel::query_builder::QueryId, diesel::sql_types::SqlType)]
    #[diesel(postgres_type(name = "retention_action"))]
    pub struct RetentionAction;

    #[derive(Clone, Copy, Debug, diesel::query_builder::QueryId, diesel::sql_types::SqlType)]
    #[diesel(postgres_type(name = "second_factor_method"))]
    pub struct SecondFactorMethod;

    #[derive(Clone, Copy, Debug, diesel::query_builder::QueryId, diesel::sql_types::SqlType)]
    #[diesel(postgres_type(name = "security_level"))]
    pub struct SecurityLevel;

    #[derive(Clone, Copy, Debug, diesel::query_builder::QueryId, diesel::sql_types::SqlType)]
    #[diesel(postgres_type(name = "sync_status"))]
    pub struct SyncStatus;

    #[derive(Clone, Copy, Debug, diesel::query_builder::QueryId, diesel::sql_types::SqlType)]
    #[diesel(postgres_type(name = "sync_type"))]
    pub struct SyncType;

    #[derive(Clone, Copy, Debug, diesel::query_builder::QueryId, diesel::sql_types::SqlType)]
    #[diesel(postgres_type(name = "taskdelegationstatus"))]
    pub struct Taskdelegationstatus;

    #[derive(Clone, Copy, Debug, diesel::query_builder::QueryId, diesel::sql_types::SqlType)]
    #[diesel(postgres_type(name = "user_role"))]
    pub struct UserRole;

    #[derive(Clone, Copy, Debug, diesel::query_builder::QueryId, diesel::sql_types::SqlType)]
    #[diesel(postgres_type(name = "user_status"))]
    pub struct UserStatus;

    #[derive(Clone, Copy, Debug, diesel::query_builder::QueryId, diesel::sql_types::SqlType)]
    #[diesel(postgres_type(name = "validationstatus"))]
    pub struct Validationstatus;

    #[derive(Clone, Copy, Debug, diesel::query_builder::QueryId, diesel::sql_types::SqlType)]
    #[diesel(postgres_type(name = "vector_collection_state"))]
    pub struct VectorCollectionState;

    #[derive(Clone, Copy, Debug, diesel::query_builder::QueryId, diesel::sql_types::SqlType)]
    #[diesel(postgres_type(name = "vectortype"))]
    pub struct Vectortype;

    #[derive(Clone, Copy, Debug, diesel::query_builder::QueryId, diesel::sql_types::SqlType)]
    #[diesel(postgres_type(name = "tsvector"))]
    pub struct Tsvector;

    #[derive(Clone, Copy, Debug, diesel::query_builder::QueryId, diesel::sql_types::SqlType)]
    #[diesel(postgres_type(name = "operation", schema = "audit"))]
    pub struct Operation;

    #[derive(Clone, Copy, Debug, diesel::query_builder::QueryId, diesel::sql_types::SqlType)]
    #[diesel(postgres_type(name = "severity", schema = "audit"))]
    pub struct Severity;
}

diesel::table! {
    use diesel::sql_types::*;
    agent_configurations (user_id, id) {
        id -> Uuid,
        user_id -> Integer,
        agent_id -> Text,
        agent_type -> Text,
        agent_role -> Text,
        assigned_llm -> Text,
        model_provider -> crate::schema::sql_types::Modelprovider,
        gpu_assignment -> Nullable<Integer>,
        system_prompt -> Nullable<Text>,
        temperature -> Double,
        constraints -> Jsonb,
        capabilities -> Jsonb,
        is_active -> Bool,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        request_id -> Nullable<Uuid>,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    agent_context_states (id) {
        id -> Uuid,
        agent_id -> Text,
        user_id -> Integer,
        session_id -> Text,
        memory_tier -> crate::schema::sql_types::Memorytier,
        context_key -> Text,
        context_value -> Nullable<Jsonb>,
        is_shareable -> Bool,
        expires_at -> Nullable<Timestamptz>,
        version -> BigInt,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        removed_at -> Nullable<Timestamptz>,
        request_id -> Nullable<Uuid>,
        is_sensitive -> Bool,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    agent_profiles (user_id, id) {
        id -> Uuid,
        user_id -> Integer,
        agent_id -> Text,
        config_id -> Uuid,
        display_name -> Text,
        description -> Text,
        expertise_areas -> Jsonb,
        current_status -> crate::schema::sql_types::Agentstatus,
        performance_metrics -> Jsonb,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        request_id -> Nullable<Uuid>,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    agent_responses (user_id, id) {
        id -> Uuid,
        user_id -> Integer,
        task_delegation_id -> Uuid,
        agent_id -> Text,
        response_text -> Text,
        confidence_score -> Double,
        processing_time_seconds -> Double,
        created_at -> Timestamptz,
        request_id -> Nullable<Uuid>,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    blackboard_events (id) {
        id -> Uuid,
        event_sequence -> BigInt,
        event_type -> crate::schema::sql_types::Eventtype,
        performative -> crate::schema::sql_types::Performative,
        source_agent_id -> Text,
        target_agent_id -> Nullable<Text>,
        user_id -> Integer,
        session_id -> Text,
        event_payload -> Jsonb,
        semantic_context -> Nullable<Jsonb>,
        parent_event_id -> Nullable<Uuid>,
        causality_chain -> Jsonb,
        logical_timestamp -> BigInt,
        created_at -> Timestamptz,
        request_id -> Nullable<Uuid>,
        transaction_id -> BigInt,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    chat_history (user_id, id) {
        id -> Uuid,
        user_id -> Integer,
        conversation_id -> Text,
        summary -> Nullable<Text>,
        metadata -> Jsonb,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        request_id -> Nullable<Uuid>,
        is_sensitive -> Bool,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    chat_messages (user_id, id) {
        id -> Uuid,
        user_id -> Integer,
        history_id -> Uuid,
        role -> crate::schema::sql_types::MessageRole,
        content -> Text,
        timestamp -> Timestamptz,
        request_id -> Nullable<Uuid>,
        is_sensitive -> Bool,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    chat_mode_sessions (id) {
        id -> Uuid,
        user_id -> Integer,
        session_id -> Text,
        chat_mode -> crate::schema::sql_types::ChatMode,
        configuration -> Jsonb,
        parent_session_id -> Nullable<Text>,
        is_active -> Bool,
        session_metadata -> Jsonb,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        ended_at -> Nullable<Timestamptz>,
        unified_memory_id -> Nullable<Uuid>,
        request_id -> Nullable<Uuid>,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    chat_session_summary (id) {
        id -> Uuid,
        user_id -> Integer,
        session_id -> Text,
        summary -> Text,
        key_topics -> Jsonb,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        request_id -> Nullable<Uuid>,
        is_sensitive -> Bool,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    consensus_memory_nodes (user_id, id) {
        id -> Uuid,
        user_id -> Integer,
        node_type -> Text,
        node_key -> Text,
        title -> Text,
        content -> Jsonb,
        validation_status -> crate::schema::sql_types::Validationstatus,
        consensus_score -> Double,
        semantic_tags -> Jsonb,
        is_active -> Bool,
        established_at -> Timestamptz,
        updated_at -> Timestamptz,
        request_id -> Nullable<Uuid>,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    consensus_memory_relations (user_id, id) {
        id -> Uuid,
        user_id -> Integer,
        source_node_id -> Uuid,
        target_node_id -> Uuid,
        relation_type -> Text,
        strength -> Double,
        confidence -> Double,
        validation_status -> crate::schema::sql_types::Validationstatus,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        request_id -> Nullable<Uuid>,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    cross_service_auth (token_id) {
        token_id -> Uuid,
        service -> Text,
        user_id -> Integer,
        session_id -> Nullable<Text>,
        scopes -> Array<Text>,
        key_id -> Text,
        issued_at -> Timestamptz,
        expires_at -> Timestamptz,
        grants_expire_at -> Timestamptz,
        last_used_at -> Nullable<Timestamptz>,
        revoked_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    cross_service_memory_sync (user_id, id) {
        id -> Uuid,
        user_id -> Integer,
        source_session_id -> Text,
        target_session_id -> Text,
        sync_type -> crate::schema::sql_types::SyncType,
        sync_status -> crate::schema::sql_types::SyncStatus,
        data_transferred -> Jsonb,
        conflict_resolution -> Nullable<Jsonb>,
        created_at -> Timestamptz,
        completed_at -> Nullable<Timestamptz>,
        request_id -> Nullable<Uuid>,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    data_retention_policies (user_id, id) {
        id -> Uuid,
        user_id -> Integer,
        table_name -> Text,
        chat_mode -> Nullable<crate::schema::sql_types::ChatMode>,
        keep_days -> Integer,
        action -> crate::schema::sql_types::RetentionAction,
        is_active -> Bool,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        request_id -> Nullable<Uuid>,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    encrypted_fields (user_id, id) {
        id -> Uuid,
        user_id -> Integer,
        table_name -> Text,
        column_name -> Text,
        row_id -> Uuid,
        ciphertext -> Binary,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        request_id -> Nullable<Uuid>,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    gpu_allocations (user_id, id) {
        id -> Uuid,
        user_id -> Integer,
        gpu_id -> Integer,
        agent_config_id -> Uuid,
        allocated_memory_mb -> Integer,
        status -> crate::schema::sql_types::Gpuallocationstatus,
        allocated_at -> Timestamptz,
        request_id -> Nullable<Uuid>,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    gpu_resources (id) {
        id -> Integer,
        gpu_name -> Text,
        total_memory_mb -> Integer,
        current_utilization_percent -> Double,
        is_available -> Bool,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    inbox (worker, user_id, message_id) {
        worker -> Text,
        user_id -> Integer,
        message_id -> Uuid,
        event_id -> Uuid,
        received_at -> Timestamptz,
        event_count -> Integer,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    message_feedback (id) {
        id -> Uuid,
        message_id -> Uuid,
        user_id -> Integer,
        feedback_type -> crate::schema::sql_types::FeedbackType,
        rating -> Nullable<Integer>,
        comment -> Nullable<Text>,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        request_id -> Nullable<Uuid>,
        is_sensitive -> Bool,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    multi_agent_conversations (user_id, id) {
        id -> Uuid,
        user_id -> Integer,
        session_id -> Text,
        conversation_title -> Text,
        current_phase -> crate::schema::sql_types::Conversationphase,
        participating_agents -> Jsonb,
        total_tasks_delegated -> BigInt,
        tasks_completed -> BigInt,
        started_at -> Timestamptz,
        updated_at -> Timestamptz,
        completed_at -> Nullable<Timestamptz>,
        request_id -> Nullable<Uuid>,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    passkey_credentials (id) {
        id -> Uuid,
        user_id -> Integer,
        credential_id -> Text,
        public_key -> Nullable<Text>,
        sign_count -> BigInt,
        passkey_name -> Nullable<Text>,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        removed_at -> Nullable<Timestamptz>,
        request_id -> Nullable<Uuid>,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    privacy_requests (user_id, id) {
        id -> Uuid,
        user_id -> Integer,
        request_type -> crate::schema::sql_types::PrivacyRequestType,
        request_status -> crate::schema::sql_types::PrivacyRequestStatus,
        details -> Jsonb,
        receipt -> Nullable<Jsonb>,
        requested_at -> Timestamptz,
        updated_at -> Timestamptz,
        completed_at -> Nullable<Timestamptz>,
        request_id -> Nullable<Uuid>,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    qdrant_access_control (id) {
        id -> Uuid,
        service -> Text,
        collection_name -> Text,
        vector_type -> crate::schema::sql_types::Vectortype,
        may_search -> Bool,
        may_write -> Bool,
        may_delete -> Bool,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    registered_devices (user_id, id) {
        id -> Uuid,
        user_id -> Integer,
        device_name -> Nullable<Text>,
        device_type -> Nullable<crate::schema::sql_types::DeviceType>,
        security_level -> Nullable<crate::schema::sql_types::SecurityLevel>,
        last_seen_at -> Nullable<Timestamptz>,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        removed_at -> Nullable<Timestamptz>,
        request_id -> Nullable<Uuid>,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    router_decision_log (user_id, id) {
        id -> Uuid,
        user_id -> Integer,
        session_id -> Text,
        user_request -> Text,
        routing_decision -> Jsonb,
        tools_invoked -> Jsonb,
        complexity_score -> Double,
        confidence_score -> Double,
        processing_time_ms -> Nullable<BigInt>,
        tokens_used -> Nullable<BigInt>,
        model_used -> Nullable<Text>,
        success -> Bool,
        error_details -> Nullable<Jsonb>,
        blackboard_event_id -> Nullable<Uuid>,
        created_at -> Timestamptz,
        request_id -> Nullable<Uuid>,
        chat_mode -> crate::schema::sql_types::ChatMode,
        is_sensitive -> Bool,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    router_hourly_patterns (user_id, hour, chat_mode, route, tool, model) {
        user_id -> Integer,
        hour -> Timestamptz,
        chat_mode -> crate::schema::sql_types::ChatMode,
        route -> Text,
        tool -> Text,
        model -> Text,
        decisions -> BigInt,
        successes -> BigInt,
        timed -> BigInt,
        times -> Jsonb,
        time_ms_sum -> BigInt,
        tokens_sum -> BigInt,
        complexity_sum -> Numeric,
        confidence_sum -> Numeric,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    session_clocks (user_id, session_id) {
        user_id -> Integer,
        session_id -> Text,
        published_sequence -> BigInt,
        events -> BigInt,
        logical_time -> BigInt,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    simple_chat_context (id) {
        id -> Uuid,
        user_id -> Integer,
        session_id -> Text,
        context_key -> Text,
        context_value -> Nullable<Jsonb>,
        context_type -> crate::schema::sql_types::ContextType,
        access_level -> crate::schema::sql_types::AccessLevel,
        priority -> Integer,
        version -> BigInt,
        expires_at -> Nullable<Timestamptz>,
        is_persistent -> Bool,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        removed_at -> Nullable<Timestamptz>,
        request_id -> Nullable<Uuid>,
        is_sensitive -> Bool,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    system_settings (id) {
        id -> Uuid,
        user_id -> Integer,
        setting_key -> Text,
        setting_value -> Nullable<Jsonb>,
        is_global -> Nullable<Bool>,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        removed_at -> Nullable<Timestamptz>,
        request_id -> Nullable<Uuid>,
        is_sensitive -> Bool,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    task_delegations (user_id, id) {
        id -> Uuid,
        user_id -> Integer,
        session_id -> Text,
        pm_agent_id -> Text,
        target_agent_id -> Text,
        task_description -> Text,
        status -> crate::schema::sql_types::Taskdelegationstatus,
        blackboard_event_id -> Nullable<Uuid>,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        request_id -> Nullable<Uuid>,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    unified_memory_vectors (user_id, id) {
        id -> Uuid,
        user_id -> Integer,
        memory_node_id -> Nullable<Uuid>,
        session_id -> Nullable<Text>,
        vector_type -> crate::schema::sql_types::Vectortype,
        content_text -> Text,
        embedding_model -> Text,
        qdrant_point_id -> Nullable<Uuid>,
        metadata -> Jsonb,
        relevance_score -> Nullable<Double>,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        request_id -> Nullable<Uuid>,
        removed_at -> Nullable<Timestamptz>,
        content_hash -> Nullable<Binary>,
        point_count -> Integer,
        is_brought -> Bool,
        preceding_text -> Nullable<Text>,
        content_words -> crate::schema::sql_types::Tsvector,
        content_length -> Nullable<Integer>,
        speaker -> Nullable<Text>,
        occurred_at -> Timestamptz,
        is_dated -> Bool,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    user_profiles (id) {
        id -> Uuid,
        user_id -> Integer,
        first_name -> Nullable<Text>,
        last_name -> Nullable<Text>,
        timezone -> Nullable<Text>,
        preferences -> Jsonb,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        request_id -> Nullable<Uuid>,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    user_two_factor_auth (id) {
        id -> Uuid,
        user_id -> Integer,
        method -> crate::schema::sql_types::SecondFactorMethod,
        secret_key -> Nullable<Text>,
        backup_codes -> Jsonb,
        is_enabled -> Bool,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        removed_at -> Nullable<Timestamptz>,
        request_id -> Nullable<Uuid>,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    users (id) {
        id -> Integer,
        username -> Text,
        email -> Text,
        password_hash -> Nullable<Text>,
        role -> crate::schema::sql_types::UserRole,
        status -> crate::schema::sql_types::UserStatus,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
        request_id -> Nullable<Uuid>,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    vector_collections (collection_name) {
        collection_name -> Text,
        alias -> Text,
        model -> Text,
        dimension -> Integer,
        quantization -> Text,
        state -> crate::schema::sql_types::VectorCollectionState,
        created_at -> Timestamptz,
        updated_at -> Timestamptz,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    audit.audit_log (transaction_id, id) {
        id -> Uuid,
        occurred_at -> Timestamptz,
        subject_token -> Nullable<Uuid>,
        role_name -> Text,
        service -> Nullable<Text>,
        request_id -> Nullable<Uuid>,
        table_name -> Text,
        operation -> crate::schema::sql_types::Operation,
        row_digest_before -> Nullable<Binary>,
        row_digest_after -> Nullable<Binary>,
        changed_columns -> Array<Text>,
        transaction_id -> BigInt,
        row_id -> Nullable<Uuid>,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    audit.data_access_log (id) {
        id -> Uuid,
        occurred_at -> Timestamptz,
        subject_token -> Nullable<Uuid>,
        role_name -> Text,
        service -> Nullable<Text>,
        request_id -> Nullable<Uuid>,
        access_type -> Text,
        object_name -> Text,
        rows_returned -> BigInt,
        transaction_id -> BigInt,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    audit.seals (number) {
        number -> BigInt,
        previous_hash -> Binary,
        through_transaction -> BigInt,
        through_id -> Uuid,
        leaves -> Binary,
        root -> Binary,
        sealed_at -> Timestamptz,
        key_name -> Text,
        signature -> Binary,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    audit.security_metrics (id) {
        id -> Uuid,
        measured_at -> Timestamptz,
        metric_name -> Text,
        metric_value -> Double,
        labels -> Jsonb,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    audit.security_violations (id) {
        id -> Uuid,
        occurred_at -> Timestamptz,
        subject_token -> Nullable<Uuid>,
        role_name -> Text,
        service -> Nullable<Text>,
        request_id -> Nullable<Uuid>,
        violation_type -> Text,
        severity -> crate::schema::sql_types::Severity,
        table_name -> Nullable<Text>,
        reason -> Text,
        transaction_id -> BigInt,
    }
}

diesel::table! {
    use diesel::sql_types::*;
    audit.subjects (user_id) {
        user_id -> Integer,
        token -> Uuid,
        created_at -> Timestamptz,
        digest_key -> Binary,
    }
}
