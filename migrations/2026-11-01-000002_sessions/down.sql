SET LOCAL lock_timeout = '100ms';

DROP TABLE chat_session_summary, agent_context_states, simple_chat_context, chat_mode_sessions;
DROP TYPE memorytier, access_level, context_type, chat_mode;
