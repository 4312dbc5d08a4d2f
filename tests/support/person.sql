-- A row in each table that has rows of users, of the user USER and with the text TEXT. The user is there.
INSERT INTO user_profiles (id, user_id, preferences) VALUES (md5('USER profile')::uuid, USER, '{"text": "TEXTprofile"}') ON CONFLICT DO NOTHING;
INSERT INTO system_settings (id, user_id, setting_key, setting_value) VALUES (md5('USER setting')::uuid, USER, 'filled', '"TEXTsetting"');
INSERT INTO registered_devices (id, user_id, device_name, device_type, security_level)
    VALUES (md5('USER device')::uuid, USER, 'TEXTdevice', 'phone', 'basic');
INSERT INTO user_two_factor_auth (id, user_id, method, secret_key) VALUES (md5('USER totp')::uuid, USER, 'totp', 'TEXTfactor');
INSERT INTO passkey_credentials (id, user_id, credential_id, public_key)
    VALUES (md5('USER passkey')::uuid, USER, 'TEXTcredential', 'TEXTkey');
INSERT INTO chat_mode_sessions (id, user_id, session_id, chat_mode) VALUES (md5('USER one')::uuid, USER, 'filled-one', 'simple'),
    (md5('USER other')::uuid, USER, 'filled-other', 'simple');
-- Two contexts: one with a ciphertext.
INSERT INTO simple_chat_context (id, user_id, session_id, context_key, context_value, is_sensitive)
    VALUES (md5('USER context')::uuid, USER, 'filled-one', 'TEXTcontext', '"TEXTvalue"', false),
    (md5('USER secret')::uuid, USER, 'filled-one', 'filled-secret', '"$encrypted"', true);
INSERT INTO encrypted_fields (id, user_id, table_name, column_name, row_id, ciphertext)
    VALUES (md5('USER ciphertext')::uuid, USER, 'simple_chat_context', 'context_value', md5('USER secret')::uuid, decode(repeat('ab', 100), 'hex'));
INSERT INTO agent_context_states (id, agent_id, user_id, session_id, memory_tier, context_key, context_value)
    VALUES (md5('USER state')::uuid, 'filled', USER, 'filled-one', 'private', 'TEXTstate', '"TEXTstate"');
INSERT INTO chat_session_summary (id, user_id, session_id, summary) VALUES (md5('USER summary')::uuid, USER, 'filled-one', 'TEXTsummary');
INSERT INTO chat_history (id, user_id, conversation_id, summary) VALUES (md5('USER history')::uuid, USER, 'filled', 'TEXThistory');
INSERT INTO chat_messages (id, user_id, history_id, role, content, timestamp)
    VALUES (md5('USER message')::uuid, USER, md5('USER history')::uuid, 'user', 'TEXTmessage', now());
INSERT INTO message_feedback (id, message_id, user_id, feedback_type, comment)
    VALUES (md5('USER feedback')::uuid, md5('USER message')::uuid, USER, 'report', 'TEXTfeedback');
INSERT INTO router_decision_log (id, user_id, session_id, user_request, routing_decision)
    VALUES (md5('USER decision')::uuid, USER, 'filled-one', 'TEXTdecision', '{"route": "TEXTroute"}');
INSERT INTO router_hourly_patterns (user_id, hour, chat_mode, route, decisions, successes, timed, times, time_ms_sum, tokens_sum, complexity_sum,
        confidence_sum)
    VALUES (USER, date_trunc('hour', now()) - interval '9 days', 'simple', 'TEXTroute', 1, 1, 0, '{}', 0, 0, 0, 0);
INSERT INTO session_clocks (user_id, session_id) VALUES (USER, 'filled-one');
INSERT INTO multi_agent_conversations (id, user_id, session_id, conversation_title)
    VALUES (md5('USER conversation')::uuid, USER, 'filled-one', 'TEXTconversation');
-- The tables of a consensus, which refer to each other in a circle.
INSERT INTO consensus_memory_nodes (id, user_id, node_type, node_key, title, content, valid_from, valid_to)
    VALUES (md5('USER node')::uuid, USER, 'filled', 'TEXTnode', 'TEXTtitle', '{"text": "TEXTnode"}', now(), NULL),
    (md5('USER earlier node')::uuid, USER, 'filled', 'TEXTnode', 'TEXTtitle', '{}', now(), now());
UPDATE consensus_memory_nodes SET superseded_by = md5('USER node')::uuid WHERE user_id = USER AND id = md5('USER earlier node')::uuid;
INSERT INTO consensus_tasks (id, user_id, session_id, pm_agent_id, question, task_kind, node_type, node_key, title, quorum, asked, state,
        closed_at, close_reason, node_id)
    VALUES (md5('USER task')::uuid, USER, 'filled-one', 'filled', 'TEXTquestion', 'filled', 'filled', 'TEXTnode', 'TEXTtask', 1, 1, 'closed', now(),
        'quorum', md5('USER node')::uuid);
INSERT INTO task_delegations (id, user_id, session_id, pm_agent_id, target_agent_id, task_description, task_id)
    VALUES (md5('USER delegation')::uuid, USER, 'filled-one', 'filled', 'other', 'TEXTdelegation', md5('USER task')::uuid);
INSERT INTO agent_responses (id, user_id, task_delegation_id, agent_id, response_text, task_id)
    VALUES (md5('USER response')::uuid, USER, md5('USER delegation')::uuid, 'other', 'TEXTresponse', md5('USER task')::uuid);
UPDATE consensus_memory_nodes SET task_id = md5('USER task')::uuid, response_id = md5('USER response')::uuid
    WHERE user_id = USER AND id = md5('USER node')::uuid;
INSERT INTO consensus_memory_relations (id, user_id, source_node_id, target_node_id, relation_type)
    VALUES (md5('USER relation')::uuid, USER, md5('USER node')::uuid, md5('USER earlier node')::uuid, 'TEXTrelation');
INSERT INTO consensus_dossiers (id, user_id, inputs, standing, dossier, rules_version, inputs_sha256)
    VALUES (md5('USER node')::uuid, USER, convert_to('TEXTinputs', 'UTF8'), '{"text": "TEXTstanding"}', convert_to('TEXTdossier', 'UTF8'), 1,
        repeat('0', 64));
INSERT INTO task_estimates (user_id, id) VALUES (USER, md5('USER task')::uuid);
INSERT INTO agent_records (id, user_id, agent_id, task_kind, right_micro, wrong_micro, confidence_micro)
    VALUES (md5('USER record')::uuid, USER, 'TEXTagent', 'filled', 0, 0, 0);
UPDATE chat_mode_sessions SET unified_memory_id = md5('USER node')::uuid WHERE user_id = USER AND session_id = 'filled-one';
INSERT INTO unified_memory_vectors (id, user_id, vector_type, content_text, embedding_model, session_id, memory_node_id)
    VALUES (md5('USER vector')::uuid, USER, 'knowledge', 'TEXTvector', 'filled', 'filled-one', md5('USER node')::uuid);
INSERT INTO cross_service_memory_sync (id, user_id, source_session_id, target_session_id, sync_type, data_transferred, sync_status, completed_at)
    VALUES (md5('USER sync')::uuid, USER, 'filled-one', 'filled-other', 'state_sync', '{}', 'completed', now());
INSERT INTO sync_changes (id, user_id, sync_id, source_session_id, target_session_id, context_key, effect)
    VALUES (md5('USER change')::uuid, USER, md5('USER sync')::uuid, 'filled-one', 'filled-other', 'TEXTchange', 'failed');
INSERT INTO session_knowledge (id, user_id, session_id, node_id, sync_id)
    VALUES (md5('USER knowledge')::uuid, USER, 'filled-other', md5('USER node')::uuid, md5('USER sync')::uuid);
INSERT INTO agent_configurations (id, user_id, agent_id, agent_type, agent_role, assigned_llm, model_provider)
    VALUES (md5('USER configuration')::uuid, USER, 'TEXTagent', 'filled', 'filled', 'filled', 'other');
INSERT INTO agent_profiles (id, user_id, agent_id, config_id, display_name, description)
    VALUES (md5('USER agent')::uuid, USER, 'TEXTagent', md5('USER configuration')::uuid, 'TEXTagent', 'TEXTagent');
INSERT INTO gpu_resources (id, gpu_name, total_memory_mb) VALUES (7, 'filled', 1) ON CONFLICT DO NOTHING;
INSERT INTO gpu_allocations (id, user_id, gpu_id, agent_config_id, allocated_memory_mb)
    VALUES (md5('USER allocation')::uuid, USER, 7, md5('USER configuration')::uuid, 1);
INSERT INTO data_retention_policies (id, user_id, table_name, keep_days, action, is_active)
    VALUES (md5('USER policy')::uuid, USER, 'simple_chat_context', 9, 'delete', false);
-- A hold that is in force would keep the erasure from beginning.
INSERT INTO retention_holds (id, user_id, reason, released_at) VALUES (md5('USER hold')::uuid, USER, 'TEXThold', now());
INSERT INTO archive_restores (id, user_id, archive_id, table_name, restored)
    VALUES (md5('USER restore')::uuid, USER, md5('USER archive')::uuid, 'simple_chat_context', 1);
INSERT INTO inbox (worker, user_id, message_id, event_id) VALUES ('filled', USER, md5('USER inbox')::uuid, md5('USER inbox event')::uuid);
INSERT INTO blackboard_events (id, event_type, performative, source_agent_id, user_id, session_id, event_payload, logical_timestamp)
    SELECT overlay(uuid7_at(now())::text PLACING substr(md5('USER event ' || n), 1, 12) FROM 25)::uuid, 'context.removed', 'inform', 'TEXTagent', USER, 'filled-one', '{"text": "TEXTevent"}', n
    FROM generate_series(1, 3) AS n;
INSERT INTO cross_service_auth (token_id, service, user_id, session_id, scopes, key_id, expires_at, grants_expire_at)
    VALUES (md5('USER token')::uuid, 'filled', USER, 'TEXTsession', '{context:put}', 'filled', now() + interval '1 hour', now() + interval '1 day');
INSERT INTO sec.token_uses (role_name, token_id, used_at) VALUES ('w_context_writer', md5('USER token')::uuid, now());
INSERT INTO sec.minted_job_grants (mint_id, job, tick, role_name, users, earlier, expires_at)
    VALUES (md5('USER mint')::uuid, 'filled', md5('USER tick')::uuid, 'w_retention_cleaner', ARRAY[USER, 2147483646], ARRAY[USER],
        now() + interval '5 minutes');
INSERT INTO privacy_requests (id, user_id, request_type, request_status, reason, completed_at)
    VALUES (md5('USER request')::uuid, USER, 'access', 'completed', 'TEXTreason', now());
