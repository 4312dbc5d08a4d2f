-- No role has the plans of functions printed that read keys (000065 of the main database).
SET LOCAL lock_timeout = '100ms';

-- What a function does with the rights of its owner is printed nowhere: neither its plans, whose constants may be keys, tokens and ids of
-- others, nor what else the server would log to its client. Each role may change these settings for itself; those of a function hold
-- while it runs. For migrations, after the last function that they make or replace.
CREATE FUNCTION sec.hide_plans() RETURNS void LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    shown regprocedure;
BEGIN
    FOR shown IN SELECT p.oid FROM pg_proc p WHERE p.pronamespace IN ('public'::regnamespace, 'sec'::regnamespace)
        AND (p.prosecdef OR p.oid = 'sec.add_key(text, text, bytea)'::regprocedure)
        AND (p.proconfig @> ARRAY['debug_print_parse=off', 'debug_print_rewritten=off', 'debug_print_plan=off',
            'client_min_messages=warning', 'standard_conforming_strings=on']) IS NOT TRUE LOOP
        EXECUTE format('ALTER FUNCTION %s SET debug_print_parse = off SET debug_print_rewritten = off SET debug_print_plan = off
            SET client_min_messages = warning SET standard_conforming_strings = on', shown);
    END LOOP;
END $$;
REVOKE EXECUTE ON FUNCTION sec.hide_plans FROM PUBLIC;

SELECT sec.hide_plans();
