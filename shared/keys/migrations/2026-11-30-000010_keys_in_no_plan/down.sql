SET LOCAL lock_timeout = '100ms';

DO $$
DECLARE
    hidden regprocedure;
BEGIN
    FOR hidden IN SELECT p.oid FROM pg_proc p WHERE p.pronamespace IN ('public'::regnamespace, 'sec'::regnamespace) AND 'debug_print_plan=off' = ANY (p.proconfig) LOOP
        EXECUTE format('ALTER FUNCTION %s RESET debug_print_parse RESET debug_print_rewritten RESET debug_print_plan
            RESET client_min_messages RESET standard_conforming_strings', hidden);
    END LOOP;
END $$;
DROP FUNCTION sec.hide_plans();
