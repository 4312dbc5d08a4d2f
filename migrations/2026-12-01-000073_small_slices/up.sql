-- Where the sweep has shrunk its slice, a run that found nobody's rows due in it moved on by that slice and left the rest to the
-- schedule's next tick, however much was due right behind it.
SET LOCAL lock_timeout = '100ms';

-- As before for a slice of 20 users or more. A smaller one is followed by larger ones until rows are due: users without any cost little.
CREATE OR REPLACE FUNCTION sec.next_slice(OUT after_user integer, OUT last_user integer, OUT is_next_pass boolean, OUT due integer[])
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    size integer;
    slice integer[];
BEGIN
    SELECT s.after_user, s.slice_users, false INTO after_user, size, is_next_pass FROM public.retention_state s;
    FOR looked_at IN 1 .. 5 LOOP
        slice := ARRAY(SELECT u.id FROM public.users u WHERE u.id > next_slice.after_user ORDER BY u.id LIMIT size);
        last_user := slice[cardinality(slice)];
        due := ARRAY(SELECT d FROM sec.due_users(slice) AS d);
        EXIT WHEN due <> '{}' OR looked_at = 5 OR last_user IS NULL AND is_next_pass;
        is_next_pass := is_next_pass OR last_user IS NULL;
        after_user := coalesce(last_user, -1);
        size := CASE WHEN size < 20 THEN size * 4 ELSE 200 END;
    END LOOP;
END $$;

SELECT sec.hide_plans();
