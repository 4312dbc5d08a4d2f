SET LOCAL lock_timeout = '100ms';

DROP POLICY own_types ON public.blackboard_events;
CREATE OR REPLACE FUNCTION sec.worker_functions() RETURNS regprocedure[] LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp AS $$
    SELECT ARRAY['sec.open_context(text[], text, text)', 'sec.current_user_ids()', 'sec.context()',
        'public.set_security_context(integer, text, text)', 'public.get_current_user_id()',
        'public.get_current_session_id()', 'public.get_current_service_name()', 'public.validate_security_context()',
        'sec.excess_privileges()', 'sec.end_old_transactions()', 'sec.trust_version()', 'sec.trust_state()',
        'sec.note_token_use(uuid[], timestamptz[])',
        'audit.record_refused_tokens(text[], text[], integer[], text[], uuid[])',
        'audit.check_security_violation(text, text, integer, text, uuid)',
        'audit.log_data_access(text, text, integer[], uuid[], bigint[])',
        'audit.log_vector_operation(text, text, integer[], uuid[], bigint[])']::regprocedure[]
$$;
DROP FUNCTION sec.own_event_types(), sec.note_unpublished(integer), sec.note_published(bigint[], uuid[]), sec.unpublished();
DROP TABLE sec.unpublished_transactions, sec.event_writers;
